"""Joint trainings of a benchmark that travel: what is packed is trained, and comes back as the benchmark's models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_benchmark_joint import write_joint_benchmark
from tiny_benchmark import options

from joint_pack import Plan, read_plans, union, unpack
from spdbench.cells import read_cell
from spdbench.command import run_benchmark
from SPDSegmentLib.training.joint_cases import load_joint_cases

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "Testing" / "Benchmarks" / "joint_on_gpu.py"


def run(*arguments: object) -> str:
    """The script in a process of its own, as it is used; what it printed."""
    paths = (str(REPOSITORY), str(REPOSITORY / "Testing" / "Benchmarks"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A benchmark with one ablation, and the folder that its joint rows are packed in."""
    bench = write_joint_benchmark(tmp_path_factory.mktemp("bench"))
    more = '\n[method.without]\ntitle = "x"\ngroup = "ablation"\nkind = "joint"\njoint = "joint.toml"\n'
    bench.write_text(
        bench.read_text(encoding="utf-8") + more + "train = { network = { second_pass = false } }\n", encoding="utf-8"
    )
    folder = bench.parent / "packed"
    run("pack", bench, folder, "--levels", 256)
    return bench, folder


def test_no_plan_learns_from_whom_it_is_tested_on_and_ablations_come_last(packed: tuple[Path, Path]) -> None:
    plans = read_plans(packed[1])
    assert [plan.keep for plan in plans] == [True] * 10 + [False] * 3
    volumes, learned, tested = unpack(packed[1])
    for plan in plans:
        known = [t for t in learned if plan.learns_from(t, volumes) is not None]
        assert known and all(not set(plan.learned[folder]) & set(cases) for folder, cases in plan.tested.items())
        assert not {volumes[t.volume].name for t in known} & {
            volumes[t.volume].name for t in tested if plan.is_tested_on(t, volumes)
        }
        structures = {t.group for t in known}
        assert ("others:ball" in structures) == (not plan.name.startswith("conditioned"))
        assert ("others:blob" in structures) == (
            plan.name.split("-")[0] not in ("conditioned",) and "loso" not in plan.name
        )


def test_packed_cases_hold_the_same_structures_and_clicks(packed: tuple[Path, Path]) -> None:
    bench, folder = packed
    plans: list[Plan] = read_plans(folder)
    volumes, learned, tested = unpack(folder)
    config = plans[0].config
    whole, before = load_joint_cases(union(plans), Path(), config.stage, config.seed)
    assert [t.group for t in learned] == [t.group for t in before]
    assert [v.name for v in volumes] == [v.name for v in whole]
    for target, old in zip(learned, before, strict=True):
        mask = np.isin(volumes[target.volume].labels, target.values)
        old_mask = np.isin(whole[old.volume].labels, old.values)
        assert mask.sum() == old_mask.sum() and mask[target.first].any() and mask[target.last].any()
        assert len(target.clicks) == len(old.clicks)
        for (slices, xy), (old_slices, old_xy) in zip(target.clicks, old.clicks, strict=True):
            found, wanted = _inside(mask, slices, xy), _inside(old_mask, old_slices, old_xy)
            assert found == wanted
    for target in tested:
        slices, xy = target.clicks[0]
        assert _inside(np.isin(volumes[target.volume].labels, target.values), slices, xy) == len(slices)  # clean clicks


def _inside(mask: np.ndarray, slices: np.ndarray, xy: np.ndarray) -> int:
    column, row = np.rint(xy).astype(int).T
    seen = (column >= 0) & (row >= 0) & (column < mask.shape[2]) & (row < mask.shape[1])
    return int(mask[slices[seen], row[seen], column[seen]].sum())


def test_what_was_trained_elsewhere_is_measured_by_the_benchmark(packed: tuple[Path, Path]) -> None:
    bench, folder = packed
    trained = bench.parent / "trained"
    wanted = [option for name in ("generalist-0", "sam-tuning-joint-?", "without-0") for option in ("--only", name)]
    printed = run("train", folder, trained, "--seconds", 600, "--parallel", 2, "--speed", 1, *wanted)
    assert "slices_per_second" in printed and "no time was left" not in printed
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in trained.glob("*.json")}
    assert len(records) == 5 and len(list(trained.glob("*.safetensors"))) == 4
    for name, record in records.items():
        assert record["steps"] == 2 and record["slices_per_second"] > 0
        assert name == record["name"] and {row["severity"] for row in record["rows"]} == {"clean", "clinic", "severe"}
        assert all(0 <= row[part] <= 1 for row in record["rows"] for part in ("saliency", "mask", "within"))
    work = bench.parent / "work"
    run("bundle", bench, trained, "--work", work)
    text = bench.read_text(encoding="utf-8").replace("seeds = 1\n", "seeds = 1\ntraining = false\n", 1)
    bench.write_text(text, encoding="utf-8")
    outcome = run_benchmark(options(bench))
    for method, folds in (("generalist", {"0"}), ("sam-tuning-joint", {"0", "1", "2"})):
        rows = read_cell(outcome.folder, "blob", method).rows.values()
        assert len(rows) == len(folds) * 2 and {row.fold for row in rows} == folds
        assert all(row.dsc is not None for row in rows)
    assert not read_cell(outcome.folder, "blob", "without").rows


def test_an_adapter_of_other_steps_is_refused(packed: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "generalist-0.safetensors").write_bytes(b"")
    (tmp_path / "generalist-0.json").write_text('{"steps": 1}', encoding="utf-8")
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "Testing" / "Benchmarks")))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "bundle", str(packed[0]), str(tmp_path), "--work", str(tmp_path / "work")],
        env=os.environ | {"PYTHONPATH": paths},
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0 and "trained for 1 steps, the benchmark says 2" in done.stderr
