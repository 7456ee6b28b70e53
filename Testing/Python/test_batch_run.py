"""What a batch takes, what runs at once, what a kill or a bad case costs, and who may use a folder."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batch_helpers import Case, Run, states, times, write_clicks, write_series
from points_files import write_markups
from segment_case import tiny_bundle
from typer.testing import CliRunner

from SPDSegmentLib.batch import run as run_module
from SPDSegmentLib.batch.segmenting import BatchSettings
from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.errors import MUST_LOOK, BadInput, Cancelled
from SPDSegmentLib.files import write_json
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.labels import read_labels_of
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.geometry.volume import read_volume

pytest_plugins = ["batch_helpers"]


def test_one_bad_case_of_any_kind_does_not_stop_the_others(run: Run, cases: list[Case], tmp_path: Path) -> None:
    table = tmp_path / "data" / "cases.csv"
    (tmp_path / "data" / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / "bad.mrk.json").write_text("{}")
    rows = ["a,a.nii.gz,a.mrk.json", "no-image,none.nii.gz,a.mrk.json", "no-points,a.nii.gz,none.mrk.json"]
    rows += ["bad-image,bad.nii.gz,a.mrk.json", "bad-points,a.nii.gz,bad.mrk.json", "no-value,,a.mrk.json"]
    os.mkfifo(tmp_path / "data" / "pipe.nii.gz")
    rows += ["pipe,pipe.nii.gz,a.mrk.json", "folder,a.nii.gz,."]
    rows += [f"long,{'i' * 300},a.mrk.json", f"long-points,a.nii.gz,{'p' * 300}", f"slash,{'s' * 300}\\\\1,a.mrk.json"]
    rows += [f"{'n' * 300},b.nii.gz,b.mrk.json", "z,c.nii.gz,c.mrk.json"]
    table.write_text("name,image,points\n" + "\n".join(rows))
    report = run(table)
    good = [row["case"] for row in report["cases"] if row["state"] == "done"]
    assert good == ["a", "n" * 300, "z"] and len(report["cases"]) == 13
    assert all(row["error"] and "Errno" not in row["error"] for row in report["cases"] if row["state"] == "failed")


@pytest.mark.parametrize("kind", ["ROI", "Line", "Curve", "Plane"])
def test_points_files_are_taken_as_the_command_line_takes_them(run: Run, cases: list[Case], kind: str) -> None:
    path = Path(cases[0][2])
    clicks = tuple(ControlPoint(str(k), "", (-16.0, -15.0, 3.0 * k)) for k in (3, 5))
    write_markups(path, [Markup("clicks", "Fiducial", clicks), Markup("other", kind, clicks)])
    report = run(cases[:1])
    assert states(report) == {"a": "done"}, report["cases"][0]["error"]
    ids = {click["id"] for click in report["cases"][0]["clicks"]} - {""}
    shapes = kind in ("ROI", "Plane")
    assert ids == {"3", "5"} if shapes else ids == {f"{name}:{k}" for name in ("clicks", "other") for k in (3, 5)}


def test_a_dicom_folder_is_an_image(run: Run, cases: list[Case], tmp_path: Path) -> None:
    folder = write_series(tmp_path / "dicom")
    report = run([("a", str(folder), cases[0][2])])
    assert states(report) == {"a": "done"}, report["cases"][0]["error"]


def test_the_series_for_cases_that_name_none_is_not_asked_of_files(run: Run, cases: list[Case], tmp_path: Path) -> None:
    folder = write_series(tmp_path / "dicom", 2)
    write_series(folder, 3)
    mixed = [cases[0], ("folder", str(folder), cases[0][2])]
    report = run(mixed, settings=BatchSettings(series="1.3"))
    assert states(report) == {"a": "done", "folder": "done"}, report
    (row,) = run([("film", *cases[0][1:])], settings=BatchSettings(frame=2))["cases"]
    assert row["state"] == "failed" and "in a batch name it in the column frame of those cases" in row["error"]


def test_a_mask_never_replaces_an_input(run: Run, cases: list[Case], tmp_path: Path) -> None:
    before = Path(cases[0][1]).read_bytes()
    report = run(cases[:1], folder=tmp_path / "data", settings=BatchSettings(suffix=".nii.gz"), resume=False)
    assert states(report) == {"a": "failed"} and "would replace the input a.nii.gz" in report["cases"][0]["error"]
    assert Path(cases[0][1]).read_bytes() == before


@pytest.mark.parametrize("name", ["report.csv", "link.csv", "report.json", "a.case.json"])
def test_report_and_rows_never_replace_an_input(run: Run, cases: list[Case], tmp_path: Path, name: str) -> None:
    # given: the table, or the clicks of a case, where the batch writes a file of its own
    out, (_, image, points) = tmp_path / "data", cases[0]
    given: Any = out / name
    if name.endswith(".csv"):
        (out / "report.csv").write_text(f"name,image,points\na,{image},{points}\n")
        (out / "link.csv").symlink_to("report.csv")
    else:
        Path(points).rename(out / name)
        given = [("a", image, str(out / name))]
    before = (out / name).read_bytes()
    with pytest.raises(BadInput, match="would replace its input") as refused:
        run(given, folder=out)
    assert (out / name).read_bytes() == before and "another output folder" in refused.value.remedy


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
    assert len(json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["cases"]) >= 1
    assert set(states(run(cases)).values()) == {"done"}
    assert {name: times(tmp_path / "out")[name] for name in finished} == finished
    with pytest.raises(Cancelled):
        run(cases, on_case=stop)  # goes through what is there, and is stopped after the first
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["cases"]
    assert [row["case"] for row in rows] == [name for name, _, _ in cases]


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
    trained_again = run(cases, part=(1, 2), digest="second")
    assert states(trained_again) == {"a": "done", "c": "done"}  # b is of the former model
    with pytest.raises(BadInput, match="no part 3 of 2"):
        run(cases, part=(3, 2))


def test_the_report_names_cases_as_the_table_does(run: Run, cases: list[Case], tmp_path: Path) -> None:
    (case,) = run([("Smith, J/1", *cases[0][1:])])["cases"]
    assert (case["case"], case["output"]) == ("Smith, J/1", "Smith_J_1.seg.nrrd")
    row_file = tmp_path / "out" / "Smith_J_1.case.json"
    row_file.write_text(row_file.read_text(encoding="utf-8").replace("Smith, J/1", "Smith_J_1"), encoding="utf-8")
    assert states(run([("Smith, J/1", *cases[0][1:])])) == {"Smith, J/1": "done"}  # also one of an earlier version


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
        write_json(path, row)

    monkeypatch.setattr(run_module, "write_json", full)
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
    before = {name: when for name, when in times(out).items() if not name.startswith(".")}  # of no unfinished file
    done = subprocess.run([*words, "--workers", "2"], cwd=repository, capture_output=True, text=True, check=False)
    # Masks of random weights are nothing that a person should trust unseen: done, but look.
    assert done.returncode == MUST_LOOK, done.stderr
    assert "3 of them must be looked at" in done.stderr
    with (out / "report.csv").open(newline="", encoding="utf-8") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["look"] * 3
    assert all(times(out)[name] == when for name, when in before.items())


def test_how_a_case_is_segmented_is_said_as_to_the_command_for_one(
    cases: list[Case], tmp_path: Path, spd_home: Path
) -> None:
    # given: a folder of two series, of which the option names one, and a curve with a point that is insisted on
    folder = tmp_path / "dicom"
    for number in (2, 3):
        write_series(folder, number)
    write_clicks(Path(cases[0][2]), (2, 4, 7), kind="Curve")
    tiny_bundle(SimpleNamespace(model=tmp_path / "model"))
    table = tmp_path / "cases.csv"
    table.write_text(f"name,image,points\na,{folder},{cases[0][2]}\n")
    how = ["--model", tmp_path / "model", "--series", "1.3", "--saliency-only", "--insist", "4", "--full-paths"]

    # when
    def spdsegment(*words: Any) -> int:
        return CliRunner().invoke(build_app(), [str(word) for word in (*words, *how)]).exit_code

    one = spdsegment("segment", "-i", folder, "-p", cases[0][2], "-o", tmp_path / "a.nrrd")
    many = spdsegment("batch", table, "-o", tmp_path / "out", "--format", "nrrd")

    # then
    assert one == many == 0
    expected = read_labelmap(tmp_path / "a.nrrd").array
    assert expected.any() and (read_labelmap(tmp_path / "out" / "a.nrrd").array == expected).all()
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["cases"]
    assert (row["image"], row["points"]) == (str(folder), cases[0][2])


def test_the_end_of_a_job_stops_a_batch_as_ctrl_c_does(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(SimpleNamespace(model=tmp_path / "model"))
    table = tmp_path / "cases.csv"
    table.write_text(f"name,image,points\n{','.join(cases[0])}\n", encoding="utf-8")
    monkeypatch.setattr(run_module.BatchRun, "_run_all", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
    words = ["batch", str(table), "-m", str(tmp_path / "model"), "-o", str(tmp_path / "out")]
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 130 and "what is finished is kept" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_image_that_does_not_fit_is_said_before_the_case_runs(cases: list[Case], tmp_path: Path) -> None:
    tiny_bundle(SimpleNamespace(model=tmp_path / "model"))
    table = tmp_path / "cases.csv"
    table.write_text(f"name,image,points\n{','.join(cases[0])}\n", encoding="utf-8")
    words = ["batch", table, "-m", tmp_path / "model", "-o", tmp_path / "out", "--axis", "coronal"]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    said = "a: The image is cut into coronal slices; the model tiny-test was trained on axial ones."
    assert result.exit_code == MUST_LOOK and 0 <= result.stderr.find(said) < result.stderr.find("must be looked at")
    assert "1 of 1 cases is done." in result.stdout and "It must be looked at" in result.stderr


def test_an_unknown_click_to_insist_on_or_series_fails_the_case_with_a_sentence(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    folder = write_series(tmp_path / "dicom")
    for settings, words in (
        (BatchSettings(insist=("9",)), "There is no click '9' to insist on"),
        (BatchSettings(ends=("9",)), "There is no click '9' to end at"),
        (BatchSettings(series="7.7"), "7.7"),
    ):
        (row,) = run([("a", str(folder), cases[0][2])], settings=settings)["cases"]
        assert row["state"] == "failed" and words in row["error"]


def test_dicom_files_beside_the_masks_hold_their_voxels_and_are_resumed(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    pytest.importorskip("highdicom")
    # given a DICOM case, one that is none, and one in which nothing is found
    folder = write_series(tmp_path / "dicom")
    listed = [("a", str(folder), cases[0][2]), ("b", cases[1][1], cases[1][2])]
    how = BatchSettings(dicom=("dicom_seg", "rtstruct"))
    # when
    report = run(listed, settings=how)
    # then
    good, other = report["cases"]
    assert (good["state"], good["dicom_seg"], good["rtstruct"]) == ("done", "a.seg.dcm", "a.rtstruct.dcm"), good[
        "error"
    ]
    assert other["state"] == "failed" and "is not of a DICOM series" in other["error"]
    out, volume = tmp_path / "out", read_volume(folder)
    mask = read_labelmap(out / "a.seg.nrrd").array
    for name in ("a.seg.dcm", "a.rtstruct.dcm"):
        assert mask.any() and (read_labels_of(out / name, volume) == mask).all()
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".dcm") == ["a.rtstruct.dcm", "a.seg.dcm"]
    table = (out / "report.csv").read_text(encoding="utf-8-sig").splitlines()[:2]
    assert dict(zip(*(line.split(",") for line in table), strict=False))["rtstruct"] == "a.rtstruct.dcm"

    # when it runs again, nothing is written; without one of the files, that case is done again
    def whens() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.glob("a.*") if "case" not in path.name}

    before = whens()
    run(listed, settings=how)
    assert whens() == before
    (out / "a.rtstruct.dcm").unlink()
    run(listed, settings=how)
    assert whens().keys() == before.keys() and all(when > before[name] for name, when in whens().items())
    # a file that somebody changed is left alone and said
    (out / "a.seg.dcm").write_bytes(b"mine")
    (row, _) = run(listed, settings=how)["cases"]
    assert row["state"] == "kept" and row["error"].startswith("a.seg.dcm was changed after the batch wrote it")
    assert (out / "a.seg.dcm").read_bytes() == b"mine"
    # and where nothing is found there is a mask and no object, which is said
    between = [ControlPoint("1", "", (-16.4, -15.4, 9.0))]
    write_markups(tmp_path / "between.mrk.json", [Markup("clicks", "Fiducial", tuple(between))])
    listed = [("n", str(folder), str(tmp_path / "between.mrk.json"))]
    nothing = run(listed, bundle="fake?radius=0", settings=how, folder=tmp_path / "none")
    assert "there is no DICOM object" in nothing["cases"][0]["notes"], nothing["cases"][0]
    assert sorted(path.suffix for path in (tmp_path / "none").glob("n.*")) == [".json", ".nrrd"]


@pytest.mark.parametrize("stage", ["a.seg.dcm", "a.rtstruct.dcm", "a.seg.nrrd"])
def test_a_batch_killed_between_two_of_a_cases_files_goes_on(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    pytest.importorskip("highdicom")
    folder = write_series(tmp_path / "dicom")
    listed, how = [("a", str(folder), cases[0][2])], BatchSettings(dicom=("dicom_seg", "rtstruct"))
    from SPDSegmentLib.batch import run as module

    write_whole = module.write_whole

    class Killed(BaseException):
        pass

    def killed(path: Path, *arguments: Any, **named: Any) -> None:
        write_whole(path, *arguments, **named)
        if path.name == stage:
            raise Killed

    monkeypatch.setattr(module, "write_whole", killed)
    with pytest.raises(Killed):
        run(listed, settings=how)
    monkeypatch.setattr(module, "write_whole", write_whole)
    (row,) = run(listed, settings=how)["cases"]
    assert row["state"] == "done", row["error"]
    assert {path.name for path in (tmp_path / "out").glob("a.*")} == {
        "a.seg.dcm", "a.rtstruct.dcm", "a.seg.nrrd", "a.case.json"
    }  # fmt: skip


def test_dicom_files_of_earlier_clicks_go_with_their_mask_and_are_no_persons(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    pytest.importorskip("highdicom")
    listed, how = [("a", str(write_series(tmp_path / "dicom")), cases[0][2])], BatchSettings(dicom=("dicom_seg",))
    run(listed, settings=how)
    before = Path(cases[0][2]).read_bytes()
    between = (ControlPoint("1", "", (-16.4, -15.4, 9.0)),)
    write_markups(Path(cases[0][2]), [Markup("clicks", "Fiducial", between)])
    (row,) = run(listed, bundle="fake?radius=0", settings=how)["cases"]
    assert row["state"] == "done" and not row["dicom_seg"] and not (tmp_path / "out" / "a.seg.dcm").exists()
    Path(cases[0][2]).write_bytes(before)
    (row,) = run(listed, settings=how)["cases"]
    assert (row["state"], row["dicom_seg"]) == ("done", "a.seg.dcm"), row["error"]


def test_a_mask_of_another_format_stays_and_is_still_known_as_the_batchs(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    for suffix in (".nii.gz", ".mha", ".nii.gz"):
        assert states(run(cases[:1], settings=BatchSettings(suffix=suffix))) == {"a": "done"}
    assert {"a.nii.gz", "a.mha"} <= {path.name for path in (tmp_path / "out").iterdir()}
    path = tmp_path / "out" / "a.mha"
    mask = read_labelmap(path)
    write_labelmap(path, 1 - mask.array, mask)
    mine = path.read_bytes()
    assert states(run(cases[:1], settings=BatchSettings(suffix=".mha"))) == {"a": "kept"}
    assert path.read_bytes() == mine
