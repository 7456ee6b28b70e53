"""A predictor without torch for tests of the worker; run as a script it is a whole worker.

The "bundle" says how it behaves: ``fake?delay=0.05&stuck=3``. Its masks are discs around the clicks of a slice and of
two slices on each side, so that a changed click reaches five slices, as with the real one.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from SPDSegmentLib.errors import BadInput, Cancelled, DeviceUnavailable, ModelCorrupt, ModelMissing, OutOfMemory  # noqa: E402
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus  # noqa: E402

REACH = 2
RADIUS_PX = 4.0
BEFORE_GATE = 3
SPARSE = "fake?sparse=1"


@dataclass(frozen=True)
class Behavior:
    """Attributes: what to do, by the names used in the bundle text; seconds, exit codes, or 0 for not.

    With the path ``gate`` every run waits after its first slices until that file exists. With ``sparse`` a session does
    not report slices that it never filled, as the real one does not.
    """

    delay: float = 0.0
    load: float = 0.0
    stuck: float = 0.0
    hold: float = 0.0
    load_hold: float = 0.0
    spin: float = 0.0
    die_load: int = 0
    die_segment: int = 0
    missing: int = 0
    corrupt: int = 0
    no_torch: int = 0
    no_device: int = 0
    memory: int = 0
    bug: int = 0
    noise: int = 0
    radius: float = RADIUS_PX
    fov: float = 0.0
    flood: int = 0
    sparse: int = 0
    learns: float = 2.0
    name: str = ""
    gate: str = ""

    @classmethod
    def parse(cls, bundle: str) -> Behavior:
        """Read ``fake?key=value&...``."""
        kinds = {name: type(value) for name, value in vars(cls()).items()}
        return cls(**{key: kinds[key](value) for key, value in parse_qsl(bundle.partition("?")[2])})


@dataclass
class FakeProgress:
    stage: str
    done: int
    total: int
    seconds_left: float | None


@dataclass
class FakeSlice:
    slice_index: int
    mask: np.ndarray
    quality: float
    status: SliceStatus


@dataclass
class FakeResult:
    slices: list[FakeSlice]
    fates: list[PointFate]
    recomputed: list[int]
    seconds: float = 0.0
    device: str = "fake"
    extra: dict[str, Any] = field(default_factory=dict)
    center_xy: tuple[float, float] | None = None

    def report(self) -> dict[str, Any]:
        return {"not_a_number": float("nan"), "numpy": np.int64(3), "recomputed": self.recomputed, **self.extra}


@dataclass
class FakeSuggestion:
    slice_index: int
    xy: tuple[float, float]
    disagreement: float = 0.5
    distance_mm: float = 9.0
    score: float = 40.0


@dataclass
class FakeLesson:
    slices: tuple[int, ...]
    before: float = 0.8
    after: float = 0.8
    name: str = ""
    session: Any = None
    changed: dict[int, np.ndarray] = field(default_factory=dict)
    voxels: int = 0
    sentence: str = ""


class FakePredictor:
    """A model that needs no weights."""

    device = "fake"
    precision = "float32"

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior

    def suggest(self, session: FakeSession, *given: Any) -> list[FakeSuggestion]:
        return session.suggest(*given)

    def learn(self, session: FakeSession, *given: Any, **options: Any) -> FakeLesson:
        return session.learn(*given, **options)

    def open(self, stack: Any) -> FakeSession:
        return FakeSession(self.behavior, stack)


class FakeSession:
    """One volume: slices are kept until the clicks near them change."""

    def __init__(self, behavior: Behavior, stack: Any, learned: dict[str, Any] | None = None) -> None:
        self.behavior = behavior
        self.stack = stack
        self.learned = learned
        self.known: dict[int, tuple[tuple[Any, ...], FakeSlice]] = {}
        self.center_xy: tuple[float, float] | None = None

    def segment(
        self,
        clicks: Any,
        *,
        prompts: str = "consensus",
        first_slice: int | None = None,
        on_slice: Callable[[FakeSlice], None] | None = None,
        on_progress: Callable[[FakeProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        locked: Mapping[int, np.ndarray] | None = None,
        anchor_xy: tuple[float, float] | None = None,
    ) -> FakeResult:
        behavior = self.behavior
        _misbehave(behavior)
        if behavior.fov and self.center_xy is None:
            column, row = np.median(clicks.xy, axis=0) if anchor_xy is None else anchor_xy
            self.center_xy = (float(column), float(row))
        count, height, width = self.stack.shape
        center = count // 2 if first_slice is None else first_slice
        near = self._near(clicks)
        for t in range(count):
            if behavior.sparse and t not in self.known and not near[t] and t not in (locked or {}):
                self.known[t] = (self._key(t, near, locked), self._slice(t, near, locked, (height, width), 0.0))
        changed = [t for t in range(count) if t not in self.known or self.known[t][0] != self._key(t, near, locked)]
        changed.sort(key=lambda t: (abs(t - center), t))
        for done, t in enumerate(changed):
            while done >= BEFORE_GATE and behavior.gate and not os.path.exists(behavior.gate):
                if cancelled is not None and cancelled():
                    raise Cancelled()
                time.sleep(0.01)
            if cancelled is not None and cancelled():
                raise Cancelled()
            time.sleep(behavior.delay)
            result = self._in_view(self._slice(t, near, locked, (height, width), behavior.radius))
            self.known[t] = (self._key(t, near, locked), result)
            if on_slice is not None:
                on_slice(result)
            if on_progress is not None:
                on_progress(FakeProgress("decoding", done + 1, len(changed), behavior.delay * (len(changed) - done)))
        slices = [self.known[t][1] for t in range(count)]
        extra: dict[str, Any] = {
            "values": float(self.stack.array.sum(dtype=np.float64)),
            "first": first_slice,
            "prompts": prompts,
        }
        extra["model"] = {} if self.learned is None else {"learned": self.learned}
        extra["notes"] = ["Some clicks lie outside."] if any(clicks.outside) else []
        return FakeResult(slices, self._fates(clicks), sorted(changed), extra=extra, center_xy=self.center_xy)

    def reach(self, before: Any, after: Any) -> set[int]:
        first, second = self._near(before), self._near(after)
        return {t for t in range(self.stack.shape[0]) if first[t] != second[t]}

    def suggest(self, clicks: Any, count: int = 1, call: Any = None) -> list[FakeSuggestion]:
        """Three slices beyond the last click, beside its place; empty once there are three clicks."""
        t, (x, y) = int(clicks.slice_index.max()) + 3, clicks.xy.mean(axis=0).tolist()
        share = 0.5 if len(clicks) < 3 else -1.0
        return [FakeSuggestion(t, (x + 2.0, y), share)] if t < self.stack.shape[0] else []

    def learn(
        self,
        clicks: Any,
        corrected: Mapping[int, np.ndarray],
        prompts: str,
        call: Any,
        anchor_xy: Any = None,
        in_use: FakeSession | None = None,
    ) -> FakeLesson:
        """Discs are as much wider as ``learns`` says; with 0 nothing is gained."""
        slices = tuple(sorted(corrected))
        if len(slices) < 2:
            raise BadInput(f"{len(slices)} corrected slices are too few to learn from.", "Correct at least 2 slices.")
        for done in range(4):
            if call.cancelled():
                raise Cancelled()
            time.sleep(self.behavior.delay)
            call.on_progress(FakeProgress("learning", done + 1, 4, None))
        if not self.behavior.learns:
            return FakeLesson(slices, sentence="Nothing was gained from corrected slices. Nothing was changed.")
        wider = replace(self.behavior, radius=self.behavior.radius + self.behavior.learns)
        session = FakeSession(wider, self.stack, {"name": f"{len(slices):012d}", "slices": len(slices)})
        before, after = (s.segment(clicks, locked=corrected).slices for s in (in_use or self, session))
        changed = {b.slice_index: b.mask for a, b in zip(before, after, strict=True) if (a.mask != b.mask).any()}
        voxels = sum(int((a.mask ^ b.mask).sum()) for a, b in zip(before, after, strict=True))
        text = f"Learned from {len(slices)} corrected slices; {len(changed)} slices and {voxels} voxels would change."
        return FakeLesson(slices, 0.8, 0.9, f"{len(slices):012d}", session, changed, voxels, text)

    def saliency(self, t: int, center_xy: tuple[float, float] | None = None) -> np.ndarray:
        self.looked_at = center_xy
        return np.full(self.stack.shape[1:], t / self.stack.shape[0], dtype=np.float32)

    def _in_view(self, result: FakeSlice) -> FakeSlice:
        """With ``fov`` nothing is found further than that from where the clicks first were."""
        if self.center_xy is not None and result.status != "locked":
            rows, columns = np.ogrid[: result.mask.shape[0], : result.mask.shape[1]]
            column, row = self.center_xy
            result.mask &= np.maximum(abs(columns - column), abs(rows - row)) <= self.behavior.fov
        return result

    def _near(self, clicks: Any) -> list[tuple[tuple[float, float], ...]]:
        near: list[set[tuple[float, float]]] = [set() for _ in range(self.stack.shape[0])]
        for t, (x, y), outside in zip(clicks.slice_index, clicks.xy, clicks.outside, strict=True):
            for s in range(max(0, t - REACH), min(len(near), t + REACH + 1)):
                if not outside:
                    near[s].add((float(x), float(y)))
        return [tuple(sorted(points)) for points in near]

    @staticmethod
    def _key(t: int, near: list[tuple[Any, ...]], locked: Mapping[int, np.ndarray] | None) -> tuple[Any, ...]:
        own = locked[t].tobytes() if locked and t in locked else b""
        return (near[t], own)

    @staticmethod
    def _slice(
        t: int,
        near: list[tuple[Any, ...]],
        locked: Mapping[int, np.ndarray] | None,
        shape: tuple[int, int],
        radius: float,
    ) -> FakeSlice:
        if locked and t in locked:
            return FakeSlice(t, locked[t], 1.0, SliceStatus.LOCKED)
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        mask = np.zeros(shape, dtype=bool)
        for x, y in near[t]:
            mask |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        status = SliceStatus.SUPPORTED if near[t] else SliceStatus.ABSTAINED
        return FakeSlice(t, mask, 0.9 if near[t] else float("nan"), status)

    @staticmethod
    def _fates(clicks: Any) -> list[PointFate]:
        return [
            PointFate(
                n, int(t), Fate.OUTSIDE if out else Fate.KEPT, (float(x), float(y)), int(t), click_id=clicks.ids[n]
            )
            for n, (t, (x, y), out) in enumerate(zip(clicks.slice_index, clicks.xy, clicks.outside, strict=True))
        ]


def load_fake(bundle: str, device: str, precision: str) -> FakePredictor:
    """Load what the bundle text describes."""
    try:
        behavior = Behavior.parse(bundle)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelMissing(f"There is no model {bundle[:80]!r}.") from error
    time.sleep(behavior.load)
    if behavior.load_hold:
        ctypes.PyDLL(None).usleep(int(behavior.load_hold * 1e6))
    if behavior.die_load:
        os._exit(behavior.die_load)
    if behavior.missing:
        raise ModelMissing(f"The model {bundle!r} is not on this machine.", "Fetch it.")
    if behavior.corrupt:
        raise ModelCorrupt("The base weights are damaged.", "Fetch them again.")
    if behavior.no_torch:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if behavior.no_device:
        raise DeviceUnavailable(f"There is no device {device}.", "This machine has 0 CUDA device(s).")
    return FakePredictor(behavior)


def _misbehave(behavior: Behavior) -> None:
    if behavior.noise:
        print("a library prints", flush=True)
        os.write(1, b"and native code too SPDW\x01\x00\n")
        assert sys.stdin.read() == ""
    for _ in range(behavior.flood):
        os.write(2, (b"a library has much to say " * 4 + b"\n") * 9986)
    if behavior.die_segment:
        os._exit(behavior.die_segment)
    if behavior.memory:
        raise OutOfMemory("The device has not enough memory.", "Choose the CPU.")
    if behavior.bug:
        raise ValueError("a mistake of ours")
    if behavior.spin:
        until = time.monotonic() + behavior.spin
        while time.monotonic() < until:
            ctypes.PyDLL(None).rand()
    if behavior.hold:
        ctypes.PyDLL(None).usleep(int(behavior.hold * 1e6))
    time.sleep(behavior.stuck)


if __name__ == "__main__":
    from SPDSegmentLib.worker.__main__ import main

    main(load_fake)
