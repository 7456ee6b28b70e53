"""What the module says of itself, where its resources lie, and its sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.models.folders import resources_folder

CATEGORY = "SPDSegment"
SAMPLE_NAME = "SPDSegmentKidney"
NODE_NAMES = ("Kidney MR", "Kidney clicks")
_FILES = ("image.nii.gz", "clicks.mrk.json")


def helpText() -> str:
    """Return the help text."""
    return _(
        "Segments a structure from rough clicks along its centerline. Choose a volume, click along the structure, "
        "choose a model and press Segment. Corrections of yours are kept when clicks change.<br><br>"
        "<b>For research only: this is not a medical device.</b> Images stay on this computer, "
        "unless you set a worker command that names another one."
    )


def acknowledgement() -> str:
    """Return whom to thank."""
    return _("Builds on Segment Anything, LiteMedSAM and PEFT; the model cards name the data of each model.")


def resourcePath(name: str) -> str:
    """Return the full path of a file of the folder Resources, such as ``UI/SPDSegment.ui``."""
    folder = resources_folder()
    return str(folder / name) if folder is not None else name


def registerSampleData() -> None:
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
        customDownloader=loadSampleData,
        thumbnailFileName=resourcePath("Icons/SPDSegment.png"),
    )


def loadSampleData(source: Any = None) -> list[Any]:
    """Load volume and clicks from the extension's own files and return their nodes."""
    image, clicks = _paths()
    volumeNode = slicer.util.loadNodeFromFile(str(image), "VolumeFile", {"name": NODE_NAMES[0]})
    clicksNode = slicer.util.loadNodeFromFile(str(clicks), "MarkupsFile", {"name": NODE_NAMES[1]})
    for node, name in zip((volumeNode, clicksNode), NODE_NAMES, strict=True):
        node.SetName(name)
    return [volumeNode, clicksNode]


def _paths() -> tuple[Path, ...]:
    return tuple(Path(resourcePath("SampleData/kidney-mr")) / name for name in _FILES)
