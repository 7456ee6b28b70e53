"""What the tests of the module share: the module with a fake worker, clicks, and the segment as an array."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.prompts.fates import PointFate
from SPDSegmentLib.worker.requests import WorkerCommand

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SPDSegment" / "SPDSegment.py"
FAKE_WORKER = WorkerCommand((sys.executable, str(Path(__file__).with_name("fake_predictor.py"))))
SHAPE = (12, 40, 48)
SPACING_MM = (1.0, 1.0, 3.0)
MODEL = "fake"

# Situations that failed with the first version are run with these helpers and know a fate's fields by former names.
for former, field in {"clickId": "click_id", "positionRas": "position_ras"}.items():
    setattr(PointFate, former, property(attrgetter(field)))


def passes_alone(request: Any) -> bool:
    """Whether a test passes in a process of its own, where no test before it has imported anything."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid)
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(outcome.stdout)
    return outcome.returncode == 0 and "1 passed" in outcome.stdout


def add_volume(host: Any, shape: tuple[int, int, int] = SHAPE, **options: Any) -> Any:
    """A volume of noise."""
    array = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    options.setdefault("spacing_mm", SPACING_MM)
    return host.add_volume(array, **options)


def load(host: Any, bundle: str = MODEL) -> Any:
    """Load the module with a fake worker; ``bundle`` says how it behaves."""
    loaded = host.load_module(MODULE)
    use_fake(loaded, bundle)
    return loaded


def use_fake(module: Any, bundle: str = MODEL) -> None:
    """Give a loaded module the fake worker and its model."""
    from SPDSegmentLib.gui.run.task import ModelEntry

    module.logic.workerHost.setCommand(FAKE_WORKER)
    panel = module.widget.panel
    panel.inputs.extraModels = [ModelEntry(bundle, MODEL, "Kidney", title="Fake", axis="axial")]
    panel.state.model = MODEL
    panel.refresh()


def add_clicks(slices: Any = (4, 6), name: str = "Centerline", kind: str = "Fiducial", at: Any = (24.0, 20.0)) -> Any:
    """A point list (or curve) with one click on each of some slices."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node", name)
    node.CreateDefaultDisplayNodes()
    for k in slices:
        node.AddControlPointWorld(*at, SPACING_MM[2] * k)
    return node


def press_segment(module: Any) -> Any:
    """Press Segment and return the job."""
    module.widget.panel.refresh()
    module.ui.segmentButton.click()
    return module.widget.panel.run.job


def segment(host: Any, module: Any) -> Any:
    """Press Segment, wait, and return the finished job."""
    job = press_segment(module)
    assert job is not None, module.ui.statusLabel.text
    host.wait_until(lambda: job.finished, 240_000)
    settle(host, module)
    return job


def segmented(host: Any, slices: Any = (2, 8)) -> Any:
    """The module with a volume and a structure segmented from clicks on these slices."""
    add_volume(host)
    module = load(host)
    add_clicks(slices)
    segment(host, module)
    return module


def segmented_behind_gate(host: Any, gate: Path) -> tuple[Any, Any]:
    """A module with a result, and its clicks; the next run waits in its middle until the file ``gate`` is there."""
    add_volume(host)
    loaded = load(host, f"fake?gate={gate}")
    node = add_clicks((2, 8))
    gate.touch()
    segment(host, loaded)
    gate.unlink()
    return loaded, node


def settle_export(host: Any, module: Any) -> None:
    """Wait until the thread that writes or measures has come back."""
    host.wait_until(lambda: module.ui.exportButton.enabled)


def settle(host: Any, module: Any) -> None:
    """Let the application run until no timer of the panel waits and nothing is computed or written."""
    panel = module.widget.panel
    timers = [
        panel.clicks._timer,
        panel.clicks._fillTimer,
        panel.clicks._contentsTimer,
        panel.clicks._marksTimer,
        panel.correct._timer,
        panel._later,
        panel._showLater,
        panel._startLater,
    ]

    def isQuiet() -> bool:
        return not panel.run.isRunning and not any(timer.isActive() for timer in timers)

    for _ in range(2):
        host.process_events(30)
        host.wait_until(isQuiet, 240_000, "the panel to come to rest")


def state_of(module: Any) -> Any:
    """The module's settings."""
    return module.widget.panel.state


def mask_of(module: Any, segment_id: str = "", volume: Any = None) -> np.ndarray:
    """A segment on the volume's grid, (K, J, I) bool; by default the chosen one."""
    import slicer

    state = state_of(module)
    return (
        slicer.util.arrayFromSegmentBinaryLabelmap(
            state.segmentationNode, segment_id or state.segmentId, volume or state.volumeNode
        )
        != 0
    )


def filled_slices(mask: np.ndarray) -> list[int]:
    """Slices K with something in them."""
    return [k for k in range(mask.shape[0]) if mask[k].any()]


def digests(mask: np.ndarray) -> list[str]:
    """A checksum of every slice."""
    return [hashlib.blake2b(np.ascontiguousarray(part).tobytes(), digest_size=8).hexdigest() for part in mask]


def record_of(module: Any) -> Any:
    """What the scene keeps about the chosen segment."""
    task = module.widget.panel.inputs.currentTask()
    return task.target.record


def move_click(node: Any, index: int, by: tuple[float, float, float]) -> None:
    """Move a click."""
    position = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(index, position)
    node.SetNthControlPointPositionWorld(index, *(p + d for p, d in zip(position, by, strict=True)))
