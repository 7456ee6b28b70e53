"""``spdsegment train``: from a configuration to bundle and curves, through kills, with a person's clicks."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from points_files import write_markups
from tiny_training import write_cases, write_config
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli import training_commands
from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, read_volume
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.training.cases import load_case, read_labeled_case
from SPDSegmentLib.training.config import read_training_config
from SPDSegmentLib.training.loop import Loop, Phase, Processes
from SPDSegmentLib.training.result import knowing, update_metrics

STEPS = {"stage1": 6, "stage1_head": 3, "stage2": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    write_cases(folder / "data")
    return folder


@pytest.fixture(scope="module")
def config(data: Path) -> Path:
    return write_config(data, STEPS["stage1"], STEPS["stage1_head"], STEPS["stage2"])


def arguments(config: Path, folder: Path) -> list[str]:
    places = ["--run-folder", str(folder / "run"), "--output", str(folder / "bundle")]
    return ["train", str(config), *places, "--device", "cpu", "--threads", "1"]


def run(config: Path, folder: Path, *extra: str) -> Result:
    return CliRunner().invoke(app_module.build_app(), [*arguments(config, folder), *extra])


def curve(folder: Path, phase: str) -> list[dict[str, str]]:
    with (folder / "run" / f"{phase}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are drawn by the run of ``whole`` alone: each picture takes seconds."""
    monkeypatch.setattr(training_commands, "_draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    result = run(config, folder)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return folder


def test_the_commands_that_are_said_to_follow_are_taken_by_a_shell_whatever_files_are_called(
    config: Path, tmp_path: Path
) -> None:
    named, plan = config.with_name("my structure.toml"), tmp_path / "the plan.toml"
    bundle = tmp_path / "a run" / "bundle"
    shutil.copy(config, named)
    planned = [str(config.parent / "data"), "--output", str(plan), "--no-measure"]
    first = CliRunner().invoke(app_module.build_app(), ["init", *planned])
    assert shlex.split(first.stdout.partition("Go on with: ")[2]) == ["spdsegment", "train", str(plan)], first.output
    own = bundle.parent / "run" / "embeddings" / "00000_notes.txt"  # of a person, in the folder of the run's own
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    said = run(named, bundle.parent).stdout.partition("Measure it, though on cases that it learned from: ")[2]
    model = ["--model", str(bundle), "--split", "train"]
    assert shlex.split(said) == ["spdsegment", "evaluate", str(named), *model]  # there are no validation cases
    assert [*own.parent.iterdir()] == [own] and own.read_text(encoding="utf-8") == "mine"


def test_a_run_leaves_a_bundle_and_its_curves_as_picture_and_csv(whole: Path) -> None:
    bundle = read_bundle(whole / "bundle")
    assert bundle.info.training["config"] == "tiny-consensus.toml" and bundle.info.training["seed"] == 3
    assert "Tiny" in bundle.card
    assert (whole / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for phase, steps in STEPS.items():
        rows = curve(whole, phase)
        assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
        assert all(np.isfinite([float(value) for value in row.values()]).all() for row in rows)
    assert {"total", "segmentation", "psc", "quality", "dsc"} <= set(curve(whole, "stage2")[0])


def test_the_bundle_is_named_as_it_was_given(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    done = run(config, Path())
    assert done.exit_code == 0 and "Bundle: bundle\n" in done.stdout, done.output


def test_a_bundle_says_what_its_training_cases_are_like(data: Path, config: Path, whole: Path) -> None:
    info = read_bundle(whole / "bundle").info
    settings = read_training_config(config)
    stack, labels, volume = read_labeled_case(data / "data", "a", settings.data)
    low, high = info.fit["volume_ml"]
    assert low <= (labels == 1).sum() * volume.voxel_mm3 / 1000 <= high
    assert info.fit["slice_mm"] == [stack.slice_mm] * 2 and info.fit["pixel_mm"] == [max(stack.pixel_mm)] * 2
    assert "usual_low" not in info.normalization or info.normalization["usual_low"] == 0, "a window needs none"
    shown = dataclasses.replace(info, normalization={"kind": "percentile", "low": 0.5, "high": 99.5})
    usual = knowing(shown, settings.data, data / "data").normalization
    assert 0 < usual["usual_low"] <= usual["usual_high"] < 1


@pytest.mark.parametrize("own", ["", "Mine.\n"])
def test_a_second_training_into_the_same_folder_keeps_what_was_measured_of_the_same_model(
    config: Path, whole: Path, tmp_path: Path, own: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    update_metrics(read_bundle(tmp_path / "bundle"), {"table": "| 91.5 |", "summary": [{"dsc": 0.915}]})
    with (tmp_path / "bundle" / "README.md").open("a", encoding="utf-8") as card:
        card.write(own)
    (tmp_path / "bundle" / "LICENSE").write_text("CC0")
    renamed = config.with_name("renamed.toml")
    renamed.write_text(config.read_text(encoding="utf-8").replace('title = "Tiny"', 'title = "Small"'))
    assert run(renamed, tmp_path).exit_code == 0
    now = read_bundle(tmp_path / "bundle")
    assert now.info.metrics["summary"] == [{"dsc": 0.915}] and "| 91.5 |" in now.card and now.card.endswith(own)
    assert now.info.title == "Small" and ("# Small" in now.card) == (own == "")
    assert (tmp_path / "bundle" / "LICENSE").exists()


def test_a_model_takes_the_place_of_one_that_cannot_be_read(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    update_metrics(read_bundle(tmp_path / "bundle"), {"summary": [{"dsc": 0.915}]})
    monkeypatch.setattr("SPDSegmentLib.training.result.read_bundle", Mock(side_effect=PermissionError))
    assert run(config, tmp_path).exit_code == 0 and not read_bundle(tmp_path / "bundle").info.metrics


@pytest.mark.parametrize(("phase", "checkpoint_seconds"), [("stage1", 1000.0), ("stage2", 0.0)])
def test_a_run_that_was_killed_and_resumed_gives_the_same_bundle_and_curves(
    config: Path, whole: Path, tmp_path: Path, repository: Path, phase: str, checkpoint_seconds: float
) -> None:
    """Killed without any chance to save: before the first checkpoint, and between two."""
    other = config.with_name(f"killed-{phase}.toml")
    other.write_text(
        config.read_text(encoding="utf-8").replace(
            "checkpoint_seconds = 0.0", f"checkpoint_seconds = {checkpoint_seconds}"
        )
    )
    command = [sys.executable, "-m", "SPDSegmentLib", *arguments(other, tmp_path)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "run" / f"{phase}.csv"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > 3:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()

    assert run(other, tmp_path).exit_code == 0
    ours, theirs = read_bundle(tmp_path / "bundle"), read_bundle(whole / "bundle")
    assert ours.info.adapter_sha256 == theirs.info.adapter_sha256
    assert all(curve(tmp_path, name) == curve(whole, name) for name in STEPS)


def test_the_seed_decides_the_weights(config: Path, whole: Path, tmp_path: Path) -> None:
    assert run(config, tmp_path / "same").exit_code == 0
    other = config.with_name("other-seed.toml")
    other.write_text(config.read_text(encoding="utf-8").replace("seed = 3", "seed = 4"))
    assert run(other, tmp_path / "other").exit_code == 0
    digests = [read_bundle(folder / "bundle").info.adapter_sha256 for folder in (whole, tmp_path / "same")]
    assert digests[0] == digests[1]
    assert read_bundle(tmp_path / "other" / "bundle").info.adapter_sha256 != digests[0]


def test_a_row_that_a_kill_cut_short_is_dropped_from_the_curve(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    phase = Phase("p", [parameter], 3, 0.1, 0.0, 1, lambda step: {"total": ((parameter - step) ** 2).sum()})
    (tmp_path / "p.csv").write_text("step,total\n1,0.5\n2,0.4\n3")
    Loop(tmp_path).run(phase)
    assert [line.split(",")[0] for line in (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()] == [
        "step",
        "1",
        "2",
        "3",
    ]


@pytest.mark.parametrize("killed_after", [0, 3, 5])
def test_the_best_parameters_remain_and_a_run_that_gets_no_better_ends(tmp_path: Path, killed_after: int) -> None:
    """Scored after every second step: 0.2, 0.9, 0.3, 0.8; two in a row without a better one are enough."""
    scores, asked = {2: 0.2, 4: 0.9, 6: 0.3, 8: 0.8}, []

    def phase(parameter: torch.nn.Parameter) -> Phase:
        def validate(step: int) -> float:
            asked.append((step, float(parameter)))
            return scores[step]

        def loss(step: int) -> dict[str, torch.Tensor]:
            return {"total": ((parameter - 10) ** 2).sum()}

        return Phase("p", [parameter], 20, 0.1, 0.0, 1, loss, validate=validate, validate_every=2, patience=2)

    parameter = torch.nn.Parameter(torch.zeros(1))
    if killed_after:
        steps = iter(range(1, 21))
        with pytest.raises(Cancelled):
            Loop(tmp_path, cancelled=lambda: next(steps) == killed_after).run(phase(parameter))
        parameter = torch.nn.Parameter(torch.zeros(1))
    Loop(tmp_path).run(phase(parameter))
    assert [step for step, _ in asked] == [2, 4, 6, 8]
    assert float(parameter) == dict(asked)[4] != dict(asked)[8]
    again = torch.nn.Parameter(torch.zeros(1))
    loop = Loop(tmp_path)
    assert loop.is_finished("p", 20)
    loop.run(phase(again))
    assert len(asked) == 4 and float(again) == float(parameter)


def test_clicks_of_a_person_are_used_in_the_place_of_simulated_ones(data: Path, config: Path, tmp_path: Path) -> None:
    """Given in one file per case, in patient space; those outside the volume are left out."""
    for case in ("a", "b"):
        stack = SliceStack(read_volume(data / "data" / f"{case}_image.nii.gz"), "axial")
        points = stack.to_ras(np.array([3, 6, 9, 40]), np.array([[29.0, 30], [32, 30], [35, 30], [35, 30]]))
        clicks = tuple(ControlPoint(str(i), "", (float(x), float(y), float(z))) for i, (x, y, z) in enumerate(points))
        write_markups(data / "data" / f"{case}.mrk.json", [Markup("clicks", "Fiducial", clicks)])
    path = data / "given.toml"
    path.write_text(config.read_text(encoding="utf-8").replace("train =", 'clicks = "{case}.mrk.json"\ntrain ='))
    given = read_training_config(path)
    target = load_case(data / "data", "a", given.data, given.intensity).targets[0]
    for severity in (0.0, 3.0):
        used = target.clicks(severity, seed=1)
        assert used.slice_index.tolist() == [3, 6, 9]
        assert np.allclose(used.xy, [[29, 30], [32, 30], [35, 30]])
    assert run(path, tmp_path).exit_code == 0
    (data / "data" / "b.mrk.json").unlink()
    refused = run(path, tmp_path / "again")
    assert refused.exit_code == 2 and "b.mrk.json cannot be read" in refused.stderr


def test_each_of_several_targets_gets_the_clicks_of_its_own_list(config: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "data")
    label, clicks = tmp_path / "data" / "a_label.nii.gz", tmp_path / "data" / "a.mrk.json"
    labels = read_labelmap(label)
    both = np.array(labels.array)
    both[4:8, 2:12, 50:60] = 2
    write_labelmap(label, both, labels)
    stack = SliceStack(read_volume(tmp_path / "data" / "a_image.nii.gz"), "axial")

    def markup(name: str, slices: list[int], xy: list[list[float]]) -> Markup:
        places = stack.to_ras(np.array(slices), np.array(xy)).tolist()
        points = tuple(ControlPoint(str(n), "", (x, y, z)) for n, (x, y, z) in enumerate(places))
        return Markup(name, "Fiducial", points)

    first, second = markup("first", [3, 6], [[29, 30], [32, 30]]), markup("second", [5], [[55, 7]])
    text = config.read_text(encoding="utf-8").replace(
        "targets = [[1]]", 'clicks = "{case}.mrk.json"\ntargets = [[1], [2]]'
    )
    path = tmp_path / "two.toml"
    path.write_text(text, encoding="utf-8")
    given = read_training_config(path)
    write_markups(clicks, [first, second])
    targets = load_case(tmp_path / "data", "a", given.data, given.intensity).targets
    assert [t.clicks(1.0, 0).slice_index.tolist() for t in targets] == [[3, 6], [5]]
    # where only one of them is there, its list counts, or all that is given
    write_labelmap(label, np.where(both == 1, 0, both), labels)
    for lists, slices in (([first, second], [5]), ([second], [5])):
        write_markups(clicks, lists)
        (target,) = load_case(tmp_path / "data", "a", given.data, given.intensity).targets
        assert target.clicks(1.0, 0).slice_index.tolist() == slices
    write_labelmap(label, both, labels)
    with pytest.raises(BadInput, match="1 lists of points for 2 targets, which need one each"):
        load_case(tmp_path / "data", "a", given.data, given.intensity)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name = "tiny"', 'name = "Tiny MR"', "the field 'name'"),
        ('plane = "axial"', 'plane = "k"', "slicing plane 'k'"),
        ('name = "tiny"', 'name = "tiny"\ncolor = [1.0]', "color"),
        ("fov_mm = 64.0", "fov_mm = -5.0", "fov_mm is -5, which is not at least 0"),
        ("seed = 3", "seed = -3", "seed is -3"),
        ("learning_rate = 1e-2", "learning_rate = -1.0", "learning_rate is -1, which is not from 0 to 1"),
        ("entries = 4", "entries = 0", "entries is 0, which is not at least 1"),
        ("entries = 4", "entries = 4\nrun_length = 0", "run_length is 0"),
        ("flip = 0.0", "flip = 7.0", "flip is 7"),
        ("{case}_image", "{kase}_image", "has no {case} in it"),
        ("{case}_label", "label", "has no {case} in it"),
        ("targets = [[1]]", "targets = []", "targets names no label value"),
        ("targets = [[1]]", "targets = [[1, 2], [3], [2, 1]]", "targets in [data] names a structure twice"),
        ('train = ["a", "b"]', 'train = ["a", "b", "a"]', "Case a is twice in train"),
        ("steps = 6", 'steps = "many"', "steps in"),
        ('train = ["a", "b"]', 'train = "a"', "train in"),
        ('folder = "data"', 'folder = "nowhere"', "does not exist"),
        ('"a", "b"', '"a", "zebra"', "zebra_image.nii.gz"),
        ("targets = [[1]]", "targets = [[9]]", "holds none of the label values"),
        ("seed = 3", 'seed = 3\ninitialize_from = "unheard-of"', "There is no model 'unheard-of'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_training(
    config: Path, tmp_path: Path, old: str, new: str, text: str
) -> None:
    path = config.with_name("wrong.toml")
    content = config.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1))
    result = run(path, tmp_path)
    assert result.exit_code in (2, 3)
    assert text in result.stderr
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.glob("run/*.ckpt"))


@pytest.mark.parametrize("change", ["shifted", "smaller"])
def test_a_label_beside_its_image_is_refused(config: Path, tmp_path: Path, change: str) -> None:
    write_cases(tmp_path / "data")
    (tmp_path / "c.toml").write_text(config.read_text(encoding="utf-8"))
    path = tmp_path / "data" / "a_label.nii.gz"
    labels = read_labelmap(path)
    matrix = labels.ijk_to_ras.copy()
    matrix[2, 3] += 4
    array = labels.array[:-1] if change == "smaller" else labels.array
    write_labelmap(path, array, Volume(array, matrix))
    result = run(tmp_path / "c.toml", tmp_path)
    assert result.exit_code == 2 and "a_label.nii.gz does not have the same grid" in result.stderr


def test_folders_that_are_files_and_missing_devices_are_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for option in ("--output", "--run-folder"):
        result = run(config, tmp_path, option, str(tmp_path / "file"))
        assert result.exit_code == 2 and "is a file" in result.stderr
    assert run(config, tmp_path, "--device", "tpu").exit_code == 2
    assert run(config, tmp_path, "--device", "cuda:99").exit_code == 4
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_all_processes_stop_at_the_same_step() -> None:
    class Accelerator:
        def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
            assert how == "sum"
            return value + 1  # another process was asked to stop

    assert Processes(0, 2, accelerator=Accelerator()).any_of(False)
    assert not Processes().any_of(False)


def test_two_processes_train_one_model(config: Path, tmp_path: Path, repository: Path) -> None:
    """Through accelerate on the CPU: one bundle, one set of curves, and json that says how the run was set up."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, "-m", "SPDSegmentLib", *arguments(config, tmp_path)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Bundle: ") == 1
    assert read_bundle(tmp_path / "bundle").info.name == "tiny"
    assert [int(row["step"]) for row in curve(tmp_path, "stage2")] == list(range(1, STEPS["stage2"] + 1))
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["seed"] == 3
