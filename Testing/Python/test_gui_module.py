"""The module in the host: from clicks to a segment through the background worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SPDSegmentLib.worker.commands import WorkerCommand

pytest_plugins = ["Testing.Host.pytest_plugin"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SPDSegment" / "SPDSegment.py"
FAKE_WORKER = WorkerCommand((sys.executable, str(Path(__file__).with_name("fake_predictor.py"))))
SHAPE = (12, 40, 48)


@pytest.fixture
def module(host: Any) -> Any:
    """The loaded module with a fake worker and a fake model, in a scene with a volume."""
    host.add_volume(np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16), (1.0, 1.0, 3.0))
    return load(host)


def load(host: Any, bundle: str = "fake") -> Any:
    """Load the module with a fake worker."""
    loaded = host.load_module(MODULE)
    from SPDSegmentLib.gui.models import ModelEntry

    loaded.logic.workerHost.setCommand(FAKE_WORKER)
    loaded.widget.panel.inputs.extraModels = [ModelEntry(bundle, "fake", "Fake", "Kidney")]
    loaded.widget.panel.state.model = "fake"
    loaded.widget.panel.enter()
    return loaded


def add_clicks(slices: Any = (4, 6), name: str = "Centerline") -> Any:
    """A point list with one click on each of some slices."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    node.CreateDefaultDisplayNodes()
    for k in slices:
        node.AddControlPointWorld(24.0, 20.0, 3.0 * k)
    return node


def segment(host: Any, module: Any) -> Any:
    """Press Segment, wait, and return the job."""
    module.widget.panel.enter()
    module.ui.segmentButton.click()
    run = module.widget.panel.run
    host.wait_until(lambda: run.job is not None and run.job.finished, 60_000)
    return run.job


def mask_of(job_or_target: Any) -> np.ndarray:
    """The segment on the volume's grid, (K, J, I)."""
    import slicer

    state = slicer.modules.SPDSegmentWidget.panel.state
    return slicer.util.arrayFromSegmentBinaryLabelmap(state.segmentationNode, state.segmentId, state.volumeNode) != 0


def test_pressing_segment_writes_the_structure_into_a_new_segment(host: Any, module: Any) -> None:
    add_clicks()
    job = segment(host, module)
    assert job.error is None, job.error
    mask = mask_of(job)
    assert [k for k in range(SHAPE[0]) if mask[k].any()] == [2, 3, 4, 5, 6, 7, 8]
    assert mask[5, 20, 24] and not mask[5, 30, 24]
    assert module.widget.panel.state.segmentationNode.GetSegmentation().GetNthSegment(0).GetName() == "Kidney"
    assert "slices updated" in module.ui.statusLabel.text


def test_the_panel_says_what_is_missing(host: Any, module: Any) -> None:
    assert "click along the structure" in module.ui.statusLabel.text
    assert not module.ui.segmentButton.enabled
    add_clicks()
    module.widget.panel.enter()
    assert module.ui.segmentButton.enabled


def test_slicer_itself_never_imports_torch(host: Any, module: Any) -> None:
    add_clicks()
    segment(host, module)
    assert "torch" not in sys.modules
