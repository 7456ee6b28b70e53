"""Rows on several data sets: each is trained and measured end to end, and none learns from who is tested."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from test_joint_training import CONFIG
from tiny_benchmark import options, without_figures, write_benchmark

from spdbench.cells import read_cell
from spdbench.command import plan_of, run_benchmark
from spdbench.comparators.joint_training import JointTraining, TestedPatients, sets_to_learn
from spdbench.comparators.protocol import NotRun
from spdbench.config import read_benchmark_config
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.networks.backbones import load_adapter
from SPDSegmentLib.training.joint_config import JointConfig, read_joint_config

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = """
name = "joint"
seeds = 1
severities = ["clean", "severe"]
parts = []
headline = "severe"
reference = "generalist"

[dataset.blob]
title = "Blob"
config = "tiny-consensus.toml"
folds = 3

[method.generalist]
title = "Generalist"
kind = "joint"
joint = "joint.toml"

[method.conditioned]
title = "Conditioned"
kind = "joint"
joint = "joint.toml"
learns = "own"

[method.generalist-loso]
title = "Generalist, leave one structure out"
kind = "joint"
joint = "joint.toml"
learns = "other-structures"

[method.sam-tuning-joint]
title = "SAM-Tuning, interpolated clicks, joint data and budget"
kind = "joint"
joint = "joint.toml"
prompts = "interpolated"
train = { stage = { objective = "prompted" }, network = { local_normalization = false } }

[method.generalist-gate]
title = "Hard gate"
group = "ablation"
kind = "joint"
joint = "joint.toml"
overrides = { evidence = "gate" }
"""
ABLATIONS = {
    "no-neighbor-tokens": "{ network = { neighbor_tokens = 0 } }",
    "no-interpolated-token": "{ network = { interpolated_token = false } }",
    "no-second-pass": "{ network = { second_pass = false } }",
    "no-local-normalization": "{ network = { local_normalization = false } }",
    "no-synthetic": '{ sets = { "*" = { synthetic = 0 } } }',
    "frozen-encoder": '{ stage = { objective = "frozen_encoder" } }',
    "saliency-first": '{ stage = { objective = "saliency_first" } }',
}
SECOND_SET = """
[sets.others]
folder = "others"
structures = { blob = [1], ball = [1] }
fov_mm = 64.0
synthetic = 1
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Of :func:`write_joint_benchmark`."""
    return write_joint_benchmark(tmp_path)


def write_joint_benchmark(tmp_path: Path) -> Path:
    """A benchmark on three cases with rows that learn from two data sets."""
    path = write_benchmark(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "others")
    text = CONFIG.format(steps=2, network="", stage="") + SECOND_SET
    (tmp_path / "joint.toml").write_text(text, encoding="utf-8")
    path.write_text(ROWS, encoding="utf-8")
    return path


def test_every_row_runs_end_to_end_and_rows_on_one_model_train_it_once(bench: Path) -> None:
    outcome = run_benchmark(options(bench))
    assert outcome.problems == ()
    for method in ("generalist", "conditioned", "generalist-loso", "sam-tuning-joint", "generalist-gate"):
        rows = read_cell(outcome.folder, "blob", method).rows.values()
        assert len(rows) == 3 * 2 and {row.fold for row in rows} == {"0", "1", "2"}
        assert all(row.dsc is not None for row in rows)
        assert all((row.kept_share is None) == (method == "sam-tuning-joint") for row in rows)
    models = sorted((bench.parent / "work" / "joint").iterdir())
    # Three folds of three rows, one model of the other structures; the hard gate is a setting of the generalist.
    assert len(models) == 3 * 3 + 1
    assert {read_bundle(path / "bundle").info.network["saliency"] for path in models} == {"conditioned", "image"}
    table = (outcome.folder / "tables.md").read_text(encoding="utf-8")
    assert "| worst tenth | below 0.5 | right clicks rejected | wrong clicks kept |" in table


def test_no_model_learns_from_a_patient_that_is_tested_with_it(bench: Path) -> None:
    for cell in plan_of(options(bench)).cells:
        for entry in cell.entries:
            trained = entry.make()
            assert isinstance(trained, JointTraining)
            spec = trained.config.sets.get("blobs")
            assert (spec is None) == (cell.method.name == "generalist-loso")
            if spec is not None:
                assert set(spec.exclude) == set(entry.fold.test)


def test_a_fold_leaves_out_who_is_tested_in_it_on_any_data_set(bench: Path) -> None:
    again = (bench.parent / "tiny-consensus.toml").read_text(encoding="utf-8").replace('"data"', '"others"')
    (bench.parent / "again.toml").write_text(again, encoding="utf-8")
    bench.write_text(ROWS + '\n[dataset.again]\ntitle = "Again"\nconfig = "again.toml"\nfolds = 3\n', encoding="utf-8")
    cells = [cell for cell in plan_of(options(bench)).cells if cell.method.name == "generalist"]
    assert len(cells) == 2
    for first, second in zip(cells[0].entries, cells[1].entries, strict=True):
        assert first.model == second.model and first.folder(Path("w")) == second.folder(Path("w"))
        trained = first.make()
        assert isinstance(trained, JointTraining)
        assert trained.config.sets["others"].exclude == trained.config.sets["blobs"].exclude == first.fold.test


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_every_ablation_runs_end_to_end(bench: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    row = f'\n[method.{name}]\ntitle = "x"\nkind = "joint"\njoint = "joint.toml"\ntrain = {ABLATIONS[name]}\n'
    bench.write_text(ROWS.replace("folds = 3", "folds = 3\nlimit = 1") + row, encoding="utf-8")
    outcome = run_benchmark(options(bench, only=(f"blob/{name}",)))
    assert outcome.problems == () and len(read_cell(outcome.folder, "blob", name).rows) == 2


def test_a_row_starts_from_stage_1_of_the_model_that_another_row_trained_on_the_same_fold(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    rows = """
[method.spd]
title = "SPD"
bundle = "{dataset}"

[method.after]
title = "Conditioned, stage I first"
kind = "joint"
joint = "{dataset}.toml"
stage1_from = "spd"
train = { stage = { objective = "frozen_encoder" }, network = { lora_encoder_blocks = -1 } }
"""
    text = (bench.parent / "joint.toml").read_text(encoding="utf-8")
    (bench.parent / "blob.toml").write_text(text, encoding="utf-8")
    bench.write_text(ROWS.replace("folds = 3", "folds = 3\nlimit = 1\ntrain = true") + rows, encoding="utf-8")
    plan = plan_of(options(bench, only=("blob/after", "blob/spd")))
    outcome = run_benchmark(options(bench, only=("blob/after", "blob/spd")))
    assert outcome.problems == () and len(read_cell(outcome.folder, "blob", "after").rows) == 2
    (before,) = (c.entries[0].folder(bench.parent / "work") for c in plan.cells if c.method.name == "spd")
    (after,) = (c.entries[0].folder(bench.parent / "work") for c in plan.cells if c.method.name == "after")
    first, second = (load_adapter(read_bundle(folder / "bundle")) for folder in (before, after))
    encoder = [name for name in first if name.startswith("image_encoder.")]
    assert encoder and all(torch.equal(first[name], second[name]) for name in encoder)


def who_is_tested(folder: Path, patients: set[str]) -> TestedPatients:
    return TestedPatients(folder, frozenset(patients), str, ((1,),), 64.0)


def joint(bench: Path) -> JointConfig:
    return read_joint_config(bench.parent / "joint.toml")


def test_leaving_a_structure_out_takes_its_name_out_of_every_set(bench: Path) -> None:
    own = who_is_tested(bench.parent / "data", {"a"})
    sets = sets_to_learn(joint(bench), bench.parent, "other-structures", own)
    assert {name: set(spec.structures) for name, spec in sets.items()} == {"others": {"ball"}}
    sets = sets_to_learn(joint(bench), bench.parent, "own", own)
    assert {name: set(spec.structures) for name, spec in sets.items()} == {"blobs": {"blob"}}
    assert sets["blobs"].exclude == ("a",)


def test_one_model_can_leave_out_what_is_tested_on_any_data_set_of_its_row(bench: Path) -> None:
    own, other = who_is_tested(bench.parent / "data", {"a"}), who_is_tested(bench.parent / "others", {"b"})
    with pytest.raises(NotRun, match="nothing else to learn from"):
        sets_to_learn(joint(bench), bench.parent, "untested-structures", own, [other])
    ball = dataclasses.replace(other, targets=((2,),))
    sets = sets_to_learn(joint(bench), bench.parent, "untested-structures", own, [ball])
    assert {name: (set(spec.structures), spec.exclude) for name, spec in sets.items()} == {"others": ({"ball"}, ("b",))}


def test_what_cannot_be_learned_is_said(bench: Path) -> None:
    with pytest.raises(NotRun, match="every patient of data is tested"):
        sets_to_learn(joint(bench), bench.parent, "all", who_is_tested(bench.parent / "data", {"a", "b", "c"}))
    with pytest.raises(NotRun, match="does not name the tested structure"):
        sets_to_learn(joint(bench), bench.parent, "own", who_is_tested(bench.parent / "elsewhere", {"a"}))
    with pytest.raises(NotRun, match="nothing else to learn from"):
        sets_to_learn(joint(bench), bench.parent, "other-structures", who_is_tested(bench.parent / "others", {"a"}))
    shutil.rmtree(bench.parent / "others")
    with pytest.raises(NotRun, match="the data of others are not here"):
        sets_to_learn(joint(bench), bench.parent, "all", who_is_tested(bench.parent / "data", {"a"}))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('learns = "own"', 'learns = "everything"', "learns 'everything' of method conditioned is unknown"),
        ('kind = "joint"\njoint = "joint.toml"\nlearns = "own"', 'kind = "joint"', "names no joint configuration"),
        ('objective = "prompted" }', 'objective = "prompted", steps = "9" }', "steps in .*stage is '9'"),
        ('train = { stage = { objective = "prompted" }, network', "train = { network", "was not trained on them"),
        ('learns = "own"', 'train = { initialize_from = "x" }', "may know the tested patients"),
    ],
)
def test_a_mistake_in_a_joint_row_is_named(bench: Path, old: str, new: str, said: str) -> None:
    assert old in ROWS
    bench.write_text(ROWS.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        plan_of(options(bench))


def test_the_shipped_benchmark_has_the_rows_and_the_cross_validations() -> None:
    config = read_benchmark_config(REPOSITORY / "Testing" / "Benchmarks" / "benchmark.toml")
    rows = {"conditioned", "generalist", "generalist-loso", "sam-tuning-joint"}
    rows |= {f"generalist-{name}" for name in (*ABLATIONS, "gate")}
    assert rows <= set(config.methods)
    for name in ("kidney-mr-cv", "spleen-mr", "sarcoma-mr", "esophagus-ct-cv", "spinal-cord-ct-cv"):
        spec = config.datasets[name]
        assert spec.folds >= 2 and all(spec.takes(config.methods[row]) for row in rows)
    for row in rows:
        joint_config = read_joint_config(config.folder / config.methods[row].joint)
        assert joint_config.initialize_from == ""
