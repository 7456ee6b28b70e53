"""Values of a prompt setting on the validation patients of the shipped bundles; by default the kinds of evidence.

    python Testing/Benchmarks/prompt_settings.py [BUNDLE ...] [--setting NAME --values V ...] [--seeds N] [--all-cases]

Of one volume a patient, every severity and set of clicks, the rows of ``spdsegment evaluate`` with each value; kept in
``results/evidence/BUNDLE.json`` (``BUNDLE-NAME.json`` for another setting), what is there is not computed again, and
refused where the bundle, another of its settings or the noise has changed. A table is printed, of refused rows too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import Rows, inputs_of, keep, rows_in, rows_to_go_on_with
from shipped import SHIPPED, bundle_of, data_of, first_of_each_patient, predictor_of, shipped_name
from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.evaluation.evaluator import (
    EvaluationConfig,
    EvaluationTarget,
    Judge,
    Occasion,
    load_targets,
    measure,
)
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.prompts.distillation import EVIDENCE, PromptConfig
from SPDSegmentLib.settings import parse_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
SEVERITIES = ("clean", "clinic", "severe")
FIRST_SEED = 9000
SETTING = "evidence"


def rows_of(
    predictors: dict[str, Predictor], target: EvaluationTarget, name: str, wanted: Sequence[tuple[str, str, int]]
) -> Rows:
    """A row of one volume for each (value, severity, seed); the values share its embeddings."""
    judge, rows, features = Judge(), [], None
    for value, severity, seed in wanted:
        placed, outside = target.clicks(severity, seed)
        session = predictors[value].open(target.stack, features)
        features = session.features

        def segment(_: Any, given: Any, session: Session = session) -> tuple[np.ndarray, Any]:
            result = session.segment(given)
            return result.mask, result.click_fates()

        row = dataclasses.asdict(
            measure(segment, target, placed, Occasion(name, value, severity, seed, outside), judge)
        )
        rows.append({key: row[key] for key in KEPT})
        print(name, target.case, target.name, value, severity, seed, rows[-1]["dsc"], flush=True)
    return rows


def missing(rows: Rows, values: Sequence[str], draws: Sequence[tuple[str, int]]) -> list[tuple[str, str, int]]:
    """(value, severity, seed) that a volume's rows lack."""
    done = {(row["method"], row["severity"], row["seed"]) for row in rows}
    return [(value, *draw) for draw in draws for value in values if (value, *draw) not in done]


KEPT = ("method", "severity", "seed", "dsc", "hd95_mm", "right_rejected", "wrong_kept")


def kept_in(name: str, setting: str) -> Path:
    """Where the rows of a bundle are."""
    return RESULTS / (f"{name}.json" if setting == SETTING else f"{name}-{setting}.json")


def inputs_under(bundle: Bundle, setting: str) -> dict[str, Any]:
    """What the rows depend on: the measured setting has a value in each row, so that of the bundle does not count."""
    inputs = inputs_of(bundle, setting=setting)
    inputs["prompts"].pop(setting, None)
    return inputs


def run(name: str, options: argparse.Namespace) -> None:
    """Measure what is not measured yet of a bundle's volumes."""
    folder, data = data_of(name)
    path = kept_in(name, options.setting)
    own = predictor_of(name)
    inputs = inputs_under(bundle_of(name), options.setting)
    volumes = rows_to_go_on_with(path, inputs, lambda _: table_of(name, options.setting))
    draws = EvaluationConfig(tuple(options.severities), options.seeds, first_seed=options.first_seed).draws
    predictors = {value: own.with_prompts(_with(own.prompts, options.setting, value)) for value in options.values}
    usual = data.validation if options.all_cases else first_of_each_patient(name)
    for case in options.cases or usual:
        for target in load_targets(folder, data, [case]):
            place: dict[str, Any] = {"patient": target.patient, "case": target.case, "target": target.name}
            same = (v for v in volumes if all(v[key] == value for key, value in place.items()))
            volume = next(same, place | {"rows": []})
            if wanted := missing(volume["rows"], options.values, draws):
                volume["rows"] += rows_of(predictors, target, name, wanted)
                volumes = [v for v in volumes if v is not volume] + [volume]
                keep(path, inputs, volumes)


def _with(prompts: PromptConfig, setting: str, value: str) -> PromptConfig:
    """The same settings but one."""
    return PromptConfig.from_dict({**dataclasses.asdict(prompts), setting: _parsed(value)})


def _parsed(value: str) -> Any:
    """A number or a truth value as such, all else as text."""
    try:
        return parse_json(value)
    except ValueError:
        return value


def mean_of_patients(rows: Rows, metric: str) -> float | None:
    """Mean over patients of their means; None where no row has the metric."""
    of_patient: dict[str, list[float]] = {}
    for row in rows:
        if row[metric] is not None:
            of_patient.setdefault(row["patient"], []).append(row[metric])
    return float(np.mean([np.mean(values) for values in of_patient.values()])) if of_patient else None


def table_of(name: str, setting: str = SETTING) -> list[str]:
    """Means over the patients of a bundle, a line for each severity and value, and how many targets are missing."""
    volumes = rows_in(kept_in(name, setting))
    patients, cases = {v["patient"] for v in volumes}, {v["case"] for v in volumes}
    absent = len(cases) * len(data_of(name)[1].targets) - len(volumes)
    lines = [f"{name}: {len(volumes)} targets of {len(patients)} patients, {absent} missing"]
    every = [row | {"patient": volume["patient"]} for volume in volumes for row in volume["rows"]]
    for severity in dict.fromkeys(row["severity"] for row in every):
        for value in dict.fromkeys(row["method"] for row in every):
            rows = [r for r in every if (r["severity"], r["method"]) == (severity, value)]
            means = []
            for metric in KEPT[3:]:
                mean = mean_of_patients(rows, metric)
                means.append(f"{metric} -" if mean is None else f"{metric} {mean:.4f}")
            lowest = min(r["dsc"] or 0.0 for r in rows)
            lines.append(f"  {severity:7}{value:10}{'  '.join(means)}  lowest dsc {lowest:.3f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--cases", nargs="+", default=[], help="these validation volumes alone")
    parser.add_argument("--setting", default=SETTING)
    parser.add_argument("--values", nargs="+", default=EVIDENCE)
    parser.add_argument("--severities", nargs="+", default=SEVERITIES)
    parser.add_argument("--all-cases", action="store_true", help="every validation volume, not one of each patient")
    options = parser.parse_args()
    try:
        for value in options.values:
            _with(PromptConfig(), options.setting, value)
    except SPDError as error:
        parser.error(str(error))
    for name in options.bundles:
        run(name, options)
        print("\n".join(table_of(name, options.setting)))


if __name__ == "__main__":
    main()
