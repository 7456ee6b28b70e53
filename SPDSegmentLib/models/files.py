"""Files that are whole or not there: written beside, then renamed; failures told in one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import ModelMissing, SPDError

INCOMING = ".incoming-"
ABANDONED_SECONDS = 24 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT}


def megabytes(size: int) -> str:
    """A size for people, e.g. ``39.4 MB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def storage_error(error: OSError, folder: Path) -> SPDError:
    """The sentence for a folder that cannot be written to."""
    if error.errno in _FULL:
        return ModelMissing(
            f"The disk that holds {folder} is full.", "Free some space and try again.", details=repr(error)
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return ModelMissing(
            f"No permission to write to {folder}.",
            "Change its permissions, or set SPDSEGMENT_HOME to a folder of your own.",
            details=repr(error),
        )
    return ModelMissing(
        f"{folder} cannot be used: {error.strerror or error}.",
        "Set SPDSEGMENT_HOME to another folder.",
        details=repr(error),
    )


@contextlib.contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder in ``beside`` (created when missing) for a file that is not whole yet; removed at the end.

    Raises:
        ModelMissing: ``beside`` cannot be written to, or its disk is full, now or while the folder is in use.
    """
    staging: Path | None = None
    try:
        beside.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(beside)
        staging = Path(tempfile.mkdtemp(prefix=INCOMING, dir=beside))
        yield staging
    except OSError as error:
        raise storage_error(error, beside) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(beside: Path) -> None:
    """Delete what a process that was killed has left, long ago."""
    for folder in beside.glob(f"{INCOMING}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def check_free_space(folder: Path, size: int | None) -> None:
    """Raise :class:`ModelMissing` where ``size`` bytes do not fit into an existing folder."""
    if size is None:
        return
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ModelMissing(
            f"The disk that holds {folder} has {megabytes(free)} free; {megabytes(size)} are needed.",
            "Free some space, or set SPDSEGMENT_HOME to a folder on another disk.",
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file in the same folder; OSError is left to the caller."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
