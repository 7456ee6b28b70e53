"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.staging import LOCK_NAME, FolderLock

HOLDER = """
import os, sys, time
from SPDSegmentLib.staging import FolderLock
lock = FolderLock(sys.argv[1], "training")
lock.acquire()
if sys.argv[2] == "plain" or os.fork() == 0:  # a child has let go of the lock when it is here
    print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path, repository: Path, how: str = "plain") -> subprocess.Popen[str]:
    """A process that holds the lock; its children, with ``fork``, outlive it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how],
        cwd=repository, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a holder and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_the_second_owner_is_refused_and_told_who_is_there(tmp_path: Path, repository: Path) -> None:
    holder = hold(tmp_path, repository)
    try:
        with pytest.raises(BadInput) as refused, FolderLock(tmp_path, "batch"):
            pass
    finally:
        end(holder)
    assert f"{tmp_path} is in use by another training (process {holder.pid}" in refused.value.message
    assert "Wait until it has ended, or choose another folder." in refused.value.remedy


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_an_owner_that_was_killed_lets_go(tmp_path: Path, repository: Path, how: str) -> None:
    """Even where a child that it forked still lives."""
    holder = hold(tmp_path, repository, how)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path, "batch", wait_seconds=1.0):
        assert json.loads((tmp_path / LOCK_NAME).read_text(encoding="utf-8"))["process"] == os.getpid()
    end(holder) if how == "fork" else None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_excludes_a_second_one_of_the_same_process(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "batch"):
        with pytest.raises(BadInput, match="in use by another batch"), FolderLock(tmp_path, "batch"):
            pass
        with FolderLock(tmp_path, "batch", name=".another.lock"):
            pass
    with FolderLock(tmp_path, "batch"):
        pass


@pytest.mark.alone
def test_waiting_takes_the_lock_when_it_comes_free(tmp_path: Path, repository: Path) -> None:
    holder = hold(tmp_path, repository)
    os.kill(holder.pid, signal.SIGTERM)
    started = time.monotonic()
    with FolderLock(tmp_path, "batch", wait_seconds=10.0):
        assert time.monotonic() - started < 5
    end(holder)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be used: No such file"), FolderLock(tmp_path / "none", "batch"):
        pass


def without_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every lock of a file fail as on a network disk."""

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def ended_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_file_system_the_owner_must_be_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    without_locks(monkeypatch, errno.ENOLCK)
    owner = {"what": "training", "process": os.getpid() if alive else ended_process(), "host": platform.node()}
    (tmp_path / f"{LOCK_NAME}.owner").write_text(json.dumps(owner))
    lock = FolderLock(tmp_path, "batch")
    if alive:
        with pytest.raises(BadInput, match=f"If that process is gone, delete {tmp_path}"):
            lock.acquire()
        return
    with lock, pytest.raises(BadInput, match="in use by another batch"):
        FolderLock(tmp_path, "batch").acquire()
    assert not (tmp_path / f"{LOCK_NAME}.owner").exists()


@pytest.mark.parametrize("owner", ["", "dead", "alive", "elsewhere"])
def test_a_lock_that_may_only_be_read_on_a_network_disk_is_taken_from_nobody_who_may_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    without_locks(monkeypatch, errno.EBADF)
    told = {"process": ended_process() if owner == "dead" else os.getpid(), "host": platform.node()}
    (tmp_path / LOCK_NAME).write_text(json.dumps(told | ({"host": "far"} if owner == "elsewhere" else {})))
    if not owner:
        (tmp_path / LOCK_NAME).write_text("")
    with contextlib.ExitStack() as held:
        if owner in ("alive", "elsewhere"):
            held.enter_context(pytest.raises(BadInput, match=f"is gone, delete {tmp_path / LOCK_NAME}\\.$"))
        held.enter_context(FolderLock(tmp_path, "batch"))
