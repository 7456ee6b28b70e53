"""What a training leaves: where its bundle may lie, its state at the end of a job, its card and its curves."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from models_helpers import tiny_info
from tiny_training import write_cases, write_config
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli import training_commands
from SPDSegmentLib.training.result import model_card
from SPDSegmentLib.training.run import plot_curves


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data")
    return write_config(tmp_path, 6, 0, 2)


def run(config: Path, folder: Path, *extra: str) -> Result:
    places = ["--run-folder", str(folder / "run"), "--output", str(folder / "bundle"), "--device", "cpu"]
    return CliRunner().invoke(app_module.build_app(), ["train", str(config), *places, *extra])


@pytest.mark.parametrize("place", ["run", "."])
def test_a_bundle_in_the_place_of_its_run_folder_is_refused_before_the_training(
    config: Path, tmp_path: Path, place: str
) -> None:
    result = run(config, tmp_path / "new", "--output", str(tmp_path / "new" / place))
    assert result.exit_code == 2 and "would take the place of the run folder" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="such names are those of Linux")
def test_a_run_folder_whose_name_is_no_text_is_refused(config: Path, tmp_path: Path) -> None:
    result = run(config, tmp_path, "--run-folder", f"{tmp_path}/r\udcff")
    assert result.exit_code == 2 and "is not valid Unicode. Choose another --run-folder." in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_the_end_of_a_job_keeps_the_state_of_a_training(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(bar: object, what: str, done: int, *_: object) -> None:
        if (what, done) == ("stage1", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training_commands.TrainingBar, "advance", end)
    before = signal.getsignal(signal.SIGTERM)
    result = run(config, tmp_path)
    assert result.exit_code == 130 and "its state is kept" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(tmp_path / "run" / "stage1.ckpt", weights_only=True)["step"] == 2


def test_a_card_says_that_data_and_license_were_not_named() -> None:
    card = model_card(tiny_info(training={"dataset": "", "license": "", "attribution": "", "patients": ["a"]}))
    assert "- Trained on: data without a name (1 volumes), license not named\n- Configuration" in card


def test_a_table_of_somebody_else_in_the_run_folder_is_no_curve(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("step,what\n1,begun\n2\n")
    assert plot_curves(tmp_path) is None
