"""Efficiency of a batch on k Dask workers of this machine: time on one worker over k times the time on k.

The work is a wait, so that more workers than cores can be measured; each case is checked, written and recorded as any
other. ``python Testing/Benchmarks/batch_efficiency.py --workers 2 4 8 --output Testing/Benchmarks/results/batch.json``
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "Python"))

from batch_helpers import MODEL, write_clicks, write_image
from cluster_stub import not_here, sleeping_segmenter
from test_batch_cluster import Dask

from SPDSegmentLib.batch import cluster
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings
from SPDSegmentLib.files import write_json


def seconds_on(workers: int, cases_each: int, seconds: float, folder: Path) -> float:
    """Time of a batch whose workers are there and have done a case each."""
    (folder / "dask").mkdir(parents=True)
    write_image(folder / "image.nii.gz")
    write_clicks(folder / "points.mrk.json")
    files = (str(folder / "image.nii.gz"), str(folder / "points.mrk.json"))
    dask = Dask(folder / "dask")
    client = None
    try:
        for _ in range(workers):
            dask.add_worker()
        client = cluster.connect(dask.address)
        client.wait_for_workers(workers, timeout=300)
        settings = BatchSettings(suffix=".nii.gz", series=f"{seconds}")
        spent = 0.0
        for name, count in (("warm", 2 * workers), ("measured", cases_each * workers)):
            run = BatchRun(
                not_here, folder / name, MODEL, settings,
                dispatch=cluster.ClusterDispatch(client, sleeping_segmenter),
            )  # fmt: skip
            begun = time.monotonic()
            report = run([(f"{name}{n}", *files) for n in range(count)])
            spent = time.monotonic() - begun
            assert {row["state"] for row in report["cases"]} == {"done"}
        return spent
    finally:
        if client is not None:
            client.close()
        dask.close()


def main() -> None:
    """Measure and print; write the figures where wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--cases", type=int, default=6, help="for each worker")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a case")
    parser.add_argument("--least", type=float, default=0.0, help="fail below this efficiency")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        one = seconds_on(1, options.cases, options.seconds, Path(folder) / "one")
        for k in options.workers:
            spent = seconds_on(k, options.cases, options.seconds, Path(folder) / f"{k}")
            rows.append({"workers": k, "seconds": round(spent, 3), "efficiency": round(one / spent, 3)})
            print(f"{k} workers, {k * options.cases} cases: {spent:.2f} s; efficiency {one / spent:.3f}")
    if options.output:
        write_json(options.output, {
            "command": "python Testing/Benchmarks/batch_efficiency.py", "machine": platform.machine(),
            "case_seconds": options.seconds, "cases_a_worker": options.cases, "one_worker_seconds": round(one, 3),
            "workers": rows,
        })  # fmt: skip
    if min(row["efficiency"] for row in rows) < options.least:
        sys.exit(f"The efficiency is below {options.least}.")


if __name__ == "__main__":
    main()
