"""Figures of a benchmark: curves over severity, over each kind of noise alone, and over the values of a setting.

And a histogram: how bimodal is the saliency? S over the slices that hold the target (paper: the threshold matters
little).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spdbench.cells import write_text
from spdbench.comparators.bundle_row import BundleRow
from spdbench.comparators.own_training import TrainedRow
from spdbench.comparators.protocol import NotRun
from spdbench.config import CLEAN, PART_TITLES, BenchmarkConfig, is_clean
from spdbench.entries import Entry
from spdbench.plan import Plan
from spdbench.summary import DatasetResult, MethodResult
from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.files import write_png

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
        except (NotRun, SPDError):
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
    if not isinstance(comparator, BundleRow | TrainedRow):
        raise NotRun("no saliency")
    comparator.load(entry.folder(work))
    counts = np.zeros(BINS, dtype=np.int64)
    for case in entry.fold.test[:CASES]:
        for target in entry.dataset.targets(case):
            clicks, _ = target.clicks(CLEAN, 0)
            saliency = comparator.saliency(target, clicks)
            counts += np.histogram(saliency[target.mask.any(axis=(1, 2))], BINS, (0, 1))[0]
    return counts


DPI = 120
HEADLINE_COLUMNS = 3
COLORS = 10
"""Lines beyond so many in a panel are dashed, since the colors begin again."""
METRIC_LABELS = {"dsc": "DSC", "hd95_mm": "HD95 (mm)"}


def draw_headline(path: Path, datasets: Sequence[DatasetResult], config: BenchmarkConfig) -> bool:
    """DSC over severity of the key methods, one panel per data set; whether there was anything to draw."""
    shown = [d for d in datasets if d.spec.headline and any(r.rows for r in d.methods.values())]
    if not shown:
        return False
    columns = min(len(shown), HEADLINE_COLUMNS)
    figure, panels = new_panels(-(-len(shown) // columns), columns, width=3.6, height=3.0)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, dataset in zip(panels.flat, shown, strict=False):
        methods = [dataset.methods.get(name) for name in config.key_methods]
        _curves(axes, methods, config.severities, "dsc", config.reference)
        axes.set_title(textwrap.fill(f"{dataset.title}, {dataset.patients}\u00a0patients", 40), fontsize=8)
        axes.set_ylim(0, 1)
    _finish(figure, panels, path)
    return True


def draw_severity(path: Path, dataset: DatasetResult, config: BenchmarkConfig) -> bool:
    """DSC and HD95 over severity of every method that is not an ablation, with 95 % bands."""
    groups = [["main", "control"], ["frozen", "learned", "classic"]]
    chosen = [[r for r in dataset.of_group(*names) if r.rows] for names in groups]
    reference = dataset.methods.get(config.reference)
    if reference is not None and chosen[1]:
        chosen[1] = [reference, *chosen[1]]
    chosen = [methods for methods in chosen if methods]
    if not chosen:
        return False
    figure, panels = new_panels(len(chosen), 2, width=5.0, height=3.4)
    for row, methods in zip(panels, chosen, strict=True):
        for axes, metric in zip(row, METRIC_LABELS, strict=True):
            _curves(axes, methods, config.severities, metric, config.reference)
        row[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(figure, path)
    return True


def draw_parts(path: Path, dataset: DatasetResult, config: BenchmarkConfig) -> bool:
    """DSC and HD95 over the strength of each kind of noise alone."""
    methods = [r for r in dataset.methods.values() if r.method.parts and any(":" in row.severity for row in r.rows)]
    if not methods or not config.parts:
        return False
    figure, panels = new_panels(2, len(config.parts), width=2.8, height=2.8)
    for row, metric in zip(panels, METRIC_LABELS, strict=True):
        for axes, part in zip(row, config.parts, strict=True):
            labels = [CLEAN, *(f"{part}:{level}" for level in config.part_levels)]
            labels = [label for label in labels if label == CLEAN or not is_clean(label)]
            _curves(axes, methods, labels, metric, config.reference)
            axes.set_xticks(range(len(labels)), [label.rpartition(":")[2] for label in labels], fontsize=7)
            axes.set_title(f"{PART_TITLES[part]} only", fontsize=8)
            axes.set_xlabel("")
            if metric == "dsc":
                axes.set_ylim(0, 1)
    _finish(figure, panels, path)
    return True


def draw_sweeps(path: Path, dataset: DatasetResult, config: BenchmarkConfig) -> bool:
    """DSC over the values of each swept setting, one line per severity that was measured; dashed: the reference."""
    reference = dataset.methods.get(config.reference)
    sweeps: dict[str, list[tuple[str, MethodResult]]] = {}
    for result in dataset.of_group("ablation"):
        title, equals, value = result.method.title.rpartition(" = ")
        if equals and result.rows:
            sweeps.setdefault(title, []).append((value, result))
    sweeps = {title: points for title, points in sweeps.items() if len(points) > 1}
    if not sweeps:
        return False
    figure, panels = new_panels(1, len(sweeps), width=3.2, height=3.0)
    for axes, (title, points) in zip(panels[0], sweeps.items(), strict=True):
        for noise in dict.fromkeys(row.severity for _, result in points for row in result.rows):
            known = [(i, f) for i, (_, result) in enumerate(points) if (f := result.figure(noise)) is not None]
            (line,) = axes.plot([i for i, _ in known], [f.mean for _, f in known], marker="o", label=noise)
            if reference is not None and (as_it_is := reference.figure(noise)) is not None:
                label = f"{reference.method.title} as it is, {noise}"
                axes.axhline(as_it_is.mean, color=line.get_color(), linestyle="--", linewidth=1, label=label)
            axes.fill_between([i for i, _ in known], [f.low for _, f in known], [f.high for _, f in known], alpha=0.12)
        axes.set_xticks(range(len(points)), [value for value, _ in points], fontsize=7)
        axes.set_xlabel(title, fontsize=8)
        axes.set_ylabel("DSC")
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    save_figure(figure, path)
    return True


def _curves(
    axes: Any, methods: Sequence[MethodResult | None], noises: Sequence[str], metric: str, reference: str
) -> None:
    """One line with its band per method, the reference in black on top of the others.

    A method's color is that of its place in the list, measured, there (not ``None``) or not, so that panels can share a
    legend.
    """
    for place, result in enumerate(methods):
        if result is None:
            continue
        known = [(i, f) for i, noise in enumerate(noises) if (f := result.figure(noise, metric)) is not None]
        if not known:
            continue
        x = [i for i, _ in known]
        style: dict[str, Any] = {"color": f"C{place % COLORS}"}
        if place >= COLORS:
            style |= {"linestyle": "--", "marker": "s"}
        if result.method.name == reference:
            style = {"color": "black", "linewidth": 2.4, "zorder": 5}
        style = {"marker": "o", "markersize": 3, "label": result.method.title, **style}
        (line,) = axes.plot(x, [f.mean for _, f in known], **style)
        low, high = [f.low for _, f in known], [f.high for _, f in known]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.1, linewidth=0)
    axes.set_xticks(range(len(noises)), noises, fontsize=8)
    axes.set_xlabel("click noise", fontsize=8)
    axes.set_ylabel(METRIC_LABELS[metric], fontsize=8)
    axes.grid(alpha=0.3)


def new_panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes, (rows, columns); sizes of one panel in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, width * columns), height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _finish(figure: Any, panels: Any, path: Path) -> None:
    """One legend for all panels, below them."""
    known: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        columns = min(4, len(known))
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns, fontsize=7)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG in one piece; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, lambda part: figure.savefig(part, dpi=DPI, metadata={"Software": None}))
