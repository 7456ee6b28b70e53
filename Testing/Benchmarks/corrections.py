"""How many slices must be corrected by hand until the Dice is 0.95, with and without learning from corrections?

python Testing/Benchmarks/corrections.py [BUNDLE ...] [--volumes N]; the data lie where the configurations of the
bundles say, and the patients are those that the bundles never saw. A simulated person starts from noisy clicks
(*clinic*), and replaces the slice with most wrong pixels by the reference, again and again. With learning, the model
learns after 2, 4 and 8 corrections (``SPDSegmentLib.inference.adaptation``), which refuses where nothing is gained.
Corrected slices count as right in both ways; what a lesson takes is in seconds of processor time. Rows are kept in
``results/corrections/BUNDLE.json``; what is there is not computed again, and refused where
bundle, noise or settings are others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import inputs_of, keep, rows_to_go_on_with
from next_click import held_out
from shipped import SHIPPED, bundle_of, predictor_of, shipped_name
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.inference.adaptation import learn
from SPDSegmentLib.inference.predictor import Predictor

HERE = Path(__file__).resolve().parent
SEVERITY, SEED = "clinic", 9000
MOST, LEARN_AFTER, WANTED = 12, (2, 4, 8), 0.95
SHOWN = (0, 2, 4, 8, 12)


def run(target: EvaluationTarget, predictor: Predictor) -> list[dict[str, Any]]:
    """DSC after each correction, without and with learning."""
    clicks, _ = target.clicks(SEVERITY, SEED)
    session = predictor.open(target.stack)
    rows = []
    for learning in (False, True):
        current, reached, lessons = session, [], []
        corrected: dict[int, np.ndarray] = {}
        for n in range(MOST + 1):
            if learning and n in LEARN_AFTER:
                began = time.process_time()
                lesson = learn(session, clicks, corrected)
                current = lesson.session or current  # who refuses changes nothing
                lessons.append([n, round(lesson.before, 4), round(lesson.after, 4), lesson.session is not None,
                                round(time.process_time() - began, 1)])  # fmt: skip
            mask = current.segment(clicks, locked=corrected).mask
            reached.append(round(dice(mask, target.mask) or 0.0, 4))
            wrong = (mask ^ target.mask).sum((1, 2))
            if n == MOST or not wrong.any():
                break
            t = int(np.argmax(wrong))
            corrected = {**corrected, t: target.mask[t]}
        reached += [reached[-1]] * (MOST + 1 - len(reached))
        rows.append({
            "patient": target.patient, "case": target.case, "target": target.name, "learning": learning,
            "slices": int(target.mask.any((1, 2)).sum()), "dsc": reached, "lessons": lessons,
        })  # fmt: skip
        print(target.case, target.name, learning, reached, lessons, flush=True)
    session.close()
    return rows


def needed(dsc: list[float]) -> int:
    """Corrections until the wanted Dice; one more than were made where it was not reached."""
    return next((n for n, value in enumerate(dsc) if value >= WANTED), MOST + 1)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: means over targets."""
    lines = []
    for learning in (False, True):
        own = [row for row in rows if row["learning"] is learning]
        cells = " | ".join(f"{np.mean([row['dsc'][n] for row in own]):.3f}" for n in SHOWN)
        counts = [needed(row["dsc"]) for row in own]
        missed = sum(count > MOST for count in counts)
        what = "with learning" if learning else "without"
        lines.append(f"| {what} ({len(own)} structures) | {cells} | {np.mean(counts):.1f} | {missed} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--volumes", type=int, default=5, help="volumes of each bundle at most, one a patient")
    options = parser.parse_args()
    for name in options.bundles:
        kept = HERE / "results" / "corrections" / f"{name}.json"
        settings = {"severity": SEVERITY, "seeds": [SEED], "most": MOST, "learn_after": LEARN_AFTER}
        inputs = inputs_of(bundle_of(name), **settings)
        rows = rows_to_go_on_with(kept, inputs, table)
        done = {(row["case"], row["target"]) for row in rows}
        predictor = predictor_of(name)
        for target in held_out(name, options.volumes):
            if (target.case, target.name) not in done:
                rows += run(target, predictor)
                keep(kept, inputs, rows)
        print(name, f"DSC after {SHOWN} corrections; corrections until {WANTED}; not reached", *table(rows), sep="\n")


if __name__ == "__main__":
    main()
