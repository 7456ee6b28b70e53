"""Values of a prompt setting on the validation patients of the shipped bundles; by default the kinds of evidence.

    python Testing/Benchmarks/prompt_settings.py [BUNDLE ...] [--setting NAME --values V ...] [--seeds N] [--all-cases]

Of one volume a patient, every severity and set of clicks, the rows of ``spdsegment evaluate`` with each value; kept in
``results/evidence/BUNDLE.json`` (``BUNDLE-NAME.json`` for another setting), a volume that is there is not computed
again. A table is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shipped import SHIPPED, data_of, first_of_each_patient, predictor_of
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, Judge, Occasion, load_targets, measure
from SPDSegmentLib.files import write_json
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import EVIDENCE, PromptConfig
from SPDSegmentLib.settings import parse_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
SEVERITIES = ("clean", "clinic", "severe")
FIRST_SEED = 9000
SETTING = "evidence"


def of_target(
    predictors: dict[str, Predictor], target: EvaluationTarget, name: str, severities: Sequence[str], seeds: range
) -> dict[str, Any]:
    """Rows of one volume; the values share its embeddings."""
    judge, rows, features = Judge(), [], None
    for severity in severities:
        for seed in seeds:
            placed, outside = target.clicks(severity, seed)
            for value, predictor in predictors.items():
                session = predictor.open(target.stack, features)
                features = session.features

                def segment(_: Any, given: Any, session: Session = session) -> tuple[np.ndarray, Any]:
                    result = session.segment(given)
                    return result.mask, result.click_fates()

                occasion = Occasion(name, value, severity, seed, outside)
                row = dataclasses.asdict(measure(segment, target, placed, occasion, judge))
                rows.append({key: row[key] for key in KEPT})
                print(name, target.case, target.name, value, severity, seed, rows[-1]["dsc"], flush=True)
    return {"patient": target.patient, "case": target.case, "target": target.name, "rows": rows}


KEPT = ("method", "severity", "seed", "dsc", "hd95_mm", "right_rejected", "wrong_kept")


def kept_in(name: str, setting: str) -> Path:
    """Where the rows of a bundle are."""
    return RESULTS / (f"{name}.json" if setting == SETTING else f"{name}-{setting}.json")


def run(name: str, options: argparse.Namespace) -> None:
    """Measure the volumes of a bundle that are not measured yet."""
    folder, data = data_of(name)
    path = kept_in(name, options.setting)
    volumes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(v["case"], v["target"]) for v in volumes}
    own = predictor_of(name)
    prompts = dataclasses.asdict(own.prompts)
    predictors = {
        value: own.with_prompts(PromptConfig.from_dict({**prompts, options.setting: _parsed(value)}))
        for value in options.values
    }
    usual = data.validation if options.all_cases else first_of_each_patient(name)
    for case in options.cases or usual:
        for target in load_targets(folder, data, [case]):
            if (target.case, target.name) not in done:
                seeds = range(options.first_seed, options.first_seed + options.seeds)
                volumes.append(of_target(predictors, target, name, options.severities, seeds))
                RESULTS.mkdir(parents=True, exist_ok=True)
                write_json(path, volumes, indent=None)


def _parsed(value: str) -> Any:
    """A number or a truth value as such, all else as text."""
    try:
        return parse_json(value)
    except ValueError:
        return value


def table_of(name: str, setting: str = SETTING) -> list[str]:
    """Means over the volumes of a bundle, a line for each severity and value."""
    volumes = json.loads(kept_in(name, setting).read_text(encoding="utf-8"))
    lines = [f"{name}: {len(volumes)} volumes of {len({v['patient'] for v in volumes})} patients"]
    every = [row for volume in volumes for row in volume["rows"]]
    for severity in dict.fromkeys(row["severity"] for row in every):
        for value in dict.fromkeys(row["method"] for row in every):
            rows = [r for r in every if (r["severity"], r["method"]) == (severity, value)]
            means = []
            for metric in KEPT[3:]:
                values = [r[metric] for r in rows if r[metric] is not None]
                means.append(f"{metric} {np.mean(values):.4f}" if values else f"{metric} -")
            lowest = min(r["dsc"] or 0.0 for r in rows)
            lines.append(f"  {severity:7}{value:10}{'  '.join(means)}  lowest dsc {lowest:.3f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--cases", nargs="+", default=[], help="these validation volumes alone")
    parser.add_argument("--setting", default=SETTING)
    parser.add_argument("--values", nargs="+", default=EVIDENCE)
    parser.add_argument("--severities", nargs="+", default=SEVERITIES)
    parser.add_argument("--all-cases", action="store_true", help="every validation volume, not one of each patient")
    options = parser.parse_args()
    for name in options.bundles:
        run(name, options)
        print("\n".join(table_of(name, options.setting)))


if __name__ == "__main__":
    main()
