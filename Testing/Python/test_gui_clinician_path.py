"""A clinician's first case with the shipped model: sample, ten clicks, result, correction, undo, saved and reopened.

With ``SPDSEGMENT_SCREENSHOTS`` set to a folder the pictures are kept there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import MODULE, digests, mask_of, record_of, segment, settle, state_of

pytest_plugins = ["Testing.Host.pytest_plugin"]

CLICKS_RAS = (
    (141.0, -79.0, -71.0),
    (135.0, -84.0, -55.6),
    (143.0, -85.0, -47.9),
    (136.0, -84.0, -40.2),
    (146.0, -75.0, -32.5),
    (210.0, -30.0, -24.8),
    (141.0, -92.0, -9.4),
    (131.0, -94.0, 6.0),
    (130.0, -95.0, 21.4),
    (120.0, -116.0, 59.9),
)
MIDDLE_RAS = (136.0, -90.0, -24.8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go."""
    return Path(os.environ.get("SPDSEGMENT_SCREENSHOTS") or tmp_path)


def unfold(module: Any, *names: str) -> None:
    """Unfold some sections and fold the others."""
    for section in ("clicks", "review", "correct", "export", "options", "setup"):
        getattr(module.ui, f"{section}Section").collapsed = section not in names


def expert(volume: Any) -> np.ndarray:
    """The expert's drawing of the sample, on the volume's grid."""
    import slicer

    path = MODULE.parents[1] / "Resources" / "SampleData" / "kidney-mr" / "label.nii.gz"
    node = slicer.util.loadNodeFromFile(str(path), "VolumeFile", {"labelmap": True})
    label = slicer.util.arrayFromVolume(node) != 0
    slicer.mrmlScene.RemoveNode(node)
    assert label.shape == slicer.util.arrayFromVolume(volume).shape
    return label


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_first_case_of_a_clinician(host: Any, pictures: Path, lite_medsam: Path, tmp_path: Path) -> None:
    import SampleData
    import slicer

    module = host.load_module(MODULE)
    volume = SampleData.downloadSamples("Kidney MR with clicks")[0]
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("Kidney clicks"))
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    host.process_events(50)
    host.screenshot(pictures / "1-volume.png")

    module.ui.placeButton.click()
    for place in CLICKS_RAS:
        host.slice_view("Red").click_ras(place)
    host.screenshot(pictures / "2-clicks.png")
    module.ui.placeButton.click()
    (clicks,) = state_of(module).centerlineNodes
    assert clicks.GetNumberOfDefinedControlPoints() == len(CLICKS_RAS)

    job = segment(host, module)
    assert job.error is None, job.error
    host.slice_view("Red").jump_to(MIDDLE_RAS)
    unfold(module, "clicks")
    host.screenshot(pictures / "3-segmented.png")
    first = mask_of(module)
    assert dice(first, expert(volume)) > 0.8

    module.ui.saliencyCheck.checked = True
    host.wait_until(lambda: module.widget.panel.saliency.overlay.node is not None)
    host.screenshot(pictures / "4-saliency.png")
    module.ui.saliencyCheck.checked = False

    unfold(module, "review")
    module.ui.nextDoubtfulButton.click()
    host.process_events(150)
    host.screenshot(pictures / "5-review.png")

    host.slice_view("Red").drag_ras(CLICKS_RAS[7], (131.0, -104.0, 6.0))
    settle(host, module)
    assert clicks.GetNthControlPointPositionWorld(7)[1] == pytest.approx(-104.0, abs=2.0)
    stack = module.widget.panel.inputs.currentTask().view.snapshot().stack
    before, moved = stack.from_volume(first), stack.from_volume(mask_of(module))
    changed = {t for t in range(len(before)) if not np.array_equal(before[t], moved[t])}
    assert changed <= set(module.widget.panel.run.job.recomputed)

    unfold(module, "correct")
    host.slice_view("Red").jump_to(MIDDLE_RAS)
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((110.0, -90.0, -24.8), (160.0, -90.0, -24.8))
    settle(host, module)
    host.screenshot(pictures / "6-corrected.png")
    (painted,) = record_of(module).owned
    assert segment(host, module).error is None
    assert record_of(module).owned == {painted}

    for _ in range(4):
        if digests(mask_of(module)) == digests(first):
            break
        module.ui.undoButton.click()
        settle(host, module)
    assert digests(mask_of(module)) == digests(first)
    assert clicks.GetNthControlPointPositionWorld(7)[1] == pytest.approx(CLICKS_RAS[7][1], abs=1.5)
    unfold(module)
    host.screenshot(pictures / "7-undone.png")

    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")
    unfold(module, "clicks", "review")
    host.process_events(100)
    host.screenshot(pictures / "8-reopened.png")
    assert digests(mask_of(module)) == digests(first)
    assert len(record_of(module).fates) >= len(CLICKS_RAS)
