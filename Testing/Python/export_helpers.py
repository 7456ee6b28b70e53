"""A volume with a segment that is exported, and the ways to export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parents[2] / "SPDSegment" / "SPDSegment.py"
SHAPE = (12, 40, 48)
SPACING = (1.0, 1.5, 3.0)
TERMINOLOGY = "List~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic codes - DICOM master list~^^~^^"
EXPORT_FORMATS = ("nifti", "nrrd", "segmentation", "stl", "obj", "csv")


def block() -> np.ndarray:
    """Voxels (K, J, I) of the segment."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[3:9, 10:26, 12:30] = 1
    return mask


@pytest.fixture
def scene(host: Any) -> Any:
    """The module with a volume and a segment, chosen in its settings."""
    import slicer

    volume = host.add_volume(np.zeros(SHAPE, np.int16), SPACING)
    module = host.load_module(MODULE)
    from SPDSegmentLib.gui.scene.target import makeTarget

    target = makeTarget(None, "", volume, "Left kidney", (0.7, 0.4, 0.5), TERMINOLOGY)
    slicer.util.updateSegmentBinaryLabelmapFromArray(block(), target.node, target.segmentId, volume)
    state = module.widget.panel.state
    state.volumeNode, state.segmentationNode, state.segmentId = volume, target.node, target.segmentId
    module.widget.panel.enter()
    return module


def source_of(module: Any) -> Any:
    """What the panel would export."""
    from SPDSegmentLib.gui.scene.export_files import makeSource

    state = module.widget.panel.state
    return makeSource(state.segmentationNode, state.segmentId, state.volumeNode)


def export(module: Any, key: str, path: str | Path, confirm: Any = None) -> Path:
    """Export without the panel."""
    from SPDSegmentLib.gui.scene.export_files import exportFormats, exportSegment

    (format_,) = [f for f in exportFormats() if f.key == key]
    return exportSegment(source_of(module), format_, path, confirm or (lambda path: pytest.fail("asked")))
