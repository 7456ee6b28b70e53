"""How bimodal is the saliency? S over the slices that hold the target (paper: the threshold matters little)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spdbench.cells import write_text
from spdbench.comparators.bundle_row import BundleRow
from spdbench.comparators.own_training import OwnTraining
from spdbench.comparators.protocol import NotRun
from spdbench.entries import Entry
from spdbench.noises import CLEAN
from spdbench.plan import Plan

BINS = 20
CASES = 3


def histogram_path(results: Path, dataset: str) -> Path:
    """Where a data set's histogram is kept."""
    return results / "histograms" / f"{dataset}.json"


def measure_histograms(plan: Plan, results: Path, work: Path) -> None:
    """Count the saliency of the reference method's models where that is not done yet; what cannot run is left out."""
    for planned in plan.cells:
        if planned.method.name != plan.config.reference or not planned.entries:
            continue
        entry = planned.entries[0]
        path = histogram_path(results, planned.dataset.name)
        if entry.not_run or read_histogram(path).get("key") == entry.key:
            continue
        try:
            counts = _counts(entry, work)
        except NotRun:
            continue
        write_text(path, json.dumps({"key": entry.key, "pixels": counts.tolist()}) + "\n")


def read_histogram(path: Path) -> dict[str, Any]:
    """``key`` and ``pixels`` per bin; empty where there is none."""
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def histogram_text(pixels: list[int]) -> str:
    """One sentence: how many pixels could change sides if the threshold moved from 0.1 to 0.9."""
    counts = np.array(pixels, dtype=float)
    low, high = BINS // 10, BINS - BINS // 10
    between, above = counts[low:high].sum(), counts[high:].sum()
    return (
        f"Saliency in slices that hold the target: {100 * above / counts.sum():.1f} % of the pixels above 0.9, "
        f"{100 * between / counts.sum():.1f} % between 0.1 and 0.9."
    )


def draw_histogram(path: Path, pixels: list[int], title: str) -> None:
    """Bars on a logarithmic scale."""
    from spdbench.figures import new_panels, save_figure

    figure, panels = new_panels(1, 1, width=5.0, height=2.6)
    axes = panels[0][0]
    counts = np.array(pixels, dtype=float)
    axes.bar((np.arange(BINS) + 0.5) / BINS, counts / counts.sum(), width=0.9 / BINS)
    axes.set_yscale("log")
    axes.set_xlabel("saliency S", fontsize=8)
    axes.set_ylabel("share of pixels", fontsize=8)
    axes.set_title(title, fontsize=8)
    save_figure(figure, path)


def _counts(entry: Entry, work: Path) -> np.ndarray:
    comparator = entry.make()
    if not isinstance(comparator, BundleRow | OwnTraining):
        raise NotRun("no saliency")
    comparator.load(entry.folder(work))
    counts = np.zeros(BINS, dtype=np.int64)
    for case in entry.fold.test[:CASES]:
        for target in entry.dataset.targets(case):
            clicks, _ = target.clicks(CLEAN, 0)
            saliency = comparator.saliency(target, clicks)
            counts += np.histogram(saliency[target.mask.any(axis=(1, 2))], BINS, (0, 1))[0]
    return counts
