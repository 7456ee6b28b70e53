"""Tables of a benchmark: Markdown for people, CSV and JSON for programs. Nothing in them depends on time or machine.

What a benchmark cost: seconds per segmentation and per training.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from spdbench.config import CLEAN, PART_TITLES, BenchmarkConfig
from spdbench.summary import (
    ClaimResult,
    DatasetResult,
    MethodResult,
    differences,
)
from SPDSegmentLib.evaluation.report import (
    EMPTY_MASK_POLICY,
    NOTHING,
    Difference,
    Estimate,
    TableLine,
    estimate,
    figures_of,
    metrics_table,
    percent,
    table_line,
    worst_tenth,
)


def cost_table(datasets: Sequence[DatasetResult]) -> str:
    """One line per data set and method that has rows."""
    lines = [
        "| data set | method | segmentations | s each (median) | s in all | trainings | steps each | s in all "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total = 0.0
    for dataset in datasets:
        for result in dataset.methods.values():
            if result.rows:
                seconds = [row.seconds for row in result.rows]
                total += sum(seconds)
                cells = [f"{len(seconds)}", f"{np.median(seconds):.2f}", f"{sum(seconds):.0f}", *_training(result)]
                lines.append(f"| {dataset.title} | {result.method.title} | " + " | ".join(cells) + " |")
    text = (
        f"All segmentations together: {total / 3600:.1f} h. A segmentation's time leaves out what is kept from earlier "
        "clicks on the same volume (embeddings). Rows that share a model share its training."
    )
    return "\n".join([*lines, "", text])


def _training(result: MethodResult) -> list[str]:
    records = [record for record in result.training.values() if record]
    if not records:
        return ["", "", "", ""]
    steps = sorted({str(record.get("steps", "?")) for record in records})
    parameters = sorted({str(record.get("parameters", "?")) for record in records})
    seconds = sum(float(record.get("seconds", 0)) for record in records)
    return [str(len(records)), "/".join(steps), f"{seconds:.0f}", "/".join(parameters)]


TABLE_GROUPS = (("main", "control"), ("frozen",), ("learned", "classic"), ("ablation",))
"""Groups of methods that share a table, and so a family of tests."""


def millimeters(figure: Estimate | None) -> str:
    """An HD95."""
    return NOTHING if figure is None else f"{figure.mean:.1f}"


def p_value(p: float) -> str:
    """Two significant digits, or that it is smaller than what is worth printing."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def footnote(dataset: DatasetResult, config: BenchmarkConfig) -> str:
    """What must stand under every table."""
    seeds = len(config.seeds_of(dataset.spec))
    return (
        f"{dataset.patients} patients, {seeds} click set(s) for each target and noise; mean over patients [95 % "
        f"bootstrap interval]; all but HD95 in percent. {EMPTY_MASK_POLICY}"
    )


def method_table(dataset: DatasetResult, groups: Sequence[str], config: BenchmarkConfig) -> str:
    """Rows of some groups over all severities, the reference with them, and what was not run as such."""
    rows = dataset.of_group(*groups)
    if not rows:
        return ""
    tests = differences(dataset, config.reference, config.severities, rows)
    reference = dataset.methods.get(config.reference)
    if reference is not None and reference not in rows:
        rows = [reference, *rows]
    shown = [
        TableLine((_label(r, config),), noise, r.at(noise), _test_cells(tests.get((r.method.name, noise))))
        for noise in config.severities
        for r in rows
        if r.at(noise)
    ]
    shown += [TableLine((r.method.title,), "", [], ("", ""), r.state) for r in rows if not r.rows]
    notes = [f"- {r.method.title}: {r.method.note}" for r in rows if r.method.note and r.rows]
    tested = (
        f" p: two-sided paired Wilcoxon test per patient, Holm-corrected over this table's methods and severities"
        f"{_smallest_p(dataset.patients)}."
    )
    table = metrics_table(("method",), shown, (f"{config.reference} - method, DSC", "p (Holm)"))
    return "\n".join([table, "", footnote(dataset, config) + tested, *(["", *notes] if notes else [])])


def _label(result: MethodResult, config: BenchmarkConfig) -> str:
    """The title of a row and what must be known of it."""
    return result.method.title + "".join(f" ({m})" for m in (result.state, _training_mark(result, config)) if m)


def _training_mark(result: MethodResult, config: BenchmarkConfig) -> str:
    """Says of a comparator whose time was over before its steps were done how far it came."""
    steps = [int(record["steps"]) for record in result.training.values() if "steps" in record]
    if result.method.kind != "comparator" or not steps or min(steps) >= config.budget.steps:
        return ""
    return f"trained {min(steps)} of {config.budget.steps} steps"


def _smallest_p(patients: int) -> str:
    """With few patients no difference, however large, can be significant."""
    smallest = 2.0 ** (1 - patients) if patients else 1.0
    return f" (with {patients} patients the smallest p before correction is {smallest:.2g})" if smallest > 0.01 else ""


def headline_table(datasets: Sequence[DatasetResult], config: BenchmarkConfig) -> str:
    """One line per key method, one column per data set, at the headline severity; nothing of what was not measured."""
    datasets = [dataset for dataset in datasets if dataset.measured and dataset.spec.headline]
    lines = [table_line(["method", *(f"{d.title} ({d.patients})" for d in datasets)]), _rule(len(datasets) + 1)]
    for name in config.key_methods:
        cells = []
        for dataset in datasets:
            result = dataset.methods.get(name)
            if result is None:
                cells.append(NOTHING)
            elif not (rows := result.at(config.headline)):
                cells.append(result.state)
            else:
                mm, worst = millimeters(estimate(rows, "hd95_mm")), 100 * (worst_tenth(rows) or 0.0)
                marks = _label(result, config).removeprefix(result.method.title)
                cells.append(f"{percent(estimate(rows))} / {mm} / {worst:.1f}{marks}")
        lines.append(table_line([config.methods[name].title, *cells]))
    note = (
        f'Clicks with "{config.headline}" noise. DSC in percent [95 % bootstrap interval over patients] / HD95 in mm, '
        "per volume / mean DSC of the worst tenth of the runs; in brackets the number of test patients. "
        f"{EMPTY_MASK_POLICY}"
    )
    return "\n".join([*lines, "", note])


def parts_table(dataset: DatasetResult, config: BenchmarkConfig) -> str:
    """Every metric with each kind of noise alone, at the strongest level; empty where nothing was measured."""
    level = config.part_levels[-1] if config.part_levels else ""
    labels = [f"{part}:{level}" for part in config.parts]
    rows = [r for r in dataset.methods.values() if r.method.parts and any(r.at(label) for label in labels)]
    if not rows:
        return ""
    titles = {f"{part}:{level}": f"{PART_TITLES[part]} only" for part in config.parts}
    lines = [
        TableLine((_label(r, config),), titles.get(noise, noise), r.at(noise))
        for noise in (CLEAN, *labels)
        for r in rows
        if r.at(noise)
    ]
    note = f'Each kind of noise alone, as strong as in "{level}". {footnote(dataset, config)}'
    return f"{metrics_table(('method',), lines)}\n\n{note}"


def claims_table(claims: Sequence[ClaimResult]) -> str:
    """What the evidence must show, and whether it does."""
    lines = [
        table_line(["claim", "data set", "wanted", "paper", "DSC difference", "HD95 difference", "p (Holm)", "shown"])
    ]
    lines.append(_rule(8))
    missing: dict[str, list[str]] = {}
    for result in claims:
        wanted = f">= {100 * result.claim.at_least:+.0f}" + (", lower HD95" if result.claim.lower_hd95 else "")
        wanted = NOTHING if result.claim.bound else wanted
        paper = result.claim.paper or NOTHING
        if result.dsc is None:
            missing.setdefault(result.claim.text, []).append(result.dataset)
            continue
        hd95 = NOTHING if result.hd95 is None else f"{result.hd95.value.mean:+.1f} mm"
        value = result.dsc.value
        text = f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
        p = p_value(result.dsc.p_holm)
        lines.append(table_line([result.claim.text, result.dataset, wanted, paper, text, hd95, p, result.verdict]))
    not_yet = "; ".join(f"{text} ({', '.join(names)})" for text, names in missing.items())
    lines += ["", f"Not run: {not_yet}."] if not_yet else []
    return "\n".join(lines)


def summary_records(datasets: Sequence[DatasetResult], config: BenchmarkConfig) -> list[dict[str, Any]]:
    """One flat record per data set, method and noise; p as in the tables of :func:`method_table`."""
    records = []
    for dataset in datasets:
        tests: dict[tuple[str, str], Difference] = {}
        for groups in TABLE_GROUPS:
            tests |= differences(dataset, config.reference, config.severities, dataset.of_group(*groups))
        for result in dataset.methods.values():
            noises = [noise for noise in config.noises_of(result.method, dataset.spec) if result.at(noise)]
            for noise in noises or [""]:
                values = figures_of(result.at(noise)) if noise else {}
                records.append(
                    _head(dataset, result, noise) | values | _test_values(tests.get((result.method.name, noise)))
                )
    return records


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV with every key that occurs."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def json_text(records: Sequence[dict[str, Any]], config: BenchmarkConfig, datasets: Sequence[DatasetResult]) -> str:
    """Records as JSON, with what a reader needs to understand them."""
    content = {
        "name": config.name,
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "severities": config.severities,
        "reference": config.reference,
        "empty_mask_policy": EMPTY_MASK_POLICY,
        "folds": {dataset.name: dataset.folds for dataset in datasets},
        "summary": records,
    }
    return json.dumps(content, indent=1) + "\n"


def _head(dataset: DatasetResult, result: MethodResult, noise: str) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "method": result.method.name,
        "title": result.method.title,
        "group": result.method.group,
        "noise": noise,
        "state": result.state,
    }


def _test_values(test: Difference | None) -> dict[str, Any]:
    if test is None:
        return {}
    return {"reference_minus_dsc": round(test.value.mean, 4), "p": round(test.p, 6), "p_holm": round(test.p_holm, 6)}


def _test_cells(test: Difference | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    value = test.value
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]", p_value(test.p_holm)


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
