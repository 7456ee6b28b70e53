"""Tables, figure and statistics of an evaluation: per patient first, then over patients, with confidence intervals.

The patient is the unit of means and tests: :func:`patient_means` comes first, the rest works on its values. What looks
at failures (:func:`worst_tenth`, :func:`below`) counts single runs: a target volume with one set of clicks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import METRICS, EvaluationRow
from SPDSegmentLib.files import check_output, write_csv, write_json, write_png, write_text

EMPTY_MASK_POLICY = (
    "Empty masks: both empty, left out; "
    "a miss or a pure false alarm counts as DSC 0, NSD 0 and HD95 = the image diagonal."
)
REPORT_NAMES = ("rows.csv", "summary.json", "table.md", "severity.png")
TABLE_BYTES = 1 << 16
NOTHING = "-"
METRIC_HEADS = ("DSC", "HD95, mm", "NSD", "worst tenth", "below 0.5", "right clicks rejected", "wrong clicks kept")
METRICS_NOTE = (
    "DSC with its 95 % bootstrap interval, HD95 and NSD per volume, mean over patients; all but HD95 in percent. "
    "Worst tenth: mean DSC of the tenth of the runs, each a target volume with one set of clicks, that came out worst; "
    "below 0.5: runs whose DSC is. Of the clicks inside the target the share that is rejected, of those outside the "
    "share that is kept, where a method judges clicks."
)
Key = tuple[str, str, str]
Values = Sequence[float] | np.ndarray
TIE_DECIMALS = 12  # differences that agree to so many decimals are ties, whatever rounding of floats did


def group_rows(rows: Sequence[EvaluationRow]) -> dict[Key, list[EvaluationRow]]:
    """Rows by (bundle, method, severity), in order of first appearance."""
    groups: dict[Key, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault((row.bundle, row.method, row.severity), []).append(row)
    return groups


def figures_of(rows: Sequence[EvaluationRow]) -> dict[str, Any]:
    """Every metric of some runs as a flat JSON-ready record; metrics without a value are left out."""
    record: dict[str, Any] = {"patients": len({row.patient for row in rows}), "runs": len(rows)}
    for metric in METRICS:
        found = estimate(rows, metric)
        if found is not None:
            digits = 2 if "hd95" in metric else 4
            record[metric] = round(found.mean, digits)
            record[f"{metric}_low"], record[f"{metric}_high"] = round(found.low, digits), round(found.high, digits)
    worst = worst_tenth(rows)
    if worst is not None:
        record["dsc_worst_tenth"], record["dsc_below_half"] = round(worst, 4), below(rows)[0]
    return record


def summarize(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """One JSON-ready record per bundle, method and severity."""
    return [
        {"bundle": bundle, "method": method, "severity": severity}
        | figures_of(group)
        | {"outside_share": round(float(np.mean([row.outside_share for row in group])), 3)}
        for (bundle, method, severity), group in group_rows(rows).items()
    ]


def compare(rows: Sequence[EvaluationRow], reference: tuple[str, str]) -> list[dict[str, Any]]:
    """Paired Wilcoxon of every other (bundle, method) against ``reference``, per severity, Holm-corrected (DSC)."""
    groups = group_rows(rows)
    found = []
    for (bundle, method, severity), group in groups.items():
        base = groups.get((*reference, severity), [])
        test = None if (bundle, method) == reference else difference(base, group)
        if test is not None:
            found.append(({"bundle": bundle, "method": method, "severity": severity}, test))
    return [
        {**where, "dsc_difference": round(test.value.mean, 4), "p": test.p, "p_holm": test.p_holm}
        for (where, _), test in zip(found, corrected([test for _, test in found]), strict=True)
    ]


@dataclass(frozen=True)
class TableLine:
    """One line of a table: a method at one severity of the noise.

    Attributes:
        labels: cells at its beginning; extra: cells at its end.
        state: what is said in place of figures where there is no row.
    """

    labels: tuple[str, ...]
    severity: str
    rows: Sequence[EvaluationRow]
    extra: tuple[str, ...] = ()
    state: str = "not run"

    @property
    def cells(self) -> list[str]:
        """All cells, as text."""
        if not self.rows:
            return [*self.labels, self.state, *[""] * (len(METRIC_HEADS) + len(self.extra))]
        low, count = below(self.rows)
        return [
            *self.labels,
            self.severity,
            percent(estimate(self.rows)),
            _number(estimate(self.rows, "hd95_mm")),
            percent(estimate(self.rows, "nsd"), interval=False),
            NOTHING if count == 0 else f"{100 * (worst_tenth(self.rows) or 0.0):.1f}",
            NOTHING if count == 0 else f"{low} of {count}",
            percent(estimate(self.rows, "right_rejected"), interval=False),
            percent(estimate(self.rows, "wrong_kept"), interval=False),
            *self.extra,
        ]


def metrics_table(label_heads: Sequence[str], lines: Sequence[TableLine], extra_heads: Sequence[str] = ()) -> str:
    """The one table of evaluations: a line per method and severity, with failures beside the means."""
    heads = [*label_heads, "clicks", *METRIC_HEADS, *extra_heads]
    return "\n".join([table_line(heads), "|" + "---|" * len(heads), *(table_line(line.cells) for line in lines)])


def table_line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def percent(figure: Estimate | None, interval: bool = True) -> str:
    """A share in percent, as the paper prints DSC, with its interval."""
    if figure is None:
        return NOTHING
    text = f"{100 * figure.mean:.1f}"
    return f"{text} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]" if interval else text


def _number(figure: Estimate | None) -> str:
    return NOTHING if figure is None else f"{figure.mean:.1f}"


def markdown_table(rows: Sequence[EvaluationRow]) -> str:
    """The table of an evaluation: one line per severity, bundle and method."""
    groups = group_rows(rows)
    severities = list(dict.fromkeys(key[2] for key in groups))
    lines = [
        TableLine((bundle, method), severity, group)
        for severity in severities
        for (bundle, method, of), group in groups.items()
        if of == severity
    ]
    return metrics_table(("bundle", "prompts"), lines) + f"\n\n{METRICS_NOTE} {EMPTY_MASK_POLICY}"


def write_reports(folder: Path, rows: Sequence[EvaluationRow], context: dict[str, Any]) -> None:
    """Write ``rows.csv``, ``summary.json``, ``table.md`` and ``severity.png`` into ``folder``, each in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder, rows)
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


def write_rows(folder: Path, rows: Sequence[EvaluationRow]) -> None:
    """Write ``rows.csv``, from which all else can be made, into ``folder``."""
    columns = [field.name for field in dataclasses.fields(EvaluationRow)]
    write_csv(folder / "rows.csv", [columns, *([getattr(row, name) for name in columns] for row in rows)], "table")


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


def _figure(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """DSC and HD95 against severity, one line per bundle and method, with bootstrap intervals."""
    from matplotlib.figure import Figure

    groups = group_rows(rows)
    severities = list(dict.fromkeys(key[2] for key in groups))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, metric, label in zip(figure.subplots(1, 2), ("dsc", "hd95_mm"), ("volume DSC", "HD95 (mm)"), strict=True):
        for bundle, method in dict.fromkeys(key[:2] for key in groups):
            found = [estimate(groups.get((bundle, method, severity), []), metric) for severity in severities]
            points = [(i, f.mean, f.low, f.high) for i, f in enumerate(found) if f is not None]
            if not points:
                continue
            x, y, low, high = np.array(points).T
            axes.plot(x, y, marker="o", label=f"{bundle}, {method}")
            axes.fill_between(x, low, high, alpha=0.12)
        axes.set_xticks(range(len(severities)), severities)
        axes.set_xlabel("click noise")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def patient_means(patients: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
    """Mean of each patient's values, by patient in order of first appearance.

    Args:
        patients, values: of one length, one entry per measurement; ``None`` is left out, and a patient without any
            value too.

    Raises:
        BadInput: different lengths.
    """
    _same_length(patients, values)
    found: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        if value is not None:
            found.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(own)) for patient, own in found.items()}


def paired_wilcoxon(a: Values, b: Values) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on paired values; 1 where all pairs are equal or there are none.

    ``scipy.stats.wilcoxon``: pairs that are equal are dropped; exact for small samples.

    Raises:
        BadInput: different lengths.
    """
    from scipy import stats

    _same_length(a, b)
    difference = np.round(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), TIE_DECIMALS)
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values of a family of tests, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def bootstrap_ci(values: Values, confidence: float = 0.95, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same seed gives the same interval.

    For the difference of two methods give the differences of each patient.

    Raises:
        BadInput: no value.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise BadInput("A confidence interval needs at least one value.")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (samples, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True)
class Difference:
    """One method minus another over the patients and clicks that both have.

    Attributes:
        p: two-sided paired Wilcoxon; p_holm: corrected over the family that it was tested in.
    """

    value: Estimate
    p: float
    p_holm: float = 1.0


def estimate_of(values: Iterable[float]) -> Estimate | None:
    """Mean and interval of one value per patient; ``None`` for no values."""
    known = list(values)
    if not known:
        return None
    low, high = bootstrap_ci(known)
    return Estimate(float(np.mean(known)), low, high, len(known))


def means_of_rows(rows: Iterable[EvaluationRow], metric: str) -> dict[str, float]:
    """Mean of a metric per patient, over targets and seeds; patients without a value are left out."""
    known = list(rows)
    return patient_means([row.patient for row in known], [getattr(row, metric) for row in known])


def estimate(rows: Iterable[EvaluationRow], metric: str = "dsc") -> Estimate | None:
    """Mean of a metric over patients; ``None`` without values."""
    return estimate_of(means_of_rows(rows, metric).values())


def worst_tenth(rows: Iterable[EvaluationRow]) -> float | None:
    """Mean DSC of the tenth of the runs, at least one, that came out worst; ``None`` without values."""
    return mean_of_worst_tenth([row.dsc for row in rows if row.dsc is not None])


def mean_of_worst_tenth(values: Sequence[float]) -> float | None:
    """Mean of the lowest tenth of some values, at least one of them; ``None`` without values."""
    return float(np.mean(sorted(values)[: -(-len(values) // 10)])) if values else None


def below(rows: Iterable[EvaluationRow], limit: float = 0.5) -> tuple[int, int]:
    """How many runs have a DSC below ``limit``, and of how many."""
    values = [row.dsc for row in rows if row.dsc is not None]
    return sum(value < limit for value in values), len(values)


def difference(
    first: Iterable[EvaluationRow], second: Iterable[EvaluationRow], metric: str = "dsc"
) -> Difference | None:
    """First minus second over what both have; ``None`` where they share no patient."""
    a, b = list(first), list(second)
    places = {row.place for row in a} & {row.place for row in b}
    means = [means_of_rows((row for row in rows if row.place in places), metric) for rows in (a, b)]
    patients = sorted(means[0].keys() & means[1].keys())
    ours, theirs = ([mean[p] for p in patients] for mean in means)
    value = estimate_of(np.subtract(ours, theirs).tolist())
    return None if value is None else Difference(value, paired_wilcoxon(ours, theirs))


def corrected(tests: Sequence[Difference]) -> list[Difference]:
    """The same tests with Holm's correction over all of them."""
    return [replace(test, p_holm=p) for test, p in zip(tests, holm([t.p for t in tests]), strict=True)]


def _same_length(first: Sized, second: Sized) -> None:
    if len(first) != len(second):
        raise BadInput(
            f"The paired lists have {len(first)} and {len(second)} entries.", "Give one pair for each patient."
        )
