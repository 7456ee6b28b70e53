"""What the module says of itself and of a model, where its resources lie, its sample data, and its self-test."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import ModelMissing
from SPDSegmentLib.models.base_weights import quick_state
from SPDSegmentLib.models.storage import resources_folder

from ..run.console import Console
from ..run.task import listModels
from ..scene.export_files import exportFormats, exportSegment, makeSource
from ..scene.target import makeTarget
from ..setup import missingPackages

CARD_SIZE = (600, 520)
CATEGORY = "SPDSegment"
SAMPLE_NAME = "Kidney MR with clicks"
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


def cardWindow(title: str, card: str) -> Any:
    """Return a window with a model card; what it shows is text only: no HTML, no images from files or the network."""
    window = qt.QDialog(slicer.util.mainWindow())
    window.setWindowTitle(title)
    text = qt.QTextBrowser()
    text.openLinks = False
    text.setMarkdown(card.replace("<", "&lt;").replace("![", "["))
    layout = qt.QVBoxLayout(window)
    layout.addWidget(text)
    window.resize(*CARD_SIZE)
    return window


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
        fileNames=[f"SPDSegment-kidney-mr-{name}" for name in _FILES],
        nodeNames=list(NODE_NAMES),
        customDownloader=loadSampleData,
        thumbnailFileName=resourcePath("SampleData/kidney-mr/thumbnail.png"),
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


SAMPLE_MODEL = "kidney-mr"
SAMPLE_ML = (100, 250)


def selfTest(case: unittest.TestCase, makeLogic: Callable[[], Console], say: Callable[[str], Any]) -> None:
    """Run all checks; the last one only where packages and base weights are installed."""
    slicer.mrmlScene.Clear(0)
    logic = makeLogic()
    try:
        say("Files of the module")
        _checkFiles(case)
        say("A model is needed")
        with case.assertRaises(ModelMissing):
            logic.segment(None, None, model="")
        say("Sample data and export")
        volumeNode, clicksNode = loadSampleData()
        case.assertGreater(clicksNode.GetNumberOfDefinedControlPoints(), 5)
        _checkExport(case, volumeNode)
        if missingPackages() or quick_state("lite_medsam") == "missing":
            say("The packages or base weights are not installed: nothing was segmented")
            return
        say("Segmentation of the sample")
        segmentation = logic.segment(volumeNode, clicksNode, model=SAMPLE_MODEL)
        source = makeSource(segmentation, segmentation.GetSegmentation().GetNthSegmentID(0), volumeNode)
        from ..scene.export_files import measureSource

        volume_ml = measureSource(source)["volume"]
        case.assertTrue(SAMPLE_ML[0] < volume_ml < SAMPLE_ML[1], f"the kidney has {volume_ml} ml")
    finally:
        logic.close()
    say("All checks passed")


def _checkFiles(case: unittest.TestCase) -> None:
    for name in ("UI/SPDSegment.ui", "Icons/SPDSegment.png", "SampleData/kidney-mr/image.nii.gz"):
        case.assertTrue(Path(resourcePath(name)).is_file(), name)
    case.assertIn(SAMPLE_MODEL, [model.name for model in listModels()])


def _checkExport(case: unittest.TestCase, volumeNode: Any) -> None:
    mask = slicer.util.arrayFromVolume(volumeNode) * 0
    mask[2:6, 20:40, 20:40] = 1
    target = makeTarget(None, "", volumeNode, "Block", (1.0, 0.5, 0.0), "")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, target.node, target.segmentId, volumeNode)
    source = makeSource(target.node, target.segmentId, volumeNode)
    with tempfile.TemporaryDirectory(prefix="SPDSegment-") as folder:
        for format_ in exportFormats():
            path = exportSegment(source, format_, Path(folder) / "block", lambda _existing: False)
            case.assertGreater(path.stat().st_size, 0, format_.title)
