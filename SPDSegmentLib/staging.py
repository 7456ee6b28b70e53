"""Folders in which processes of ours meet: hidden names for what is not whole yet, their sweeping, and the lock.

The lock says who holds it, and a process that dies lets go by itself.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput

PART = ".spd-part-"
ASIDE = ".spd-old-"
ABANDONED_SECONDS = 24 * 3600.0
SWEEP_SECONDS = 60.0
_LEFTOVER = re.compile(rf"({re.escape(PART)}|{re.escape(ASIDE)})([0-9a-f]{{8}})-([0-9]+)-[0-9a-f]{{6}}")
_active: set[str] = set()
_swept: dict[str, float] = {}


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in ``parent`` (made when missing) for what is not whole yet; removed at the end.

    OSError is left to the caller.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    with hidden_name(parent) as staging:
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename ``new`` to ``folder``; one that is there steps aside first and comes back on failure, or at a later sweep.

    OSError is left to the caller.
    """
    for path in new.iterdir():
        if path.is_file():
            sync(path)
    with hidden_name(folder.parent, ASIDE) as aside:
        kept = aside / folder.name
        try:
            if folder.exists():
                aside.mkdir()
                os.replace(folder, kept)
            os.replace(new, folder)
        finally:
            if kept.exists() and not folder.exists():
                os.replace(kept, folder)
            shutil.rmtree(aside, ignore_errors=True)
        sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder, whole or not at all; OSError is left to the caller."""
    may = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    if folder.exists() and not may:  # it could be renamed, and nothing in it deleted
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    with hidden_name(folder.parent) as gone:
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed runs have left in a folder: hidden files of ours whose process is gone, or a day old.

    A folder that had stepped aside for its successor comes back where the successor never arrived.
    """
    now, known = time.time(), os.path.abspath(folder)
    if now - _swept.get(known, -math.inf) < SWEEP_SECONDS:
        return
    _swept[known] = now
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _LEFTOVER.match(entry.name)
            if match is None or not _is_stale(entry, match[2], int(match[3]), now):
                continue
            place = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if match[1] == ASIDE:
                    for kept in place.iterdir():
                        if not (folder / kept.name).exists():
                            os.replace(kept, folder / kept.name)
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file is on its disk; raises OSError where that fails."""
    with path.open("r+b") as stream:
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
                raise


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder are on its disk, where the system can tell."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def hidden_name(folder: Path, kind: str = PART, suffix: str = "") -> Iterator[Path]:
    """A new hidden path in ``folder`` that no sweep touches within the block; whoever uses it removes it."""
    path = folder / f"{kind}{_here()}-{os.getpid()}-{os.urandom(3).hex()}{suffix}"
    _active.add(path.name)
    try:
        yield path
    finally:
        _active.discard(path.name)


@functools.cache
def _here() -> str:
    """Within what a process number means something: this machine since its start, and its space of processes."""
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _is_stale(entry: os.DirEntry[str], here: str, process: int, now: float) -> bool:
    if entry.name in _active:
        return False
    state = entry.stat(follow_symlinks=False)
    if os.name == "posix" and state.st_uid != os.geteuid():
        return False
    if here == _here() and os.name == "posix":
        return process == os.getpid() or not is_alive(process)
    return now - state.st_mtime > ABANDONED_SECONDS


def is_alive(process: Any) -> bool:
    """Whether a process of this machine runs; on Windows it is taken to run."""
    if os.name == "nt":  # there the question would end it
        return True
    if not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


LOCK_NAME = ".spdsegment.lock"
POLL_SECONDS = 0.05
_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
"""Of file systems without locks; EBADF is what NFS says of a file that may only be read."""
_WINDOWS_BYTE = 1 << 30
"""The byte that is locked on Windows, beyond the text, which others may read."""


class FolderLock:
    """Keeps other processes of ours out of a folder while the ``with`` block runs.

    The operating system holds the lock, so that nothing stale is left by a process that was killed; where the file
    system knows no locks, a file with the owner's process number takes its place.

    Args:
        folder: an existing folder.
        what: what the owner does there, for the sentence that others get.
        name: of the lock's file; different names lock different things.
        wait_seconds: how long to wait for another owner.

    Raises:
        BadInput: another process is there, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, what: str, name: str = LOCK_NAME, wait_seconds: float = 0.0) -> None:
        self.folder = Path(folder)
        self.what = what
        self.path = self.folder / name
        self.wait_seconds = wait_seconds
        self._file: int | None = None
        self._owner_file: Path | None = None
        self._left: Path | None = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock; raises as the class says."""
        until = time.monotonic() + self.wait_seconds
        while not self._try():
            if time.monotonic() >= until:
                raise self._refusal()
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Let go; nothing happens where the lock is not held."""
        file, self._file = self._file, None
        if file is None:
            return
        _held.discard(self)
        _unlock_file(file)
        if os.name == "nt":  # no open file can be deleted there; elsewhere the name must go before the lock
            os.close(file)
        for path in (self.path, self._owner_file):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
        self._owner_file = None
        if os.name != "nt":
            os.close(file)

    def _try(self) -> bool:
        taken = False
        try:
            file = self._open()
            try:
                taken = self._lock(file)
            finally:
                if not taken:
                    os.close(file)
        except OSError as error:
            raise BadInput(
                f"The folder {self.folder} cannot be used: {error.strerror or error}.",
                "Check its permissions, or choose another folder.",
                repr(error),
            ) from error
        if taken:
            self._file = file
            _held.add(self)
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.write(file, _myself(self.what))
        return taken

    def _open(self) -> int:
        flags = os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            return os.open(self.path, flags | os.O_RDWR, 0o644)
        except PermissionError:  # left by somebody else's process that was killed
            return os.open(self.path, os.O_RDONLY)

    def _lock(self, file: int) -> bool:
        """Lock an open file that is still the one with our name; another owner may just have removed it."""
        try:
            if not _lock_file(file):
                return False
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            if error.errno == errno.EBADF and (owner := _read_owner(self.path)) and _may_live(owner):
                self._left = self.path
                return False
            return self._take_owner_file()
        try:
            return os.name == "nt" or os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take_owner_file(self) -> bool:
        """The way for file systems without locks; the owner's process must be alive, as far as can be told."""
        path = self.path.with_name(f"{self.path.name}.owner")
        for _ in range(2):
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(_myself(self.what))
                self._owner_file = path
                return True
            if _may_live(_read_owner(path)):
                self._left = path
                return False
            path.unlink(missing_ok=True)
        return False

    def _refusal(self) -> BadInput:
        time.sleep(POLL_SECONDS)  # who has just taken the lock writes the name
        path = self.path.with_name(f"{self.path.name}.owner")
        remedy = "Wait until it has ended, or choose another folder."
        if self._left is not None:
            remedy += f" If that process is gone, delete {self._left}."
        owner = _read_owner(path) or _read_owner(self.path)
        return BadInput(f"The folder {self.folder} is in use by {_described(owner)}.", remedy)


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked child must not keep a lock that its parent took."""
    for lock in list(_held):
        if lock._file is not None:
            os.close(lock._file)
            lock._file = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


if sys.platform == "win32":
    import msvcrt

    def _lock_file(file: int) -> bool:
        """Whether the operating system gave us the lock."""
        os.lseek(file, _WINDOWS_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(file, 0, os.SEEK_SET)
        return True

    def _unlock_file(file: int) -> None:
        os.lseek(file, _WINDOWS_BYTE, os.SEEK_SET)
        with contextlib.suppress(OSError):
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock_file(file: int) -> bool:
        """Whether the operating system gave us the lock; raises OSError where it knows none."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock_file(file: int) -> None:
        """Closing the file unlocks it."""


def _myself(what: str) -> bytes:
    owner: dict[str, Any] = {
        "what": what,
        "process": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with contextlib.suppress(Exception):  # a user without a name
        owner["user"] = getpass.getuser()
    return json.dumps(owner).encode()


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _may_live(owner: dict[str, Any]) -> bool:
    """Whether who wrote a file may still be there: nothing is known of the processes of another machine."""
    return owner.get("host") != platform.node() or is_alive(owner.get("process"))


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    text = f"another {owner.get('what', 'process')} (process {owner.get('process', '?')}"
    if owner.get("user"):
        text += f" of {owner['user']}"
    if owner.get("host") != platform.node():
        text += f" on {owner.get('host')}"
    return f"{text}, since {str(owner.get('since', '')).replace('T', ' ')[:19]})"
