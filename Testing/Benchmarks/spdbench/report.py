"""The report in Markdown: for readers in a hurry first, then everything behind it.

Figures that the paper prints (arXiv 2604.23314), and why ours can or cannot be put beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdbench import figures, tables
from spdbench.config import BenchmarkConfig
from spdbench.figures import (
    draw_histogram,
    histogram_path,
    histogram_text,
    read_histogram,
)
from spdbench.summary import EARLIER, NOT_YET, ClaimResult, DatasetResult, compare_methods
from spdbench.tables import cost_table
from SPDSegmentLib.evaluation.report import METRICS_NOTE


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's tables; the unit of its HD95 is not stated."""

    data: str
    metric: str
    spd: str
    best_other: str
    other: str


PAPER_ROWS = (
    PaperRow("TI, terminal ileum, MR, real clicks, private", "DSC", "73.58", "62.50", "SAM-Tuning"),
    PaperRow("TI", "HD95", "23.94", "30.22", "nnU-Net"),
    PaperRow("Scar, LGE MR, private", "DSC", "76.42", "70.05", "SAM-Tuning"),
    PaperRow("Scar", "HD95", "12.91", "15.75", "nnU-Net"),
    PaperRow("FUMPE, CT, public", "DSC", "90.84", "84.26", "nnU-Net"),
    PaperRow("KiTS, CT, public", "DSC", "91.16", "89.64", "nnU-Net"),
    PaperRow("KiTS", "HD95", "10.12", "11.38", "nnU-Net"),
)

COMPARABLE = """\
**What can be compared.** Differences between two rows of one table: SPD against SAM-Tuning, consensus points against
raw points in a frozen model, a step of the ablation against the step before. They answer the same question on the same
images, in the paper and here, and their signs and rough sizes should agree.

**What cannot.**

- *Absolute figures.* The paper's TI and Scar are private, and its FUMPE and KiTS are CT sets that are not among ours. A
  kidney on T2 MR is easier than a terminal ileum.
- *The noise.* TI has clicks of radiologists; the paper's simulator for the other sets is not published. Ours is
  described in `SPDSegmentLib/prompts/noise.py`, its version is part of every result, and a curve over severity says
  more than one point of it.
- *The network.* Ours is LiteMedSAM's TinyViT (5.7 M parameters) on fields of view of a few hundred pixels, for a CPU;
  the paper's is a SAM at 512 x 512. LiteMedSAM never saw clicks when it was trained, so its decoder is tuned as a whole
  unless a row says otherwise.
- *HD95.* The paper gives no unit. Ours is in mm, per volume, and a missed structure costs the image's diagonal.
- *Training.* Loss weights, LoRA rank, schedule and splits of the paper are unknown. Ours are in the configurations.
"""


LIMITS = """\
- Clicks are simulated. Their noise follows our model of hasty clicking, not recordings of radiologists.
- Public sets with few patients. Where a set has fewer than six tested patients, no paired test can reach p < 0.05.
- One reference drawing per case; differences below the spread between experts mean nothing.
- Rows that are trained here get one budget, stated above. It is small; more steps may change their order.
- OpenKBP is coarse (about 3.9 mm in the plane): judge boundaries on the other sets.
- Prompt settings of the method were chosen with trials on some of these data sets. Where the patients tested here were
  looked at then, the figures flatter it; the sets with folds and those without trials are the fairer ones.
"""

CONTROLS = (
    ("saliency-only", "saliency alone, S > tau"),
    ("saliency-clicked", "the saliency's component that most clicks lie in"),
    ("sampled", "points sampled from the saliency, clicks ignored"),
    ("shuffled", "another patient's clicks"),
    ("clean-clicks", "clicks without noise"),
    ("oracle", "a perfect choice of points"),
)


@dataclass
class ReportInput:
    """Everything that the report is made of.

    Attributes:
        results: folder of figures and tables.
        machines: descriptions by :mod:`spdbench.command`, the latest last.
        command: how the benchmark is run.
        notes: Markdown that people wrote.
    """

    config: BenchmarkConfig
    datasets: list[DatasetResult]
    claims: list[ClaimResult]
    results: Path
    machines: list[dict[str, Any]]
    command: str
    notes: str = ""


def report_text(given: ReportInput, place: Path) -> str:
    """The whole report, with pictures linked from ``place``, the file that it will be written to."""
    parts = [
        "# Benchmark: does it beat what people have, and do the clicks matter?",
        "Written by the benchmark itself; do not edit. "
        f"Everything below comes from the files in `{_link(given.results, place)}`.",
        "## In a hurry",
        tables.headline_table(given.datasets, given.config),
        _picture(given.results / "headline.png", place, "DSC over the severity of click noise"),
        _verdict(given),
        "## What the evidence must show",
        tables.claims_table(given.claims) if given.claims else "No claim is declared.",
        "Differences in percentage points of DSC [95 % bootstrap interval over patients]; p is Holm-corrected over the "
        "data sets of a claim. Shown: *yes* needs the size and p < 0.05; *in size only*, p is not below 0.05. "
        "Where nothing is wanted (-), the figure only bounds what the other claims can reach.",
        "## The paper's figures beside ours",
        _paper_tables(given),
        COMPARABLE,
        "## Do the clicks matter?",
        _controls_table(given),
        "## All rows, by data set",
        f"{METRICS_NOTE} Rows marked *{EARLIER}* were measured with an earlier version of their model or method, on "
        "the same clicks, and not since; *n of m steps*: with that part of their training; *not run*: never.",
        *(_dataset_section(given, dataset, place) for dataset in given.datasets if dataset.measured),
        _unmeasured(given),
        "## What did not work",
        _failures(given),
        given.notes.strip(),
        "## Limits",
        LIMITS,
        "## How to run it again",
        _rerun(given),
        "## Cost in time",
        cost_table(given.datasets),
        "## Machine and versions",
        _machines(given.machines),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def draw_figures(folder: Path, datasets: Sequence[DatasetResult], config: BenchmarkConfig) -> list[Path]:
    """All figures that there are data for; returns the paths of those with curves."""
    wanted: list[tuple[Path, Callable[[Path], bool]]] = [
        (folder / "headline.png", lambda path: figures.draw_headline(path, datasets, config))
    ]
    for dataset in datasets:
        for name, draw in (
            ("severity", figures.draw_severity),
            ("parts", figures.draw_parts),
            ("sweeps", figures.draw_sweeps),
        ):
            path = folder / f"{name}-{dataset.name}.png"
            wanted.append((path, lambda p, d=dataset, f=draw: f(p, d, config)))  # type: ignore[misc]
        pixels = read_histogram(histogram_path(folder, dataset.name)).get("pixels")
        if pixels:
            draw_histogram(folder / f"histogram-{dataset.name}.png", pixels, dataset.title)
    return [path for path, draw_one in wanted if draw_one(path)]


def _verdict(given: ReportInput) -> str:
    """One sentence per data set on the strongest opponent among the key methods."""
    lines = []
    for dataset in given.datasets:
        if not dataset.spec.headline:
            continue
        ours = dataset.methods.get(given.config.reference)
        others = [dataset.methods[n] for n in given.config.key_methods if n in dataset.methods]
        known = [(f.mean, r) for r in others if r is not ours and (f := r.figure(given.config.headline))]
        if ours is None or not known:
            continue
        best = max(known, key=lambda pair: pair[0])[1]
        test = compare_methods(ours, best, given.config.headline)
        if test is not None:
            value = test.value
            lines.append(
                f"- {dataset.title}: {ours.method.title} minus the best other row, {best.method.title}: "
                f"{100 * value.mean:+.1f} DSC [{100 * value.low:+.1f}, {100 * value.high:+.1f}], "
                f"p = {tables.p_value(test.p)} (uncorrected), {value.patients} patients."
            )
    return "\n".join(lines)


def _paper_tables(given: ReportInput) -> str:
    lines = ["| paper: data | metric | SPD | best other | difference |", "|---|---|---|---|---|"]
    for row in PAPER_ROWS:
        gap = float(row.spd) - float(row.best_other)
        lines.append(f"| {row.data} | {row.metric} | {row.spd} | {row.best_other} ({row.other}) | {gap:+.2f} |")
    lines += ["", "| ours: data | metric | SPD | SAM-Tuning, raw clicks | difference |", "|---|---|---|---|---|"]
    noise = given.config.headline
    for dataset in given.datasets:
        ours, theirs = dataset.methods.get(given.config.reference), dataset.methods.get("sam-tuning")
        if ours is None or theirs is None:
            continue
        for metric, label in (("dsc", "DSC"), ("slice_dsc", "DSC per slice"), ("hd95_mm", "HD95, mm")):
            scale = 1 if metric == "hd95_mm" else 100
            a, b = ours.figure(noise, metric), theirs.figure(noise, metric)
            paired = compare_methods(ours, theirs, noise, metric)
            if a is None or b is None or paired is None:
                continue
            gap = scale * paired.value.mean
            lines.append(f"| {dataset.title} | {label} | {scale * a.mean:.2f} | {scale * b.mean:.2f} | {gap:+.2f} |")
    lines += ["", f'Ours with "{noise}" clicks; the difference is over the runs that both rows have.']
    return "\n".join(lines)


def _controls_table(given: ReportInput) -> str:
    """SPD minus each control, over the severities."""
    severities = given.config.severities
    lines = ["| data set | SPD minus | " + " | ".join(severities) + " |", "|---|---|" + "---|" * len(severities)]
    for dataset in given.datasets:
        ours = dataset.methods.get(given.config.reference)
        for name, title in CONTROLS:
            other = dataset.methods.get(name)
            if ours is None or other is None or not other.rows:
                continue
            cells = []
            for noise in severities:
                test = compare_methods(ours, other, noise)
                cells.append("-" if test is None else f"{100 * test.value.mean:+.1f}")
            lines.append(f"| {dataset.title} | {title} | " + " | ".join(cells) + " |")
    text = (
        "Every consensus point lies where the saliency is already high, so a fair report shows what is left when the "
        "clicks are taken away. Differences in percentage points of DSC; near zero means that the clicks add nothing."
    )
    return "\n".join([text, "", *lines, "", tables.EMPTY_MASK_POLICY])


def _dataset_section(given: ReportInput, dataset: DatasetResult, place: Path) -> str:
    folds = ", ".join(f"{train}/{test}" for train, test in dataset.folds.values())
    parts = [f"### {dataset.title}", f"Volumes to train on / to test, per fold: {folds}. {dataset.spec.note}".strip()]
    for heading, groups in zip(
        ("SPD, SAM-Tuning and controls", "Frozen models", "Other systems", "Ablations"),
        tables.TABLE_GROUPS,
        strict=True,
    ):
        if dataset.of_group(*groups):
            parts += [f"**{heading}**", tables.method_table(dataset, groups, given.config)]
    parts.append(tables.parts_table(dataset, given.config))
    for name, text in (
        ("severity", "DSC and HD95 over the severity of click noise, with 95 % bands"),
        ("parts", "DSC and HD95 with one kind of noise alone"),
        ("sweeps", "DSC over the values of a setting"),
        ("histogram", "histogram of the saliency"),
    ):
        parts.append(_picture(given.results / f"{name}-{dataset.name}.png", place, f"{dataset.title}: {text}"))
    pixels = read_histogram(histogram_path(given.results, dataset.name)).get("pixels")
    parts.append(histogram_text(pixels) if pixels else "")
    return "\n\n".join(part for part in parts if part)


def _unmeasured(given: ReportInput) -> str:
    titles = [dataset.title for dataset in given.datasets if not dataset.measured]
    return f"Declared and not run: {'; '.join(titles)}." if titles else ""


def _failures(given: ReportInput) -> str:
    """Claims that do not hold, rows that beat SPD, and rows without figures."""
    lines = [f"- Not shown on {c.dataset}: {c.claim.text} ({c.shortfall})." for c in given.claims if c.shortfall]
    noise = given.config.headline
    for dataset in given.datasets:
        ours = dataset.methods.get(given.config.reference)
        for result in dataset.methods.values():
            test = compare_methods(ours, result, noise) if ours is not None and result is not ours else None
            fair = result.method.clicks not in ("oracle", "clean") and result.method.group != "ablation"
            if test is not None and fair and test.value.mean < 0:
                lines.append(
                    f"- {dataset.title}, {noise}: {result.method.title} is better than SPD by "
                    f"{-100 * test.value.mean:.1f} DSC."
                )
    states: dict[tuple[str, str], list[str]] = {}
    for dataset in given.datasets:
        for result in dataset.methods.values():
            if result.state and result.state not in (NOT_YET, EARLIER):
                states.setdefault((result.method.title, result.state), []).append(dataset.name)
    lines += [f"- {title}: {state} ({', '.join(names)})." for (title, state), names in states.items()]
    return "\n".join(lines) or "Nothing so far: every claim holds and every row ran."


def _rerun(given: ReportInput) -> str:
    return (
        f"```bash\n{given.command}\n```\n\n"
        "It goes on where it was stopped, and measures again only what another bundle or setting has made void. "
        "`--only DATA-SET/METHOD` runs one cell (patterns are allowed), `--list` shows all of them, `--quick` is a run "
        "of minutes, `--report-only` writes tables, figures and this report from what is there."
    )


def _machines(machines: Sequence[dict[str, Any]]) -> str:
    lines = ["| | " + " | ".join(f"run {i + 1}" for i in range(len(machines))) + " |"]
    lines.append("|---|" + "---|" * len(machines))
    for key in dict.fromkeys(key for machine in machines for key in machine):
        cells = []
        for machine in machines:
            value = machine.get(key, "")
            cells.append(", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _picture(path: Path, place: Path, text: str) -> str:
    return f"![{text}]({_link(path, place)})" if path.is_file() else ""


def _link(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path, place.parent)).as_posix()
