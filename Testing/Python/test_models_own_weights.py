"""Base weights that the user vouches for: without a published SHA-256, or files of the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from models_helpers import CONTENT, leftovers, sha256, url_weights, use_manifest

from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing
from SPDSegmentLib.models import base_weights
from SPDSegmentLib.models.base_weights import (
    add_file,
    fetch_base_weights,
    find_base_weights,
    quick_state,
    remove_base_weights,
    verify_base_weights,
    weights_status,
)
from SPDSegmentLib.models.storage import ChecksumMemory


def test_weights_with_an_md5_only_need_the_users_word(
    publisher: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path
) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    use_manifest(monkeypatch, url_weights(publisher, sha256=None, size=None, md5=md5))
    with pytest.raises(ModelMissing, match="--accept-unknown"):
        fetch_base_weights("stub")

    path = fetch_base_weights("stub", accept_unknown=True)

    assert weights_status("stub").sha256 == sha256(CONTENT)
    assert weights_status("stub").accepted_by_user
    path.write_bytes(b"another")
    with pytest.raises(ModelCorrupt):
        find_base_weights("stub")


def test_an_md5_that_differs_is_refused(publisher: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path) -> None:
    use_manifest(monkeypatch, url_weights(publisher, sha256=None, size=None, md5="0" * 32))
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        fetch_base_weights("stub", accept_unknown=True)
    assert leftovers(spd_home) == []


def test_a_file_of_the_users_own_with_the_manifests_checksum_is_accepted(publisher: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.pth"
    own.write_bytes(CONTENT)
    path = add_file("stub", own)
    assert find_base_weights("stub") == path
    assert own.exists()
    assert not weights_status("stub").accepted_by_user


def test_an_unknown_file_needs_a_flag_and_is_then_held_to_its_checksum(
    publisher: Path, tmp_path: Path, spd_home: Path
) -> None:
    own = tmp_path / "mine.pth"
    own.write_bytes(b"my own weights")
    with pytest.raises(ModelCorrupt, match="--accept-unknown"):
        add_file("stub", own)
    assert leftovers(spd_home) == []

    path = add_file("stub", own, accept_unknown=True)

    assert find_base_weights("stub").read_bytes() == b"my own weights"
    path.write_bytes(b"MY OWN WEIGHTS")
    with pytest.raises(ModelCorrupt):
        verify_base_weights("stub")


def test_an_unknown_file_is_accepted_when_its_checksum_is_known(
    publisher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_manifest(monkeypatch, url_weights(publisher, sha256=None, size=None, md5="0" * 32))
    own = tmp_path / "mine.pth"
    own.write_bytes(b"my own weights")
    with pytest.raises(ModelCorrupt, match="is not known for stub"):
        add_file("stub", own)
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        add_file("stub", own, sha256="0" * 64)
    assert add_file("stub", own, known_sha256=[sha256(b"my own weights")]).is_file()
    assert remove_base_weights("stub")
    assert add_file("stub", own, sha256=sha256(b"my own weights").upper()).is_file()


def test_fetching_does_not_replace_a_file_of_the_users_own(publisher: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.pth"
    own.write_bytes(b"my own weights")
    path = add_file("stub", own, accept_unknown=True)
    assert fetch_base_weights("stub") == path
    path.write_bytes(b"damaged")
    with pytest.raises(ModelCorrupt):
        fetch_base_weights("stub")


def test_an_end_before_the_users_own_file_is_there_leaves_the_published_one_sound(
    publisher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_base_weights("stub")
    own = tmp_path / "mine.pth"
    own.write_bytes(b"my own weights")
    with monkeypatch.context() as patched:
        patched.setattr(base_weights, "write_whole", _killed)
        with pytest.raises(KeyboardInterrupt):
            add_file("stub", own, accept_unknown=True)
    assert find_base_weights("stub") == path and quick_state("stub") == "ready"
    assert not weights_status("stub").accepted_by_user

    add_file("stub", own, accept_unknown=True)
    assert weights_status("stub").accepted_by_user
    with monkeypatch.context() as patched:
        patched.setattr(base_weights, "write_whole", _killed)
        with pytest.raises(KeyboardInterrupt):
            add_file("stub", _published(tmp_path))
    assert find_base_weights("stub").read_bytes() == b"my own weights"


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _published(folder: Path) -> Path:
    (folder / "published.pth").write_bytes(CONTENT)
    return folder / "published.pth"


def test_a_file_that_is_not_there_is_bad_input(publisher: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no file"):
        add_file("stub", tmp_path / "nowhere.pth")


def test_a_file_put_there_by_hand_without_known_checksum_is_refused(
    publisher: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path
) -> None:
    use_manifest(monkeypatch, url_weights(publisher, sha256=None, size=None, md5="0" * 32))
    (spd_home / "weights").mkdir(parents=True)
    (spd_home / "weights" / "stub.pth").write_bytes(b"?")
    with pytest.raises(ModelCorrupt, match="put there by hand"):
        find_base_weights("stub")


def test_a_file_that_is_replaced_while_it_is_checked_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"first" * 100)

    def replaced(done: int, total: int | None) -> None:
        (tmp_path / "new").write_bytes(b"second")
        (tmp_path / "new").replace(path)

    assert ChecksumMemory(tmp_path).digest(path, replaced) == sha256(b"first" * 100)
    assert ChecksumMemory(tmp_path).digest(path) == sha256(b"second")
