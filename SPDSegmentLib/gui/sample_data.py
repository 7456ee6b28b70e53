"""The sample case in Slicer's Sample Data module; it lies in the extension, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from . import resources

CATEGORY = "SPDSegment"
SAMPLE_NAME = "SPDSegmentKidney"
NODE_NAMES = ("Kidney MR", "Kidney clicks")
_FILES = ("image.nii.gz", "clicks.mrk.json")


def register() -> None:
    """Register the sample volume and its clicks."""
    import SampleData

    if not all(path.is_file() for path in _paths()):
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        uris=[path.as_uri() for path in _paths()],
        fileNames=[f"{SAMPLE_NAME}-{name}" for name in _FILES],
        nodeNames=list(NODE_NAMES),
        customDownloader=load,
        thumbnailFileName=resources.path("Icons/SPDSegment.png"),
    )


def load(source: Any = None) -> list[Any]:
    """Load volume and clicks from the extension's own files and return their nodes."""
    image, clicks = _paths()
    volumeNode = slicer.util.loadNodeFromFile(str(image), "VolumeFile", {"name": NODE_NAMES[0]})
    clicksNode = slicer.util.loadNodeFromFile(str(clicks), "MarkupsFile", {"name": NODE_NAMES[1]})
    for node, name in zip((volumeNode, clicksNode), NODE_NAMES, strict=True):
        node.SetName(name)
    return [volumeNode, clicksNode]


def _paths() -> tuple[Path, ...]:
    return tuple(Path(resources.path("SampleData/kidney-mr")) / name for name in _FILES)
