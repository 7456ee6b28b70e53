"""Rows that the benchmark's scripts keep: those of other inputs are refused, what is missing is told. Wrong calls."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from models_helpers import tiny_info

import prompt_settings
from kept_rows import Rows, inputs_of, keep, rows_in, rows_to_go_on_with
from prompt_settings import inputs_under, missing, table_of
from SPDSegmentLib.models.bundle import Bundle

SCRIPTS = ("brightness", "calibrate", "corrections", "ends", "fit_tables", "next_click", "prompt_settings")
ROWS = [{"case": "a", "dsc": 0.5}]


def bundle(adapter: str, folder: Path, **prompts: object) -> Bundle:
    info = replace(tiny_info(), adapter_sha256=adapter * 64, prompts=prompts)
    return Bundle(info, folder, folder / "adapter.safetensors")


def lines(rows: Rows) -> list[str]:
    return [f"{row['case']}: {row['dsc']}" for row in rows]


def test_rows_of_other_inputs_are_refused_and_those_of_the_same_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "rows.json"
    inputs = inputs_of(bundle("1", tmp_path), seeds=(1, 2))
    assert rows_to_go_on_with(path, inputs, lines) == []
    keep(path, inputs, ROWS)
    assert rows_to_go_on_with(path, inputs_of(bundle("1", tmp_path), seeds=(1, 2)), lines) == ROWS
    with pytest.raises(SystemExit, match=r"rows.json was measured with other inputs \(adapter_sha256\): move it away"):
        rows_to_go_on_with(path, inputs_of(bundle("2", tmp_path), seeds=(1, 2)), lines)
    with pytest.raises(SystemExit, match=r"\(seeds\)"):
        rows_to_go_on_with(path, inputs_of(bundle("1", tmp_path), seeds=(1, 3)), lines)
    monkeypatch.setattr("kept_rows.NOISE_VERSION", 99)
    with pytest.raises(SystemExit, match=r"\(noise_version\)"):
        rows_to_go_on_with(path, inputs_of(bundle("1", tmp_path), seeds=(1, 2)), lines)


def test_rows_without_a_word_of_their_inputs_are_read_and_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    assert rows_in(path) == ROWS
    with pytest.raises(SystemExit, match="move it away"):
        rows_to_go_on_with(path, inputs_of(bundle("1", tmp_path)), lines)


def test_rows_that_are_refused_are_shown_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    keep(path, inputs_of(bundle("1", tmp_path)), ROWS)
    with pytest.raises(SystemExit, match="move it away"):
        rows_to_go_on_with(path, inputs_of(bundle("2", tmp_path)), lines)
    assert capsys.readouterr().out == "a: 0.5\n"


def test_rows_of_a_setting_hold_when_the_bundle_takes_one_of_its_values_over(tmp_path: Path) -> None:
    before, after = (bundle("1", tmp_path, follow_jump=value, n_neighbors=2) for value in (0.0, 0.06))
    assert inputs_under(before, "follow_jump") == inputs_under(after, "follow_jump")
    assert inputs_under(before, "n_neighbors") != inputs_under(after, "n_neighbors")


def test_another_value_severity_or_seed_of_a_setting_is_missing() -> None:
    rows = [{"method": "gate", "severity": "clean", "seed": 1}]
    assert missing(rows, ["gate"], [("clean", 1)]) == []
    assert missing(rows, ["gate", "soft"], [("clean", 1), ("severe", 2)]) == [
        ("soft", "clean", 1), ("gate", "severe", 2), ("soft", "severe", 2),
    ]  # fmt: skip


def test_the_table_of_a_setting_is_a_mean_over_patients_and_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def volume(patient: str, target: str, dsc: float) -> dict[str, object]:
        row = {"method": "gate", "severity": "clean", "seed": 1, "dsc": dsc, "hd95_mm": 1.0}
        row |= {"right_rejected": 0.0, "wrong_kept": None}
        return {"patient": patient, "case": patient, "target": target, "rows": [row]}

    monkeypatch.setattr(prompt_settings, "RESULTS", tmp_path)
    keep(tmp_path / "kidney-mr.json", {}, [volume("a", "2", 0.9), volume("a", "3", 0.7), volume("b", "2", 0.4)])
    head, line = table_of("kidney-mr")
    assert head == "kidney-mr: 3 targets of 2 patients, 1 missing"
    assert "dsc 0.6000" in line and "wrong_kept -" in line


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        *((name, "kidny", "no shipped bundle 'kidny'; choose from kidney-mr") for name in SCRIPTS),
        ("prompt_settings", "--setting treshold --values 0.5", "Unknown prompt setting 'treshold'. Known: "),
        ("prompt_settings", "--setting threshold", "threshold is 'gate', which is not a number"),
        ("spdbench.__main__", "no.toml --threads -3", "there are no -3 threads; give 1 or more"),
    ],
)
def test_a_wrong_word_is_a_mistake_of_the_call_and_nothing_is_read(
    script: str, words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
