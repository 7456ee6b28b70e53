"""Models that travel as one file: packed, added from a path or an address, and refused where anything is odd."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing
from SPDSegmentLib.files import write_bytes
from SPDSegmentLib.models import packed
from SPDSegmentLib.models.bundle import find_bundle, read_bundle


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPDSEGMENT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A shipped model under another name, packed."""
    import dataclasses
    import shutil

    from SPDSegmentLib.files import write_json

    shipped, own = find_bundle("kidney-mr"), tmp_path / "own"
    shutil.copytree(shipped.folder, own)
    info = dataclasses.replace(shipped.info, name="kidney-own")
    write_json(own / "model.json", info.to_dict())
    packed.pack_bundle(read_bundle(own), tmp_path / "kidney-own.zip")
    return tmp_path / "kidney-own.zip"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app_module.build_app(), ["models", *map(str, arguments)])


def changed(file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members."""
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def test_a_packed_model_is_added_and_is_the_same(file: Path, home: Path, tmp_path: Path) -> None:
    result = run("add", file, "--accept-unknown")
    assert result.exit_code == 0, result.output
    added, before = find_bundle("kidney-own"), read_bundle(tmp_path / "own")
    assert added.folder.parent == home / "models" or home in added.folder.parents
    assert added.info.adapter_sha256 == before.info.adapter_sha256 and added.card == before.card
    again = tmp_path / "again.zip"
    assert run("pack", "kidney-own", "--output", again).exit_code == 0
    with zipfile.ZipFile(again) as archive:
        assert archive.read("kidney-own/adapter.safetensors") == (tmp_path / "own" / "adapter.safetensors").read_bytes()
        assert b"library_name: spdsegment" in archive.read("kidney-own/README.md")


def test_the_name_of_another_archive_makes_no_folder_of_that_name(file: Path, tmp_path: Path) -> None:
    refused = run("pack", tmp_path / "own", "--output", tmp_path / "own.tar.gz")
    assert refused.exit_code == 2 and "is named as another archive. Name it NAME.zip." in refused.stderr
    assert not (tmp_path / "own.tar.gz").exists()


def test_the_same_model_always_gives_the_same_file(file: Path, tmp_path: Path) -> None:
    packed.pack_bundle(read_bundle(tmp_path / "own"), tmp_path / "second.zip")
    assert file.read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_a_folder_for_a_model_hub_has_card_front_matter_and_is_a_bundle(file: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    assert run("pack", tmp_path / "own", "--output", hub).exit_code == 0
    assert {p.name for p in hub.iterdir()} == {"README.md", "model.json", "adapter.safetensors", "SHA256SUMS"}
    head = (hub / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert 'license_name: "CC BY-SA 4.0"' in head and "- kidney" in head and "base_model: lite_medsam" in head
    assert read_bundle(hub).info.name == "kidney-own"
    for line in (hub / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((hub / name).read_bytes()).hexdigest() == digest
    refused = run("pack", tmp_path / "own", "--output", hub)
    assert refused.exit_code == 2 and "not empty" in refused.stderr


def test_a_folder_for_a_model_hub_is_written_whole_or_stays_empty_for_the_next_try(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, written = tmp_path / "new" / "hub", []

    def fill_up(path: Path, content: bytes, what: str) -> None:
        written.append(path)
        if len(written) == 3:
            raise BadInput(f"The {what} {path} cannot be written: the disk is full.", "Free some space and try again.")
        write_bytes(path, content, what)

    monkeypatch.setattr(packed, "write_bytes", fill_up)
    full = run("pack", tmp_path / "own", "--output", hub)
    assert full.exit_code == 2 and f"The model {hub}{os.sep}README.md cannot" in " ".join(full.stderr.split())
    assert not list(hub.iterdir())
    assert run("pack", tmp_path / "own", "--output", hub).exit_code == 0 and len(list(hub.iterdir())) == 4
    refused = run("pack", tmp_path / "own", "--output", file / "hub")
    assert refused.exit_code == 2 and "Give the name of a folder" in " ".join(refused.stderr.split())


def without_info(members: dict[str, bytes]) -> None:
    del members["kidney-own/model.json"]


def damage(members: dict[str, bytes]) -> None:
    members["kidney-own/adapter.safetensors"] = members["kidney-own/adapter.safetensors"][:-1] + b"x"


def climb(members: dict[str, bytes]) -> None:
    members["../model.json"] = b"{}"


def climb_deeper(members: dict[str, bytes]) -> None:
    members["kidney-own/../../evil.txt"] = b"x"


def add_program(members: dict[str, bytes]) -> None:
    members["kidney-own/setup.py"] = b"x"


def second_folder(members: dict[str, bytes]) -> None:
    members["other/README.md"] = members.pop("kidney-own/README.md")


def bomb(members: dict[str, bytes]) -> None:
    members["kidney-own/SHA256SUMS"] = b"0" * (1 << 20)


@pytest.mark.parametrize("change", [without_info, damage, climb, climb_deeper, add_program, second_folder, bomb])
def test_an_archive_that_is_not_what_was_packed_is_refused_and_leaves_nothing(
    file: Path, home: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    before = {p for p in tmp_path.rglob("*") if home not in p.parents and p != home}
    with pytest.raises(ModelCorrupt):
        packed.add_packed(changed(file, change), accept_unknown=True)
    assert {p for p in tmp_path.rglob("*") if home not in p.parents and p != home} == before
    assert not [p for p in home.rglob("*") if p.is_file() and p.name in (*packed.LARGEST_BYTES, "evil.txt")]


def test_a_file_that_was_cut_short_or_is_another_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="checksum that was given"):
        packed.add_packed(file, True, "0" * 64)
    file.write_bytes(file.read_bytes()[:-100])
    result = run("add", file)
    assert result.exit_code == 2 and "damaged, or no zip file" in result.stderr


def test_an_address_is_https_or_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelMissing, match="not a secure address"):
        packed.add_packed("http://example.org/kidney-own.zip")
    asked = []

    def download(url: str, target: Path, size: int | None, progress: object = None) -> None:
        asked.append(url)
        target.write_bytes(file.read_bytes())

    monkeypatch.setattr(packed, "download_url", download)
    assert run("add", "https://example.org/kidney-own.zip", "--accept-unknown").exit_code == 0
    assert asked == ["https://example.org/kidney-own.zip"] and find_bundle("kidney-own").info.name == "kidney-own"
