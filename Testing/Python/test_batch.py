"""What a batch does again, skips, or leaves alone."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import typer
from batch_helpers import Case, Run, states, times, write_clicks, write_image, write_series
from points_files import write_markups

from SPDSegmentLib import __version__
from SPDSegmentLib.batch.cases import BatchCase, image_digest
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseResult, CaseSegmenter
from SPDSegmentLib.cli.batch_command import _conclude
from SPDSegmentLib.errors import MUST_LOOK, BadInput, Cancelled, OutOfMemory
from SPDSegmentLib.files import write_whole
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, mark_clicks, read_markups

pytest_plugins = ["batch_helpers"]

SETTINGS = {
    "prompts": BatchSettings(prompts="raw"),
    "axis": BatchSettings(axis="coronal"),
    "saliency_only": BatchSettings(saliency_only=True),
    "insist": BatchSettings(insist=("3",)),
}


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


@pytest.mark.parametrize("change", ["model", "version", *SETTINGS])
def test_another_model_version_or_setting_does_every_case_again(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run(cases[:1])
    before = times(tmp_path / "out")
    options: dict[str, Any] = {}
    if change == "model":
        options["digest"] = "second"
    elif change == "version":
        monkeypatch.setattr("SPDSegmentLib.batch.cases.__version__", f"{__version__}.1")
    else:
        options["settings"] = SETTINGS[change]
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
    # also where the header alone has the name of a whole image
    header = Path(shutil.copy(tmp_path / "image.mhd", tmp_path / "header.mha"))
    before = image_digest(header)
    write_image(tmp_path / "image.mhd", 2)
    assert image_digest(header) != before
    # of a DICOM folder it covers the chosen series, and nothing that lies beside it or comes later
    folder = write_series(tmp_path / "dicom")
    before = image_digest(folder)
    (folder / "out").mkdir()
    (folder / "out" / "mask.nrrd").write_bytes(b"a result")
    assert image_digest(folder) == before
    write_series(folder, 3)
    assert image_digest(folder, "1.2") == before != image_digest(folder, "1.3")
    (folder / "2-8.dcm").unlink()
    assert image_digest(folder, "1.2") != before


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
    details = json.loads((tmp_path / "out" / "a.case.json").read_text(encoding="utf-8"))
    assert details["report"]["notes"] == [row["notes"]] and details["image_digest"]


def test_an_error_in_the_report_names_no_folder_of_a_patient(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: folders of patients in that of the clicks; an image, an unforeseen end and a row that are errors
    folders = [tmp_path / "data" / f"Doe_{n}" for n in range(8)]
    for folder in folders:
        folder.mkdir()
        (folder / "ct.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / "Doe_out" / "row.case.json").mkdir(parents=True)

    def odd(self: CaseSegmenter, case: BatchCase, output: Path) -> CaseResult:
        raise RuntimeError(f"{case.image} is odd")

    for name, segment in (("image", CaseSegmenter.__call__), ("row", odd)):
        monkeypatch.setattr(CaseSegmenter, "__call__", segment)
        listed = [(f"{name}{n}", str(folder / "ct.nii.gz"), cases[0][2]) for n, folder in enumerate(folders)]
        listed += [("row", *cases[0][1:])]
        # when
        rows = run(listed, folder=tmp_path / "data" / "Doe_out")["cases"]
        # then
        errors = [row["error"] for row in rows if row["error"]]
        assert len(errors) == 9 and not [error for error in errors if "Doe" in error], errors


@pytest.mark.parametrize("ids", [["node_0"] * 4, ["2", "", "3", "3"]], ids=["one for all", "some"])
def test_points_with_the_same_id_are_clicks_of_their_own(
    run: Run, cases: list[Case], tmp_path: Path, ids: list[str]
) -> None:
    places = [(-16.0, -15.0, 3.0 * k) for k in (2, 3, 4)] + [(900.0, 0.0, 0.0)]
    points = tuple(ControlPoint(name, "", place) for name, place in zip(ids, places, strict=True))
    write_markups(Path(cases[0][2]), [Markup("clicks", "Fiducial", points)])
    (row,) = run(cases[:1])["cases"]
    assert (row["clicks_kept"], row["clicks_outside"]) == (3, 1)
    assert len({click["id"] for click in row["clicks"] if click["id"]}) == 4
    name = ids[-1]
    with pytest.raises(BadInput, match=rf"no click '{name}' to insist on") as refused:
        mark_clicks(read_markups(cases[0][2]), [name])
    assert f"{name} (4)" in refused.value.remedy
    (clicks,) = mark_clicks(read_markups(cases[0][2]), [f"{name} (4)"])
    assert [point.insisted for point in clicks.points] == [False, False, False, True]


def test_a_name_with_an_umlaut_is_shown_right_by_excel(run: Run, cases: list[Case], tmp_path: Path) -> None:
    run([("Müller, Jörg", *cases[0][1:])])
    content = (tmp_path / "out" / "report.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfcase,") and "Müller, Jörg" in content.decode()
    run([("Mueller", *cases[0][1:])])
    assert (tmp_path / "out" / "report.csv").read_bytes().startswith(b"case,")


def test_a_result_that_a_person_changed_is_left_alone_and_said(run: Run, cases: list[Case], tmp_path: Path) -> None:
    first = run(cases[:2])
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
        was, now = first["cases"][0], report["cases"][0]
        assert all(was[name] == now[name] for name in ("volume_ml", "clicks_kept", "quality", "clicks", "model"))
        assert now["volume_ml"] > 0 and "figures are those of the mask before it was changed" in now["notes"]
    assert states(run(cases[:2], resume=False)) == {"a": "done", "b": "done"}
    assert output.read_bytes() != edited


@pytest.mark.parametrize("edit", ["overlapping segments", "fractions", "no memory to look"])
def test_a_result_that_a_person_changed_is_left_alone_where_it_is_no_plain_label_map(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    run(cases[:1])
    output = tmp_path / "out" / "a.seg.nrrd"
    mask = sitk.ReadImage(str(output))
    if edit == "fractions":
        mask = sitk.Cast(mask, sitk.sitkFloat32) + 0.5
    sitk.WriteImage(sitk.Compose(mask, mask) if edit == "overlapping segments" else mask + 0, str(output))
    if edit == "no memory to look":

        def full(path: Path) -> None:
            raise OutOfMemory("There is no memory.", "Wait.")

        monkeypatch.setattr("SPDSegmentLib.geometry.labelmap.read_labelmap", full)
    edited = output.read_bytes()
    assert states(run(cases[:1])) == {"a": "kept"} and output.read_bytes() == edited


@pytest.mark.parametrize(
    ("others", "said", "code"),
    [([], "2 of 3 cases are done", MUST_LOOK), ([{"state": "failed"}], "1 of 4 cases has no result", 2)],
)
def test_a_mask_that_is_kept_is_no_case_without_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: list[dict[str, Any]], said: str, code: int
) -> None:
    rows = [{"state": "done"}, {"state": "kept"}, {"state": "done"}, *others]
    with pytest.raises((BadInput, typer.Exit)) as end:
        _conclude(rows, tmp_path)
    assert isinstance(end.value, BadInput | typer.Exit)
    shown = capsys.readouterr()
    assert said in shown.out + str(end.value) and end.value.exit_code == code
    assert f"1 of {len(rows)} masks is edited since or not of the batch, and left alone" in shown.err


def test_a_mask_of_somebody_else_in_a_results_place_is_left_alone(run: Run, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mask = read_labelmap(cases[0][1])
    write_labelmap(tmp_path / "out" / "a.seg.nrrd", (mask.array > 100).astype(np.uint8), mask)
    assert states(run(cases[:1])) == {"a": "kept"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
def test_a_damaged_result_is_done_again(run: Run, cases: list[Case], tmp_path: Path, damage: str) -> None:
    run(cases[:1])
    output = tmp_path / "out" / "a.seg.nrrd"
    whole = output.read_bytes()
    output.unlink()
    if damage != "gone":
        output.write_bytes(whole[:-50] if damage == "truncated" else b"")
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


@pytest.mark.parametrize("with_earlier", [True, False])
def test_a_case_whose_disk_was_full_between_two_of_its_files_is_done_when_there_is_space(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_earlier: bool
) -> None:
    listed, how = [("a", str(write_series(tmp_path / "dicom")), cases[0][2])], BatchSettings(dicom=("rtstruct",))
    if with_earlier:
        run(listed, settings=how)
        write_clicks(Path(cases[0][2]), (4, 6))

    def full(path: Path, write: Callable[[Path], None], *options: Any, **named: Any) -> None:
        def some(part: Path) -> None:
            write(part)
            raise OSError(errno.ENOSPC, "No space left on device")

        write_whole(path, some if path.name == "a.seg.nrrd" else write, *options, **named)

    monkeypatch.setattr("SPDSegmentLib.batch.run.write_whole", full)
    (row,) = run(listed, settings=how)["cases"]
    assert row["state"] == "failed" and "the disk is full" in row["error"]
    monkeypatch.setattr("SPDSegmentLib.batch.run.write_whole", write_whole)
    (row,) = run(listed, settings=how)["cases"]
    assert row["state"] == "done", row["error"]


def test_a_batch_killed_between_a_mask_and_its_row_takes_the_mask_over(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    run(cases[:1])
    row_file = tmp_path / "out" / "a.case.json"
    row = json.loads(row_file.read_text(encoding="utf-8"))
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
    assert states(run(cases[:1], bundle="fake?bug=1")) == {"a": "failed"}
    assert states(run(cases[:1])) == {"a": "done"} and times(tmp_path / "out") != before


def stop_after_the_second(done: int, total: int, row: dict[str, Any]) -> None:
    if done == 2:
        raise KeyboardInterrupt


def reported(folder: Path) -> dict[str, str]:
    return states(json.loads((folder / "report.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("change", ["clicks", "image", "mask"])
def test_a_stopped_batch_reports_no_earlier_result_of_what_has_changed_since(
    run: Run, cases: list[Case], tmp_path: Path, change: str
) -> None:
    run(cases)
    if change == "clicks":
        write_clicks(Path(cases[2][2]), (2, 3))
    elif change == "image":
        write_image(Path(cases[2][1]), seed=9)
    else:
        (tmp_path / "out" / "c.seg.nrrd").unlink()
    with pytest.raises(Cancelled):
        run(cases, on_case=stop_after_the_second)
    assert reported(tmp_path / "out") == {"a": "done", "b": "done"}


def test_the_report_of_a_batch_that_is_killed_keeps_what_others_and_earlier_runs_have_done(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    told = []

    def note(done: int, total: int, row: dict[str, Any]) -> None:
        told.append(reported(tmp_path / "out"))  # all that a kill now would leave

    run(cases, part=(1, 2))
    run(cases, part=(2, 2), on_case=note)
    assert told == [{"a": "done", "b": "done", "c": "done"}]
    write_image(Path(cases[0][1]), seed=9)
    run(cases, on_case=note)
    assert told[1] == {"a": "done", "b": "done", "c": "done"}


def test_images_of_others_are_read_only_where_their_size_or_time_has_changed(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def digest(path: Path, *which: Any) -> str:
        read.append(path.name)
        return image_digest(path, *which)

    monkeypatch.setattr("SPDSegmentLib.batch.cases.image_digest", digest)
    run(cases, part=(1, 2))
    run(cases, part=(2, 2))
    assert sorted(read) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    Path(cases[0][1]).touch()
    with pytest.raises(Cancelled):
        run(cases, part=(2, 2), on_case=lambda done, total, row: stop_after_the_second(2, total, row))
    assert sorted(read[3:]) == ["a.nii.gz", "b.nii.gz"]
    assert reported(tmp_path / "out") == {"a": "done", "b": "done", "c": "done"}


def test_where_a_stopped_batch_begins_again_is_said(run: Run, cases: list[Case]) -> None:
    for resume, remedy in ((True, "Run it again to go on."), (False, "with --again it begins with the first case.")):
        with pytest.raises(Cancelled) as stopped:
            run(cases, resume=resume, on_case=stop_after_the_second)
        assert stopped.value.remedy.endswith(remedy)


@pytest.mark.parametrize("with_earlier", [True, False])
def test_a_case_that_failed_in_one_part_is_in_the_report_of_the_others(
    run: Run, cases: list[Case], tmp_path: Path, with_earlier: bool
) -> None:
    if with_earlier:
        run(cases)
    before = times(tmp_path / "out")
    image = Path(cases[0][1])
    image.rename(image.with_suffix(".away"))
    assert states(run(cases, part=(1, 2)))["a"] == "failed"
    assert states(run(cases, part=(2, 2))) == {"a": "failed", "b": "done", "c": "done"}
    image.with_suffix(".away").rename(image)
    assert states(run(cases, part=(2, 2))).get("a") == ("done" if with_earlier else None)
    assert states(run(cases, part=(1, 2))) == states(run(cases, part=(2, 2))) == dict.fromkeys("abc", "done")
    assert not with_earlier or times(tmp_path / "out") == before


def test_a_result_that_a_person_changed_is_in_the_report_of_every_part(
    run: Run, cases: list[Case], tmp_path: Path
) -> None:
    run(cases)
    mask = read_labelmap(tmp_path / "out" / "a.seg.nrrd")
    write_labelmap(tmp_path / "out" / "a.seg.nrrd", 1 - mask.array, mask)
    for part in ((1, 2), (2, 2)):
        run(cases, part=part)
    assert reported(tmp_path / "out") == {"a": "kept", "b": "done", "c": "done"}
