"""What a file would need, compared with what there is, before it is read."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from SPDSegmentLib.errors import BadInput, OutOfMemory
from SPDSegmentLib.files import megabytes

BYTES_BESIDE_VOXEL = 2
"""Of every voxel beside its value: the masks on slices and on the volume's grid."""
MAX_POINTS = 1_000_000
MAX_POINTS_BYTES = 1 << 30


def check_memory(path: Path, shape: Sequence[int], voxel_bytes: int) -> None:
    """Refuse an image that does not fit into free memory.

    Args:
        shape: number of voxels along each axis, as the header says.
        voxel_bytes: of one voxel.

    Raises:
        OutOfMemory: it does not fit.
    """
    voxels = math.prod(int(n) for n in shape)
    needed, free = voxels * (voxel_bytes + BYTES_BESIDE_VOXEL), free_memory_bytes()
    if free is not None and needed > free:
        raise OutOfMemory(
            f"The image {path} has {' x '.join(map(str, shape))} voxels, which need about {megabytes(needed)} of "
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
    found = []
    try:
        import psutil

        found.append(int(psutil.virtual_memory().available))
    except Exception:
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        with contextlib.suppress(OSError, ValueError, IndexError):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if limit != resource.RLIM_INFINITY:
                found.append(max(0, limit - used))
    return min(found, default=None)
