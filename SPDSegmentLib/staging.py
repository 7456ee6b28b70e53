"""Hidden names for what is not whole yet, and the sweeping of those that killed runs have left."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
