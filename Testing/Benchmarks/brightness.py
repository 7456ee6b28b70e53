"""What something bright elsewhere in the volume does to a mask, with and without the look at the field of view.

python Testing/Benchmarks/brightness.py [BUNDLE]: in every validation volume a strip outside the field of view is made
so bright that the volume's normalization leaves the rest the given share of its brightness. Rows go to
``results/brightness.json``; what is there is not computed again, and refused where the bundle or
the noise is another. A table is printed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import Rows, inputs_of, keep, rows_to_go_on_with
from shipped import bundle_of, data_of, predictor_of, shipped_name
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, Judge, Occasion, load_targets, measure, window_of
from SPDSegmentLib.geometry.intensity import intensity_range
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.inference.predictor import Predictor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "brightness.json"
SHARES = (1.0, 0.7, 0.5, 0.35)
SEVERITY, SEED = "clinic", 9000
BRIGHT_SHARE = 0.01
KEPT = ("case", "target", "method", "dsc", "hd95_mm", "right_rejected", "wrong_kept")


def darkened(target: EvaluationTarget, predictor: Predictor, share: float) -> SliceStack:
    """The target's slices with one voxel in a hundred of the foreground, outside the field of view, made bright."""
    stack = target.stack
    if share == 1:
        return stack
    window = window_of(predictor, stack, target.clicks(SEVERITY, SEED)[0])
    rows, columns = window.to_input_weights()
    beyond = np.ones(stack.array.shape, dtype=bool)
    beyond[:, rows.seen, columns.seen] = False
    low, high = intensity_range(stack.array, predictor.intensity)
    array = stack.array.astype(np.float32)
    places = np.flatnonzero(beyond)[: int(BRIGHT_SHARE * (array > 0).sum())]
    array.reshape(-1)[places] = low + (high - low) / share
    return SliceStack(Volume(stack.to_volume(array), stack.volume.ijk_to_ras), stack.plane)


def rows_of(target: EvaluationTarget, predictors: dict[str, Predictor], share: float) -> list[dict[str, Any]]:
    """One row with each predictor."""
    stack, judge, rows = darkened(target, predictors["with"], share), Judge(), []
    clicks, outside = target.clicks(SEVERITY, SEED)
    for method, predictor in predictors.items():

        def segment(_: Any, given: Any, predictor: Predictor = predictor) -> tuple[np.ndarray, Any]:
            result = predictor.open(stack).segment(given)
            return result.mask, result.click_fates()

        row = dataclasses.asdict(measure(segment, target, clicks, Occasion("", method, SEVERITY, SEED, outside), judge))
        rows.append({key: row[key] for key in KEPT} | {"share": share})
        print(rows[-1], flush=True)
    return rows


def table(rows: Rows) -> list[str]:
    """Mean and lowest DSC by how much of the brightness is left."""
    lines = ["brightness left | without | with | lowest without | lowest with"]
    for share in SHARES:
        dsc = {
            m: [r["dsc"] or 0.0 for r in rows if (r["share"], r["method"]) == (share, m)] for m in ("without", "with")
        }
        means, least = ([f"{of(dsc[m]):.3f}" for m in dsc] for of in (np.mean, min))
        lines.append(" | ".join((f"{share:.2f}", *means, *least)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=shipped_name, default="kidney-mr")
    name = parser.parse_args().bundle
    folder, data = data_of(name)
    predictor = predictor_of(name)
    blind = copy.copy(predictor)
    blind.intensity = dataclasses.replace(predictor.intensity, usual_low=0.0, usual_high=0.0)
    usual = [predictor.intensity.usual_low, predictor.intensity.usual_high]
    inputs = inputs_of(bundle_of(name), severity=SEVERITY, seeds=[SEED], bright=BRIGHT_SHARE, usual=usual)
    rows = rows_to_go_on_with(RESULTS, inputs, table)
    done = {(row["case"], row["target"], row["share"]) for row in rows}
    for target in load_targets(folder, data, data.validation):
        for share in SHARES:
            if (target.case, target.name, share) not in done:
                rows += rows_of(target, {"with": predictor, "without": blind}, share)
                keep(RESULTS, inputs, rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
