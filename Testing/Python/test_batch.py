"""Batches without Slicer: what is skipped, what is kept, what is said, and who may use a folder."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from segment_case import tiny_bundle

from SPDSegmentLib import __version__
from SPDSegmentLib.batch import report as report_module
from SPDSegmentLib.batch import run as run_module
from SPDSegmentLib.batch.identity import BatchModel, image_digest
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseSegmenter
from SPDSegmentLib.errors import MUST_LOOK, BadInput, Cancelled
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, write_markups
from SPDSegmentLib.worker.client import WorkerClient
from SPDSegmentLib.worker.commands import WorkerCommand

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_predictor.py")))
MODEL = BatchModel("fake", "fake", "Blob", (1.0, 0.0, 0.0), digest="first")
Case = tuple[str, str, str]


def write_clicks(path: Path, slices: tuple[int, ...] = (3, 5), kind: str = "Fiducial", far: bool = False) -> None:
    """Clicks near the middle of the slices; with ``far`` one more, outside the volume."""
    points = [ControlPoint(str(k), "", (-16.0, -15.0, 3.0 * k)) for k in slices]
    if far:
        points.append(ControlPoint("far", "", (900.0, 0.0, 0.0)))
    write_markups(path, [Markup("clicks", kind, tuple(points))])


def write_image(path: Path, seed: int = 0) -> None:
    """A small volume."""
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(0, 200, (9, 30, 32)).astype(np.int16))
    image.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Three good cases."""
    (tmp_path / "data").mkdir()
    listed = []
    for seed, name in enumerate(("a", "b", "c")):
        image, points = tmp_path / "data" / f"{name}.nii.gz", tmp_path / "data" / f"{name}.mrk.json"
        write_image(image, seed)
        write_clicks(points)
        listed.append((name, str(image), str(points)))
    return listed


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a batch into ``out`` with fake workers; keyword arguments as of ``BatchRun``."""

    def call(cases: Any, bundle: str = "fake", digest: str = "first", **options: Any) -> dict[str, Any]:
        model = replace(MODEL, key=bundle, digest=digest)
        settings = options.pop("settings", BatchSettings())
        clients: list[WorkerClient] = []

        def make(stopped: Callable[[], bool]) -> CaseSegmenter:
            clients.append(WorkerClient(command=WorkerCommand(FAKE_WORKER)))
            return CaseSegmenter(clients[-1], model, settings, stopped)

        try:
            return BatchRun(make, options.pop("folder", tmp_path / "out"), model, settings, **options)(cases)
        finally:
            for client in clients:
                client.close()

    return call


def states(report: dict[str, Any]) -> dict[str, str]:
    """State of every case."""
    return {row["case"]: row["state"] for row in report["cases"]}


def times(folder: Path) -> dict[str, int]:
    """When every mask was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.seg.nrrd")}


def test_a_result_is_skipped_only_for_the_same_content(run: Run, cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(cases)
    before = times(out)
    run(cases)
    assert times(out) == before
    write_clicks(Path(cases[0][2]), (3, 4, 5))
    write_image(Path(cases[1][1]), seed=9)
    run(cases)
    assert {name for name, when in times(out).items() if when != before[name]} == {"a.seg.nrrd", "b.seg.nrrd"}


@pytest.mark.parametrize("change", ["model", "version", "prompts", "axis"])
def test_another_model_version_or_setting_does_every_case_again(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run(cases[:1])
    before = times(tmp_path / "out")
    options: dict[str, Any] = {}
    if change == "model":
        options["digest"] = "second"
    elif change == "version":
        monkeypatch.setattr("SPDSegmentLib.batch.identity.__version__", f"{__version__}.1")
    else:
        options["settings"] = BatchSettings(**{change: "raw" if change == "prompts" else "coronal"})
    assert states(run(cases[:1], **options)) == {"a": "done"}
    assert times(tmp_path / "out") != before


def test_the_same_content_under_other_names_is_not_done_again(run: Run, cases: list[Case], tmp_path: Path) -> None:
    run(cases[:1])
    before = times(tmp_path / "out")
    moved = tmp_path / "elsewhere"
    (tmp_path / "data").rename(moved)
    assert states(run([("a", str(moved / "a.nii.gz"), str(moved / "a.mrk.json"))])) == {"a": "done"}
    assert times(tmp_path / "out") == before


def test_the_digest_of_an_image_covers_the_file_that_its_header_leads_to(tmp_path: Path) -> None:
    for suffix in (".mhd", ".nhdr"):
        path = tmp_path / f"image{suffix}"
        write_image(path, 0)
        before = image_digest(path)
        assert image_digest(path) == before
        write_image(path, 1)
        assert image_digest(path) != before
    folder = tmp_path / "dicom"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    before = image_digest(folder)
    (folder / "2.dcm").write_bytes(b"two")
    assert image_digest(folder) != before


def test_notes_and_the_fate_of_every_click_are_in_the_report(run: Run, cases: list[Case], tmp_path: Path) -> None:
    write_clicks(Path(cases[0][2]), far=True)
    report = run(cases[:1])
    (row,) = report["cases"]
    assert row["notes"] == "Some clicks lie outside."
    assert (row["clicks_kept"], row["clicks_outside"], row["clicks_rejected"]) == (2, 1, 0)
    fates = {click["id"]: (click["fate"], click["slice_number"]) for click in row["clicks"]}
    assert fates["3"][0] == "kept" and fates["far"][0] == "outside" and len(fates) == 3
    assert row["image"] == "a.nii.gz" and str(tmp_path) not in json.dumps(report), "files are named, not folders"
    with (tmp_path / "out" / "report.csv").open(newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert line["notes"] == row["notes"] and line["clicks_outside"] == "1" and float(line["length_mm"]) > 0
    details = json.loads((tmp_path / "out" / "a.case.json").read_text())
    assert details["report"]["notes"] == [row["notes"]] and details["image_digest"]


def test_a_result_that_a_person_changed_is_left_alone_and_said(run: Run, cases: list[Case], tmp_path: Path) -> None:
    run(cases[:2])
    output = tmp_path / "out" / "a.seg.nrrd"
    mask = read_labelmap(output)
    mask.array[4, 10:20, 10:20] = 1
    write_labelmap(output, mask.array, mask)
    edited = output.read_bytes()
    for _ in range(2):
        report = run(cases[:2])
        assert states(report) == {"a": "kept", "b": "done"}
        assert "a.seg.nrrd was changed after the batch wrote it" in report["cases"][0]["error"]
        assert output.read_bytes() == edited
    assert states(run(cases[:2], resume=False)) == {"a": "done", "b": "done"}
    assert output.read_bytes() != edited


def test_a_mask_of_somebody_else_in_a_results_place_is_left_alone(run: Run, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mask = read_labelmap(cases[0][1])
    write_labelmap(tmp_path / "out" / "a.seg.nrrd", (mask.array > 100).astype(np.uint8), mask)
    assert states(run(cases[:1])) == {"a": "kept"}


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_result_is_done_again(run: Run, cases: list[Case], tmp_path: Path, damage: str) -> None:
    run(cases[:1])
    output = tmp_path / "out" / "a.seg.nrrd"
    output.write_bytes(output.read_bytes()[:-50]) if damage == "truncated" else output.unlink()
    assert states(run(cases[:1])) == {"a": "done"}
    assert read_labelmap(output).array.any()


def test_a_case_that_fails_for_a_while_keeps_its_earlier_result(run: Run, cases: list[Case], tmp_path: Path) -> None:
    run(cases[:1])
    before = times(tmp_path / "out")
    image = Path(cases[0][1])
    image.rename(image.with_suffix(".away"))
    report = run(cases[:1])
    assert states(report) == {"a": "failed"} and report["cases"][0]["error"].startswith("The image a.nii.gz is not")
    image.with_suffix(".away").rename(image)
    assert states(run(cases[:1])) == {"a": "done"} and times(tmp_path / "out") == before
    write_clicks(Path(cases[0][2]), (2, 3))
    assert states(run(cases[:1], bundle="fake?bug=1")) == {"a": "failed"}
    assert states(run(cases[:1])) == {"a": "done"}, "a mask of the batch is not taken for a person's"


def test_a_batch_killed_between_a_mask_and_its_row_takes_the_mask_over(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    run(cases[:1])
    row_file = tmp_path / "out" / "a.case.json"
    row = json.loads(row_file.read_text())
    row_file.write_text(json.dumps(row | {"state": "writing"}))
    before = times(tmp_path / "out")
    assert states(run(cases[:1])) == {"a": "done"} and times(tmp_path / "out") == before


def test_results_of_version_0_1_0_are_done_again_and_not_taken_for_a_persons(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    run(cases[:1])
    old = {"case": "a", "state": "done", "image": cases[0][1], "points": cases[0][2], "model": "fake", "settings": ""}
    (tmp_path / "out" / "a.case.json").write_text(json.dumps(old))
    before = times(tmp_path / "out")
    assert states(run(cases[:1])) == {"a": "done"} and times(tmp_path / "out") != before


def test_one_bad_case_of_any_kind_does_not_stop_the_others(run: Run, cases: list[Case], tmp_path: Path) -> None:
    table = tmp_path / "data" / "cases.csv"
    (tmp_path / "data" / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / "bad.mrk.json").write_text("{}")
    rows = ["a,a.nii.gz,a.mrk.json", "no-image,none.nii.gz,a.mrk.json", "no-points,a.nii.gz,none.mrk.json"]
    rows += ["bad-image,bad.nii.gz,a.mrk.json", "bad-points,a.nii.gz,bad.mrk.json", "no-value,,a.mrk.json"]
    os.mkfifo(tmp_path / "data" / "pipe.nii.gz")
    rows += ["pipe,pipe.nii.gz,a.mrk.json", "folder,a.nii.gz,."]
    rows += [f"{'n' * 300},b.nii.gz,b.mrk.json", "z,c.nii.gz,c.mrk.json"]
    table.write_text("name,image,points\n" + "\n".join(rows))
    report = run(table)
    good = [row["case"] for row in report["cases"] if row["state"] == "done"]
    assert good == ["a", "n" * 300, "z"] and len(report["cases"]) == 10
    assert all(row["error"] for row in report["cases"] if row["state"] == "failed")


@pytest.mark.parametrize("kind", ["ROI", "Line", "Curve", "Plane"])
def test_points_files_are_taken_as_the_command_line_takes_them(run: Run, cases: list[Case], kind: str) -> None:
    path = Path(cases[0][2])
    clicks = tuple(ControlPoint(str(k), "", (-16.0, -15.0, 3.0 * k)) for k in (3, 5))
    write_markups(path, [Markup("clicks", "Fiducial", clicks), Markup("other", kind, clicks)])
    report = run(cases[:1])
    assert states(report) == {"a": "done"}, report["cases"][0]["error"]
    assert {click["id"].split(":")[0] for click in report["cases"][0]["clicks"]} >= {"1"}


def test_a_dicom_folder_is_an_image(run: Run, cases: list[Case], tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    folder.mkdir()
    write_series(folder)
    report = run([("a", str(folder), cases[0][2])])
    assert states(report) == {"a": "done"}, report["cases"][0]["error"]


def write_series(folder: Path) -> None:
    """A CT series of nine slices."""
    image = sitk.ReadImage(str(folder.parent / "data" / "a.nii.gz"))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetDepth()):
        part = image[:, :, k]
        position = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.826.0.1", "0020|000e": "1.2.826.0.1.2", "0020|0013": str(k + 1),
            "0008|0018": f"1.2.826.0.1.2.{k + 1}", "0020|0032": "\\".join(str(value) for value in position),
            "0020|0037": "1\\0\\0\\0\\1\\0", "0018|0050": "3",
        }  # fmt: skip
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(part)


def test_a_mask_never_replaces_an_input(run: Run, cases: list[Case], tmp_path: Path) -> None:
    before = Path(cases[0][1]).read_bytes()
    report = run(cases[:1], folder=tmp_path / "data", settings=BatchSettings(suffix=".nii.gz"), resume=False)
    assert states(report) == {"a": "failed"} and "would replace the input a.nii.gz" in report["cases"][0]["error"]
    assert Path(cases[0][1]).read_bytes() == before


def test_several_workers_give_the_same_report_as_one(run: Run, cases: list[Case], tmp_path: Path) -> None:
    many = [(f"{name}{n}", image, points) for n in range(3) for name, image, points in cases]
    one, three = run(many), run(many, workers=3, folder=tmp_path / "three")
    for report in (one, three):
        for row in report["cases"]:
            row["seconds"] = 0
    assert one == three and set(states(one).values()) == {"done"}


def test_a_worker_that_dies_costs_its_case_alone(run: Run, cases: list[Case]) -> None:
    report = run(cases, bundle="fake?die_segment=9", workers=2)
    assert all("ended unexpectedly" in row["error"] for row in report["cases"])
    assert set(states(run(cases, workers=2)).values()) == {"done"}


def test_a_stopped_batch_keeps_what_is_finished_and_goes_on(run: Run, cases: list[Case], tmp_path: Path) -> None:
    def stop(done: int, total: int, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Cancelled, match="what is finished is kept"):
        run(cases, bundle="fake?delay=0.05", workers=2, on_case=stop)
    finished = times(tmp_path / "out")
    assert finished and len(finished) < 3
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["cases"]) >= 1
    assert set(states(run(cases)).values()) == {"done"}
    assert {name: times(tmp_path / "out")[name] for name in finished} == finished


def test_a_second_batch_on_one_folder_is_refused_and_harms_nothing(run: Run, cases: list[Case], tmp_path: Path) -> None:
    first: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: first.append(run(cases, bundle="fake?delay=0.3")))
    thread.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "a.case.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    partial = tmp_path / "out" / f".partial-{os.getpid()}-b.seg.nrrd"
    partial.write_bytes(b"of a live process")
    for options in ({}, {"part": (1, 2)}):
        with pytest.raises(BadInput, match=r"out is in use by another batch \(process"):
            run(cases, **options)
    assert partial.exists()
    thread.join()
    assert set(states(first[0]).values()) == {"done"}


def test_parts_share_a_folder_and_its_report(run: Run, cases: list[Case], tmp_path: Path) -> None:
    run(cases, part=(1, 2))
    assert set(times(tmp_path / "out")) == {"a.seg.nrrd", "c.seg.nrrd"}
    report = run(cases, part=(2, 2))
    assert states(report) == {"a": "done", "b": "done", "c": "done"}
    with pytest.raises(BadInput, match="no part 3 of 2"):
        run(cases, part=(3, 2))


def test_parts_of_other_divisions_are_refused_while_one_runs(cases: list[Case], tmp_path: Path) -> None:
    with run_module._locked(tmp_path, (1, 2)), run_module._locked(tmp_path, (2, 2)):
        for part in ((1, 1), (1, 2), (1, 3)):
            with pytest.raises(BadInput, match="in use by another batch"), run_module._locked(tmp_path, part):
                pass
    assert not list(tmp_path.glob(".spdsegment*"))


def test_a_row_that_cannot_be_written_does_not_stop_the_batch(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, row: Any) -> None:
        if path.name.startswith("b."):
            raise BadInput("The disk is full.", "Free some space.")
        report_module.write_row(path, row)

    monkeypatch.setattr(run_module, "write_row", full)
    assert states(run(cases)) == {"a": "done", "b": "failed", "c": "done"}
    monkeypatch.undo()
    assert states(run(cases)) == {"a": "done", "b": "done", "c": "done"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_a_file_is_one_sentence(run: Run, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="out cannot be used"):
        run(cases)
    with pytest.raises(BadInput, match="no file format for masks"):
        run(cases, settings=BatchSettings(suffix=".stl"), folder=tmp_path / "other")


def test_the_command_segments_and_goes_on_after_a_kill(
    cases: list[Case], tmp_path: Path, repository: Path, spd_home: Path
) -> None:
    """With a real model of random weights; the second run does only what is missing."""
    bundle = SimpleNamespace(model=tmp_path / "model")
    tiny_bundle(bundle)
    table = tmp_path / "cases.csv"
    table.write_text("name;image;points\n" + "".join(f"{n};data/{n}.nii.gz;data/{n}.mrk.json\n" for n in "abc"))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "SPDSegmentLib", "batch", str(table), "-m", str(bundle.model), "-o", str(out)]
    with subprocess.Popen(words, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 120
        while not (out / "a.seg.nrrd").exists() and time.monotonic() < deadline and killed.poll() is None:
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
    before = times(out)
    done = subprocess.run([*words, "--workers", "2"], cwd=repository, capture_output=True, text=True, check=False)
    # Masks of random weights are nothing that a person should trust unseen: done, but look.
    assert done.returncode == MUST_LOOK, done.stderr
    assert "3 of them must be looked at" in done.stderr
    with (out / "report.csv").open(newline="", encoding="utf-8") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["look"] * 3
    assert all(times(out)[name] == when for name, when in before.items())
