"""Exported files are whole or not there, and nothing is replaced unasked."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import export_helpers
import numpy as np
import pytest
from export_helpers import EXPORT_FORMATS, block, export
from gui_helpers import settle_export

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.geometry.labelmap import read_labelmap

pytest_plugins = ["Testing.Host.pytest_plugin"]

scene = export_helpers.scene


@pytest.mark.parametrize("key", EXPORT_FORMATS)
def test_a_file_that_exists_is_replaced_only_when_allowed(scene: Any, tmp_path: Path, key: str) -> None:
    path = export(scene, key, tmp_path / "kidney")
    path.write_text("mine")
    with pytest.raises(Cancelled):
        export(scene, key, path, confirm=lambda asked: False)
    assert path.read_text(encoding="utf-8") == "mine"
    export(scene, key, path, confirm=lambda asked: asked == path)
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize("key", EXPORT_FORMATS)
def test_a_failed_export_is_one_sentence_and_leaves_nothing(
    scene: Any, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="does not exist"):
        export(scene, key, tmp_path / "nowhere" / "kidney")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="cannot be written"):
        export(scene, key, tmp_path / "kidney")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_read_only_file_is_refused_before_anything_is_asked(scene: Any, tmp_path: Path) -> None:
    for key in EXPORT_FORMATS:
        path = export(scene, key, tmp_path / "kidney")
        path.write_text("mine")
        path.chmod(0o444)
        with pytest.raises(BadInput, match="read-only"):
            export(scene, key, path)
        assert path.read_text(encoding="utf-8") == "mine" and path.stat().st_mode & 0o777 == 0o444
    assert len(list(tmp_path.iterdir())) == len(EXPORT_FORMATS)


def test_a_disk_that_is_full_leaves_the_old_file(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = {key: export(scene, key, tmp_path / "kidney") for key in EXPORT_FORMATS}
    old = {path: path.read_bytes() for path in paths.values()}
    monkeypatch.setattr(os, "fsync", full)
    for key, path in paths.items():
        with pytest.raises(BadInput, match="disk is full") as caught:
            export(scene, key, path, confirm=lambda asked: True)
        assert str(path) in caught.value.message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("key", ["stl", "obj"])
def test_a_limit_on_file_sizes_is_said_of_a_surface(scene: Any, tmp_path: Path, key: str) -> None:
    import resource

    path = export(scene, key, tmp_path / "kidney")
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(BadInput, match="limit on file sizes"):
            export(scene, key, path, confirm=lambda asked: True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("key", ["stl", "obj"])
def test_a_surface_that_lacks_its_end_replaces_nothing(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from SPDSegmentLib.gui.scene import surfaces as surface

    def lie(written: Any, part: Path, writer: Any) -> None:
        write(written, part, writer)
        part.write_bytes(part.read_bytes()[:-200])

    write, path = surface._write, export(scene, key, tmp_path / "kidney")
    old = path.read_bytes()
    monkeypatch.setattr(surface, "_write", lie)
    with pytest.raises(BadInput, match="not whole"):
        export(scene, key, path, confirm=lambda asked: True)
    assert path.read_bytes() == old


def test_links_stay_links_and_odd_names_are_taken_as_they_are(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for key in EXPORT_FORMATS:
        path = export(scene, key, Path("data") / "kidney")
        path.write_text("older")
        link = Path(path.name)
        link.symlink_to(path)
        export(scene, key, link, confirm=lambda asked: True)
        assert link.is_symlink() and path.read_bytes() != b"older"
    assert export(scene, "nifti", "~nobody-of-that-name.hdr").name == "~nobody-of-that-name.hdr.nii.gz"
    assert (tmp_path / "~nobody-of-that-name.hdr.nii.gz").is_file()
    with pytest.raises(BadInput, match="name is too long"):
        export(scene, "csv", "n" * 300)


def test_what_changed_while_the_file_was_chosen_is_in_the_file(host: Any, scene: Any, tmp_path: Path) -> None:
    import slicer

    state = scene.widget.panel.state
    more = block()
    more[9] = more[8]

    def choose(format_: Any, name: str) -> str:
        node, volume = state.segmentationNode, state.volumeNode
        slicer.util.updateSegmentBinaryLabelmapFromArray(more, node, state.segmentId, volume)
        return str(tmp_path / "kidney.nii.gz")

    scene.widget.panel.export.askPath = choose
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert np.array_equal(read_labelmap(tmp_path / "kidney.nii.gz").array, more)


def test_a_failure_beside_the_window_is_said_as_well(
    host: Any, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    host.dialogs.choose_file(str(tmp_path / "kidney"))
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert f"{tmp_path / 'kidney.nii.gz'} cannot be written" in scene.ui.exportLabel.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["scene", "module", "segmentation"])
def test_a_file_becomes_whole_whatever_is_closed_meanwhile(
    host: Any, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    import threading

    import slicer

    from SPDSegmentLib.gui.scene import export_files

    begun, go_on = threading.Event(), threading.Event()

    def slowly(source: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return mask_on_volume(source)

    mask_on_volume = export_files.maskOnVolume
    monkeypatch.setattr(export_files, "maskOnVolume", slowly)
    host.dialogs.choose_file(str(tmp_path / "kidney.nii.gz"))
    scene.ui.exportButton.click()
    assert begun.wait(20)
    threading.Timer(0.2, go_on.set).start()
    if what == "scene":
        slicer.mrmlScene.Clear(0)
    elif what == "module":
        scene.widget.cleanup()
    else:
        slicer.mrmlScene.RemoveNode(scene.widget.panel.state.segmentationNode)
    host.wait_until(lambda: [path.name for path in tmp_path.iterdir()] == ["kidney.nii.gz"])
    assert np.array_equal(read_labelmap(tmp_path / "kidney.nii.gz").array, block())


def test_nobody_is_asked_twice_about_a_file_that_exists(host: Any, scene: Any, tmp_path: Path) -> None:
    # given: the window, which asked already, returns the path with separators of its own, as on Windows
    (tmp_path / "kidney.nii.gz").write_text("old")
    host.dialogs.choose_file(f"{tmp_path}//kidney.nii.gz", f"{tmp_path}//KIDNEY.NII.GZ", f"{tmp_path}/kidney")
    for _ in range(2):
        scene.ui.exportButton.click()
        settle_export(host, scene)
        assert not host.dialogs.texts("confirm")
        assert "Written" in scene.ui.exportLabel.text

    # when: the suffix was added later, so that the window asked about another name
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert len(host.dialogs.texts("confirm")) == 1
