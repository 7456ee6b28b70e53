"""Files of the module: beside SPDSegmentLib in a source tree and in an installed one."""

from __future__ import annotations

from SPDSegmentLib.models.folders import resources_folder


def path(name: str) -> str:
    """Return the full path of a file of the folder Resources, such as ``UI/SPDSegment.ui``."""
    folder = resources_folder()
    return str(folder / name) if folder is not None else name
