"""Calibrate the quality of the shipped bundles on their validation patients: ``calibration`` of their ``model.json``.

python Testing/Benchmarks/calibrate.py [BUNDLE ...] [--seeds N] [--write]; the data lie where the configurations of the
bundles say. Rows, one a volume and set of clicks with the predicted and the measured Dice of every slice, are kept
in ``results/calibration/BUNDLE.json``; what is there is not computed again, and refused where
bundle, cases, seeds or the noise are others. With ``--write`` the table goes into the
bundle.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import inputs_of, keep, rows_to_go_on_with
from shipped import SHIPPED, bundle_of, data_of, predictor_of, shipped_name
from SPDSegmentLib.evaluation.evaluator import load_targets
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.models.bundle import describe_again
from SPDSegmentLib.models.fit import CONFIDENCE, as_dice, predicted_dice

HERE = Path(__file__).resolve().parent
SEVERITY = "clinic"
FIRST_SEED = 7000
SLICE_SHARE = 0.9
"""Share of a patient's slices that the bound of slices is for."""


def rows_of(name: str, seeds: int) -> list[dict[str, Any]]:
    """Segment every validation volume with ``seeds`` sets of noisy clicks."""
    folder, data = data_of(name)
    predictor = predictor_of(name)
    rows = []
    for target in load_targets(folder, data, data.validation):
        session = predictor.open(target.stack)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            result = session.segment(target.clicks(SEVERITY, seed)[0])
            parts = [part for part in result.slices if part.pixels]
            rows.append({
                "patient": target.patient, "case": target.case, "target": target.name, "seed": seed,
                "measured": round(dice(result.mask, target.mask) or 0.0, 4),
                "predicted": predicted_dice([p.quality for p in parts], [p.pixels for p in parts]),
                "slices": [
                    [p.slice_index, round(float(as_dice(np.asarray(p.quality))), 4),
                     round(dice(p.mask, target.mask[p.slice_index]) or 0.0, 4)] for p in parts
                ],
            })  # fmt: skip
            print(name, target.case, target.name, seed, rows[-1]["measured"], rows[-1]["predicted"], flush=True)
        session.close()
    return rows


def conformal_margin(scores: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """What a new score stays below with ``confidence``; None where there are too few, so that it is infinite."""
    rank = math.ceil((len(scores) + 1) * confidence - 1e-9)
    return None if rank > len(scores) else float(sorted(scores)[rank - 1])


def coverage(scores: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Share of the scores that the margin of all others holds for; None where there are too few for a margin."""
    held = []
    for n, score in enumerate(scores):
        margin = conformal_margin([*scores[:n], *scores[n + 1 :]], confidence)
        if margin is None:
            return None
        held.append(score <= margin)
    return sum(held) / len(held) if held else None


def calibrate(
    volumes: Mapping[str, Sequence[float]], slices: Mapping[str, Sequence[float]], severity: str
) -> dict[str, Any]:
    """The table ``calibration`` from the excesses, predicted less measured Dice, of every patient's volumes and slices.

    Args:
        volumes, slices: excesses by patient; a patient's slices may be none.
    """
    scores = [max(values) for values in volumes.values()]
    parts = [float(np.quantile(values, SLICE_SHARE, method="higher")) for values in slices.values() if len(values)]

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "confidence": CONFIDENCE,
        "patients": len(scores),
        "severity": severity,
        "volume_bias": rounded(float(np.median([np.median(values) for values in volumes.values()]))),
        "slice_bias": rounded(float(np.median([np.median(values) for values in slices.values() if len(values)]))),
        "volume_margin": rounded(conformal_margin(scores)),
        "slice_margin": rounded(conformal_margin(parts)),
        "coverage": rounded(coverage(scores)),
    }


def table_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table ``calibration``; an empty mask promises nothing and is left out."""
    volumes: dict[str, list[float]] = {}
    slices: dict[str, list[float]] = {}
    for row in rows:
        if row["predicted"] is not None:
            volumes.setdefault(row["patient"], []).append(row["predicted"] - row["measured"])
            slices.setdefault(row["patient"], []).extend(said - found for _, said, found in row["slices"])
    return calibrate(volumes, slices, SEVERITY)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into the bundle")
    options = parser.parse_args()
    for name in options.bundles:
        kept = HERE / "results" / "calibration" / f"{name}.json"
        seeds = [FIRST_SEED, options.seeds]
        inputs = inputs_of(bundle_of(name), cases=data_of(name)[1].validation, severity=SEVERITY, seeds=seeds)
        rows = rows_to_go_on_with(kept, inputs, lambda rows: [str(table_of(rows))])
        if not rows:
            rows = rows_of(name, options.seeds)
            keep(kept, inputs, rows)
        table = table_of(rows)
        if options.write:
            describe_again(bundle_of(name), calibration=table)
        print(name, table)


if __name__ == "__main__":
    main()
