"""Cheap checks of input and output paths, and outputs that appear together or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from SPDSegmentLib.errors import BadInput

LABELMAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What a segmentation can be written to; ``.seg.nrrd`` is covered by ``.nrrd``."""


def require_input(path: Path, what: str) -> None:
    """Raise :class:`BadInput` where ``path`` is not there."""
    if not path.exists():
        raise BadInput(f"There is no {what} {path}.", "Check the path.")


def require_output(path: Path, what: str, suffixes: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raise :class:`BadInput` where ``path`` cannot be written, has another suffix, or is one of the inputs."""
    suffixes = tuple(suffixes)
    if not path.name.lower().endswith(suffixes):
        raise BadInput(f"The {what} {path} has no known file name extension.", f"Use one of {', '.join(suffixes)}.")
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"The folder {folder} for the {what} does not exist.", "Create it first.")
    if path.is_dir():
        raise BadInput(f"The {what} {path} is a folder.", "Give a file name.")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"No permission to write the {what} to {folder}.", "Choose another folder.")
    if any(path.resolve() == other.resolve() for other in inputs):
        raise BadInput(f"The {what} {path} is also an input or another output.", "Give it another name.")


def require_folder(path: Path, what: str) -> None:
    """Raise :class:`BadInput` where ``path`` is a file; a folder may exist or be made later."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"The {what} {path} is a file.", "Give the name of a folder.")


class StagedOutputs:
    """Files that are written beside their places; :meth:`commit` moves all of them there.

    Leaving the ``with`` block without it removes what was written.
    """

    def __init__(self) -> None:
        self._staged: dict[Path, Path] = {}

    def __enter__(self) -> StagedOutputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary in self._staged.values():
            temporary.unlink(missing_ok=True)

    def stage(self, path: Path) -> Path:
        """Where to write ``path`` for now; same folder, same suffix."""
        self._staged[path] = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
        return self._staged[path]

    def commit(self) -> None:
        """Move every file to its place."""
        for path, temporary in self._staged.items():
            os.replace(temporary, path)
        self._staged.clear()
