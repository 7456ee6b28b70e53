"""Write what the shipped bundles were trained on, the table ``fit`` of their ``model.json``, from their training cases,
and for MR the usual brightness of the field of view (``normalization.usual_low`` and ``usual_high``).

python Testing/Benchmarks/fit_tables.py [BUNDLE ...]; the data lie where the configurations of the bundles say. Ranges
leave out the extreme twentieth at either end of what many cases show. With ``--rows rows.csv`` of ``spdsegment
evaluate`` the shares of clicks that were kept in validation are written too.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from shipped import SHIPPED, shipped_name
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.models.bundle import describe_again, read_bundle
from SPDSegmentLib.training.config import read_training_config
from SPDSegmentLib.training.result import knowing

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "Configs"


def read_rows(path: Path) -> list[EvaluationRow]:
    """Read ``rows.csv`` back."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(EvaluationRow)}

    def value(name: str, text: str) -> Any:
        if text == "":
            return None
        kind = kinds[name]
        return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text

    with path.open(newline="", encoding="utf-8") as file:
        return [EvaluationRow(**{k: value(k, v) for k, v in line.items()}) for line in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--rows", type=Path, help="rows.csv of an evaluation on the validation patients")
    options = parser.parse_args()
    rows = read_rows(options.rows) if options.rows else []
    for name in options.bundles:
        bundle = read_bundle(REPOSITORY / "Resources" / "Models" / name)
        config = CONFIGS / f"{name}.toml"
        data = read_training_config(config).data
        kept: dict[str, list[float]] = {}
        for row in rows:
            if row.bundle == name and row.method == "consensus" and row.kept_share is not None:
                kept.setdefault(row.severity, []).append(row.kept_share)
        known = knowing(bundle.info, data, (config.parent / data.folder).resolve())
        shares = {severity: round(float(np.mean(values)), 3) for severity, values in kept.items()}
        fit = dict(known.fit) | ({"kept_share": shares} if shares else {})
        describe_again(bundle, fit=fit, normalization=known.normalization)
        print(name, fit, known.normalization)


if __name__ == "__main__":
    main()
