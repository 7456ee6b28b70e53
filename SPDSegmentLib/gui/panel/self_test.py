"""What Slicer's Reload and Test runs, and CTest in a build of the extension; nothing is downloaded or installed."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from SPDSegmentLib.errors import ModelMissing
from SPDSegmentLib.models.base_weights import quick_state

from ..run.console import Console
from ..run.models import listModels
from ..scene.export_files import exportFormats, exportSegment, makeSource
from ..scene.target import makeTarget
from ..setup.packages import missingPackages
from .about import loadSampleData, resourcePath

SAMPLE_MODEL = "kidney-mr"
SAMPLE_ML = (100, 250)


def run(case: unittest.TestCase, makeLogic: Callable[[], Console], say: Callable[[str], Any]) -> None:
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
