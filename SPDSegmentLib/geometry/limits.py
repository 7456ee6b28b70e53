"""Memory of this machine and of this process: what a file or torch would need of it, what the C library keeps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from SPDSegmentLib.errors import MORE_MEMORY, BadInput, OutOfMemory
from SPDSegmentLib.files import megabytes

BYTES_BESIDE_VOXEL = 2
"""Of every voxel beside its value: the masks on slices and on the volume's grid."""
MAX_POINTS = 1_000_000
MAX_POINTS_BYTES = 1 << 30
KEPT_BYTES = 256 << 20
GROWTH_BYTES = 64 << 20
TORCH_BYTES = 700 << 20
"""Address space that torch and the libraries beside it take when they are loaded."""
SYSTEM = Path("/")
"""Where the kernel's ``proc`` and ``sys`` are."""
NO_LIMIT = 1 << 60
# of glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def check_memory(what: str, shape: Sequence[int], voxel_bytes: int, while_reading: int = 0) -> None:
    """Refuse an image that does not fit into free memory.

    Args:
        what: the image, in words that a sentence begins with.
        shape: number of voxels along each axis, as the header says.
        voxel_bytes: of one voxel, once it is read.
        while_reading: that one voxel takes at the most before that.

    Raises:
        OutOfMemory: it does not fit.
    """
    voxels = math.prod(int(n) for n in shape)
    needed, free = voxels * max(voxel_bytes + BYTES_BESIDE_VOXEL, while_reading), free_memory_bytes()
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
    known = (free, address_space_left(), *(left for _, left in _group_memory()))
    return min((n for n in known if n is not None), default=None)


def usable_cores() -> int:
    """How many cores this process may use: those of its job or container, which may be fewer than the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min((cores, *(math.ceil(quota) for quota in _group_cores()))))


def total_memory_bytes() -> int | None:
    """How much memory this machine has, or this process may take, None where the system does not say."""
    try:
        import psutil

        total: int | None = int(psutil.virtual_memory().total)
    except Exception:
        total = _proc_value("MemTotal:")
    known = (total, address_space_limit(), *(limit for limit, _ in _group_memory()))
    return min((n for n in known if n is not None), default=None)


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
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


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


def _group_folders(controller: str) -> Iterator[Path]:
    """Where Linux keeps the limits of this process's control groups, as those of a container, the nearest first."""
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = (SYSTEM / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controllers and controller not in controllers.split(","):
            continue
        names = [] if ".." in path.split("/") else [name for name in path.split("/") if name]
        for mounted in (controllers, controller) if controllers else ("", "unified"):
            for depth in range(len(names), -1, -1):  # a container may see its own group as the uppermost
                yield SYSTEM.joinpath("sys/fs/cgroup", mounted, *names[:depth])


def _group_memory() -> Iterator[tuple[int, int]]:
    """Bytes that each of this process's control groups may have, and what is left of them."""
    for folder in _group_folders("memory"):
        for limit_file, used_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit = _numbers(folder / limit_file).get("")
            if limit is not None and 0 <= limit < NO_LIMIT:
                known, used = _numbers(folder / "memory.stat"), _numbers(folder / used_file).get("", 0)
                kinds = ("active_file", "inactive_file", "slab_reclaimable")
                cached = sum(known.get(f"{prefix}{kind}", 0) for kind in kinds)
                yield limit, min(limit, max(0, limit - used + cached))


def _group_cores() -> Iterator[float]:
    """How many cores' time each of this process's control groups may have."""
    for folder in _group_folders("cpu"):
        quota, period = _numbers(folder / "cpu.cfs_quota_us").get(""), _numbers(folder / "cpu.cfs_period_us").get("")
        for name, value in _numbers(folder / "cpu.max").items():
            quota, period = (int(name), value) if name.isdecimal() else (quota, period)
        if quota and period and quota > 0 and period > 0:
            yield quota / period


def _numbers(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel by what stands before them in their lines; none that cannot be read."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.rpartition(" ")
            with contextlib.suppress(ValueError):
                found[name] = int(value)
    return found


def _proc_value(key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


def _windows_free_memory() -> int | None:
    if sys.platform != "win32":
        return None

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
