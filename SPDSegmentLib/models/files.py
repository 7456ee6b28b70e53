"""Where a model is made or fetched: a staging folder, its free space, and the sentence for a disk that fails."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from SPDSegmentLib import staging
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import megabytes

_FULL = {errno.ENOSPC, errno.EDQUOT}


def storage_error(error: OSError, folder: Path) -> BadInput:
    """The sentence for a folder that cannot be written to."""
    if error.errno in _FULL:
        return BadInput(f"The disk that holds {folder} is full.", "Free some space and try again.", details=repr(error))
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return BadInput(
            f"No permission to write to {folder}.",
            "Change its permissions, or set SPDSEGMENT_HOME to a folder of your own.",
            details=repr(error),
        )
    return BadInput(
        f"{folder} cannot be used: {error.strerror or error}.",
        "Set SPDSEGMENT_HOME to another folder.",
        details=repr(error),
    )


@contextlib.contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """A hidden folder in ``beside`` (made when missing) for a file that is not whole yet; removed at the end.

    Raises:
        BadInput: ``beside`` cannot be written to, or its disk is full, now or while the folder is in use.
    """
    try:
        with staging.staging_folder(beside) as folder:
            try:
                yield folder
            except BadInput as error:
                error.message = error.message.replace(str(folder), str(beside))
                raise
    except OSError as error:
        raise storage_error(error, beside) from error


def check_free_space(folder: Path, size: int | None) -> None:
    """Raise :class:`BadInput` where ``size`` bytes do not fit into an existing folder."""
    if size is None:
        return
    free = shutil.disk_usage(folder).free
    if free < size:
        raise BadInput(
            f"The disk that holds {folder} has {megabytes(free)} free; {megabytes(size)} are needed.",
            "Free some space, or set SPDSEGMENT_HOME to a folder on another disk.",
        )
