"""The commands that messages give: each is taken out of its message, run, and has mended what the message was about."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from models_helpers import CONTENT, sha256, tiny_info, url_weights, use_manifest
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.errors import ModelCorrupt, ModelMissing, SPDError, missing_package
from SPDSegmentLib.models.base_weights import add_file, fetch_base_weights, find_base_weights
from SPDSegmentLib.models.bundle import Bundle, base_weights_for

COMMAND = re.compile(r"spdsegment ((?:models|--debug) .*?)(?=, then: |; |$)")


def follow(remedy: str, file: Path | None = None) -> None:
    """Run every command of a remedy; ``FILE`` stands for ``file``."""
    commands = COMMAND.findall(remedy)
    assert commands, remedy
    for command in commands:
        words = [str(file) if word == "FILE" else word for word in shlex.split(command)]
        result = CliRunner().invoke(build_app(), words)
        assert result.exit_code == 0, result.output


def failure(name: str = "stub") -> SPDError:
    with pytest.raises((ModelMissing, ModelCorrupt)) as caught:
        find_base_weights(name)
    return caught.value


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the publisher gives."""
    path = tmp_path / "published file.pth"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["sha256", "md5"])
def weights(request: pytest.FixtureRequest, source: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights lie, of a publisher who gives a SHA-256 or an MD5 only."""
    import hashlib

    digests = {"sha256": sha256(CONTENT), "md5": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}
    only: dict[str, Any] = {"sha256": None, "md5": None} | {request.param: digests[request.param]}
    use_manifest(monkeypatch, url_weights(source, **only))
    return spd_home / "weights" / "stub.pth"


def test_missing_weights_come_by_the_command_that_is_named(weights: Path) -> None:
    follow(failure().remedy)
    assert find_base_weights("stub") == weights


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_damaged_weights_are_replaced_by_the_commands_that_are_named(weights: Path, content: bytes) -> None:
    fetch_base_weights("stub", accept_unknown=True)
    weights.write_bytes(content)
    follow(failure().remedy)
    assert find_base_weights("stub").read_bytes() == CONTENT


def test_weights_that_were_put_there_by_hand_are_accepted_or_replaced(weights: Path) -> None:
    weights.parent.mkdir(parents=True)
    weights.write_bytes(CONTENT)
    if "checksum" in str(getattr(_try(), "message", "")):
        follow(failure().remedy)
    assert find_base_weights("stub") == weights


def _try() -> SPDError | None:
    try:
        find_base_weights("stub")
    except SPDError as error:
        return error
    return None


def test_a_file_that_nobody_vouches_for_is_added_by_the_command_that_is_named(weights: Path, tmp_path: Path) -> None:
    own = tmp_path / "my own file.pth"
    own.write_bytes(b"another training")
    with pytest.raises(ModelCorrupt) as caught:
        add_file("stub", own)
    follow(caught.value.remedy)
    assert find_base_weights("stub").read_bytes() == b"another training"


def test_without_a_network_a_copy_is_added_by_the_command_that_is_named(
    source: Path, tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_manifest(monkeypatch, url_weights(tmp_path / "gone"))
    with pytest.raises(ModelMissing) as caught:
        fetch_base_weights("stub")
    follow(caught.value.remedy, source)
    assert find_base_weights("stub").read_bytes() == CONTENT


def test_a_model_on_other_weights_gets_them_by_the_command_that_is_named(
    source: Path, tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_manifest(monkeypatch, url_weights(source))
    fetch_base_weights("stub")
    own = tmp_path / "own.pth"
    own.write_bytes(b"another training")
    info = tiny_info(backbone="stub", backbone_sha256=sha256(b"another training"))
    bundle = Bundle(info, tmp_path, tmp_path / "adapter.safetensors")
    with pytest.raises(ModelCorrupt) as caught:
        base_weights_for(bundle)
    follow(caught.value.remedy, own)
    assert base_weights_for(bundle) == find_base_weights("stub")


@pytest.mark.parametrize("name", ["torch", "peft", "skimage", "dask", "highdicom", "accelerate"])
def test_missing_packages_are_named_as_an_index_knows_them(name: str) -> None:
    words = shlex.split(missing_package(name, "gone").remedy.removeprefix("Run: "))
    assert words[1:4] == ["-m", "pip", "install"] and Path(words[0]).is_file()
    assert not any(word.startswith("spdsegment") for word in words)
    if name == "torch":
        assert words[4:] == ["torch>=2.6", "segment-anything>=1.0", "peft>=0.11"]
