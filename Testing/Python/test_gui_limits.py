"""How long calls of the module hold Slicer's main thread, on a volume of 512 x 512 x 300 voxels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    add_clicks,
    add_volume,
    digests,
    load,
    mask_of,
    move_click,
    press_segment,
    record_of,
    segment,
    settle,
    settle_export,
)

from SPDSegmentLib.geometry.labelmap import read_labelmap
from SPDSegmentLib.worker.transports import QProcessTransport

pytest_plugins = ["Testing.Host.pytest_plugin"]
pytestmark = pytest.mark.alone

LARGE = (300, 512, 512)
LIMIT_MS = 50.0
SENDING_LIMIT_MS = 300.0


class CallTimes:
    """Own time of the main thread in every slot of the module, in ms."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str]] = []

    def timed(self, callback: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a callback that notes its time."""

        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return callback(*arguments)
            finally:
                self.calls.append((1000 * (time.thread_time() - started), name))

        return call

    @property
    def longest(self) -> tuple[float, str]:
        """The longest call."""
        return max(self.calls, default=(0.0, ""))


@contextmanager
def timed_slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[CallTimes]:
    """Time every slot that is connected from now on."""
    from Testing.Host.block_timer import only_new_garbage
    from Testing.Host.pythonqt import signals

    times = CallTimes()
    adapt = signals._adapt

    def adapted(callback: Any, where: str) -> Any:
        deliver = adapt(callback, where)
        ours = "SPDSegment" in str(getattr(callback, "__module__", ""))
        return times.timed(deliver, str(getattr(callback, "__qualname__", callback))) if ours else deliver

    with only_new_garbage(), monkeypatch.context() as patch:
        patch.setattr(signals, "_adapt", adapted)
        yield times


@contextmanager
def within(times: CallTimes, limit_ms: float) -> Iterator[None]:
    """Fail if a call of the module takes longer."""
    times.calls.clear()
    yield
    milliseconds, name = times.longest
    assert milliseconds < limit_ms, f"{name} took {milliseconds:.0f} ms"


def short_once(times: CallTimes, limit_ms: float, action: Callable[[], None]) -> None:
    """Fail if a call takes longer in two runs of an action that can be repeated; a busy machine spoils one at most."""
    longest = []
    for _ in range(2):
        times.calls.clear()
        action()
        longest.append(times.longest)
        if longest[-1][0] < limit_ms:
            return
    raise AssertionError(f"too slow twice: {longest}")


def test_no_call_holds_the_window_on_a_large_volume(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 200, LARGE[1:]).astype(np.int16)
    host.add_volume(np.broadcast_to(array, LARGE).copy(), (0.8, 0.8, 1.0))
    with timed_slots(monkeypatch) as times:
        module = load(host, "fake?radius=110")
        node = add_clicks((), at=(200.0, 200.0))
        for t in range(60, 240, 5):
            node.AddControlPointWorld(200.0, 200.0, float(t))
        settle(host, module)
        for name in ("clicksSection", "reviewSection", "correctSection"):
            getattr(module.ui, name).collapsed = False
        with within(times, SENDING_LIMIT_MS):
            job = press_segment(module)
            host.wait_until(lambda: job.answer is not None)
        with within(times, LIMIT_MS):
            settle(host, module)
        before = digests(mask_of(module))
        with within(times, LIMIT_MS):
            move_click(node, 3, (9.0, 0.0, 0.0))
            settle(host, module)
        after = digests(mask_of(module))
        assert {t for t in range(LARGE[0]) if before[t] != after[t]} == set(module.widget.panel.run.job.recomputed)
        with within(times, LIMIT_MS):
            module.ui.undoButton.click()
            settle(host, module)
        assert digests(mask_of(module)) == before
        module.ui.editor.setActiveEffectByName("Paint")
        with within(times, LIMIT_MS):
            host.slice_view("Red").drag_ras((200.0, 200.0, 100.0), (60.0, 200.0, 100.0))
            settle(host, module)
        assert record_of(module).owned == {100}


def test_a_surface_in_3d_does_not_hold_it_either(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 200, LARGE[1:]).astype(np.int16)
    host.add_volume(np.broadcast_to(array, LARGE).copy(), (0.8, 0.8, 1.0))
    with timed_slots(monkeypatch) as times:
        module = load(host, "fake?radius=60")
        node = add_clicks((), at=(200.0, 200.0))
        for t in range(60, 240, 5):
            node.AddControlPointWorld(200.0, 200.0, float(t))
        surfaces = module.logic.segmenter.surfaces
        segment(host, module)
        with within(times, LIMIT_MS):
            module.ui.show3DButton.click()
            host.wait_until(lambda: surfaces.isQuiet)

        def move() -> None:
            move_click(node, 10, (5.0, 0.0, 0.0))
            settle(host, module)
            host.wait_until(lambda: surfaces.isQuiet)

        short_once(times, LIMIT_MS, move)
        with within(times, SENDING_LIMIT_MS):
            job = press_segment(module)
            host.wait_until(lambda: job.answer is not None)
        with within(times, LIMIT_MS):
            settle(host, module)
            host.wait_until(lambda: surfaces.isQuiet)


def test_export_and_statistics_do_not_hold_it(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import slicer

    volume = host.add_volume(np.zeros(LARGE, np.int16), (0.8, 0.8, 1.0))
    z, y, x = np.ogrid[: LARGE[0], : LARGE[1], : LARGE[2]]
    tube = ((y - 256 - 60 * np.sin(z / 40)) ** 2 + (x - 256) ** 2 < 40**2).astype(np.uint8)
    with timed_slots(monkeypatch) as times:
        module = load(host)
        from SPDSegmentLib.gui.scene.target import makeTarget

        target = makeTarget(None, "", volume, "Tube", (0.7, 0.4, 0.5), "")
        slicer.util.updateSegmentBinaryLabelmapFromArray(tube, target.node, target.segmentId, volume)
        state = module.widget.panel.state
        state.volumeNode, state.segmentationNode, state.segmentId = volume, target.node, target.segmentId
        module.widget.panel.enter()
        settle(host, module)
        for number, format_ in enumerate(module.widget.panel.export.formats):
            module.ui.exportFormatBox.currentIndex = number
            file = str(tmp_path / f"tube{format_.suffix}")

            def export(file: str = file) -> None:
                host.dialogs.choose_file(file)
                module.ui.exportButton.click()
                settle_export(host, module)

            short_once(times, LIMIT_MS, export)
            assert (tmp_path / f"tube{format_.suffix}").stat().st_size > 100
        assert np.array_equal(read_labelmap(tmp_path / "tube.nrrd").array, tube)
        with within(times, LIMIT_MS):
            module.ui.statisticsButton.click()
            settle_export(host, module)
        assert "ml" in module.ui.exportLabel.text


def test_a_thousand_clicks_do_not_hold_it_either(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    add_volume(host, (200, 40, 48), spacing_mm=(1.0, 1.0, 1.0))
    with timed_slots(monkeypatch) as times:
        module = load(host)
        module.ui.clicksSection.collapsed = False
        rng = np.random.default_rng(1)
        positions = np.column_stack([rng.uniform(4, 44, 1000), rng.uniform(4, 36, 1000), rng.uniform(0, 199, 1000)])
        node = add_clicks(())
        slicer.util.updateMarkupsControlPointsFromArray(node, positions)
        with within(times, LIMIT_MS):
            settle(host, module)
            job = segment(host, module)
        assert job.error is None, job.error
        assert len(job.writer.record.fates) == module.ui.clicksTable.rowCount == 1000
        with within(times, LIMIT_MS):
            move_click(node, 500, (1.0, 0.0, 0.0))
            settle(host, module)
        assert len(module.widget.panel.run.job.recomputed) == 5


def test_answers_of_the_worker_are_taken_in_parts_so_that_the_window_answers_in_between() -> None:
    # given: a worker that has said more than can be looked at in a moment
    said = [b"".join(number.to_bytes(2, "big") for number in range(40_000))]
    later: list[Callable[[], None]] = []
    taken: list[bytes] = []

    class Sink:
        def on_output(self, data: bytes) -> None:
            taken.append(data)
            time.sleep(0.01)

    class Said:
        def __init__(self, data: bytes) -> None:
            self.data = lambda: data

        def __bool__(self) -> bool:
            return bool(self.data())

    class Process:
        def readAllStandardOutput(self) -> Said:
            return Said(said.pop() if said else b"")

    transport = QProcessTransport(Process, lambda ms, callback: later.append(callback))
    transport._sink = Sink()  # type: ignore[assignment]

    # when
    transport._on_output()

    # then: it stops soon, and the rest follows in order, in events of its own
    assert len(taken) <= 2 and len(later) == 1
    said.insert(0, b"more")
    while later:
        later.pop()()
    assert b"".join(taken) == b"".join(number.to_bytes(2, "big") for number in range(40_000)) + b"more"


def test_a_write_takes_as_many_slices_as_its_time_allows(host: Any) -> None:
    from types import SimpleNamespace

    from SPDSegmentLib.gui.run.job import MAX_SLICES_PER_WRITE, SegmentationJob

    class Writer:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds
            self.counts: list[int] = []
            self.wasRefused, self.mayWriteParts = False, True

        def wasUndone(self) -> bool:
            return False

        def takeIn(self) -> list[Any]:
            return []

        def put(self, slices: Any) -> set[int]:
            self.counts.append(len(slices))
            time.sleep(self.seconds * len(slices))
            return set()

    def counts(seconds: float) -> list[int]:
        writer = Writer(seconds)
        job = SegmentationJob(None, writer, lambda: "", None)  # type: ignore[arg-type]
        job._pending = [SimpleNamespace(slice_index=t) for t in range(60)]  # type: ignore[misc]
        while job._pending:
            job._writePart()
        assert sum(writer.counts) == 60
        return writer.counts

    assert max(counts(0.0)) == MAX_SLICES_PER_WRITE
    assert set(counts(0.03)[1:]) == {1}
