"""Joint trainings of a benchmark that travel: what is packed is trained, and comes back as the benchmark's models."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_benchmark_joint import write_joint_benchmark
from test_joint_training import CONFIG
from tiny_benchmark import options
from tiny_training import write_cases

import joint_files
import joint_on_gpu
from joint_files import ADAPTERS, STOPPED, Trained
from joint_pack import Plan, pack, read_plans, union, unpack
from joint_rows import bundle, plans_of
from joint_trainer import Training
from spdbench.cells import read_cell
from spdbench.command import run_benchmark
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.training.joint_cases import load_joint_cases
from SPDSegmentLib.training.joint_config import read_joint_config

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "Testing" / "Benchmarks" / "joint_on_gpu.py"


def run(*arguments: object, code: int = 0) -> str:
    """The script in a process of its own, as it is used; what it printed."""
    paths = (str(REPOSITORY), str(REPOSITORY / "Testing" / "Benchmarks"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
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
    printed = run("train", folder, trained, "--seconds", 600, "--parallel", 2, *wanted)
    assert "no time was left" not in printed
    records = Trained(trained).records()
    assert len(records) == 5 and sum(bool(Trained(trained).tensors(ADAPTERS, name)) for name in records) == 4
    assert sorted(path.name for path in trained.iterdir()) == ["adapters-00.safetensors", "records.json"]
    for name, record in records.items():
        assert record["steps"] == 2 and record["slices_per_second"] > 0
        assert name == record["name"] and {row["severity"] for row in record["rows"]} == {"clean", "clinic", "severe"}
        assert all(0 <= row[part] <= 1 for row in record["rows"] for part in ("saliency", "mask", "within"))
    again = run("train", folder, trained, "--seconds", 600, *wanted)
    assert again.count("finished before") == 5 and Trained(trained).records() == records
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


def test_speed_says_what_time_all_plans_take_and_trains_none(packed: tuple[Path, Path]) -> None:
    printed = run("speed", packed[1], 1, "--only", "generalist-0", "--only", "generalist-1")
    assert '"slices_per_second"' in printed and "--runs 1: 2 plans train for" in printed


def test_an_adapter_of_other_steps_is_refused(packed: tuple[Path, Path], tmp_path: Path) -> None:
    record = {"steps": 1, "runs_per_step": 3, "keep": True}
    Trained(tmp_path).put("generalist-0", record, {"x": torch.zeros(1)}, {})
    printed = run("bundle", packed[0], tmp_path, "--work", tmp_path / "work", code=1)
    assert "trained for 1 steps, the benchmark says 2" in printed


def plan_of(folder: Path, sets: str, name: str = "plan", **changes: Any) -> Plan:
    """A plan on sets whose folders are in ``folder``."""
    path = folder / f"{name}.toml"
    text = CONFIG.format(steps=4, network="", stage="").split("[sets.blobs]")[0] + sets
    path.write_text(text, encoding="utf-8")
    return Plan.of(name, dataclasses.replace(read_joint_config(path), **changes), folder)


def table(key: str, folder: str, structures: str = "blob = [1]", more: str = "") -> str:
    """A set."""
    return f'[sets.{key}]\nfolder = "{folder}"\nstructures = {{ {structures} }}\nfov_mm = 64.0\n{more}\n'


def learned_by(plan: Plan, folder: Path) -> set[tuple[str, str, float]]:
    """Group, case and weight of all that a plan learns from after its way to the other machine."""
    pack([plan], folder, 256)
    volumes, learned, _ = unpack(folder)
    targets = [target for t in learned if (target := plan.learns_from(t, volumes)) is not None]
    return {(t.group, volumes[t.volume].name.partition("/")[2], t.weight) for t in targets}


def test_sets_whose_folders_have_one_name_exclude_their_own_patients(tmp_path: Path) -> None:
    write_cases(tmp_path / "a" / "nifti")
    write_cases(tmp_path / "b" / "nifti")
    plan = plan_of(tmp_path, table("x", "a/nifti", more='exclude = ["a"]') + table("y", "b/nifti"))
    expected = {("x:blob", "b", 1.0), ("y:blob", "a", 1.0), ("y:blob", "b", 1.0)}
    assert learned_by(plan, tmp_path / "packed") == expected
    volumes, _, tested = unpack(tmp_path / "packed")
    assert {(t.group, volumes[t.volume].name) for t in tested if plan.is_tested_on(t, volumes)} == {
        ("x:blob", "nifti/a")
    }


def test_two_sets_of_one_folder_are_both_learned_from(tmp_path: Path) -> None:
    write_cases(tmp_path / "a")
    plan = plan_of(tmp_path, table("x", "a") + table("y", "a", "ball = [1]", "weight = 4.0"))
    expected = {(group, name, weight) for group, weight in (("x:blob", 1.0), ("y:ball", 4.0)) for name in "ab"}
    assert learned_by(plan, tmp_path / "packed") == expected


def test_plans_that_want_other_clicks_or_volumes_are_not_packed_together(tmp_path: Path) -> None:
    write_cases(tmp_path / "a")
    plan = plan_of(tmp_path, table("x", "a"))
    stage = dataclasses.replace(plan.config.stage, severities=(3.0, 3.0))
    with pytest.raises(SystemExit, match="another severities than plan"):
        union([plan, plan_of(tmp_path, table("x", "a"), "more", stage=stage)])
    with pytest.raises(SystemExit, match="another seed than plan"):
        union([plan, plan_of(tmp_path, table("x", "a"), "more", seed=9)])
    with pytest.raises(SystemExit, match=r"\[sets.x\] of plan has another fov_mm, blob"):
        union([plan_of(tmp_path, table("x", "a", "blob = [2]").replace("64", "48"), "more"), plan])


def test_every_model_has_a_plan_of_its_own_and_what_starts_from_a_model_is_refused(tmp_path: Path) -> None:
    bench = write_joint_benchmark(tmp_path)
    assert {plan.name for plan in plans_of(bench, [])} >= {"generalist-0", "conditioned-blob-0"}
    with pytest.raises(SystemExit, match="Two plans are named generalist-0"):
        plans_of(bench, [_copy(tmp_path / "joint.toml", "generalist-0.toml", "")])
    with pytest.raises(SystemExit, match="later.toml starts from some-model, which is not packed"):
        plans_of(bench, [_copy(tmp_path / "joint.toml", "later.toml", 'initialize_from = "some-model"\n')])
    text = bench.read_text(encoding="utf-8")
    row = 'title = "x"\nkind = "joint"\njoint = "joint.toml"\nstage1_from = "stage1"\n'
    text += f'[method.stage1]\ntitle = "x"\nbundle = "x"\n\n[method.second]\n{row}'
    bench.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="second-0 starts from stage I of stage1, which is not packed"):
        plans_of(bench, [])


def _copy(path: Path, name: str, before: str) -> Path:
    path.with_name(name).write_text(before + path.read_text(encoding="utf-8"), encoding="utf-8")
    return path.with_name(name)


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Path, Plan]:
    """A packed folder and its only plan, which is tested on nobody."""
    write_cases(tmp_path / "a")
    plan = plan_of(tmp_path, table("x", "a"))
    pack([plan], tmp_path / "packed", 256)
    return tmp_path / "packed", plan


def test_a_stopped_training_goes_on_as_if_it_had_not_been(alone: tuple[Path, Plan]) -> None:
    folder, plan = alone
    whole, first, second = (Training(plan, None, *unpack(folder)) for _ in range(3))
    losses = [float(whole.step(4)["total"]) for _ in range(4)]
    for step in range(2):
        assert float(first.step(4)["total"]) == losses[step]
    output = Trained(folder.parent / "trained")
    output.put(plan.name, {}, {}, first.state())
    second.restore(output.tensors(STOPPED, plan.name))
    record = second.run(time.monotonic() + 600, {"seconds": 50.0})
    assert record["steps"] == 4 and record["seconds"] >= 50
    assert record["losses"][-1]["total"] == pytest.approx(losses[-1], rel=0.02)
    before = Training(plan, None, *unpack(folder)).model.adapter_state()
    moved = {name: t - before[name] for name, t in whole.model.adapter_state().items()}
    apart = sum(float((t - before[n] - moved[n]).norm()) for n, t in second.model.adapter_state().items())
    assert apart < 0.1 * sum(float(t.norm()) for t in moved.values())


def test_a_training_whose_loss_is_no_number_ends_with_an_error(alone: tuple[Path, Plan]) -> None:
    training = Training(alone[1], None, *unpack(alone[0]))
    next(training.model.conditioning.parameters()).data.fill_(float("nan"))
    with pytest.raises(BadInput, match="unstable: by step 4 its loss is not a finite number"):
        training.run(time.monotonic() + 600, {})


def test_a_plan_that_is_tested_on_nobody_has_no_rows(alone: tuple[Path, Plan]) -> None:
    assert Training(alone[1], None, *unpack(alone[0])).measure(time.monotonic() + 600) == []


def test_a_failed_training_or_a_wrong_name_ends_with_an_error(
    alone: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = alone
    with pytest.raises(SystemExit, match="No plan is named plam; there are plan"):
        joint_on_gpu._wanted(folder, ["plam"])
    monkeypatch.setattr(joint_on_gpu, "Training", None)
    with pytest.raises(SystemExit, match="Failed: plan"):
        joint_on_gpu.train(folder, Trained(folder.parent / "trained"), time.monotonic() + 600, 1, [plan])


def test_another_factor_than_before_is_refused_before_anything_is_trained(alone: tuple[Path, Plan]) -> None:
    folder, plan = alone
    output = Trained(folder.parent / "trained")
    output.put(plan.name, {"plan": joint_on_gpu._digest(plan), "finished": True}, {}, {})
    joint_on_gpu.train(folder, output, time.monotonic() + 600, 1, [plan])
    with pytest.raises(SystemExit, match="give the same --factor and --runs"):
        joint_on_gpu.train(folder, output, time.monotonic() + 600, 1, [joint_on_gpu._changed(plan, 2.0, 0)])


def test_tensors_of_many_plans_lie_in_few_files_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint_files, "LARGEST", 1000)
    output, tensors = Trained(tmp_path), {f"t{i}": torch.full((100,), float(i)) for i in range(3)}
    for name in ("a", "b", "c"):
        output.put(name, {"name": name}, {}, tensors)
    assert len(list(tmp_path.glob("stopped-*.safetensors"))) == 5 and max(output.sizes()) < 1500
    output.put("a", {"name": "a"}, tensors, {})
    assert len(list(tmp_path.glob("stopped-*.safetensors"))) == 3 and not output.tensors(STOPPED, "a")
    for name, kind in (("a", ADAPTERS), ("b", STOPPED), ("c", STOPPED)):
        assert {key: t.tolist() for key, t in output.tensors(kind, name).items()} == {
            key: t.tolist() for key, t in tensors.items()
        }


@pytest.mark.parametrize(("steps", "fits"), [(1, True), (2, False)])
def test_as_many_slices_in_other_steps_are_what_the_benchmark_says(
    packed: tuple[Path, Path], tmp_path: Path, steps: int, fits: bool
) -> None:
    plan = next(plan for plan in read_plans(packed[1]) if plan.name == "generalist-0")
    assert (plan.config.stage.steps, plan.config.stage.runs_per_step) == (2, 3)
    adapter = joint_files.stored(Training(plan, None, *unpack(packed[1])).model.adapter_state(), None)
    record = {"steps": steps, "runs_per_step": 6, "keep": True, "seconds": 1.0}
    Trained(tmp_path / "first").put(plan.name, {}, adapter, {})  # the second call needed no more than the records
    Trained(tmp_path / "second").put(plan.name, record, {}, {})
    folders, work = [tmp_path / "first", tmp_path / "second"], tmp_path / "work"
    if not fits:
        with pytest.raises(SystemExit, match="trained for 2 steps, the benchmark says 1"):
            bundle(packed[0], [], folders, work)
        return
    bundle(packed[0], [], folders, work)
    (folder,) = work.glob("joint/*/bundle")
    assert read_bundle(folder).info.training["steps"] == {"of 24 slices": 1}
