"""Files are whole or not there: rights, links, leftovers, and disks that fail."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SPDSegmentLib import files, staging
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import (
    check_folder,
    check_output,
    plain_path,
    user_path,
    write_csv,
    write_json,
    write_png,
    write_text,
    write_whole,
)
from SPDSegmentLib.staging import replace_folder, staging_folder, sweep

posix = pytest.mark.skipif(os.name != "posix", reason="rights and limits of POSIX")


@pytest.fixture(autouse=True)
def _unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_swept", {})


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@posix
def test_a_replaced_file_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("older")
    for mode in (0o600, 0o640, 0o664):
        path.chmod(mode)
        write_json(path, {"mode": mode})
        assert path.stat().st_mode & 0o7777 == mode
    assert json.loads(path.read_text(encoding="utf-8")) == {"mode": 0o664}


@posix
def test_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.txt", []
    path.write_text("older")
    path.chmod(0o600)
    write_whole(path, lambda part: seen.append(part.stat().st_mode & 0o077))
    assert seen == [0]


@posix
@pytest.mark.parametrize(
    ("former", "taken"), [(None, True), (0o644, True), (0o666, True), (0o600, True), (0o640, False)]
)
def test_a_disk_that_refuses_rights_takes_a_file_unless_more_people_could_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: int | None, taken: bool
) -> None:
    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    path, before = tmp_path / "a.json", os.umask(0o022)
    try:
        if former is not None:
            path.touch()
            path.chmod(former)
        monkeypatch.setattr(os, "chmod", refuse)
        monkeypatch.setattr(os, "chown", refuse)
        with contextlib.nullcontext() if taken else pytest.raises(BadInput, match="there is no permission"):
            write_json(path, 1)
    finally:
        os.umask(before)
    assert path.read_text() == ("1\n" if taken else "")


@posix
def test_a_new_file_has_the_rights_that_any_program_gives_it(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()

    def write(part: Path) -> None:  # as libraries do that rename a private file of their own
        part.unlink()
        part.touch(0o600)

    write_whole(tmp_path / "new", write)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real.txt").write_text("older")
    link, dangling = tmp_path / "link.txt", tmp_path / "dangling.txt"
    link.symlink_to(Path("data") / "real.txt")
    dangling.symlink_to(tmp_path / "data" / "coming.txt")
    for path in (link, dangling):
        write_text(path, "newer")
        assert path.is_symlink() and path.read_text(encoding="utf-8") == "newer"
    assert names_in(tmp_path / "data") == ["coming.txt", "real.txt"]


@posix
@pytest.mark.parametrize("through_link", [False, True])
def test_a_read_only_file_is_refused_and_stays(tmp_path: Path, through_link: bool) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("older")
    kept.chmod(0o444)
    path = tmp_path / "link.json" if through_link else kept
    if through_link:
        path.symlink_to(kept)
    for attempt in (check_output, lambda p: write_json(p, 1)):
        with pytest.raises(BadInput, match="read-only"):
            attempt(path)
    assert kept.read_text(encoding="utf-8") == "older" and kept.stat().st_mode & 0o777 == 0o444


def test_names_without_a_place_are_refused_with_a_sentence(tmp_path: Path) -> None:
    circle = tmp_path / "circle.json"
    circle.symlink_to(circle)
    given = {
        tmp_path / ("n" * 300 + ".json"): "name is too long",
        tmp_path / ("腎" * 84 + ".json"): "name is too long",
        tmp_path / "missing" / "a.json": "missing does not exist",
        tmp_path: "is a folder",
        circle: "circle",
    }
    for path, said in given.items():
        for attempt in (check_output, lambda p: write_json(p, 1)):
            with pytest.raises(BadInput, match=said):
                attempt(path)
    assert names_in(tmp_path) == ["circle.json"]


@pytest.mark.parametrize("name", ["腎臓" * 41 + ".nii.gz", "x" * 250 + ".json", "~mask.json", "a.b.c", "ü"])
def test_every_name_that_the_disk_takes_is_written(tmp_path: Path, name: str) -> None:
    check_output(tmp_path / name)
    write_text(tmp_path / name, "whole")
    assert names_in(tmp_path) == [name]


@posix
def test_a_limit_on_file_sizes_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"older")
    code = """
        import resource, sys
        from SPDSegmentLib import files
        from SPDSegmentLib.errors import BadInput
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        def lie(part):  # as a library that does not look at what its last write returns
            try:
                part.write_bytes(bytes(200_000))
            except OSError:
                pass
        for write in (lambda: files.write_bytes(sys.argv[1], bytes(200_000)),
                      lambda: files.write_whole(sys.argv[1], lie, lambda part: part.stat().st_size == 200_000),
                      lambda: files.check_output(sys.argv[1], needed_bytes=200_000)):
            try:
                write()
            except BadInput as error:
                print(error)
    """
    said = python(code, path).stdout.splitlines()
    assert len(said) == 3
    assert all("limit" in line and str(path) in line and "ulimit -f" in line for line in said)
    assert path.read_bytes() == b"older" and names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "disk failed"), (errno.EROFS, "read-only")],
)
def test_a_last_block_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text("older")

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput, match=said) as caught:
        write_json(path, list(range(1000)))
    assert str(path) in caught.value.message and caught.value.exit_code == 2
    assert path.read_text(encoding="utf-8") == "older" and names_in(tmp_path) == ["a.json"]


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: self.open("wb").write(content[:-1]))
    cut = {write_text: "some text", write_json: {"a": 1}, write_csv: [["a"], ["b"]]}
    for write, content in cut.items():
        with pytest.raises(BadInput, match="not whole"):
            write(path, content)  # type: ignore[operator]
    with pytest.raises(BadInput, match="not whole"):
        write_png(path, lambda part: part.open("wb").write(b"\x89PNG without an end"))
    assert path.read_bytes() == b"older" and names_in(tmp_path) == ["a.png"]


def test_a_mask_is_compared_voxel_by_voxel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sitk = pytest.importorskip("SimpleITK")
    from SPDSegmentLib.geometry.labelmap import write_labelmap
    from SPDSegmentLib.geometry.volume import Volume

    volume, labels = Volume(np.zeros((3, 4, 5)), np.eye(4)), np.ones((3, 4, 5), dtype=np.uint8)
    real = sitk.WriteImage

    def lose_one(image: Any, name: str, **options: Any) -> None:
        changed = sitk.Image(image)
        changed[1, 1, 1] = 0
        real(changed, name, **options)

    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"):
        path = tmp_path / f"mask{suffix}"
        path.write_bytes(b"older")
        monkeypatch.setattr(sitk, "WriteImage", lose_one)
        with pytest.raises(BadInput, match="not whole"):
            write_labelmap(path, labels, volume)
        assert path.read_bytes() == b"older"
        monkeypatch.setattr(sitk, "WriteImage", real)
        write_labelmap(path, labels, volume)
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).sum() == 60


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(part: Path) -> None:
        part.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", interrupt)
    assert names_in(tmp_path) == []


def test_json_is_strict_and_well_formed(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"q": float("nan"), "v": [float("inf"), 1.5], "n": "dossi\udce9r", "l": "\ud83d"})
    text = (tmp_path / "a.json").read_bytes().decode()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "q": None, "v": [None, 1.5], "n": "dossi\\xe9r", "l": "\ufffd",
    }  # fmt: skip


@posix
def test_leftovers_of_killed_runs_are_swept_and_nothing_else(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from SPDSegmentLib import files, staging
        place = Path(sys.argv[1])
        with staging.staging_folder(place) as folder:
            (folder / "half").touch()
            files.write_whole(place / "mask.nii.gz", lambda part: os.kill(os.getpid(), 9))
    """
    assert python(code, tmp_path).returncode == -9
    assert len(names_in(tmp_path)) == 2
    others = [".spd-part-notes.txt", ".spd-part-0123abcd-1-abcdef.txt", ".hidden", ".partial-7-mask.nii.gz"]
    for name in others:
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "whole")
    assert names_in(tmp_path) == sorted([*others, "a.txt"])


@posix
def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as mine:
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        theirs = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{other.pid}-")
        theirs.touch()
        sweep(tmp_path)
        assert names_in(tmp_path) == sorted([mine.name, theirs.name])
        other.communicate(b"\n")
        staging._swept.clear()
        sweep(tmp_path)
        assert names_in(tmp_path) == [mine.name]


def test_leftovers_of_another_machine_go_after_a_day(tmp_path: Path) -> None:
    young, old = tmp_path / ".spd-part-0123abcd-1-aaaaaa.json", tmp_path / ".spd-part-0123abcd-1-bbbbbb.json"
    young.touch()
    old.touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    sweep(tmp_path)
    assert names_in(tmp_path) == [young.name]


@posix
def test_a_folder_that_stepped_aside_for_a_killed_run_comes_back(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from SPDSegmentLib import staging
        place, real = Path(sys.argv[1]), os.replace
        new = place / "new"
        new.mkdir()
        def replace(source, target):
            if Path(source) == new:
                os.kill(os.getpid(), 9)
            real(source, target)
        os.replace = replace
        staging.replace_folder(new, place / "model")
    """
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    assert python(code, tmp_path).returncode == -9
    assert not (tmp_path / "model").exists()
    sweep(tmp_path)
    assert names_in(tmp_path) == ["model", "new"] and names_in(tmp_path / "model") == ["model.json"]


def test_a_folder_comes_back_when_its_successor_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, folder, real = tmp_path / "new", tmp_path / "model", os.replace
    new.mkdir()
    folder.mkdir()

    def fail(source: Path, target: Path) -> None:
        if Path(source) == new:
            raise OSError(errno.EIO, "failed")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="failed"):
        replace_folder(new, folder)
    assert names_in(tmp_path) == ["model", "new"]


def test_a_folder_that_cannot_be_made_is_refused_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    given = {
        tmp_path / "a file": "is a file",
        tmp_path / "a file" / "below": "lies in one",
        tmp_path / "new" / ("n" * 300) / "below": "name is too long",
    }
    for folder, said in given.items():
        with pytest.raises(BadInput, match=said):
            check_folder(folder, "output folder")
    check_folder(tmp_path / "new" / "below")
    assert names_in(tmp_path) == ["a file"]


def test_a_folder_on_a_drive_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(BadInput, match="cannot be reached"):
        check_folder("/unmapped/models", "output folder")


def test_too_little_space_is_said_with_figures(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"needs about 1000000.00 GB, and the disk has .* free"):
        check_output(tmp_path / "a.nrrd", "mask", 10**15)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are no UTF-8")
def test_libraries_get_plain_names_and_messages_keep_the_true_ones(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/dossi\xe9r"))
    folder.mkdir()
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/im\xe9g.dcm"))
    odd.write_text("pixels", encoding="utf-8")
    for given in (odd, folder):
        with plain_path(given) as plain:
            str(plain).encode()
            assert plain.read_text(encoding="utf-8") == "pixels" if given == odd else plain.is_dir()
    with pytest.raises(BadInput) as caught, plain_path(odd) as plain:
        raise BadInput(f"The file {plain} is damaged.")
    assert caught.value.message.endswith("dossi\\xe9r/im\\xe9g.dcm is damaged.")
    assert odd.read_text(encoding="utf-8") == "pixels"


def test_a_tilde_is_the_home_folder_unless_something_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "~").mkdir()
    assert user_path("~/a") == tmp_path / "home" / "a"
    assert user_path("~") == Path("~")
    assert user_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    assert files.megabytes(1) == "0.0 kB"
