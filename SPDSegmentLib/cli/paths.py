"""Cheap checks of input and output paths, and of a device's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import check_output

LABELMAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What a segmentation can be written to; ``.seg.nrrd`` is covered by ``.nrrd``."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def require_device(name: str) -> None:
    """Raise :class:`BadInput` for what is no name of a device."""
    if not _DEVICE.fullmatch(name):
        raise BadInput(f"Unknown device '{name}'.", "Use auto, cpu, cuda or cuda:n.")


def require_input(path: Path, what: str) -> None:
    """Raise :class:`BadInput` where ``path`` is not there."""
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"The {what} {path} cannot be read: {reason}.", "Check the path.") from error
    if not there:
        raise BadInput(f"There is no {what} {path}.", "Check the path.")


def require_output(
    path: Path, what: str, suffixes: Iterable[str], inputs: Iterable[Path], needed_bytes: int = 0
) -> None:
    """Raise :class:`BadInput` where ``path`` cannot be written, has another suffix, or is one of the inputs."""
    suffixes = tuple(suffixes)
    if not path.name.lower().endswith(suffixes):
        raise BadInput(f"The {what} {path} has no known file name extension.", f"Use one of {', '.join(suffixes)}.")
    check_output(path, what, needed_bytes)
    if any(path.resolve() == other.resolve() for other in inputs):
        raise BadInput(f"The {what} {path} is also an input or another output.", "Give it another name.")
