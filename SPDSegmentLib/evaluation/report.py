"""Tables and figure of an evaluation: per patient first, then over patients, with confidence intervals."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.evaluation.protocol import EvaluationRow
from SPDSegmentLib.evaluation.statistics import bootstrap_ci, holm, paired_wilcoxon
from SPDSegmentLib.files import check_output, write_csv, write_json, write_png, write_text

EMPTY_MASK_POLICY = (
    "Empty masks: both empty, left out; "
    "a miss or a pure false alarm counts as DSC 0, NSD 0 and HD95 = the image diagonal."
)
REPORT_NAMES = ("rows.csv", "summary.json", "table.md", "severity.png")
TABLE_BYTES = 1 << 16
METRICS = (
    "dsc", "iou", "hd95_mm", "nsd", "slice_dsc", "slice_iou", "slice_hd95_mm", "kept_share", "right_rejected",
    "wrong_kept",
)  # fmt: skip
Key = tuple[str, str, str]


def patient_means(rows: Sequence[EvaluationRow], metric: str) -> dict[str, float]:
    """Mean of a metric per patient, over targets and seeds; patients without a value are left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, metric)
        if value is not None:
            values.setdefault(row.patient, []).append(float(value))
    return {patient: float(np.mean(v)) for patient, v in values.items()}


def group_rows(rows: Sequence[EvaluationRow]) -> dict[Key, list[EvaluationRow]]:
    """Rows by (bundle, method, severity), in order of first appearance."""
    groups: dict[Key, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault((row.bundle, row.method, row.severity), []).append(row)
    return groups


def summarize(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """One JSON-ready entry per bundle, method and severity."""
    summary = []
    for (bundle, method, severity), group in group_rows(rows).items():
        entry: dict[str, Any] = {
            "bundle": bundle,
            "method": method,
            "severity": severity,
            "patients": len({row.patient for row in group}),
            "runs": len(group),
            "outside_share": round(float(np.mean([row.outside_share for row in group])), 3),
        }
        for metric in METRICS:
            means = list(patient_means(group, metric).values())
            if means:
                low, high = bootstrap_ci(means)
                entry[metric] = round(float(np.mean(means)), 4)
                entry[f"{metric}_ci95"] = [round(float(low), 4), round(float(high), 4)]
        summary.append(entry)
    return summary


def compare(rows: Sequence[EvaluationRow], reference: tuple[str, str]) -> list[dict[str, Any]]:
    """Paired Wilcoxon of every other (bundle, method) against ``reference``, per severity, Holm-corrected (DSC)."""
    groups = group_rows(rows)
    tests: list[dict[str, Any]] = []
    for (bundle, method, severity), group in groups.items():
        base = groups.get((*reference, severity))
        if base is None or (bundle, method) == reference:
            continue
        ours, theirs = patient_means(base, "dsc"), patient_means(group, "dsc")
        patients = sorted(ours.keys() & theirs.keys())
        a, b = [ours[p] for p in patients], [theirs[p] for p in patients]
        tests.append(
            {
                "bundle": bundle,
                "method": method,
                "severity": severity,
                "dsc_difference": round(float(np.mean(a) - np.mean(b)), 4),
                "p": float(paired_wilcoxon(a, b)),
            }
        )
    for test, p in zip(tests, holm([float(test["p"]) for test in tests]), strict=True):
        test["p_holm"] = float(p)
    return tests


def markdown_table(rows: Sequence[EvaluationRow]) -> str:
    """A Markdown table: one line per bundle and method, one column per severity, DSC (HD95 in mm)."""
    groups = group_rows(rows)
    severities = list(dict.fromkeys(key[2] for key in groups))
    lines = ["| bundle | prompts | " + " | ".join(severities) + " |", "|---|---|" + "---|" * len(severities)]
    for bundle, method in dict.fromkeys(key[:2] for key in groups):
        cells = []
        for severity in severities:
            group = groups.get((bundle, method, severity), [])
            dsc, hd95 = patient_means(group, "dsc").values(), patient_means(group, "hd95_mm").values()
            verdicts = [patient_means(group, metric).values() for metric in ("right_rejected", "wrong_kept")]
            shares = " / ".join(f"{np.mean(list(v)):.0%}" if v else "-" for v in verdicts)
            text = f"{np.mean(list(dsc)):.3f} ({np.mean(list(hd95)):.1f})" if dsc else "-"
            cells.append(f"{text}; {shares}" if any(verdicts) else text)
        lines.append(f"| {bundle} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            "Volume DSC (HD95 in mm); right clicks rejected / wrong clicks kept; mean over patients. "
            + EMPTY_MASK_POLICY,
        ]
    )


def write_reports(folder: Path, rows: Sequence[EvaluationRow], context: dict[str, Any]) -> None:
    """Write ``rows.csv``, ``summary.json``, ``table.md`` and ``severity.png`` into ``folder``, each in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [field.name for field in dataclasses.fields(EvaluationRow)]
    write_csv(folder / "rows.csv", [columns, *([getattr(row, name) for name in columns] for row in rows)], "table")
    bundles = list(dict.fromkeys((row.bundle, row.method) for row in rows))
    content = {
        **context,
        "empty_mask_policy": EMPTY_MASK_POLICY,
        "summary": summarize(rows),
        "comparison": {"reference": list(bundles[0]), "tests": compare(rows, bundles[0])},
    }
    write_json(folder / "summary.json", content, "summary", indent=1)
    write_text(folder / "table.md", markdown_table(rows) + "\n", "table")
    write_png(folder / "severity.png", lambda part: _figure(part, rows), "figure")


def check_reports(folder: Path) -> None:
    """Find out before an evaluation whether :func:`write_reports` can write into ``folder``, which is made.

    Raises:
        BadInput: it cannot.
        ImportError: what the figure needs is not installed.
    """
    import matplotlib.figure  # noqa: F401

    folder.mkdir(parents=True, exist_ok=True)
    for name in REPORT_NAMES:
        check_output(folder / name, "evaluation's file", TABLE_BYTES)


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


def _figure(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """DSC and HD95 against severity, one line per bundle and method, with bootstrap intervals."""
    from matplotlib.figure import Figure

    groups = group_rows(rows)
    severities = list(dict.fromkeys(key[2] for key in groups))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, metric, label in zip(figure.subplots(1, 2), ("dsc", "hd95_mm"), ("volume DSC", "HD95 (mm)"), strict=True):
        for bundle, method in dict.fromkeys(key[:2] for key in groups):
            points = []
            for i, severity in enumerate(severities):
                means = list(patient_means(groups.get((bundle, method, severity), []), metric).values())
                if means:
                    points.append((i, float(np.mean(means)), *bootstrap_ci(means)))
            x, y, low, high = np.array(points).T
            axes.plot(x, y, marker="o", label=f"{bundle}, {method}")
            axes.fill_between(x, low, high, alpha=0.12)
        axes.set_xticks(range(len(severities)), severities)
        axes.set_xlabel("click noise")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
