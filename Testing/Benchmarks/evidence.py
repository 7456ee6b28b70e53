"""Kinds of evidence on the validation patients of the shipped bundles.

python Testing/Benchmarks/evidence.py [BUNDLE ...] [--seeds N]: of one volume a patient, every severity and set of
clicks, the rows of ``spdsegment evaluate`` with each kind of evidence; kept in
``results/evidence/BUNDLE.json``, a volume that is there is not computed again. A table is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from shipped import SHIPPED, data_of, first_of_each_patient, predictor_of
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, Judge, Occasion, load_targets, measure
from SPDSegmentLib.files import write_json
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import EVIDENCE

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
SEVERITIES = ("clean", "clinic", "severe")
FIRST_SEED = 9000


def of_target(predictors: dict[str, Predictor], target: EvaluationTarget, name: str, seeds: range) -> dict[str, Any]:
    """Rows of one volume."""
    judge, rows = Judge(), []
    features = None
    for kind, predictor in predictors.items():
        session = predictor.open(target.stack, features)
        features = session.features
        for severity in SEVERITIES:
            for seed in seeds:
                placed, outside = target.clicks(severity, seed)

                def segment(_: Any, given: Any, session: Session = session) -> tuple[np.ndarray, Any]:
                    result = session.segment(given)
                    return result.mask, result.click_fates()

                occasion = Occasion(name, kind, severity, seed, outside)
                row = dataclasses.asdict(measure(segment, target, placed, occasion, judge))
                rows.append({key: row[key] for key in KEPT})
                print(name, target.case, target.name, kind, severity, seed, rows[-1]["dsc"], flush=True)
    return {"patient": target.patient, "case": target.case, "target": target.name, "rows": rows}


KEPT = ("method", "severity", "seed", "dsc", "hd95_mm", "right_rejected", "wrong_kept")


def run(name: str, seeds: int) -> None:
    """Measure the volumes of a bundle that are not measured yet."""
    folder, data = data_of(name)
    path = RESULTS / f"{name}.json"
    volumes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(v["case"], v["target"]) for v in volumes}
    gate = predictor_of(name)
    predictors = {kind: gate.with_prompts(dataclasses.replace(gate.prompts, evidence=kind)) for kind in EVIDENCE}
    for case in first_of_each_patient(name):
        for target in load_targets(folder, data, [case]):
            if (target.case, target.name) not in done:
                volumes.append(of_target(predictors, target, name, range(FIRST_SEED, FIRST_SEED + seeds)))
                RESULTS.mkdir(parents=True, exist_ok=True)
                write_json(path, volumes, indent=None)


def table_of(name: str) -> list[str]:
    """Means over the volumes of a bundle, a line for each severity and kind."""
    volumes = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = [f"{name}: {len(volumes)} volumes of {len({v['patient'] for v in volumes})} patients"]
    for severity in SEVERITIES:
        for kind in EVIDENCE:
            rows = [r for v in volumes for r in v["rows"] if (r["severity"], r["method"]) == (severity, kind)]
            means = []
            for metric in KEPT[3:]:
                values = [r[metric] for r in rows if r[metric] is not None]
                means.append(f"{metric} {np.mean(values):.4f}" if values else f"{metric} -")
            lowest = min(r["dsc"] or 0.0 for r in rows)
            lines.append(f"  {severity:7}{kind:10}{'  '.join(means)}  lowest dsc {lowest:.3f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    for name in options.bundles:
        run(name, options.seeds)
        print("\n".join(table_of(name)))


if __name__ == "__main__":
    main()
