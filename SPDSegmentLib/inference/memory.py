"""Memory of the C library: freed blocks are kept for the next tensors instead of going back to the system each time."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT_BYTES = 256 << 20
GROWTH_BYTES = 64 << 20
# of glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let large tensors reuse memory; up to ``KEPT_BYTES`` that were freed stay with the process.

    glibc maps every block beyond 32 MB anew, and the system clears each of its pages when it is first touched, which
    took up to half of the encoder's time in float32 (``Testing/Benchmarks/freed_memory.py``). Nothing happens where the
    C library is another one, or where the environment has settings of its own (``MALLOC_...``).

    Returns:
        Whether the settings were taken.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, GROWTH_BYTES),
        (_M_MMAP_MAX, 0),
        (_M_ARENA_MAX, 1),  # a second thread's own memory could not grow beyond 64 MB in one piece
    )
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
