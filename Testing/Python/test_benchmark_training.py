"""Where there is no bundle the benchmark trains one per fold, once for all rows that rest on it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_benchmark import options, without_figures, write_benchmark

from spdbench.cells import read_cell, write_cell
from spdbench.command import plan_of, run_benchmark
from spdbench.comparators.own_training import OwnTraining
from spdbench.summary import collect
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.training.config import read_training_config

METHODS = """
name = "folds"
seeds = 1
severities = ["clean"]
parts = []
headline = "clean"

[budget]
steps = 2

[dataset.blob]
title = "Blob"
config = "tiny-consensus.toml"
folds = 3

[method.spd]
title = "SPD"
bundle = "{dataset}"

[method.saliency-only]
title = "Saliency only"
bundle = "{dataset}"
prompts = "saliency-only"

[method.raw]
title = "Decoder tuned on raw clicks"
bundle = "{dataset}-raw"
stage1_from = "spd"
train = { stage2 = { strategy = "raw", psc_weight = 0.0 } }
prompts = "raw"

[method.frozen]
title = "Frozen, consensus"
group = "frozen"
kind = "frozen"
bundle = "{dataset}"
prompts = "consensus"
settings = { backbone = "tiny_random", shape = "box" }

[method.one-patient]
title = "One training patient"
bundle = "{dataset}-one"
train_patients = 1
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = write_benchmark(tmp_path)
    path.write_text(METHODS, encoding="utf-8")
    return path


def test_every_fold_is_trained_once_and_every_patient_tested_once(bench: Path) -> None:
    outcome = run_benchmark(options(bench))
    for method in ("spd", "saliency-only", "raw", "frozen", "one-patient"):
        cell = read_cell(outcome.folder, "blob", method)
        assert cell.states == {}
        assert sorted(row.patient for row in cell.rows.values()) == ["a", "b", "c"]
    for fold in ("fold0", "fold1", "fold2"):
        models = [p for p in (bench.parent / "work" / "blob" / fold).iterdir() if p.name.startswith("model-")]
        assert len(models) == 3  # SPD, the raw decoder, one patient
        learned = {len(read_bundle(model / "bundle").info.training["patients"]) for model in models}
        assert learned == {1, 2}
    assert read_cell(outcome.folder, "blob", "spd").training["0"]["steps"] == 6
    report = outcome.report.read_text(encoding="utf-8")
    assert "2/1, 2/1, 2/1" in report


def test_no_patient_of_a_test_fold_is_trained_on(bench: Path) -> None:
    dataset = plan_of(options(bench)).cells[0].dataset
    tested = [case for fold in dataset.folds for case in fold.test]
    assert sorted(tested) == ["a", "b", "c"]
    for fold in dataset.folds:
        assert not {dataset.patient(c) for c in fold.train} & {dataset.patient(c) for c in fold.test}


def test_no_checkpoint_is_chosen_by_the_tested_patients(bench: Path) -> None:
    config = bench.parent / "tiny-consensus.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[stage2]\n", "[stage2]\nvalidate_every = 1\npatience = 2\n"), encoding="utf-8")
    assert read_training_config(config).stage2.validate_every == 1
    for entry in plan_of(options(bench)).cells[0].entries:
        training = entry.make()
        assert isinstance(training, OwnTraining)
        stage = training.config.stage2
        assert (stage.validate_every, stage.patience) == (0, 0)


def test_without_folds_the_test_patients_are_tested_where_there_are_any(bench: Path) -> None:
    config = bench.parent / "tiny-consensus.toml"
    text = config.read_text(encoding="utf-8")
    bench.write_text(METHODS.replace("folds = 3", "train = true"), encoding="utf-8")
    assert plan_of(options(bench)).cells[0].dataset.folds[0].test == ("b", "c")
    config.write_text(text.replace('["b", "c"]', '["b"]\ntest = ["c"]'), encoding="utf-8")
    assert plan_of(options(bench)).cells[0].dataset.folds[0].test == ("c",)
    bench.write_text(METHODS, encoding="utf-8")
    assert sorted(fold.test for fold in plan_of(options(bench)).cells[0].dataset.folds) == [("a",), ("b",), ("c",)]


def test_a_bundle_that_learned_from_a_test_patient_is_not_measured(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path)
    config = tmp_path / "tiny-consensus.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('train = ["a"]\nvalidation = ["b", "c"]', 'train = ["b"]\nvalidation = ["a", "c"]'))
    run_benchmark(options(path, only=("blob/spd",)))
    cell = read_cell(path.parent / "results", "blob", "spd")
    assert cell.rows == {}
    assert cell.states == {"0": ("not run", "the bundle learned from the test patient a")}


def test_an_ablation_takes_over_the_first_stage_of_a_bundle_that_is_there(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    text = METHODS.replace("folds = 3", "train = true").replace('bundle = "{dataset}"', 'bundle = "bundle"')
    bench.write_text(text, encoding="utf-8")
    run_benchmark(options(bench, only=("blob/spd", "blob/raw")))
    cell = read_cell(bench.parent / "results", "blob", "raw")
    assert cell.states == {}
    assert sorted(row.patient for row in cell.rows.values()) == ["b", "c"]
    (model,) = (bench.parent / "work" / "blob" / "fold0").glob("model-*")
    ours, taken = (
        load_state_dict(folder / "adapter.safetensors") for folder in (model / "bundle", bench.parent / "bundle")
    )
    name = next(name for name in ours if "lora_A" in name and name.startswith("image_encoder"))
    assert bool((ours[name] == taken[name]).all())


def test_ablations_on_one_first_stage_share_the_kept_embeddings_and_give_what_they_give_alone(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    more = """
[method.no-psc]
title = "Without PSC"
bundle = "{dataset}-no-psc"
stage1_from = "spd"
train = { stage2 = { psc_weight = 0.0 } }

[method.more-views]
title = "More views"
bundle = "{dataset}-more-views"
stage1_from = "spd"
train = { stage2 = { entries = 5 } }
"""
    text = METHODS.replace("folds = 3", "train = true").replace('bundle = "{dataset}"', 'bundle = "bundle"')
    bench.write_text(text + more, encoding="utf-8")
    run_benchmark(options(bench, only=("blob/no-psc",)))
    alone = read_cell(bench.parent / "results", "blob", "no-psc").rows
    shutil.rmtree(bench.parent / "results")
    shutil.rmtree(bench.parent / "work")
    run_benchmark(options(bench, only=("blob/raw",)))
    fold = bench.parent / "work" / "blob" / "fold0"
    (kept,) = fold.glob("embeddings-*")
    made = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    run_benchmark(options(bench, only=("blob/no-psc", "blob/more-views")))
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == made
    assert len(list(fold.glob("embeddings-*"))) == 2
    shared = read_cell(bench.parent / "results", "blob", "no-psc").rows
    assert {p: replace(r, seconds=0) for p, r in shared.items()} == {p: replace(r, seconds=0) for p, r in alone.items()}


def test_rows_of_a_part_of_a_training_are_marked_and_measured_again(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    bench.write_text(METHODS.replace("folds = 3", "train = true"), encoding="utf-8")
    of_spd = options(bench, only=("blob/spd",))
    results = run_benchmark(of_spd).folder
    cell = read_cell(results, "blob", "spd")
    cell.training["0"]["steps"] = 3
    write_cell(results, cell)
    plan = plan_of(of_spd)
    assert plan.rows(plan.cells[0]) == []
    shown = collect(plan)[0].methods["spd"]
    assert (shown.state, len(shown.rows)) == ("3 of 6 steps", 2)

    (record,) = (bench.parent / "work" / "blob" / "fold0").glob("model-*/training.json")
    whole = record.read_text(encoding="utf-8")
    record.write_text(whole.replace('"steps": 6', '"steps": 3'), encoding="utf-8")
    run_benchmark(of_spd)
    refused = read_cell(results, "blob", "spd")
    assert "had 3 of 6 steps; remove model-" in refused.states["0"][1]
    assert len(refused.rows) == 2
    record.write_text(whole, encoding="utf-8")
    run_benchmark(of_spd)
    again = read_cell(results, "blob", "spd")
    assert (again.training["0"]["steps"], again.states, len(again.rows)) == (6, {}, 2)


def test_without_training_untrained_rows_say_so(bench: Path) -> None:
    run_benchmark(options(bench, training=False, only=("blob/spd",)))
    states = read_cell(bench.parent / "results", "blob", "spd").states
    assert set(states.values()) == {("not run", "not trained, trainings are switched off")}
