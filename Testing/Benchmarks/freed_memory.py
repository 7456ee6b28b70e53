"""What keeping freed memory is worth: the sample's first run in a thread, as in the worker, with and without.

    .venv/bin/python Testing/Benchmarks/freed_memory.py [--precision float32] [--output FILE]

Each way runs in a process of its own, three times in turn; prints medians, their ratio and the largest peak in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "kidney-mr"
REPEATS = 3


def first_run(precision: str) -> None:
    """Segment the sample twice in a thread; print the seconds of the second, and the peak in MB, as JSON."""
    from SPDSegmentLib.geometry.centerline import clicks_from_markups
    from SPDSegmentLib.geometry.markups import read_markups
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.geometry.volume import read_volume
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import find_bundle

    bundle = find_bundle("kidney-mr")
    stack = SliceStack(read_volume(SAMPLE / "image.nii.gz"), bundle.info.slicing_axis)
    clicks = clicks_from_markups(read_markups(SAMPLE / "clicks.mrk.json"), stack)
    predictor = Predictor.load(bundle, "cpu", precision)
    taken: list[float] = []

    def run() -> None:
        begun = time.perf_counter()
        predictor.open(stack).segment(clicks)
        taken.append(time.perf_counter() - begun)

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": taken[-1], "peak_mb": peak}))


def main() -> None:
    """Run both ways and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--output", type=Path, help="write the figures there as well")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        first_run(options.precision)
        return
    found: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
    for _ in range(REPEATS):
        for way, runs in found.items():
            # a setting of the environment's own, here glibc's default, switches ours off
            environment = os.environ | ({"MALLOC_TOP_PAD_": "131072"} if way == "given back" else {})
            command = [sys.executable, __file__, "--once", "--precision", options.precision]
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            runs.append(json.loads(output))
    result = {
        way: {
            "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
            "peak_mb": round(max(run["peak_mb"] for run in runs)),
        }
        for way, runs in found.items()
    }
    ratio = result["given back"]["seconds"] / result["kept"]["seconds"]
    text = json.dumps({"precision": options.precision, **result, "times_faster": round(ratio, 2)}, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
