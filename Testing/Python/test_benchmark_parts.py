"""The benchmark's parts: noise labels, clicks, its file, statistics, tables, the report's text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_benchmark import options, write_benchmark

from spdbench import figures, tables
from spdbench.cells import Cell, read_cell, write_cell
from spdbench.command import list_cells, plan_of, run_benchmark
from spdbench.comparators.bundle_row import clicked_component
from spdbench.comparators.protocol import Budget
from spdbench.config import (
    ClaimSpec,
    DatasetSpec,
    MethodSpec,
    is_clean,
    parse_noise,
    part_labels,
    read_benchmark_config,
)
from spdbench.plan import TimeLeft
from spdbench.progress import StepClock, time_text
from spdbench.report import ReportInput, report_text
from spdbench.summary import (
    NOT_YET,
    DatasetResult,
    MethodResult,
    check_claims,
    differences,
)
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.prompts.noise import SEVERITIES, NoiseConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_part_alone_has_no_other_noise() -> None:
    assert parse_noise("dropout:severe") == NoiseConfig(0.0, 0.0, 0.0, SEVERITIES["severe"].dropout, 0.0)
    assert parse_noise("clinic") == SEVERITIES["clinic"]
    assert parse_noise("2") == SEVERITIES["clinic"]
    assert is_clean("clean") and is_clean("off_slice:mild") and not is_clean("jitter:mild")
    assert part_labels(["off_slice"], ["mild", "clinic"]) == ["off_slice:clinic"]


@pytest.mark.parametrize("label", ["terrible", "drift:clinic", "dropout:terrible"])
def test_an_unknown_noise_is_refused(label: str) -> None:
    with pytest.raises(BadInput):
        parse_noise(label)


def test_the_shipped_file_is_sound() -> None:
    for quick in (False, True):
        config = read_benchmark_config(REPOSITORY / "Testing" / "Benchmarks" / "benchmark.toml", quick)
        assert config.reference == "spd"
        for spec in config.datasets.values():
            assert (config.folder / spec.config).is_file()
    assert config.name == "full-quick"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = 2", "seed = 2", "Unknown setting 'seed'"),
        ("seeds = 2", 'seeds = "2"', "seeds in .*bench.toml is '2', which is not a whole number"),
        ('title = "Blob"', 'title = "Blob"\nfolds = "2"', r"folds in .*\[dataset.blob\] is '2', which is not a whole"),
        ("steps = 3", "steps = 3.5", r"steps in .*\[budget\] is 3.5, which is not a whole number"),
        ("at_least = 0.05", "at_least = true", r"at_least in .*\[\[claim\]\] 1 is True, which is not a number"),
        ('noises = ["severe"]', "noises = 3", r"noises in .*\[sweep.n\] is 3, which is not a list"),
        ("values = [0, 2]", "values = 2", "values of .*sweep.n. is of the wrong kind"),
        ("[[claim]]", "[claim]", "claim.* is not a table"),
        ('title = "Blob"', "", r"\[dataset.blob\] is incomplete"),
        ('clicks = "oracle"', 'clicks = "guessed"', "clicks 'guessed' of method oracle"),
        ('prompt = "n_neighbors"', "", "must name one setting"),
        ('headline = "severe"', 'headline = "mild"', "headline 'mild'"),
        ('second = "saliency-only"', 'second = "nothing"', "no method 'nothing'"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write_benchmark(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        read_benchmark_config(path)


def test_a_pattern_that_fits_no_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fits no cell"):
        plan_of(options(write_benchmark(tmp_path), only=("blob/nothing",)))


def test_a_data_set_takes_only_the_rows_that_are_meant_for_it(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path)
    every = {cell.method.name for cell in plan_of(options(path)).cells}
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('title = "Blob"', 'title = "Blob"\nmethods = ["spd*"]', 1), encoding="utf-8")
    some = {cell.method.name for cell in plan_of(options(path)).cells if cell.dataset.name == "blob"}
    assert some == {name for name in every if name.startswith("spd")} != every


def test_a_data_set_can_stay_out_of_the_first_table(tmp_path: Path) -> None:
    given = _config(tmp_path)
    shown, aside = _dataset(0.12), _dataset(0.12)
    aside.spec = replace(aside.spec, name="aside", title="Aside", headline=False)
    given.datasets = [shown, aside]
    first, rest = report_text(given, tmp_path / "report.md").split("## What the evidence must show")
    assert shown.title in first and "Aside" not in first and "### Aside" in rest


def test_a_method_keeps_its_color_where_another_is_missing_and_the_legend_names_all(tmp_path: Path) -> None:
    dataset = _dataset(0.12)
    spd, other = dataset.methods["spd"], dataset.methods["sam-tuning"]
    figure, panels = figures.new_panels(1, 2, 3.0, 3.0)
    for axes, methods in zip(panels.flat, ([spd, None, other], [None, spd, other]), strict=True):
        figures._curves(axes, methods, ("clean", "clinic"), "dsc", "nobody")
    colors = [{line.get_label(): line.get_color() for line in axes.lines} for axes in panels.flat]
    assert colors[0]["Sam-Tuning"] == colors[1]["Sam-Tuning"] == "C2" and colors[0]["Spd"] == "C0"
    panels[0][1].lines[0].set_label("Only here")
    figures._finish(figure, panels, tmp_path / "both.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Spd", "Sam-Tuning", "Only here"]


def _row(patient: str, noise: str, dsc: float, seed: int = 1) -> EvaluationRow:
    figures = (dsc, dsc, 10 * (1 - dsc), dsc, dsc, dsc, 1.0, 0.5)
    return EvaluationRow("", "", noise, seed, patient, patient, "1", 9, 0.2, *figures, fold="0")


def _dataset(gap: float, patients: int = 8) -> DatasetResult:
    """SPD and two others on simulated patients: ``good`` is ``gap`` below SPD everywhere."""
    rng = np.random.default_rng(0)
    base = {f"p{i}": float(d) for i, d in enumerate(rng.uniform(0.7, 0.9, patients))}

    def result(name: str, minus: float, group: str = "main") -> MethodResult:
        rows = [_row(p, noise, d - minus) for p, d in base.items() for noise in ("clean", "clinic")]
        return MethodResult(MethodSpec(name, name.title(), group, bundle="x"), rows, "", {})

    missing = MethodResult(MethodSpec("gone", "Gone", "frozen", "frozen"), [], "not run: weights not available", {})
    methods = {"spd": result("spd", 0.0), "sam-tuning": result("sam-tuning", gap), "gone": missing}
    return DatasetResult(DatasetSpec("toy", "Toy", "toy.toml", note="A note."), {"0": (2, patients)}, methods)


def _config(tmp_path: Path) -> ReportInput:
    config = read_benchmark_config(write_benchmark(tmp_path))
    config = replace(
        config,
        severities=("clean", "clinic"),
        headline="clinic",
        key_methods=("spd",),
        claims=(ClaimSpec("Much better", "spd", "sam-tuning", at_least=0.11, paper="+11.08"),),
        methods={**config.methods, "sam-tuning": MethodSpec("sam-tuning", "Sam-Tuning", bundle="x")},
    )
    return ReportInput(
        config, [], [], tmp_path / "results", [{"commit": "abc"}], "spdsegment bench x.toml", "A remark."
    )


def test_a_training_that_ran_out_of_time_is_marked_in_the_tables(tmp_path: Path) -> None:
    config = replace(_config(tmp_path).config, budget=Budget(1500))
    dataset = _dataset(0.1)
    short = dataset.methods["sam-tuning"]
    short.method = replace(short.method, kind="comparator", title="Net")
    for steps, mark in ((700, " (trained 700 of 1500 steps)"), (1500, "")):
        short.training = {"0": {"steps": 1500}, "1": {"steps": steps, "seconds": 600.0}}
        assert f"| Net{mark} |" in tables.method_table(dataset, ("main",), config)


def test_differences_are_paired_by_patient_and_corrected() -> None:
    dataset = _dataset(0.12)
    tests = differences(dataset, "spd", ("clean", "clinic"), dataset.methods.values())
    assert set(tests) == {("sam-tuning", "clean"), ("sam-tuning", "clinic")}
    test = tests["sam-tuning", "clinic"]
    assert test.value.mean == pytest.approx(0.12) and test.value.patients == 8
    assert test.p == pytest.approx(2 / 2**8)
    assert test.p_holm == pytest.approx(2 * test.p)


def test_only_what_both_rows_have_is_compared() -> None:
    dataset = _dataset(0.12)
    partial = dataset.methods["sam-tuning"]
    rows = [row for row in partial.rows if row.patient != "p0"]
    dataset.methods["sam-tuning"] = MethodResult(partial.method, rows, "14 of 16 measured", {})
    tests = differences(dataset, "spd", ("clinic",), dataset.methods.values())
    assert tests["sam-tuning", "clinic"].value.patients == 7


@pytest.mark.parametrize(("gap", "met"), [(0.12, True), (0.05, False)])
def test_a_claim_is_checked_against_its_margin(tmp_path: Path, gap: float, met: bool) -> None:
    given = _config(tmp_path)
    checked = check_claims(given.config.claims, [_dataset(gap)])
    assert [c.met for c in checked] == [met]
    assert tables.claims_table(checked).splitlines()[-1].endswith("| yes |" if met else "| no |")


def test_a_claim_may_want_a_lower_hd95_as_well(tmp_path: Path) -> None:
    claim = replace(_config(tmp_path).config.claims[0], lower_hd95=True)
    dataset = _dataset(0.12)
    first, second = (dataset.methods[name] for name in (claim.first, claim.second))
    for hd95_mm, met in ((1.0, True), (30.0, False)):
        first.rows[:] = [replace(row, hd95_mm=hd95_mm) for row in first.rows]
        second.rows[:] = [replace(row, hd95_mm=5.0) for row in second.rows]
        dataset.methods |= {r.method.name: MethodResult(r.method, r.rows, "", {}) for r in (first, second)}
        checked = check_claims([claim], [dataset])
        assert [c.met for c in checked] == [met]
        assert ", lower HD95 |" in tables.claims_table(checked)


def test_a_difference_on_few_patients_is_shown_in_size_only(tmp_path: Path) -> None:
    checked = check_claims(_config(tmp_path).config.claims, [_dataset(0.12, patients=3)])
    assert [c.verdict for c in checked] == ["in size only"]


def test_a_verdict_says_of_what_its_rows_are(tmp_path: Path) -> None:
    claim, dataset = _config(tmp_path).config.claims[0], _dataset(0.12)
    dataset.methods["sam-tuning"].state = "3 of 40 measured"
    assert [c.verdict for c in check_claims([claim], [dataset])] == ["yes, 3 of 40 measured"]
    dataset.methods["spd"].state = "535 of 1050 steps"
    assert [c.verdict for c in check_claims([claim], [dataset])] == ["yes, 535 of 1050 steps, 3 of 40 measured"]


def test_kept_rows_are_of_the_patients_that_the_pattern_names_today(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path)
    cell = Cell("blob", "spd")
    for case in ("b", "c"):
        cell.add(replace(_row("unknown", "clean", 0.9), case=case), "here")
    write_cell(tmp_path / "results", cell)
    assert {row.patient for row in plan_of(options(path)).cells[0].cell.rows.values()} == {"b", "c"}


def test_nothing_is_wanted_of_a_bound(tmp_path: Path) -> None:
    bound = replace(_config(tmp_path).config.claims[0], bound=True)
    checked = check_claims([bound], [_dataset(0.05)])
    assert (checked[0].met, checked[0].verdict, checked[0].shortfall) == (None, "-", "")
    assert "| - | +11.08 | +5.0 " in tables.claims_table(checked)


def test_the_part_of_a_mask_with_most_clicks_is_kept() -> None:
    mask = np.zeros((3, 10, 10), dtype=bool)
    mask[:, 1:3, 1:3] = True
    mask[:, 6:9, 6:9] = True
    xy = np.array([[1.0, 1.0], [2.0, 2.0], [7.0, 7.0], [5.0, 0.0]])
    clicks = Clicks(np.array([0, 1, 2, 2]), xy, np.zeros(4, dtype=bool), ("1", "2", "3", "4"))
    kept = clicked_component(mask, clicks)
    assert kept[:, 1:3, 1:3].all() and kept.sum() == 12
    assert not clicked_component(mask & False, clicks).any()


def test_the_policy_stands_under_every_table_and_no_row_is_dropped(tmp_path: Path) -> None:
    given = _config(tmp_path)
    dataset = _dataset(0.12)
    for groups in (("main", "control"), ("frozen",)):
        text = tables.method_table(dataset, groups, given.config)
        assert tables.EMPTY_MASK_POLICY in text
    assert "| Gone | not run: weights not available |" in text
    records = tables.summary_records([dataset], given.config)
    assert [r["state"] for r in records if r["method"] == "gone"] == ["not run: weights not available"]
    assert tables.csv_text(records).count("\n") == len(records) + 1


def test_what_was_not_run_is_shown_as_such_and_has_no_figures(tmp_path: Path) -> None:
    given = _config(tmp_path)
    dataset, untouched = _dataset(0.12), _dataset(0.12)
    dataset.methods["sam-tuning"] = MethodResult(MethodSpec("sam-tuning", "Later", bundle="x"), [], NOT_YET, {})
    untouched.spec = replace(untouched.spec, name="other", title="Other")
    untouched.methods = {
        name: MethodResult(r.method, [], NOT_YET, {}) for name, r in untouched.methods.items() if name != "gone"
    }
    given.datasets = [dataset, untouched]
    given.claims = check_claims(given.config.claims, given.datasets)
    assert "| Sam-Tuning | not run | |" in " ".join(tables.method_table(untouched, ("main",), given.config).split())
    text = report_text(given, tmp_path / "report.md")
    (line,) = [line for line in text.splitlines() if line.startswith("| Later |")]
    assert "| not run |" in line and not any(character.isdigit() for character in line)
    assert "Declared and not run: Other." in text and "### Other" not in text
    assert "Not run: Much better (toy, other)." in text


def test_every_table_shows_failures_and_verdicts_beside_the_means(tmp_path: Path) -> None:
    given = _config(tmp_path)
    dataset = _dataset(0.12, patients=20)
    rows = dataset.methods["spd"].rows
    lost = [
        replace(r, dsc=0.1 * i) if r.patient == f"p{i}" else r for i in (1, 2) for r in rows if r.patient == f"p{i}"
    ]
    kept = [replace(r, right_rejected=0.04, wrong_kept=0.2) for r in rows if r.patient not in ("p1", "p2")]
    dataset.methods["spd"] = MethodResult(dataset.methods["spd"].method, [*lost, *kept], "", {})
    table = tables.method_table(dataset, ("main",), given.config)
    head, _, clean, other, clinic, _ = table.splitlines()[:6]
    assert "| worst tenth | below 0.5 | right clicks rejected | wrong clicks kept |" in head
    for line in (clean, clinic):
        assert line.startswith("| Spd |") and "| 15.0 | 2 of 20 | 4.0 | 20.0 |" in line
    assert other.startswith("| Sam-Tuning |") and "| 0 of 20 | - | - |" in other
    given.datasets = [dataset]
    first = report_text(given, tmp_path / "report.md").split("## What the evidence must show")[0]
    assert " / 15.0 |" in first
    (record,) = [
        r for r in tables.summary_records([dataset], given.config) if (r["method"], r["noise"]) == ("spd", "clean")
    ]
    assert (record["dsc_worst_tenth"], record["dsc_below_half"], record["wrong_kept"]) == (0.15, 2, 0.2)


def test_rows_of_an_earlier_version_are_marked_and_never_pass_for_todays(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path)
    run_benchmark(options(path, only=("blob/spd", "blob/saliency-only")))
    for method in ("spd", "saliency-only"):
        cell = read_cell(tmp_path / "results", "blob", method)
        cell.keys = dict.fromkeys(cell.keys, "of before")
        write_cell(tmp_path / "results", cell)
    outcome = run_benchmark(options(path, report_only=True))
    assert "SPD (earlier version)" in (outcome.folder / "tables.md").read_text(encoding="utf-8")
    assert ", earlier version |" in outcome.report.read_text(encoding="utf-8").split("## The paper's figures")[0]
    lines = list_cells(plan_of(options(path)))
    assert [line.split()[1:4] for line in lines if line.startswith("blob/spd")] == [["0", "/", "10"]]
    for path_of in (tmp_path / "results" / "cells" / "blob").iterdir():
        path_of.write_text(
            path_of.read_text(encoding="utf-8").replace('"noise_version":1', '"noise_version":0'), encoding="utf-8"
        )
    again = run_benchmark(options(path, report_only=True))
    assert "earlier version)" not in (again.folder / "tables.md").read_text(encoding="utf-8"), "other clicks"


def test_the_report_begins_with_a_table_and_says_what_failed(tmp_path: Path) -> None:
    given = _config(tmp_path)
    given.datasets = [_dataset(0.05)]
    given.claims = check_claims(given.config.claims, given.datasets)
    text = report_text(given, tmp_path / "docs" / "report.md")
    order = [
        text.index(f"## {heading}")
        for heading in (
            "In a hurry",
            "What the evidence must show",
            "The paper's figures beside ours",
            "Do the clicks matter?",
            "All rows, by data set",
            "What did not work",
            "Limits",
            "How to run it again",
            "Cost in time",
            "Machine and versions",
        )
    ]
    assert order == sorted(order)
    assert "Not shown on toy: Much better (+5.0 instead of +11 DSC)." in text
    assert "Gone: not run: weights not available (toy)." in text
    assert "A remark." in text and "abc" in text and "73.58" in text
    assert tables.EMPTY_MASK_POLICY in text


def test_time_left_follows_the_pace_of_each_method() -> None:
    left = TimeLeft({"slow": 3, "fast": 2, "unknown": 1})
    left.spend("slow", 10.0)
    left.spend("fast", 2.0)
    assert left.rows() == 4
    assert left.seconds() == pytest.approx(2 * 10 + 1 * 2 + 1 * 6)
    left.drop("slow")
    assert left.seconds() == pytest.approx(2 + 6)
    assert time_text(4000) == ", 1 h 7 min left" and time_text(None) == "" and time_text(12) == ", 12 s left"


def test_steps_left_follow_the_pace_of_their_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("spdbench.progress.time.monotonic", lambda: now)
    clock = StepClock()
    assert clock.seconds_left(20, 100) is None, "a resumed training has no pace yet"
    now = 110.0
    assert clock.seconds_left(25, 100) == pytest.approx(150.0)
    assert clock.seconds_left(1, 400) is None, "another stage, another pace"
    now = 111.0
    assert clock.seconds_left(11, 400) == pytest.approx(38.9)
    assert clock.seconds_left(2, 400) is None, "as many steps once more"
    limited = StepClock(limit=60.0)
    assert limited.seconds_left(1, 1500) is None
    now = 131.0
    assert limited.seconds_left(2, 1500) == pytest.approx(40.0), "the budget's seconds end it first"
    prepared = StepClock(limit=60.0)
    assert prepared.seconds_left(1, 11, limited=False) is None
    now = 331.0
    assert prepared.seconds_left(3, 11, limited=False) == pytest.approx(800.0), "no limit applies to a preparation"
    assert prepared.seconds_left(1, 1500) is None
    now = 341.0
    assert prepared.seconds_left(2, 1500) == pytest.approx(50.0), "its seconds begin with the training"
