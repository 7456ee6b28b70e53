"""The benchmark resumes, skips, runs single cells, survives a failing one, and gives the same tables twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_benchmark
from tiny_benchmark import options, without_figures, write_benchmark, write_bundle

from spdbench.cells import read_cell, write_cell
from spdbench.command import Outcome, list_cells, plan_of, run_benchmark
from spdbench.comparators.protocol import COMPARATORS
from SPDSegmentLib.errors import Cancelled

TABLES = ("tables.md", "summary.csv", "summary.json")


@pytest.fixture(scope="module", autouse=True)
def broken() -> Iterator[None]:
    """A comparator that fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMPARATORS, "broken", "broken:Broken")
        patch.setitem(sys.modules, "spdbench.comparators.broken", tiny_benchmark)
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A tiny benchmark file."""
    return write_benchmark(tmp_path)


@pytest.fixture(scope="module")
def whole(broken: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A benchmark file and what one run of all its cells gave."""
    bench = write_benchmark(tmp_path_factory.mktemp("whole"))
    return bench, run_benchmark(options(bench))


def measured(path: Path, method: str, results: str = "results") -> int:
    return len(read_cell(path.parent / results, "blob", method).rows)


def test_a_whole_run_measures_every_cell_and_one_failure_stops_nobody(whole: tuple[Path, Outcome]) -> None:
    bench, outcome = whole
    # two patients, one target; clean once, severe and the drift alone twice
    assert measured(bench, "spd") == 2 * (1 + 2 + 2)
    assert measured(bench, "oracle") == measured(bench, "saliency-only") == 2 * 3
    assert measured(bench, "n-0") == measured(bench, "n-2") == 2 * 2
    broken = read_cell(outcome.folder, "blob", "broken")
    assert broken.states == {"0": ("failed", "ValueError: wheels came off")}
    assert len(broken.rows) == 1
    report = outcome.report.read_text(encoding="utf-8")
    assert "not run: weights of sam_vit_h not available" in report
    assert "failed: ValueError: wheels came off" in report
    for picture in ("headline.png", "severity-blob.png", "parts-blob.png", "sweeps-blob.png", "histogram-blob.png"):
        assert (outcome.folder / picture).stat().st_size > 1000
        assert f"({picture})" in report
    assert "of the pixels above 0.9" in report


def test_a_second_run_gives_the_same_tables(whole: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    bench, first = whole
    second = run_benchmark(options(bench, output=bench.parent / "second"))
    for table in TABLES:
        assert (first.folder / table).read_bytes() == (second.folder / table).read_bytes()


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_tables(
    whole: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    bench, never_stopped = whole
    output = bench.parent / "stopped"
    polls = iter(range(1000))
    with pytest.raises(Cancelled):
        run_benchmark(options(bench, output=output, cancelled=lambda: next(polls) >= 7))
    methods = ("spd", "saliency-only", "shuffled", "oracle", "n-0", "n-2")
    assert sum(measured(bench, method, output.name) for method in methods) == 7
    told: list[int] = []
    hears = options(bench, output=output, on_progress=lambda what, done, total, left: told.append(done))
    resumed = run_benchmark(hears)
    assert told[0] >= 7
    for table in TABLES:
        assert (resumed.folder / table).read_bytes() == (never_stopped.folder / table).read_bytes()


def test_a_killed_process_leaves_whole_files_and_the_next_run_goes_on(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    command = [sys.executable, "-m", "spdbench", str(bench), "--only", "blob/[sn]*"]
    command += ["--output", str(bench.parent / "results"), "--work", str(bench.parent / "work"), "--device", "cpu"]
    cells = bench.parent / "results" / "cells" / "blob"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 240
    while not any(cells.glob("*.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for path in cells.glob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    run_benchmark(options(bench, only=("blob/spd",)))
    assert measured(bench, "spd") == 10


@pytest.mark.parametrize("first", [True, False])
def test_a_case_that_cannot_be_read_stops_its_data_set_alone(
    bench: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    without_figures(monkeypatch)
    text = bench.read_text(encoding="utf-8")
    config = (bench.parent / "tiny-consensus.toml").read_text(encoding="utf-8")
    case = "b" if first else "c"
    (bench.parent / "damaged.toml").write_text(config.replace('folder = "data"', 'folder = "damaged"'), "utf-8")
    shutil.copytree(bench.parent / "data", bench.parent / "damaged")
    (bench.parent / "damaged" / f"{case}_label.nii.gz").write_bytes(b"damaged")
    table = '[dataset.damaged]\ntitle = "Damaged"\nconfig = "damaged.toml"\n\n[dataset.blob]'
    bench.write_text(text.replace("[dataset.blob]", table), encoding="utf-8")
    results = run_benchmark(options(bench, only=("*/spd", "*/saliency-only"))).folder
    for method in ("spd", "saliency-only"):
        state, reason = read_cell(results, "damaged", method).states["0"]
        assert state == "failed" and f"{case}_label.nii.gz" in reason
        assert read_cell(results, "blob", method).states == {}
    assert measured(bench, "spd") == 10


def test_one_cell_runs_alone(bench: Path) -> None:
    run_benchmark(options(bench, only=("blob/oracle",)))
    assert sorted(path.stem for path in (bench.parent / "results" / "cells" / "blob").iterdir()) == ["oracle"]
    lines = list_cells(plan_of(options(bench)))
    assert [line.split()[1:4] for line in lines if line.startswith("blob/oracle")] == [["6", "/", "6"]]
    assert [line.split()[1:4] for line in lines if line.startswith("blob/spd")] == [["0", "/", "10"]]


def test_what_is_done_is_skipped(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    run_benchmark(options(bench, only=("blob/spd",)))
    told: list[str] = []
    run_benchmark(options(bench, only=("blob/spd",), on_progress=lambda what, *rest: told.append(what)))
    assert told == []


def test_another_bundle_is_measured_again(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    run_benchmark(options(bench, only=("blob/spd",)))
    old = read_cell(bench.parent / "results", "blob", "spd").keys
    write_bundle(bench.parent, bench.parent / "tiny-consensus.toml", seed=9)
    assert "blob/spd" in list_cells(plan_of(options(bench)))[0]
    assert list_cells(plan_of(options(bench)))[0].split()[1] == "0"
    run_benchmark(options(bench, only=("blob/spd",)))
    assert read_cell(bench.parent / "results", "blob", "spd").keys != old
    assert measured(bench, "spd") == 10


@pytest.mark.parametrize("whole", [False, True])
def test_a_setting_that_was_added_later_voids_no_row_at_its_default(
    bench: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    without_figures(monkeypatch)
    only = options(bench, only=("blob/saliency-only",))
    run_benchmark(only)
    cell = read_cell(bench.parent / "results", "blob", "saliency-only")
    entry = plan_of(only).cells[0].entries[0]
    assert "usual_low" in str(entry.dataset.definition(whole=True))
    assert "usual_low" not in str(entry.dataset.definition())
    cell.keys["0"] = entry.whole_key if whole else entry.key
    write_cell(bench.parent / "results", cell)
    assert list_cells(plan_of(only))[0].split()[1] == "6"
    told: list[str] = []
    run_benchmark(options(bench, only=only.only, on_progress=lambda what, *rest: told.append(what)))
    assert told == []
    text = (bench.parent / "tiny-consensus.toml").read_text(encoding="utf-8")
    changed = text.replace("[intensity]\n", "[intensity]\nusual_low = 0.1\nusual_high = 0.5\n")
    (bench.parent / "tiny-consensus.toml").write_text(changed, encoding="utf-8")
    assert list_cells(plan_of(only))[0].split()[1] == "0"


def test_more_seeds_add_rows_and_keep_the_old_ones(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    run_benchmark(options(bench, only=("blob/spd",)))
    before = read_cell(bench.parent / "results", "blob", "spd").rows
    bench.write_text(bench.read_text(encoding="utf-8").replace("seeds = 2", "seeds = 3"), encoding="utf-8")
    run_benchmark(options(bench, only=("blob/spd",)))
    after = read_cell(bench.parent / "results", "blob", "spd").rows
    assert len(after) == 14
    assert all(after[place] is not None and after[place] == row for place, row in before.items())


def test_clicks_are_the_same_for_all_methods(whole: tuple[Path, Outcome]) -> None:
    spd, saliency = (read_cell(whole[1].folder, "blob", name).rows for name in ("spd", "saliency-only"))
    assert len(saliency) == 2 * 3
    assert all(
        (row.clicks, row.outside_share) == (spd[place].clicks, spd[place].outside_share)
        for place, row in saliency.items()
    )


def test_the_quick_profile_has_a_folder_of_its_own(bench: Path) -> None:
    plan = plan_of(options(bench, quick=True))
    assert plan.config.name == "tiny-quick"
    assert [cell.label for cell in plan.cells] == ["blob/spd", "blob/saliency-only"]
    assert [plan.wanted(cell) for cell in plan.cells] == [3, 2]
