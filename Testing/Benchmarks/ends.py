"""What is it worth to say where the structure ends? On patients the shipped bundles never saw.

    python Testing/Benchmarks/ends.py [BUNDLE ...] [--volumes N] [--seeds N]

Noisy clicks run past the ends of a structure and miss slices before them. A simulated person adds one click in the
middle of the cross-section of the first slice of the structure and one in the last:

- ``none``: nothing is added;
- ``clicked``: the two clicks are added;
- ``marked``: they are also marked as ends (``--ends``);
- ``inside`` and ``outside``: marked, but a slice too far inside, or outside at the place of the structure's last slice.

Beside the DSC each row says how many slices have a mask past the structure's ends, and how many of the structure's
have none. Rows are kept in ``results/ends/BUNDLE.json``; what is there is not computed again, and refused where bundle
or noise are others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import Rows, inputs_of, keep, rows_to_go_on_with
from shipped import SHIPPED, bundle_of, data_of, first_of_each_patient, predictor_of, shipped_name
from SPDSegmentLib.evaluation.evaluator import EvaluationConfig, EvaluationTarget, load_targets
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.evaluation.report import mean_of_worst_tenth
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.prompts.saliency_maps import deepest_point

HERE = Path(__file__).resolve().parent
WAYS = ("none", "clicked", "marked", "inside", "outside")
SEVERITIES = ("clean", "clinic", "severe")
FIRST_SEED = 9000
NOTICED = 0.002
"""Loss of DSC from which a run counts as worse."""


def with_ends(clicks: Clicks, target: EvaluationTarget, way: str) -> Clicks:
    """The clicks and those of a person who looks for the ends."""
    if way == "none":
        return clicks
    on = np.flatnonzero(target.mask.any(axis=(1, 2)))
    shift = {"inside": 1, "outside": -1}.get(way, 0)
    last = len(target.mask) - 1
    slices = np.clip([on[0] + shift, on[-1] - shift], 0, last)
    xy = [deepest_point(target.mask[int(np.clip(t, on[0], on[-1]))]) for t in slices]
    n = len(clicks)
    return Clicks(
        np.append(clicks.slice_index, slices),
        np.vstack((clicks.xy, *xy)),
        np.append(clicks.outside, [False, False]),
        (*clicks.ids, "first", "last"),
        ends=np.append(np.zeros(n, bool), [way != "clicked"] * 2),
    )


def run(target: EvaluationTarget, predictor: Predictor, seeds: int) -> Rows:
    """A row for each severity, set of clicks and way."""
    rows: Rows = []
    features = None
    on = target.mask.any(axis=(1, 2))
    for severity, seed in EvaluationConfig(SEVERITIES, seeds, first_seed=FIRST_SEED).draws:
        clicks, _ = target.clicks(severity, seed)
        for way in WAYS:
            session = predictor.open(target.stack, features)
            features = session.features
            mask = session.segment(with_ends(clicks, target, way)).mask
            filled = mask.any(axis=(1, 2))
            place: dict[str, Any] = {"patient": target.patient, "case": target.case, "target": target.name}
            rows.append(place | {
                "severity": severity, "seed": seed, "way": way, "dsc": round(float(dice(mask, target.mask) or 0.0), 4),
                "slices": int(on.sum()), "past": int((filled & ~on).sum()), "empty": int((on & ~filled).sum()),
            })  # fmt: skip
        print(target.case, target.name, severity, seed, [row["dsc"] for row in rows[-len(WAYS) :]], flush=True)
    return rows


def table(rows: Rows) -> list[str]:
    """A line for each severity and way: mean DSC over patients, worst tenth of the runs, slices past and empty."""
    lines = ["| clicks | ends | DSC | worst tenth | slices past the ends | empty slices |", "|---|---|---|---|---|---|"]
    for severity in SEVERITIES:
        for way in WAYS:
            own = [row for row in rows if (row["severity"], row["way"]) == (severity, way)]
            if not own:
                continue
            patients: dict[str, list[list[float]]] = {}
            for row in own:
                patients.setdefault(row["patient"], []).append([row["dsc"], row["past"], row["empty"]])
            dsc, past, empty = np.mean([np.mean(each, axis=0) for each in patients.values()], axis=0)
            worst = mean_of_worst_tenth([row["dsc"] for row in own])
            lines.append(f"| {severity} | {way} | {dsc:.3f} | {worst:.3f} | {past:.1f} | {empty:.1f} |")
    return lines


def harm(rows: Rows) -> str:
    """A sentence on the noisy runs that marked ends made worse by more than ``NOTICED``."""
    dsc = {(row["case"], row["target"], row["severity"], row["seed"], row["way"]): row["dsc"] for row in rows}
    pairs = [(dsc[*run, "none"], after) for (*run, way), after in dsc.items() if way == "marked" and run[2] != "clean"]
    losses = [before - after for before, after in pairs if before - after > NOTICED]
    most = f", by {max(losses):.4f} at the most" if losses else ""
    return f"Marking made {len(losses)} of {len(pairs)} noisy runs worse by more than {NOTICED}{most}."


def main() -> None:
    """Measure what is missing, and print a table of each bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--volumes", type=int, default=100, help="volumes of each bundle at most, one a patient")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    for name in options.bundles:
        kept = HERE / "results" / "ends" / f"{name}.json"
        inputs = inputs_of(bundle_of(name), severities=SEVERITIES, seeds=[FIRST_SEED, options.seeds])
        rows = rows_to_go_on_with(kept, inputs, table)
        done = {(row["case"], row["target"]) for row in rows}
        predictor = predictor_of(name)
        for target in load_targets(*data_of(name), sorted(first_of_each_patient(name))[: options.volumes]):
            if (target.case, target.name) not in done:
                rows += run(target, predictor, options.seeds)
                keep(kept, inputs, rows)
        print(name, f"{len({row['patient'] for row in rows})} patients", *table(rows), harm(rows), sep="\n")


if __name__ == "__main__":
    main()
