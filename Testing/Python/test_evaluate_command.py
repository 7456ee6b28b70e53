"""``spdsegment evaluate``: from a configuration and bundles to rows, summary, table and figure; what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_helpers import tiny_info
from tiny_training import write_cases, write_config
from typer.testing import CliRunner, Result

from fit_tables import read_rows
from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.errors import command_line
from SPDSegmentLib.evaluation import evaluator
from SPDSegmentLib.evaluation.evaluator import METHODS, EvaluationRow, EvaluationTarget
from SPDSegmentLib.evaluation.report import compare, markdown_table, summarize
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.models.bundle import read_bundle, write_bundle
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.staging import FolderLock
from SPDSegmentLib.training.result import update_metrics

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled cases, a configuration that keeps ``a`` for validation, and a randomly initialized bundle."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_cases(folder / "data")
    text = write_config(folder, 1, 0, 0).read_text(encoding="utf-8")
    (folder / "c.toml").write_text(text.replace('train = ["a", "b"]', 'train = ["b"]\nvalidation = ["a"]'))
    (folder / "both.toml").write_text(text.replace('train = ["a", "b"]', 'train = ["x"]\nvalidation = ["a", "b"]'))
    torch.manual_seed(0)
    network: dict[str, Any] = {"lora_rank": 2, "decoder": "full"}
    model = SPDModel(NetworkConfig("tiny_random", 64, **network))
    with torch.no_grad():
        assert model.saliency_head.logit.bias is not None
        model.saliency_head.logit.bias.fill_(0.1)  # so that the saliency supports clicks
    write_bundle(folder / "bundle", tiny_info(network=network, prompts={}), model.adapter_state(), "")
    return folder


def run(folder: Path, output: Path, *extra: str, model: Path | None = None, config: str = "c.toml") -> Result:
    """Evaluate the bundle with one seed of clean clicks."""
    torch.manual_seed(0)  # a random backbone is no part of its bundle
    arguments = ["evaluate", folder / config, "-m", model or folder / "bundle", "-o", output, "--device", "cpu"]
    defaults = ["--severity", "clean", "--seeds", "1"]
    return CliRunner().invoke(app_module.build_app(), [*map(str, arguments), *defaults, *extra])


def test_every_method_and_control_is_measured_at_every_severity_and_seed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    severities = ["clean", "severe"]
    given = ", ".join([*severities, "clean"])
    result = run(folder, out, "--methods", ",".join(METHODS), "--severity", given, "--seeds", "2", config="both.toml")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["rows.csv", "severity.png", "summary.json", "table.md"]

    rows = read_rows(out / "rows.csv")
    assert {(r.method, r.severity, r.seed) for r in rows} == {
        (method, severity, seed)
        for method in METHODS
        for severity, seed in (("clean", 1000), ("severe", 1000), ("severe", 1001))
    }
    assert len(rows) == 2 * 3 * len(METHODS)
    assert all(r.dsc is not None and r.hd95_mm is not None and 0 <= r.outside_share <= 1 for r in rows)
    with (out / "rows.csv").open(newline="") as file:
        assert set(next(csv.reader(file))) >= {"dsc", "iou", "hd95_mm", "nsd", "slice_dsc", "slice_hd95_mm"}

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["noise_version"] and summary["seeds"] == [1000, 1001] and summary["cases"] == ["a", "b"]
    assert len(summary["summary"]) == len(METHODS) * len(severities)
    assert "Empty masks" in summary["empty_mask_policy"] and "Empty masks" in (out / "table.md").read_text(
        encoding="utf-8"
    )
    assert (out / "severity.png").read_bytes().startswith(b"\x89PNG")
    assert "| tiny-test | consensus |" in result.stdout


def test_another_patients_clicks_are_refused_where_there_is_no_other_patient(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "tables", "--methods", "consensus,shuffled")
    assert result.exit_code != 0
    assert "all cases are of the patient a. Leave the method shuffled out" in " ".join(result.output.split())


def test_every_method_gets_the_same_clicks_and_a_repetition_the_same_figures(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(folder, tmp_path / name, "--methods", "raw,consensus", "--severity", "clinic").exit_code == 0
    one, two = (read_rows(tmp_path / name / "rows.csv") for name in ("one", "two"))
    assert len({(r.clicks, r.outside_share) for r in one}) == 1
    assert [dataclasses.replace(r, seconds=0) for r in one] == [dataclasses.replace(r, seconds=0) for r in two]


def test_two_bundles_of_one_name_stay_apart(folder: Path, tmp_path: Path) -> None:
    other = folder / "other" / "bundle"
    if not other.exists():
        source = read_bundle(folder / "bundle")
        write_bundle(
            other, source.info, {"saliency_head.logit.bias": torch.zeros(1)} | tensors(source.adapter_path), ""
        )
    result = run(folder, tmp_path / "tables", "-m", f"{other}:raw")
    assert result.exit_code == 0, result.output
    labels = {r.bundle for r in read_rows(tmp_path / "tables" / "rows.csv")}
    assert labels == {str(folder / "bundle"), str(other)}


def test_the_figures_are_written_into_the_card_on_request(folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(folder / "bundle")
    write_bundle(tmp_path / "bundle", bundle.info, tensors(bundle.adapter_path), "")
    assert run(folder, tmp_path / "t", "--update-card", model=tmp_path / "bundle").exit_code == 0
    updated = read_bundle(tmp_path / "bundle")
    assert updated.info.metrics["summary"][0]["method"] == "consensus"
    assert "| tiny-test | consensus |" in updated.card
    assert updated.info.adapter_sha256 == bundle.info.adapter_sha256


@pytest.mark.parametrize("names", [["a"], ["chaos/a", "chaos/c"]])
def test_cases_that_the_model_learned_from_are_said_here_and_on_its_card(
    folder: Path, tmp_path: Path, names: list[str]
) -> None:
    bundle = read_bundle(folder / "bundle")
    learned = dataclasses.replace(bundle.info, training={"patients": names})
    write_bundle(tmp_path / "bundle", learned, tensors(bundle.adapter_path), "")
    result = run(folder, tmp_path / "t", "--update-card", model=tmp_path / "bundle", config="both.toml")
    assert "Note: tiny-test was trained on patients of 1 of the 2 cases, as a;" in result.output
    assert "say nothing about others, unless only the names agree." in " ".join(result.output.split())
    assert (
        "On 2 validation volumes, 1 of them of patients that it was trained on, by their names, with simulated clicks"
        in read_bundle(tmp_path / "bundle").card
    )
    assert "was trained on" not in run(folder, tmp_path / "t").output


def test_a_model_is_measured_in_its_own_plane(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, planes, measured = read_bundle(folder / "bundle"), list[str](), evaluator.measure

    def noting(segment: Any, target: EvaluationTarget, *rest: Any) -> EvaluationRow:
        planes.append(target.stack.plane)
        return measured(segment, target, *rest)

    monkeypatch.setattr(evaluator, "measure", noting)
    for plane in ("coronal", "auto"):
        described = dataclasses.replace(bundle.info, slicing_axis=plane, name=plane)
        write_bundle(tmp_path / plane, described, tensors(bundle.adapter_path), "")
    result = run(folder, tmp_path / "t", model=tmp_path / "coronal")
    assert "Note: the slices are coronal, as the model takes them; the configuration says axial." in result.output
    assert "Note" not in run(folder, tmp_path / "t", model=tmp_path / "auto").output
    refused = run(folder, tmp_path / "t", "-m", str(folder / "bundle"), model=tmp_path / "coronal")
    assert refused.exit_code != 0 and "(coronal coronal, tiny-test axial)" in " ".join(refused.output.split())
    assert planes == ["coronal", "axial"]


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("-m", "bundle"),
        ("--model", "my runs/bundle"),
        ("--model=", "./bundle"),
        ("-m", "C/b:raw"),
        ("--model=", "my runs/bundle"),
    ],
)
def test_the_card_s_command_names_the_model_and_not_the_folder_that_it_was_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str
) -> None:
    shutil.copytree(folder / "bundle", tmp_path / place.removesuffix(":raw"))
    monkeypatch.chdir(tmp_path)
    given = [option + place] if option.endswith("=") else [option, place]
    command = command_line("evaluate", "c.toml", *given, "-m", "kidney-mr", "--methods", "raw", "-o", "bundle")
    updated = update_metrics(read_bundle(place.removesuffix(":raw")), {"command": command})
    named = " ".join(given).replace(place.removesuffix(":raw"), "tiny-test")
    assert f"`evaluate c.toml {named} -m kidney-mr --methods raw -o bundle`" in updated.card
    assert named in updated.info.metrics["command"]


def test_the_card_names_the_split_and_keeps_what_a_person_wrote(folder: Path, tmp_path: Path) -> None:
    text = (folder / "c.toml").read_text(encoding="utf-8")
    split = text.replace('train = ["b"]', 'train = ["b"]\ntest = ["a"]').replace('validation = ["a"]', "")
    (folder / "test.toml").write_text(split, encoding="utf-8")
    bundle = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    card = "# Mine\n\nA note.\n\n## Measured\n\nNothing.\n\n## License\n\nCC0\n"
    (bundle / "README.md").write_text(card, encoding="utf-8")
    (bundle / "LICENSE").write_text("CC0")
    for _ in range(2):
        result = run(
            folder, tmp_path / "t", "--update-card", "--split", "test", "--methods", "raw", model=bundle,
            config="test.toml",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        now = read_bundle(bundle)
        assert now.info.metrics["split"] == "test" and "On 1 test volumes" in now.card and "Nothing." not in now.card
        assert now.card.startswith("# Mine\n\nA note.\n\n## Measured\n") and now.card.count("## Measured") == 1
        assert now.card.endswith("\n\n## License\n\nCC0\n") and (bundle / "LICENSE").read_text() == "CC0"
        (bundle / "README.md").write_text(now.card, encoding="utf-8")
    (bundle / "README.md").write_text(now.card.replace("\n## License\n", ""), encoding="utf-8")
    run(folder, tmp_path / "t", "--update-card", "--methods", "raw", model=bundle)
    assert read_bundle(bundle).card.endswith("CC0\n"), "a note without a heading below the figures stays too"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from SPDSegmentLib.networks.backbones import load_state_dict

    return load_state_dict(path)


@pytest.mark.parametrize(
    ("extra", "code", "text"),
    [
        (["--severity", "wild"], 2, "Unknown severity 'wild'"),
        (["--methods", "magic"], 2, "Unknown method 'magic'"),
        (["--methods", ","], 2, "--methods names nothing"),
        (["--severity", ""], 2, "--severity names nothing"),
        (["--split", "all"], 2, "Unknown split 'all'"),
        (["--split", "test"], 2, "names no test case. Measure with --split validation instead, or list some in [data]"),
        (["-m", "unheard-of"], 3, "There is no model 'unheard-of'"),
        (["--device", "cuda:99"], 4, "device"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_and_leaves_no_table(
    folder: Path, tmp_path: Path, extra: list[str], code: int, text: str
) -> None:
    result = run(folder, tmp_path / "tables", *extra)
    assert result.exit_code == code
    assert text in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(("fault", "code", "text"), [("weights", 3, "not on this machine"), ("tensors", 2, "adapter")])
def test_a_second_model_that_cannot_run_is_refused_before_the_first_case(
    folder: Path, tmp_path: Path, spd_home: Path, fault: str, code: int, text: str
) -> None:
    if fault == "tensors":
        bundle = read_bundle(folder / "bundle")
        network = {**bundle.info.network, "lora_rank": 4}
        info = dataclasses.replace(bundle.info, name="other", network=network)
        write_bundle(tmp_path / "other", info, tensors(bundle.adapter_path), "")
    result = run(folder, tmp_path / "tables", "-m", str(tmp_path / "other") if fault == "tensors" else "kidney-mr")
    assert result.exit_code == code and text in result.stderr and "Stopped after" not in result.stderr
    assert not (tmp_path / "tables").exists()


def test_a_configuration_of_a_joint_training_is_named_as_such(folder: Path, tmp_path: Path) -> None:
    (folder / "joint.toml").write_text("[sets.blobs]\nfolder = 'data'\n", encoding="utf-8")
    result = run(folder, tmp_path / "tables", config="joint.toml")
    assert result.exit_code == 2 and "joint.toml is of a joint training and has no table [data]" in result.stderr


def test_seeds_begin_at_zero(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "tables", "--first-seed", "-2000")
    assert result.exit_code == 2 and "--first-seed" in result.stderr


def test_a_case_without_the_structure_is_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "data")
    path = tmp_path / "data" / "a_label.nii.gz"
    labels = read_labelmap(path)
    write_labelmap(path, labels.array * 7, labels)
    text = (folder / "c.toml").read_text(encoding="utf-8")
    (tmp_path / "c.toml").write_text(
        text.replace('train = ["b"]\nvalidation = ["a"]', 'train = ["x"]\nvalidation = ["a", "b"]')
    )
    result = run(tmp_path, tmp_path / "out", model=folder / "bundle")
    assert result.exit_code == 0, result.output
    assert "a_label.nii.gz holds none of the label values" in result.stderr and "case a is left out" in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["cases"] == ["b"]


@pytest.mark.parametrize(("end", "code"), [("a job's time", 130), ("memory", 4)])
def test_an_evaluation_that_is_stopped_keeps_the_runs_that_are_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, code: int
) -> None:
    done, whole = 0, evaluator.measure

    def measure(*given: Any) -> evaluator.EvaluationRow:
        nonlocal done
        done += 1
        if done == 3:
            assert (tmp_path / "tables" / "rows.csv").exists()  # what a kill would leave
            if end != "memory":
                os.kill(os.getpid(), signal.SIGTERM)
            raise MemoryError
        return whole(*given)

    monkeypatch.setattr(evaluator, "measure", measure)
    result = run(folder, tmp_path / "tables", "--seeds", "4", "--severity", "severe")
    assert result.exit_code == code
    assert "Stopped after 2 runs; the tables in" in result.stderr
    assert len(read_rows(tmp_path / "tables" / "rows.csv")) == 2
    assert json.loads((tmp_path / "tables" / "summary.json").read_text(encoding="utf-8"))["stopped"] is True


def test_a_second_evaluation_in_one_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path, "evaluation"):
        result = run(folder, tmp_path)
    assert result.exit_code == 2 and "in use by another evaluation" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("mine")
    result = run(folder, tmp_path / "tables")
    assert result.exit_code == 2 and "is a file" in result.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [("empty", "holds none of the label values"), ("shifted", "does not have the same grid"), ("gone", "no image")],
)
def test_labels_that_cannot_be_used_are_named(folder: Path, tmp_path: Path, change: str, text: str) -> None:
    write_cases(tmp_path / "data")
    (tmp_path / "c.toml").write_text((folder / "c.toml").read_text(encoding="utf-8"))
    path = tmp_path / "data" / "a_label.nii.gz"
    labels = read_labelmap(path)
    if change == "empty":
        write_labelmap(path, labels.array * 0, labels)
    elif change == "shifted":
        moved = labels.ijk_to_ras.copy()
        moved[0, 3] += 3
        write_labelmap(path, labels.array, Volume(labels.array, moved))
    else:
        (tmp_path / "data" / "a_image.nii.gz").unlink()
    result = run(tmp_path, tmp_path / "tables", model=folder / "bundle")
    assert result.exit_code == 2
    assert text in result.stderr and "a_" in result.stderr


def test_means_are_taken_per_patient_first_and_tests_are_corrected(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "t", "--methods", "raw")
    row = read_rows(tmp_path / "t" / "rows.csv")[0]
    rows = [
        dataclasses.replace(row, bundle=bundle, patient=patient, dsc=dsc + shift)
        for bundle, shift in (("ours", 0.1), ("theirs", 0.0), ("third", -0.1))
        for patient, dsc in [("p1", 0.2), ("p1", 0.2), ("p1", 0.2), ("p2", 0.6), ("p3", 0.7), ("p4", 0.5), ("p5", 0.4)]
    ]
    ours = summarize(rows)[0]
    assert ours["patients"] == 5 and ours["dsc"] == pytest.approx(0.1 + (0.2 + 0.6 + 0.7 + 0.5 + 0.4) / 5)
    tests = compare(rows, ("ours", "raw"))
    assert [t["dsc_difference"] for t in tests] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert all(t["p_holm"] >= t["p"] for t in tests)
    assert markdown_table(rows).count("\n| ") == 3


def test_clicks_of_another_extent_get_the_field_of_view_that_a_new_session_would_choose(tmp_path: Path) -> None:
    from SPDSegmentLib.evaluation.evaluator import window_of
    from SPDSegmentLib.geometry.centerline import Clicks
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.inference.predictor import Predictor

    network: dict[str, Any] = {"lora_rank": 2, "decoder": "full", "saliency": "conditioned"}
    model = SPDModel(NetworkConfig("tiny_random", 64, **network))
    info = dataclasses.replace(tiny_info(network=network, prompts={}), fov_mm=0.0)
    predictor = Predictor.load(write_bundle(tmp_path / "bundle", info, model.adapter_state(), ""), "cpu")
    stack = SliceStack(Volume(np.zeros((4, 300, 300), np.int16), np.diag([1.0, 1.0, 4.0, 1.0]), "v"), "axial")
    for spread in (5.0, 60.0):
        xy = 150 + spread * np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        clicks = Clicks(np.arange(4), xy, np.zeros(4, dtype=bool), tuple("abcd"))
        session = predictor.open(stack)
        session.segment(clicks)
        assert window_of(predictor, stack, clicks) == session._features.window
