"""What a run takes with its network: first result, one changed click, the network's share, the way through the worker.

``speed.py`` and ``gpu.py`` call it; as a script it measures the library that is on the path, whatever its version, so
that two of them can be compared in turns (``speed.py --against COMMIT``). Seconds are given on the clock and of the
processor; other programs lengthen the former more.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SPDSegmentLib.geometry.centerline import Clicks, clicks_from_markups
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import read_volume
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.worker.client import Callbacks, ModelChoice, WorkerClient
from without_network import in_turns, moved, tube

SAMPLE = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "kidney-mr"
NETWORK = ("encode", "with_context", "saliency", "conditioned_saliency", "decode", "decode_conditioned")
CLOCKS: dict[str, Callable[[], float]] = {"clock_s": time.perf_counter, "processor_s": time.process_time}


def sample(predictor: Predictor) -> tuple[SliceStack, Clicks]:
    """The sample's slices and clicks."""
    stack = SliceStack(read_volume(SAMPLE / "image.nii.gz"), predictor.plane)
    return stack, clicks_from_markups(read_markups(SAMPLE / "clicks.mrk.json"), stack)


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of a run by both clocks, and what it gave."""
    begun = {name: clock() for name, clock in CLOCKS.items()}
    given = run()
    return {name: clock() - begun[name] for name, clock in CLOCKS.items()}, given


class NetworkTime:
    """Seconds that the network of a predictor takes from now on; on a CPU it has run when its call returns."""

    def __init__(self, predictor: Predictor) -> None:
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        engine: Any = predictor.engine
        for name in NETWORK:
            setattr(engine, name, self._timing(getattr(engine, name)))

    def _timing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **rest: Any) -> Any:
            seconds, given = timed(functools.partial(call, *args, **rest))
            for name, value in seconds.items():
                self.seconds[name] += value
            return given

        return run


def measure(bundle: str, slices: int, changes: int, masks: Path | None = None) -> dict[str, Any]:
    """First result of a warm model and the median changed click: the sample, or ``slices`` of 512 x 512."""
    predictor = Predictor.load(find_bundle(bundle), "cpu")
    stack, clicks = tube(slices) if slices else sample(predictor)
    engine = predictor.engine
    channels, side = 3 if engine.model.config.conditioned else 1, engine.image_size
    engine.encode(np.zeros((1, channels, side, side), np.float32))
    network = NetworkTime(predictor)
    session = predictor.open(stack)
    prompts = "interpolated" if slices else "consensus"  # no model knows the tube
    first, result = timed(lambda: session.segment(clicks, prompts=prompts))
    inside = dict(network.seconds)
    if masks is not None:
        np.savez_compressed(masks, mask=result.mask)
    kept = [n for n, fate in result.click_fates().items() if fate.fate == "kept"] or list(range(len(clicks.xy)))
    times = []
    for n in range(changes):
        session.segment(clicks, prompts=prompts)
        changed = moved(clicks, kept[n % len(kept)], (2.0, 2.0))
        times.append(timed(lambda: session.segment(changed, prompts=prompts))[0])  # noqa: B023
    return {
        "slices": stack.shape[0],
        "encoded": result.encoded,
        "first_result": first,
        "outside_network": {name: 1 - inside[name] / first[name] for name in CLOCKS},
        "changed_click": {name: statistics.median(t[name] for t in times) for name in CLOCKS},
        "mask_voxels": int(result.mask.sum()),
    }


def compare(commit: str, options: list[str], rounds: int = 3) -> dict[str, Any]:
    """This tree and an earlier commit in turns: best seconds by both clocks, their ratios, and whether masks agree."""
    from SPDSegmentLib.evaluation.metrics import dice

    with tempfile.TemporaryDirectory() as folder:
        masks = Path(folder) / "{tree}.npz"
        found = in_turns(Path(__file__).resolve(), commit, [*options, "--masks", str(masks)], rounds)
        before, now = (np.load(str(masks).format(tree=name))["mask"] for name in found)
    report: dict[str, Any] = {"commit": commit, "rounds": rounds, "dsc": dice(now, before)}
    report["encoded"] = {name: runs[0]["encoded"] for name, runs in found.items()}
    for what in ("first_result", "changed_click"):
        best = {name: {clock: min(r[what][clock] for r in runs) for clock in CLOCKS} for name, runs in found.items()}
        report[what] = {**best, "ratio": {clock: best["now"][clock] / best["before"][clock] for clock in CLOCKS}}
    return report


def through_worker(
    bundle: str, device: str, stack: SliceStack, clicks: Clicks, changes: int, prompts: str = "consensus"
) -> dict[str, float]:
    """The worker's process: first slice and last, cold and warm, and changed clicks, in seconds on the clock.

    Cold is from before the process is started; warm is another volume in a process that has the model loaded.
    """
    places = stack.to_ras(clicks.slice_index, clicks.xy)
    points = [ControlPoint(str(n), str(n), (float(x), float(y), float(z))) for n, (x, y, z) in enumerate(places)]

    def segment(client: WorkerClient, name: str, chosen: list[ControlPoint], begun: float) -> tuple[float, float]:
        first: list[float] = []
        callbacks = Callbacks(on_slice=lambda _: first.append(time.perf_counter() - begun))
        markups = [Markup("clicks", "Fiducial", tuple(chosen))]
        client.wait(client.segment(name, markups, prompts=prompts, callbacks=callbacks))
        last = time.perf_counter() - begun
        return (first or [last])[0], last

    found: dict[str, float] = {}
    begun = time.perf_counter()
    with WorkerClient() as client:
        client.set_model(ModelChoice(bundle, device))
        for name in ("cold", "warm"):
            client.open_volume(name, stack.volume.array, stack.volume.ijk_to_ras, "axial")
            found[f"first_slice_{name}_s"], found[f"all_slices_{name}_s"] = segment(client, name, points, begun)
            begun = time.perf_counter()
        times = []
        for n in range(changes + 2):
            changed = list(points)
            at = (7 * n) % len(points)
            x, y, z = points[at].position_ras
            changed[at] = replace(points[at], position_ras=(x + 3.0 + n % 2, y, z))
            times.append(segment(client, "warm", changed, time.perf_counter())[1])
    return {
        **found,
        "slices": stack.shape[0],
        "changed_click_median_s": statistics.median(times[2:]),
        "changed_click_p95_s": float(np.percentile(times[2:], 95)),
    }


def main() -> None:
    """Print the figures of the library on the path as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="kidney-mr")
    parser.add_argument("--slices", type=int, default=0, help="of 512 x 512 in place of the sample")
    parser.add_argument("--changes", type=int, default=3)
    parser.add_argument("--masks", type=Path, help="write the first result's masks into this .npz")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.bundle, options.slices, options.changes, options.masks)))


if __name__ == "__main__":
    main()
