"""Any exception of the worker's as the typed error that crosses the protocol."""

from __future__ import annotations

import traceback

from SPDSegmentLib.errors import (
    BadInput,
    DependencyMissing,
    OutOfMemory,
    SPDError,
    is_out_of_memory,
    missing_package,
    out_of_memory,
)

from .messages import Failed
from .protocol import ContentError

MAX_DETAILS = 20_000


def to_error(raised: BaseException) -> SPDError:
    """Return the error that says what happened; an unforeseen exception keeps its traceback as details."""
    if isinstance(raised, OutOfMemory) or (isinstance(raised, SPDError) and not is_out_of_memory(raised)):
        return raised
    details = "".join(traceback.format_exception(raised))[-MAX_DETAILS:]
    if isinstance(raised, ContentError):
        return BadInput(str(raised), "", details)
    if is_out_of_memory(raised):
        return out_of_memory(raised, details)
    if isinstance(raised, ImportError):
        missing = (raised.name or "").split(".")[0]
        if missing:
            return missing_package(missing, str(raised)[:200], details)
        return DependencyMissing("A Python package cannot be imported.", "Install it in the set-up.", details)
    return SPDError(
        f"Something unforeseen went wrong in the background process ({type(raised).__name__}: {str(raised)[:200]}).",
        "Copy the details into a report.",
        details,
    )


def to_event(request_id: int, raised: BaseException) -> Failed:
    """Return the event that tells a request's failure."""
    error = to_error(raised)
    return Failed(
        request_id,
        type(error).__name__,
        error.message[:MAX_DETAILS],
        error.remedy[:MAX_DETAILS],
        error.details[:MAX_DETAILS],
    )
