"""*Any structure* on structures, and in patients, that it was never trained on.

    PYTHONPATH=Testing/Benchmarks python Testing/Benchmarks/unseen.py BUNDLE [--seeds N] [--only TEXT]

BUNDLE: what ``spdsegment train`` makes of ``Configs/any-structure.toml``. One volume a structure, every severity; rows
go to ``results/unseen.json``, one that is there is not computed again, and refused where model, seeds or noise are
others. A table and the shares of clicks are printed.
Beside it the random walker and the frozen LiteMedSAM with a box around a slice's clicks; both are told the structure's
true radius, which a user would have to guess. Most of these masks were drawn by another model and each is of one case:
the figures say how far masks agree, not how accurate they are.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kept_rows import Rows, inputs_of, keep, rows_to_go_on_with
from spdbench.comparators.frozen_sam import FrozenSam
from spdbench.comparators.protocol import InputSettings, make_comparator
from SPDSegmentLib.evaluation.evaluator import (
    BundleMethods,
    EvaluationTarget,
    Judge,
    Occasion,
    load_targets,
    measure,
)
from SPDSegmentLib.evaluation.report import mean_of_worst_tenth
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.training.config import DataConfig

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
RESULTS = HERE / "results" / "unseen.json"
SEVERITIES = ("clean", "clinic", "severe")
FIRST_SEED = 7000
OURS, WALKER, BOX = "any-structure", "random-walker", "frozen-box"
KEPT = ("dsc", "hd95_mm", "clicks", "outside_share", "right_rejected", "wrong_kept")


class Unseen(NamedTuple):
    """A volume, and the label values of its structures by name."""

    folder: str
    case: str
    structures: dict[str, int]


VOLUMES = (
    Unseen("small_mixed", "pyrad_brain1", {"brain lesion": 1}),
    Unseen("small_mixed", "ts_pulmonary_artery", {"pulmonary artery": 1}),
    Unseen(
        "totalseg_modelmade",
        "ts_ct_sm",
        {"gallbladder": 4, "stomach": 6, "pancreas": 7, "duodenum": 19, "colon": 20, "inferior vena cava": 63},
    ),
    Unseen("totalseg_modelmade", "ts_mr_sm", {"stomach, MR": 6, "pancreas, MR": 7, "aorta, MR": 23}),
    Unseen("small_mixed", "tpt_ct_vert", {"vertebra": 22}),
    Unseen("small_mixed", "tpt_mri_subreg", {"spinal canal": 61, "disks": 100}),
    Unseen("small_mixed", "slicerio_ctchest", {"right lung": 5, "left lung": 6}),
    Unseen(
        "small_mixed",
        "ts_aorta_branches",
        {
            "superior mesenteric artery": 6,
            "celiac trunk": 5,
            "left carotid": 3,
            "brachiocephalic trunk": 2,
            "left subclavian": 4,
            "aorta": 1,
        },
    ),
)
"""ts_aorta and ts_pulmart may be the patients of ts_aorta_branches and ts_pulmonary_artery, and are left out."""


def radius_mm(target: EvaluationTarget) -> float:
    """Of a disk as large as the structure's median cross-section."""
    areas = target.mask.sum(axis=(1, 2))
    return float(np.sqrt(np.median(areas[areas > 0]) * np.prod(target.stack.pixel_mm) / np.pi))


def systems_of(predictor: Predictor, target: EvaluationTarget) -> dict[str, Callable[[EvaluationTarget, Any], Any]]:
    """From a target and clicks to a mask and the fates of the clicks."""
    inputs = InputSettings(256, 0.0, IntensityConfig("auto"), box_margin_mm=radius_mm(target), device="cpu")
    box = FrozenSam(inputs, shape="box", name=BOX)
    box.load(Path())
    walker = make_comparator(WALKER, inputs)
    ours = BundleMethods(predictor)
    return {
        OURS: lambda target, clicks: ours.segment(target, clicks, "consensus"),
        WALKER: lambda target, clicks: (walker.segment(target, clicks), None),
        BOX: lambda target, clicks: (box.segment(target, clicks), None),
    }


def rows_of(predictor: Predictor, volume: Unseen, name: str, seeds: range) -> Iterator[dict[str, Any]]:
    """Rows of one structure."""
    data = DataConfig(
        folder="",
        image="{case}_image.nii.gz",
        label="{case}_label.nii.gz",
        targets=((volume.structures[name],),),
        train=(volume.case,),
        plane="axial",
    )
    (target,) = load_targets(DATA / volume.folder, data, [volume.case])
    systems, judge = systems_of(predictor, target), Judge()
    for severity in SEVERITIES:
        for seed in seeds:
            clicks, outside = target.clicks(severity, seed)
            for method, segment in systems.items():
                occasion = Occasion(method, method, severity, seed, outside)
                row = dataclasses.asdict(measure(segment, target, clicks, occasion, judge))
                place = {"case": volume.case, "structure": name, "method": method, "severity": severity, "seed": seed}
                print(*place.values(), row["dsc"], row["hd95_mm"], flush=True)
                yield place | {key: row[key] for key in KEPT}


def table(rows: Rows) -> list[str]:
    """A line a structure: DSC (HD95 in mm) of each method at each severity; then medians and the worst tenth."""
    methods = (OURS, WALKER, BOX)
    lines = ["| structure | " + " | ".join(f"{m}, {s}" for m in methods for s in SEVERITIES) + " |"]
    lines.append("|---" * (1 + len(methods) * len(SEVERITIES)) + "|")
    names = list(dict.fromkeys(row["structure"] for row in rows))
    cells = {
        (name, method, severity): _mean(
            [r for r in rows if (r["structure"], r["method"], r["severity"]) == (name, method, severity)]
        )
        for name in names
        for method in methods
        for severity in SEVERITIES
    }
    for name in names:
        shown = [cells[name, m, s] for m in methods for s in SEVERITIES]
        lines.append(f"| {name} | " + " | ".join(f"{dsc:.3f} ({hd95:.0f})" for dsc, hd95 in shown) + " |")
    for title, of in (("median", np.median), ("worst tenth", mean_of_worst_tenth)):
        found = [of([cells[name, m, s][0] for name in names]) for m in methods for s in SEVERITIES]
        lines.append(f"| *{title}* | " + " | ".join(f"{value:.3f}" for value in found) + " |")
    return lines


def _mean(rows: list[dict[str, Any]]) -> tuple[float, float]:
    return float(np.mean([r["dsc"] for r in rows])), float(np.mean([r["hd95_mm"] for r in rows]))


def shares(every: Rows) -> list[str]:
    """A line a severity: means over the structures of right clicks rejected and of wrong clicks kept."""
    lines = []
    for severity in SEVERITIES:
        rows = [row for row in every if (row["method"], row["severity"]) == (OURS, severity)]
        means = []
        for share in ("right_rejected", "wrong_kept"):
            known = [row[share] for row in rows if row[share] is not None]
            means.append(f"{share} {np.mean(known):.3f}" if known else f"{share} -")
        lines.append(f"{severity}: {', '.join(means)}")
    return lines


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name or folder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="structures whose name contains this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    bundle = find_bundle(options.bundle)
    inputs = inputs_of(bundle, severities=SEVERITIES, seeds=[FIRST_SEED, options.seeds])
    rows = rows_to_go_on_with(options.output, inputs, lambda rows: [*table(rows), *shares(rows)])
    done = {row["structure"] for row in rows}
    predictor = Predictor.load(bundle, "cpu")
    for volume in VOLUMES:
        for name in volume.structures:
            if options.only in name and name not in done:
                rows += rows_of(predictor, volume, name, range(FIRST_SEED, FIRST_SEED + options.seeds))
                keep(options.output, inputs, rows)
    print("\n".join([*table(rows), *shares(rows)]))


if __name__ == "__main__":
    main()
