"""Does a suggested click help more than any other? DSC after 1, 3 and 5 clicks on patients the bundles never saw.

python Testing/Benchmarks/next_click.py [BUNDLE ...] [--volumes N] [--seeds N]; the data lie where the configurations of
the bundles say. Each run starts from three noisy clicks (severity *severe*: about three in four lie outside). Then a
simulated person is asked about one slice after the other and places a click there that prompts whatever the model
believes: at the suggested place where that lies on the structure, otherwise in the middle of the structure's
cross-section. Where the slice holds nothing of it, the question is lost. The slice comes from

- ``suggested``: ``SPDSegmentLib.inference.next_click``;
- ``uniform``: the one farthest from all clicks, between the first and the last of clicks and mask;
- ``random``: any of those;
- ``oracle``: the one with most wrong pixels that was not asked about, which needs the reference.

Rows are kept in ``results/next-click/BUNDLE.json``; what is there is not computed again, and refused
where bundle, noise or start are others.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kept_rows import inputs_of, keep, rows_to_go_on_with
from shipped import SHIPPED, bundle_of, data_of, first_of_each_patient, predictor_of, shipped_name
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, load_targets
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.next_click import suggest
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.prompts.saliency_maps import deepest_point

HERE = Path(__file__).resolve().parent
WAYS = ("suggested", "uniform", "random", "oracle")
SHOWN = (0, 1, 3, 5)
START, SEVERITY, FIRST_SEED = 3, "severe", 8000


def held_out(name: str, volumes: int) -> list[EvaluationTarget]:
    """Targets of at most ``volumes`` of the validation volumes of a bundle, each of another patient."""
    return load_targets(*data_of(name), sorted(first_of_each_patient(name))[:volumes])


def few_clicks(target: EvaluationTarget, seed: int) -> Clicks:
    """The noisy clicks that a run starts from."""
    clicks, _ = target.clicks(SEVERITY, seed)
    order = np.random.default_rng([seed, zlib.crc32(f"{target.case}:{target.name}".encode())]).permutation(len(clicks))
    kept = np.sort(order[:START])
    return Clicks(clicks.slice_index[kept], clicks.xy[kept], clicks.outside[kept], tuple(clicks.ids[i] for i in kept))


def more(clicks: Clicks, t: int, xy: np.ndarray) -> Clicks:
    """The clicks and one that is insisted on."""
    return Clicks(
        np.append(clicks.slice_index, t),
        np.vstack((clicks.xy, xy)),
        np.append(clicks.outside, False),
        (*clicks.ids, f"+{len(clicks)}"),
        np.append(clicks.insisted, True),
    )


def run(target: EvaluationTarget, predictor: Predictor, seed: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """DSC after 0 to 5 clicks, for each of ``ways`` of choosing the slice; suggestions come first and share nothing."""
    rows = []
    features = None
    for way in ways:
        session = predictor.open(target.stack, features)
        clicks, asked, rng = few_clicks(target, seed), few_clicks(target, seed), np.random.default_rng(seed)
        reached, on_structure = [], 0
        for n in range(max(SHOWN) + 1):
            mask = session.segment(clicks).mask
            reached.append(round(float(dice(mask, target.mask) or 0.0), 4))
            if n == max(SHOWN):
                break
            place: np.ndarray | None = None
            used = np.unique(np.concatenate((np.flatnonzero(mask.any((1, 2))), asked.slice_index)))
            span = np.arange(used[0], used[-1] + 1)
            if way == "suggested":
                found = suggest(session, asked)
                t = found[0].slice_index if found else int(span[len(span) // 2])
                place = np.array(found[0].xy) if found else None
            elif way == "oracle":
                wrong = (mask ^ target.mask).sum((1, 2))
                wrong[asked.slice_index[START:]] = -1
                t = int(np.argmax(wrong))
            elif way == "uniform":
                t = int(span[np.argmax(np.abs(np.subtract.outer(span, asked.slice_index)).min(1))])
            else:
                free = np.setdiff1d(span, asked.slice_index)
                t = int(rng.choice(free if len(free) else span))
            here = target.mask[t]
            inside = place is not None and bool(here[int(place[1]), int(place[0])])
            middle = deepest_point(here) if here.any() else None
            chosen = place if inside else middle
            on_structure += inside
            if chosen is not None:
                clicks = more(clicks, t, chosen)
            asked = more(asked, t, chosen if chosen is not None else place if place is not None else np.zeros(2))
        features = session.features
        rows.append({
            "patient": target.patient, "case": target.case, "target": target.name, "seed": seed, "way": way,
            "dsc": reached, "placed": len(clicks) - START, "on_structure": on_structure,
        })  # fmt: skip
        print(target.case, target.name, seed, way, reached, len(clicks) - START, on_structure, flush=True)
    session.close()
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: means over patients, and how many questions led to a click."""
    lines = []
    for way in WAYS:
        patients: dict[str, list[list[float]]] = {}
        for row in rows:
            if row["way"] == way:
                patients.setdefault(row["patient"], []).append([row["dsc"][n] for n in SHOWN])
        means = np.mean([np.mean(each, axis=0) for each in patients.values()], axis=0)
        own = [row for row in rows if row["way"] == way]
        placed = np.mean([row["placed"] for row in own]) / max(SHOWN)
        cells = " | ".join(f"{value:.3f}" for value in means)
        lines.append(f"| {way} ({len(patients)} patients) | {cells} | {100 * placed:.0f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=shipped_name, default=SHIPPED)
    parser.add_argument("--volumes", type=int, default=8, help="volumes of each bundle at most, one a patient")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    for name in options.bundles:
        kept = HERE / "results" / "next-click" / f"{name}.json"
        inputs = inputs_of(bundle_of(name), start=START, severity=SEVERITY)
        rows = rows_to_go_on_with(kept, inputs, table)
        done = {(row["case"], row["target"], row["seed"], row["way"]) for row in rows}
        predictor = predictor_of(name)
        for target in held_out(name, options.volumes):
            for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
                if ways := [way for way in WAYS if (target.case, target.name, seed, way) not in done]:
                    rows += run(target, predictor, seed, ways)
                    keep(kept, inputs, rows)
        print(name, "DSC after", SHOWN, "clicks, and the share of questions that led to one", *table(rows), sep="\n")


if __name__ == "__main__":
    main()
