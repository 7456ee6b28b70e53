"""Long runs of the module on the test host: kills of the worker at random moments, live updates in a row."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import psutil
from gui_helpers import SPACING_MM, add_clicks, add_volume, digests, load, mask_of, press_segment, segment, settle

KILLED_WITHIN_SECONDS = 0.8
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class ModuleKills:
    """Kills at random moments: when they came, and seconds from the next press of Segment to the whole result."""

    before: int
    during: int
    after: int
    median_seconds: float
    longest_seconds: float


@dataclass(frozen=True)
class ModuleGrowth:
    """Resident memory in bytes, after the warm-up and at the end, of the window's process and of the worker."""

    module_before: int
    module_after: int
    worker_before: int
    worker_after: int

    @property
    def largest(self) -> float:
        """Growth of the process that grew more, 0.05 for 5 %."""
        return max(self.module_after / self.module_before, self.worker_after / self.worker_before) - 1


def kills(host: Any, count: int, seed: int = 5) -> ModuleKills:
    """Kill the worker ``count`` times; after each the segment is that of the last whole result or of the new one."""
    rng = random.Random(seed)
    add_volume(host)
    module = load(host, "fake?delay=0.01&load=0.02")
    module.widget.panel.state.liveUpdate = False
    node = add_clicks((4, 6))
    segment(host, module)
    client = module.logic.workerHost.client
    whole = {_state(node): digests(mask_of(module))}
    moments = {"before": 0, "during": 0, "after": 0}
    seconds = []
    for _ in range(count):
        last = digests(mask_of(module))
        node.SetNthControlPointPositionWorld(0, 24.0 + rng.randrange(-6, 7), 20.0, 4 * SPACING_MM[2])
        job = None
        if rng.random() < 0.8:
            job = press_segment(module)
            until = time.monotonic() + rng.random() * KILLED_WITHIN_SECONDS
            host.wait_until(lambda until=until: time.monotonic() >= until)
        moments["before" if job is None else "after" if job.finished else "during"] += 1
        killed = client.process_id
        if killed is not None:
            psutil.Process(killed).kill()
        host.wait_until(lambda killed=killed: client.process_id != killed, 60_000)
        host.wait_until(lambda job=job: job is None or job.finished, 60_000)
        found = digests(mask_of(module))
        assert found == last if job is None or job.error is not None else found
        assert node.GetNumberOfControlPoints() == 2
        client.reset()
        started = time.monotonic()
        again = press_segment(module)
        host.wait_until(lambda again=again: again.finished, 60_000)
        seconds.append(time.monotonic() - started)
        assert again.error is None, again.error
        assert whole.setdefault(_state(node), digests(mask_of(module))) == digests(mask_of(module))
    return ModuleKills(**moments, median_seconds=statistics.median(seconds), longest_seconds=max(seconds))


def updates(host: Any, count: int, seed: int = 6) -> ModuleGrowth:
    """Move a click ``count`` times with live update on, each time until the panel is at rest."""
    rng = random.Random(seed)
    add_volume(host)
    module = load(host)
    for name in ("clicksSection", "reviewSection", "correctSection"):
        getattr(module.ui, name).collapsed = False
    node = add_clicks(range(1, 11))
    segment(host, module)
    warm_up = max(5, int(count * WARM_UP_SHARE))
    before = (0, 0)
    for n in range(count + warm_up):
        if n == warm_up:
            before = _resident(module)
        index = rng.randrange(10)
        node.SetNthControlPointPositionWorld(index, 14.0 + 20 * rng.random(), 20.0, (index + 1) * SPACING_MM[2])
        settle(host, module)
    assert module.widget.panel.run.job.error is None
    after = _resident(module)
    return ModuleGrowth(before[0], after[0], before[1], after[1])


def _state(node: Any) -> tuple[float, ...]:
    position = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(0, position)
    return tuple(position)


def _resident(module: Any) -> tuple[int, int]:
    worker = psutil.Process(module.logic.workerHost.client.process_id)
    return psutil.Process().memory_info().rss, worker.memory_info().rss
