"""Memory of this process: what the C library keeps of it and gives back, and whether torch has room."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

from SPDSegmentLib.errors import MORE_MEMORY, OutOfMemory
from SPDSegmentLib.geometry.limits import address_space_left, address_space_limit

KEPT_BYTES = 256 << 20
GROWTH_BYTES = 64 << 20
TORCH_BYTES = 700 << 20
"""Address space that torch and the libraries beside it take when they are loaded."""
# of glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let large tensors reuse memory; up to ``KEPT_BYTES`` that were freed stay with the process.

    glibc maps every block beyond 32 MB again, and the system clears each of its pages when it is first touched, which
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


def give_back_freed_memory() -> None:
    """Give freed memory back to the system, also what :func:`keep_freed_memory` keeps (glibc only).

    What refers to itself in a circle, as a session and its caches do, is freed first: Python would leave it for long.
    """
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def check_room_for_torch() -> None:
    """Refuse to load torch where a limit leaves too little room: its libraries would fail in many ways, some for good.

    Raises:
        OutOfMemory: the limit on the address space is too low.
    """
    limit, left = address_space_limit(), address_space_left()
    if limit is None or left is None or "torch" in sys.modules:
        return
    if left < TORCH_BYTES:
        raise OutOfMemory(
            f"There is not enough memory: this process may have {limit >> 20} MB, "
            f"and loading torch needs about {(limit - left + TORCH_BYTES) >> 20} MB.",
            MORE_MEMORY,
        )
