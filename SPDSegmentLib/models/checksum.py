"""SHA-256 of files, and a memory of the files that were already checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.files import write_json

ByteProgress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None where unknown)."""

CancelQuery = Callable[[], bool]
"""Asked between blocks; true stops the work with :class:`Cancelled`."""

BLOCK = 1 << 20
MEMORY_NAME = ".verified.json"


def sha256_of(
    path: Path, progress: ByteProgress | None = None, cancel: CancelQuery | None = None, algorithm: str = "sha256"
) -> str:
    """Hexadecimal digest of a file, read in blocks."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm == "sha256")
    total, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            if cancel is not None and cancel():
                raise Cancelled()
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


class ChecksumMemory:
    """Remembers the digest of files by name, size and modification time, in a JSON file of their folder.

    Hashing the largest base weights (2.5 GB) takes seconds to a minute, at every start. A file whose size and
    modification time (nanoseconds) are those of its last full check is taken as unchanged. That finds truncation and
    replacement, not silent decay of the disk nor someone who sets the time back on purpose; ``models verify`` always
    hashes. A damaged or unwritable memory costs time, never a failure.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEMORY_NAME

    def digest(self, path: Path, progress: ByteProgress | None = None, cancel: CancelQuery | None = None) -> str:
        """SHA-256 of ``path``, remembered or computed."""
        digest = self.recall(path)
        if digest is None:
            digest = sha256_of(path, progress, cancel)
            self.remember(path, digest)
        return digest

    def recall(self, path: Path) -> str | None:
        """SHA-256 of ``path`` if it is remembered and the file is unchanged, otherwise None."""
        stat = path.stat()
        known = self._read().get(path.name)
        if (
            isinstance(known, dict)
            and (known.get("size"), known.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
            and isinstance(known.get("sha256"), str)
        ):
            return str(known["sha256"])
        return None

    def remember(self, path: Path, digest: str) -> None:
        """Note that ``path``, as it is now, has this digest."""
        stat = path.stat()
        entries = self._read()
        entries[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
        self._write(entries)

    def forget(self, path: Path) -> None:
        """Drop what is known of ``path``."""
        entries = self._read()
        if entries.pop(path.name, None) is not None:
            self._write(entries)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _write(self, entries: dict[str, Any]) -> None:
        with contextlib.suppress(BadInput):
            write_json(self._path, entries)
