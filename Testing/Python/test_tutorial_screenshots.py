"""The tutorial of the README on the sample, as a person would do it, and its pictures.

The pictures go to a temporary folder; with SPDSEGMENT_SCREENSHOTS=1 to Resources/Screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gui_helpers import settle_export

pytest_plugins = ["Testing.Host.pytest_plugin"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SPDSegment" / "SPDSegment.py"
SAMPLE = ROOT / "Resources" / "SampleData" / "kidney-mr"
MAX_BYTES = 300_000
EXPECTED_DICE = 0.88
RUN_MS = 600_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where pictures go; afterward all of them must be small."""
    chosen = ROOT / "Resources" / "Screenshots" if os.environ.get("SPDSEGMENT_SCREENSHOTS") else tmp_path
    yield chosen
    sizes = {path.name: path.stat().st_size for path in chosen.glob("slicer-*.png")}
    assert sizes and max(sizes.values()) < MAX_BYTES, sizes


def finished(host: Any, module: Any) -> Any:
    """Wait for the job of the panel."""
    run = module.widget.panel.run
    host.wait_until(lambda: run.job is not None and run.job.finished, RUN_MS)
    assert run.job.error is None, run.job.error
    return run.job


def save(host: Any, folder: Path, name: str) -> None:
    """Take a picture and make it small: 32 levels of each color are enough."""
    import SimpleITK as sitk

    path = host.screenshot(folder / f"slicer-{name}.png")
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[..., :3]
    small = sitk.GetImageFromArray((pixels & 0xF8) | (pixels >> 5), isVector=True)
    sitk.WriteImage(small, str(path), useCompression=True, compressionLevel=9)


def kidney_mask(module: Any) -> Any:
    """The segment on the volume's grid."""
    import slicer

    state = module.widget.panel.state
    return slicer.util.arrayFromSegmentBinaryLabelmap(state.segmentationNode, state.segmentId, state.volumeNode) > 0


def fold(module: Any, *unfolded: str) -> None:
    """Unfold these sections and fold all others."""
    for name in ("clicks", "review", "straight", "correct", "export", "options", "setup"):
        getattr(module.ui, f"{name}Section").collapsed = name not in unfolded


def show(host: Any, clicks: Any, number: int = 4) -> None:
    """Turn all slice views to a click, and the 3-D view to what is there."""
    import slicer

    place = [0.0, 0.0, 0.0]
    clicks.GetNthControlPointPositionWorld(number, place)
    for name in ("Red", "Yellow", "Green"):
        host.slice_view(name).jump_to(place)
    view = slicer.util.getNodesByClass("vtkMRMLViewNode")[0]
    view.SetBoxVisible(False)
    view.SetAxisLabelsVisible(False)
    host.threed_view().widget.resetFocalPoint()
    host.threed_view().widget.resetCamera()


@pytest.mark.usefixtures("lite_medsam")
def test_the_tutorial_leads_to_a_good_kidney(host: Any, folder: Path, tmp_path: Path) -> None:
    import SampleData
    import slicer

    from SPDSegmentLib.evaluation.metrics import dice

    # 1. Sample Data, then the module: everything is chosen.
    module = host.load_module(MODULE)
    SampleData.downloadSamples("Kidney MR with clicks")
    module.widget.panel.enter()
    clicks = slicer.util.getNode("Kidney clicks")
    show(host, clicks)
    assert module.ui.modelBox.currentText == "Kidney, T2 MR"
    assert module.ui.segmentButton.enabled, module.ui.statusLabel.text
    save(host, folder, "1-clicks")

    # 2. Segment.
    module.ui.segmentButton.click()
    finished(host, module)
    label = slicer.util.loadNodeFromFile(
        str(SAMPLE / "label.nii.gz"), "VolumeFile", {"labelmap": True, "show": False, "name": "Expert"}
    )
    truth = slicer.util.arrayFromVolume(label) > 0
    slicer.mrmlScene.RemoveNode(label)
    assert (dice(kidney_mask(module), truth) or 0.0) > EXPECTED_DICE
    module.ui.show3DButton.click()
    host.wait_until(lambda: module.logic.segmenter.surfaces.isQuiet, 60_000)
    show(host, clicks)
    save(host, folder, "2-result")

    # 3. What became of the clicks, and which slices need a look.
    fold(module, "clicks", "review")
    save(host, folder, "3-review")

    # 4. Move a click that went astray: only its neighborhood changes.
    before = kidney_mask(module)
    stray = indexOf(clicks, "C-9")
    place, target = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    clicks.GetNthControlPointPositionWorld(stray, place)
    show(host, clicks, stray)
    clicks.GetNthControlPointPositionWorld(indexOf(clicks, "C-5"), target)
    target[2] = place[2]
    run = module.widget.panel.run
    former = run.job
    host.slice_view("Red").drag_ras(place, target)
    host.wait_until(lambda: run.job is not former, 20_000)
    finished(host, module)
    changed = (kidney_mask(module) != before).any(axis=(1, 2))
    assert changed.sum() <= 2 * 2 + 1 + 2, "the slice of the click and two on each side, and those without support"
    assert (dice(kidney_mask(module), truth) or 0.0) > EXPECTED_DICE

    # 5. Correct, look along the centerline, 6. export and set-up.
    show(host, clicks, stray)
    fold(module, "correct")
    save(host, folder, "4-correct")
    fold(module, "straight")
    module.ui.straightButton.click()
    host.wait_until(lambda: module.widget.panel.straight.found is not None, 60_000)
    assert "mm" in module.ui.straightLabel.text
    save(host, folder, "6-along")
    fold(module, "export", "setup")
    module.ui.statisticsButton.click()
    settle_export(host, module)
    assert "ml" in module.ui.exportLabel.text
    host.dialogs.choose_file(str(tmp_path / "kidney.nii.gz"))
    module.ui.exportButton.click()
    settle_export(host, module)
    assert (tmp_path / "kidney.nii.gz").is_file(), module.ui.exportLabel.text
    module.ui.statisticsButton.click()
    settle_export(host, module)
    save(host, folder, "5-export")


def indexOf(clicks: Any, label: str) -> int:
    """Index of a click by its label."""
    count = clicks.GetNumberOfControlPoints()
    return next(n for n in range(count) if clicks.GetNthControlPointLabel(n) == label)
