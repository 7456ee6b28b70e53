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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.evaluation.cases import EvaluationRow
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig, brightness, intensity_range
from SPDSegmentLib.geometry.labels import read_labels_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import read_volume
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.models.bundle import describe_again, read_bundle
from SPDSegmentLib.models.bundle_info import FIT_RANGES, BundleInfo
from SPDSegmentLib.models.fit import intensity_facts
from SPDSegmentLib.training.config import DataConfig, read_training_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "Configs"
MANY = 20
USUAL = "brightness"
SHIPPED = ("kidney-mr", "hippocampus-mr", "esophagus-ct")


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


def facts_of(info: BundleInfo, data: DataConfig, folder: Path) -> Iterator[dict[str, float]]:
    """Facts of every structure of every training case."""
    for case in data.train:
        volume = read_volume(folder / data.image.format(case=case))
        stack = SliceStack(volume, data.plane)
        labels = stack.from_volume(read_labels_of(folder / data.label.format(case=case), volume))
        for values in data.targets:
            mask = np.isin(labels, values)
            slices = np.flatnonzero(mask.any(axis=(1, 2)))
            if not len(slices):
                continue
            middles = [np.argwhere(mask[t]).mean(axis=0)[::-1] for t in slices]
            outside = np.zeros(len(slices), dtype=bool)
            clicks = Clicks(slices, np.array(middles), outside, tuple(map(str, slices)))
            seen = intensity_facts(stack, clicks, info.normalization, info.fov_mm)
            window = place_window(
                stack.array.shape[1:], stack.pixel_mm, info.image_size, info.fov_mm, np.median(middles, axis=0)
            )
            rows, columns = window.to_input_weights()
            limits = intensity_range(stack.array, IntensityConfig.from_dict(info.normalization))
            voxel_ml = stack.slice_mm * stack.pixel_mm[0] * stack.pixel_mm[1] / 1000
            yield {
                "pixel_mm": max(stack.pixel_mm),
                "slice_mm": stack.slice_mm,
                "volume_ml": float(mask.sum()) * voxel_ml,
                "bright_share": seen.bright_share,
                "dark_share": seen.dark_share,
                "middle": seen.middle,
                USUAL: brightness(stack.array[:, rows.seen, columns.seen], limits),
            }


def ranges(facts: list[dict[str, float]]) -> dict[str, list[float]]:
    """Lowest and highest value of each fact; of many, without the extreme twentieth at either end."""
    ends = (5, 95) if len(facts) >= MANY else (0, 100)
    found = {}
    for name in (*FIT_RANGES, USUAL):
        low, high = np.percentile([fact[name] for fact in facts], ends)
        found[name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=SHIPPED)
    parser.add_argument("--rows", type=Path, help="rows.csv of an evaluation on the validation patients")
    options = parser.parse_args()
    rows = read_rows(options.rows) if options.rows else []
    for name in options.bundles:
        bundle = read_bundle(REPOSITORY / "Resources" / "Models" / name)
        config = CONFIGS / f"{name}.toml"
        data = read_training_config(config).data
        facts = list(facts_of(bundle.info, data, (config.parent / data.folder).resolve()))
        kept: dict[str, list[float]] = {}
        for row in rows:
            if row.bundle == name and row.method == "consensus" and row.kept_share is not None:
                kept.setdefault(row.severity, []).append(row.kept_share)
        shares = {severity: round(float(np.mean(values)), 3) for severity, values in kept.items()}
        known = shares or dict(bundle.info.fit.get("kept_share", {}))
        fit = ranges(facts) | ({"kept_share": known} if known else {})
        usual_low, usual_high = fit.pop(USUAL)
        normalization = dict(bundle.info.normalization)
        if normalization["kind"] == "percentile":
            normalization |= {"usual_low": usual_low, "usual_high": usual_high}
        describe_again(bundle, fit=fit, normalization=normalization)
        print(name, len(facts), fit)


if __name__ == "__main__":
    main()
