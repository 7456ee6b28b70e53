"""Memory of this machine and of this process, and what a file would need of it, compared before it is read."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from SPDSegmentLib.errors import BadInput, OutOfMemory
from SPDSegmentLib.files import megabytes

BYTES_BESIDE_VOXEL = 2
"""Of every voxel beside its value: the masks on slices and on the volume's grid."""
MAX_POINTS = 1_000_000
MAX_POINTS_BYTES = 1 << 30


def check_memory(what: str, shape: Sequence[int], voxel_bytes: int) -> None:
    """Refuse an image that does not fit into free memory.

    Args:
        what: the image, in words that a sentence begins with.
        shape: number of voxels along each axis, as the header says.
        voxel_bytes: of one voxel.

    Raises:
        OutOfMemory: it does not fit.
    """
    voxels = math.prod(int(n) for n in shape)
    needed, free = voxels * (voxel_bytes + BYTES_BESIDE_VOXEL), free_memory_bytes()
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{what} has {' x '.join(map(str, shape))} voxels, which need about {megabytes(needed)} of "
            f"memory; {megabytes(free)} are free.",
            "Crop or resample the image, or use a machine with more memory.",
        )


def check_points_size(path: Path) -> None:
    """Refuse a points file that is too large to be clicks, before it is parsed.

    Raises:
        BadInput: it is.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    count = path.read_bytes().count(b'"position"') if MAX_POINTS * 24 < size <= MAX_POINTS_BYTES else 0
    if size > MAX_POINTS_BYTES or count > MAX_POINTS:
        said = f"{count:,} points" if count else megabytes(size)
        raise BadInput(
            f"The points file {path} holds {said}; at most {MAX_POINTS:,} points are read.",
            "Give the clicks along the structure, or resample the curve.",
        )


def free_memory_bytes() -> int | None:
    """How much memory this process could still take, None where the system does not say."""
    try:
        import psutil

        free: int | None = int(psutil.virtual_memory().available)
    except Exception:
        free = _windows_free_memory() if sys.platform == "win32" else _proc_value("MemAvailable:")
    return min((n for n in (free, address_space_left()) if n is not None), default=None)


def total_memory_bytes() -> int | None:
    """How much memory this machine has, or this process may take, None where the system does not say."""
    try:
        import psutil

        total: int | None = int(psutil.virtual_memory().total)
    except Exception:
        total = _proc_value("MemTotal:")
    return min((n for n in (total, address_space_limit()) if n is not None), default=None)


def address_space_limit() -> int | None:
    """How many bytes of address space this process may have (``ulimit -v``), None without a limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY or soft < 0 else soft


def address_space_left() -> int | None:
    """What is left of :func:`address_space_limit`; all of it where the system does not say what is used."""
    limit, used = address_space_limit(), 0
    if limit is None:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, limit - used)


def _proc_value(key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


def _windows_free_memory() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
        ]

    status = MemoryStatus()
    status.length = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)
