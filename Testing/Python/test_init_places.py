"""Where the data lie, seen from the configuration that ``spdsegment init`` writes, and what is named twice."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from test_init import BOX, init, write_case
from tiny_training import write_cases
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.training.config import read_training_config


@pytest.mark.parametrize("drives", [1, 2])
def test_data_are_named_from_the_configuration_or_from_the_root_where_it_is_on_another_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drives: int
) -> None:
    write_cases(tmp_path / "data")
    if drives == 2:
        monkeypatch.setattr("os.path.relpath", Mock(side_effect=ValueError("path is on mount 'D:'")))
    words = ["init", tmp_path / "data", "-o", tmp_path / "plan.toml", "--no-measure", "--validation", "b"]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 0, result.output
    folder = (tmp_path / "data").resolve().as_posix() if drives == 2 else "data"
    assert f'"{folder}"' in (tmp_path / "plan.toml").read_text(encoding="utf-8")
    assert read_training_config(tmp_path / "plan.toml").data.train == ("a",)


def test_a_structure_or_case_that_is_named_twice_is_planned_once(tmp_path: Path) -> None:
    for n in range(3):
        write_case(tmp_path / "data", f"c{n}", {1: BOX, 2: (slice(2, 4), *BOX[1:])}, (1, 1, 4))
    twice = ("--target", "1+2", "--target", "1", "--target", "2+1", "--target", "1+1", "--validation", "c0,c0")
    assert init(tmp_path / "data", *twice).exit_code == 0
    data = read_training_config(tmp_path / "plan.toml").data
    assert (data.targets, data.validation) == (((1, 2), (1,)), ("c0",))
