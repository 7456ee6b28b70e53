"""Training where something is wrong: named before anything is computed, with a way out that works."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_training import write_cases, write_config
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli import training_commands
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.training.bank import build_bank


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of a few steps on two cases."""
    write_cases(tmp_path / "data")
    return write_config(tmp_path, stage1=2, head=1, stage2=2)


@pytest.fixture(scope="module", autouse=True)
def no_picture() -> Iterator[None]:
    """Other tests look at the curves; each picture takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_commands, "_draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def finished_once(no_picture: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cases, the configuration and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    write_cases(folder / "data")
    config = write_config(folder, stage1=2, head=1, stage2=2)
    assert run(config).exit_code == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The configuration of a finished run, in a folder of this test's own."""
    shutil.copytree(finished_once, tmp_path / "copy")
    return next((tmp_path / "copy").glob("*.toml"))


def run(config: Path, name: str = "run") -> Result:
    """``spdsegment train`` into a folder beside the configuration."""
    folder = config.parent / name
    places = ["--run-folder", str(folder), "--output", str(folder / "bundle")]
    return CliRunner().invoke(app_module.build_app(), ["train", str(config), *places, "--device", "cpu"])


def digest(config: Path, name: str = "run") -> str:
    """Checksum of a run's model."""
    return read_bundle(config.parent / name / "bundle").info.adapter_sha256


def set_label(config: Path, case: str, value: int) -> None:
    """Give all labeled voxels of a case another value."""
    path = config.parent / "data" / f"{case}_label.nii.gz"
    labels = read_labelmap(path)
    write_labelmap(path, np.where(labels.array > 0, value, 0), labels)


def stop_before_stage2(config: Path, monkeypatch: pytest.MonkeyPatch, name: str = "run") -> Path:
    """A run that ended when its embeddings were complete; returns their folder."""

    def stop(*arguments: object, **options: object) -> None:
        build_bank(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("SPDSegmentLib.training.run.build_bank", stop)
        assert run(config, name).exit_code == 130
    return config.parent / name / "embeddings"


def test_the_embeddings_are_announced_with_their_size_and_deleted_at_the_end(config: Path) -> None:
    result = run(config)
    assert result.exit_code == 0, result.output
    folder = config.parent / "run"
    assert f"embeddings of 4 views take 1 MB in {folder / 'embeddings'}; they are deleted at the end" in result.stderr
    assert not (folder / "embeddings").exists() and not list(folder.glob(".*"))
    again = run(config)
    assert again.exit_code == 0 and "embeddings" not in again.stderr, "a finished run computes nothing"


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another image"])
def test_a_damaged_or_outdated_embedding_is_computed_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first, second = sorted(stop_before_stage2(finished, monkeypatch, "again").iterdir())[:2]
    content = {"truncated": first.read_bytes()[:-9], "empty": b"", "of another image": second.read_bytes()}
    first.write_bytes(content[damage])
    assert run(finished, "again").exit_code == 0
    assert digest(finished, "again") == digest(finished)


@pytest.mark.parametrize("phase", ["stage1", "stage2"])
def test_a_truncated_checkpoint_is_named_first_and_the_way_out_works(finished: Path, phase: str) -> None:
    model, path = digest(finished), finished.parent / "run" / f"{phase}.ckpt"
    path.write_bytes(path.read_bytes()[:-99])
    refused = run(finished)
    assert refused.exit_code == 2
    assert f"{path} cannot be continued" in refused.stderr and "Delete it" in refused.stderr
    assert "reading cases" not in refused.stderr
    path.unlink()
    assert run(finished).exit_code == 0 and digest(finished) == model


def test_a_phase_that_begins_anew_takes_the_later_ones_with_it(finished: Path) -> None:
    (finished.parent / "run" / "stage1.ckpt").unlink()
    again = run(finished)
    assert again.exit_code == 0 and "stage2 2/2" in again.stderr, "stage II rests on a stage I that is gone"


def test_a_damaged_configuration_of_the_run_is_named_and_the_way_out_works(finished: Path) -> None:
    path = finished.parent / "run" / "config.json"
    path.write_text(path.read_text(encoding="utf-8")[:50])
    refused = run(finished)
    assert refused.exit_code == 2 and f"{path}, which says how this run was started, is damaged" in refused.stderr
    path.unlink()
    assert run(finished).exit_code == 0
    path.unlink()
    finished.write_text(finished.read_text(encoding="utf-8").replace("seed = 3", "seed = 4"), encoding="utf-8")
    other = run(finished)
    assert other.exit_code == 2 and "of other settings" in other.stderr


def test_what_differs_from_the_run_of_a_folder_is_said(finished: Path) -> None:
    text = finished.read_text(encoding="utf-8")
    finished.write_text(text.replace("seed = 3", "seed = 4"), encoding="utf-8")
    refused = run(finished)
    assert refused.exit_code == 2 and "another configuration (seed 3 there and 4 here)" in refused.stderr
    finished.write_text(text.replace('title = "Tiny"', 'title = "Tiny blob"'), encoding="utf-8")
    assert run(finished).exit_code == 0, "a title changes nothing of what is computed"


def test_a_run_goes_on_only_with_the_start_bundle_that_it_began_with(finished: Path) -> None:
    # given: a run that takes stage I over from the first one's bundle
    text = finished.read_text(encoding="utf-8")
    second = finished.with_name("second.toml")
    second.write_text(text.replace("seed = 3", 'seed = 3\ninitialize_from = "run/bundle"'), encoding="utf-8")
    assert run(second, "second").exit_code == 0
    assert run(second, "second").exit_code == 0
    model, first = digest(second, "second"), finished.parent / "run" / "bundle"
    # when: that bundle is trained once more, with another seed
    finished.write_text(text.replace("seed = 3", "seed = 4"), encoding="utf-8")
    assert run(finished, "other").exit_code == 0
    shutil.rmtree(first)
    shutil.copytree(finished.parent / "other" / "bundle", first)
    # then
    refused = run(second, "second")
    assert refused.exit_code == 2 and "another configuration (content.initialize_from" in refused.stderr
    assert digest(second, "second") == model
    told = finished.parent / "second" / "config.json"
    kept = told.read_bytes()
    told.unlink()
    assert run(second, "second").exit_code == 2, "the checkpoints know it too"
    # and a run begun by a version that kept no digests goes on
    told.write_text(json.dumps({k: v for k, v in json.loads(kept).items() if k != "content"}), encoding="utf-8")
    for path in told.parent.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        torch.save(state | {"key": state["key"].split("-")[0]}, path)
    assert run(second, "second").exit_code == 0


def test_a_run_whose_labels_were_corrected_says_so_and_the_ways_out_work(finished: Path) -> None:
    model, told = digest(finished), finished.parent / "run" / "cases.json"
    assert run(finished).exit_code == 0, "the same cases"
    path = finished.parent / "data" / "a_label.nii.gz"
    labels = read_labelmap(path)
    write_labelmap(path, np.roll(labels.array, 9, 1), labels)
    refused = run(finished)
    assert refused.exit_code == 2 and "learned before image, labels or clicks of a changed" in refused.stderr
    assert f"delete {told} to go on with both" in refused.stderr.replace("\n", " ")
    # a run begun by a version that kept no digests goes on
    told.unlink()
    assert run(finished).exit_code == 0 and digest(finished) == model
    # and what was learned of nothing yet takes the cases as they are
    (finished.parent / "other").mkdir()
    shutil.copy(finished.parent / "run" / "cases.json", finished.parent / "other")
    write_labelmap(path, np.roll(labels.array, 5, 1), labels)
    assert run(finished).exit_code == 2
    again = run(finished, "other")
    assert again.exit_code == 0, again.stderr
    assert run(finished, "other").exit_code == 0 and digest(finished, "other") != model


def test_changed_validation_cases_are_named_too(config: Path) -> None:
    add_validation(config)
    text = config.read_text(encoding="utf-8").replace("[stage2]", "[stage2]\nvalidate_every = 1")
    config.write_text(text, encoding="utf-8")
    assert run(config).exit_code == 0
    (config.parent / "run" / "stage2.ckpt").unlink()
    set_label(config, "b", 7)
    refused = run(config)
    assert refused.exit_code == 2 and "clicks of b changed" in refused.stderr, refused.stderr


def test_damaged_best_parameters_are_named_first_and_the_way_out_works(config: Path) -> None:
    add_validation(config)
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[stage2]", "[stage2]\nvalidate_every = 1"), encoding="utf-8")
    assert run(config).exit_code == 0
    model, path = digest(config), config.parent / "run" / "stage2-best.pt"
    path.write_bytes(path.read_bytes()[:-99])
    refused = run(config)
    assert refused.exit_code == 2 and f"{path} cannot be continued" in refused.stderr and "Delete it" in refused.stderr
    assert "reading cases" not in refused.stderr
    path.unlink()
    again = run(config)
    assert again.exit_code == 0, again.stderr
    assert "stage2 2/2" in again.stderr and digest(config) == model


def add_validation(config: Path) -> None:
    """List the second case as a validation case."""
    config.write_text(
        config.read_text(encoding="utf-8").replace('train = ["a", "b"]', 'train = ["a"]\nvalidation = ["b"]'),
        encoding="utf-8",
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "another grid"])
def test_validation_files_are_checked_before_anything_is_computed(config: Path, damage: str) -> None:
    add_validation(config)
    path = config.parent / "data" / "b_label.nii.gz"
    labels = read_labelmap(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        write_labelmap(path, labels.array, type(labels)(labels.array, labels.ijk_to_ras @ np.diag([2.0, 2, 2, 1])))
    result = run(config)
    assert result.exit_code == 2 and "b_label.nii.gz" in result.stderr
    assert not list((config.parent / "run").glob("stage*"))


def test_every_training_case_that_cannot_be_used_is_named_at_once(config: Path) -> None:
    for case in ("a", "b"):
        path = config.parent / "data" / f"{case}_image.nii.gz"
        path.write_bytes(path.read_bytes()[:-20])
    result = run(config)
    assert result.exit_code == 2 and "2 of 2 cases cannot be used" in result.stderr
    assert all(f"{case}_image.nii.gz" in result.stderr for case in ("a", "b"))
    assert "leave the cases out of [data]" in result.stderr


def test_an_image_of_several_frames_is_refused_with_a_way_that_a_data_set_has(config: Path) -> None:
    path = config.parent / "data" / "a_image.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(path))] * 2), str(path))
    result = run(config)
    assert result.exit_code == 2 and "it holds 2 frames" in result.stderr and "--frame" not in result.stderr
    assert "Save the wanted frame of each as a file of its own." in " ".join(result.stderr.split())


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_case_without_the_structure_is_used_and_named(config: Path, part: str) -> None:
    set_label(config, "b", 7)
    if part == "validation":
        add_validation(config)
    result = run(config)
    assert result.exit_code == 0, result.output
    assert "b_label.nii.gz holds none of the label values 1 (it holds 7)" in result.stderr
    assert "correct its labels or targets in [data]" in result.stderr


def test_training_is_refused_where_no_case_has_the_structure(config: Path) -> None:
    for case in ("a", "b"):
        set_label(config, case, 7)
    result = run(config)
    assert result.exit_code == 2 and "No training case has the structure: " in result.stderr
    assert "(it holds 7). Correct targets" in result.stderr


def test_the_sentence_is_whole_where_the_path_has_a_colon(tmp_path: Path) -> None:
    folder = tmp_path / "C: data"
    write_cases(folder / "data")
    config = write_config(folder, stage1=2, head=1, stage2=2)
    for case in ("a", "b"):
        set_label(config, case, 7)
    result = run(config)
    assert result.exit_code == 2 and "a_label.nii.gz holds none of the label values 1 (it holds 7)." in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("targets = [[1]]", "targets = [[1], [0]]", "names the label value 0, the background"),
        ("targets = [[1]]", "targets = [[1]]\nsaliency = [0, 1]", "names the label value 0, the background"),
        ("targets = [[1]]", "targets = [[1]]\nsaliency = [9]", "the label values 9 are in none"),
        ("[network]", '[network]\nsaliency = "conditioned"', "Give tables [sets.NAME] instead"),
    ],
)
def test_settings_that_can_teach_nothing_are_refused_in_one_sentence(
    config: Path, old: str, new: str, sentence: str
) -> None:
    config.write_text(config.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    result = run(config)
    assert result.exit_code == 2 and sentence in result.stderr, result.output
    assert not list((config.parent / "run").glob("*.ckpt"))


def test_case_names_with_a_folder_in_them_train(config: Path) -> None:
    data = config.parent / "data"
    for case in ("a", "b"):
        (data / f"site{case}").mkdir()
        for kind in ("image", "label"):
            (data / f"{case}_{kind}.nii.gz").rename(data / f"site{case}" / f"p_{kind}.nii.gz")
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('["a", "b"]', '["sitea/p", "siteb/p"]'), encoding="utf-8")
    result = run(config)
    assert result.exit_code == 0, result.output


def test_a_second_training_in_one_folder_is_refused_and_the_first_goes_on(config: Path, repository: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8").replace("steps = 2", "steps = 2000", 1), encoding="utf-8")
    folder = config.parent / "run"
    command = [sys.executable, "-m", "SPDSegmentLib", "train", str(config), "--run-folder", str(folder)]
    first = subprocess.Popen(
        [*command, "--device", "cpu"], cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "stage1.csv").exists() and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.05)
        second = run(config)
        assert second.exit_code == 2
        assert f"{folder} is in use by another training (process {first.pid}" in second.stderr
        assert first.poll() is None
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    steps = [row.split(",")[0] for row in (folder / "stage1.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert steps == [str(n + 1) for n in range(len(steps))], "the curve is the first one's alone"


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        result = run(config)
    assert result.exit_code == 2 and "stage1.ckpt cannot be written" in result.stderr
    assert not list((config.parent / "run").glob("*.tmp"))
    assert run(config).exit_code == 0


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EDQUOT, "your disk quota is used up"), (errno.EFBIG, "limit on")]
)
def test_a_curve_that_the_disk_does_not_take_is_one_sentence_and_the_way_out_works(
    config: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def full(file: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("csv.writer", full)
        result = run(config)
    assert result.exit_code == 2 and "stage1.csv cannot be written" in result.stderr and reason in result.stderr
    assert "run the same command" in result.stderr
    assert run(config).exit_code == 0


def test_embeddings_that_do_not_fit_are_said_before_the_disk_is_full(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    result = run(config)
    assert (
        result.exit_code == 2 and "GB are free there" in result.stderr and "lower entries in [stage2]" in result.stderr
    )
