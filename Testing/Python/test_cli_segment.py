"""``spdsegment segment`` and ``demo``: outputs are whole or not there, and what can be refused is refused first."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from segment_case import SHAPE, SPACING, files_in, run, tiny_bundle, write_clicks, write_image
from typer.testing import CliRunner

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli import preview
from SPDSegmentLib.errors import OutOfMemory
from SPDSegmentLib.geometry.labelmap import read_labelmap
from SPDSegmentLib.geometry.markups import read_markups

sitk = pytest.importorskip("SimpleITK")
torch = pytest.importorskip("torch")


pytest_plugins = ["segment_case"]


def test_mask_report_and_picture_are_written_and_named(case: SimpleNamespace) -> None:
    pytest.importorskip("matplotlib")
    result = run(case, "--report", case.out / "r.json", "--preview", case.out / "p.png")

    assert result.exit_code == 0, result.output
    assert files_in(case.out) == ["mask.nii.gz", "p.png", "r.json"]
    mask, image = sitk.ReadImage(str(case.output)), sitk.ReadImage(str(case.image))
    assert mask.GetSize() == image.GetSize()
    assert np.allclose(mask.GetOrigin(), image.GetOrigin(), atol=1e-4)
    array = sitk.GetArrayFromImage(mask)
    assert array[4, 10, 9] == 1
    assert array.sum() == 75
    report = json.loads((case.out / "r.json").read_text(encoding="utf-8"))
    assert report["volume_ml"] == pytest.approx(75 * np.prod(SPACING) / 1000)
    assert [report["request"][name] for name in ("image", "points", "model")] == [
        case.image.name,
        case.points.name,
        case.model.name,
    ]
    assert str(case.image.parent) not in (case.out / "r.json").read_text(encoding="utf-8")
    assert sorted(entry["slice_number"] for entry in report["slices"]) == [2, 4, 6]
    assert report["slicing"] == {"axis": "K", "plane": "axial", "slices": 9}
    assert str(case.output) in result.stdout.replace("\n", "")


def test_the_options_reach_the_predictor(case: SimpleNamespace, predictor: SimpleNamespace) -> None:
    arguments = ["--prompts", "raw", "--saliency-only", "--device", "cuda:1", "--axis", "j"]
    assert run(case, *arguments, "--report", case.out / "r.json", "--full-paths").exit_code == 0
    report = json.loads((case.out / "r.json").read_text(encoding="utf-8"))
    assert report["request"]["image"] == str(case.image)
    assert (report["prompts"], report["saliency_only"]) == ("raw", True)
    assert report["slicing"]["axis"] == "J"
    assert predictor.device == "cuda:1"


def test_clicks_from_a_markups_file_an_older_one_a_table_and_the_command_line_are_the_same(
    case: SimpleNamespace,
) -> None:
    # given the clicks of the case in every form
    (markup,) = read_markups(case.points)
    places = [point.position_ras for point in markup.points]
    folder = case.points.parent
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
    rows = [f"{n},{-r},{-a},{s},0,0,0,1,1,1,0,F-{n},,," for n, (r, a, s) in enumerate(places, 1)]
    (folder / "older.fcsv").write_text(head + "\n".join(rows), encoding="utf-8")
    table = "r;a;s\n" + "\n".join(f"{r};{a};{s}" for r, a, s in places)
    (folder / "table.csv").write_text(table, encoding="utf-8")
    written = [word for r, a, s in places for word in ("--point", f"{r},{a},{s}")]
    # when
    masks = []
    for points in (["-p", case.points], ["-p", folder / "older.fcsv"], ["-p", folder / "table.csv"], written):
        words = ["segment", "-i", case.image, "-m", case.model, "-o", case.output, *points]
        result = CliRunner().invoke(app_module.build_app(), list(map(str, words)))
        assert result.exit_code == 0, result.output
        masks.append(read_labelmap(case.output).array)
    # then
    assert masks[0].any() and all((mask == masks[0]).all() for mask in masks[1:])


def test_an_existing_mask_is_replaced_only_by_a_whole_one(case: SimpleNamespace, predictor: SimpleNamespace) -> None:
    case.output.write_bytes(b"older")
    predictor.failure = OutOfMemory("One slice does not fit.", "Use --device cpu.")
    failed = run(case)
    assert failed.exit_code == 4
    assert "One slice does not fit." in failed.stderr
    assert case.output.read_bytes() == b"older"
    predictor.failure = None
    assert run(case).exit_code == 0
    assert case.output.read_bytes() != b"older"


def test_interruption_is_130_and_leaves_nothing(case: SimpleNamespace, predictor: SimpleNamespace) -> None:
    predictor.failure = KeyboardInterrupt()
    result = run(case)
    assert result.exit_code == 130
    assert "Cancelled" in result.stderr
    assert files_in(case.out) == []


def test_a_failing_picture_leaves_mask_and_report_and_says_so(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def fail(path: Path, *shown: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(preview, "write_preview", fail)
    result = run(case, "--preview", case.out / "p.png", "--report", case.out / "r.json")

    assert result.exit_code == 2
    assert f"The mask is written to {case.output}, but" in result.stderr and "disk is full" in result.stderr
    assert "ml on 3 of 9" in result.stdout and f"Report:   {case.out / 'r.json'}" in result.stdout
    assert "p.png" not in result.stdout
    assert files_in(case.out) == ["mask.nii.gz", "r.json"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(case.output))).sum() == 75


class Silent:
    """A session that finds nothing."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def segment(self, clicks: Any, **options: Any) -> Any:
        result = self.session.segment(clicks, **options)
        result.mask[:] = False
        result.doubts = ["Nothing was segmented."]
        result.notes = [*result.notes, *result.doubts]
        return result


def test_an_empty_mask_has_no_measures_and_is_said_where_it_replaces_a_file(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{case.output}\n" in run(case).stdout
    module = sys.modules["SPDSegmentLib.inference.predictor"]
    load = module.Predictor.load
    silent = SimpleNamespace(load=lambda *a: SimpleNamespace(open=lambda stack: Silent(load(*a).open(stack))))
    monkeypatch.setattr(module, "Predictor", silent)

    (case.out / "m.csv").write_text("older")
    result = run(case, "--measure", case.out / "m.csv", "--report", case.out / "r.json")

    assert result.exit_code == 6, result.output
    assert f"Note: The file {case.out / 'm.csv'} is of an earlier mask." in result.stderr
    assert "0.0 ml on 0 of 9" in result.stdout and f"{case.output} (replaced)" in result.stdout
    assert "Note: The mask is empty, so there are no measures." in result.stderr
    assert f"Note: The mask is empty and has replaced the file {case.output}." in result.stderr
    assert "Nothing was segmented." in result.stderr
    assert files_in(case.out) == ["m.csv", "mask.nii.gz", "r.json"]


def test_an_interrupted_picture_leaves_the_mask_and_says_so(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def interrupt(path: Path, *shown: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preview, "write_preview", interrupt)
    result = run(case, "--preview", case.out / "p.png")

    assert result.exit_code == 130
    assert f"the mask is written to {case.output}" in result.stderr
    assert files_in(case.out) == ["mask.nii.gz"]


@pytest.mark.parametrize("option", ["--output", "--report", "--preview"])
@pytest.mark.parametrize("obstacle", ["read-only", "too long", "folder", "pipe"])
def test_what_cannot_be_written_is_refused_before_the_first_slice(
    case: SimpleNamespace, predictor: SimpleNamespace, option: str, obstacle: str
) -> None:
    suffix = {"--output": ".nii.gz", "--report": ".json", "--preview": ".png"}[option]
    target = case.out / (f"kept{suffix}" if obstacle != "too long" else "n" * (256 - len(suffix)) + suffix)
    if obstacle == "read-only":
        target.write_bytes(b"older")
        target.chmod(0o444)
    elif obstacle == "folder":
        target.mkdir()
    elif obstacle == "pipe":
        os.mkfifo(target)
    before = files_in(case.out)

    result = run(case, **{option.strip("-"): target})

    assert result.exit_code == 2
    said = {"read-only": "read-only", "too long": "name is too long", "folder": "is a folder", "pipe": "a pipe"}
    assert said[obstacle] in result.stderr
    assert predictor.device is None
    assert files_in(case.out) == before


def test_a_mask_beyond_the_format_is_refused_before_the_first_slice(
    case: SimpleNamespace, predictor: SimpleNamespace
) -> None:
    voxels = np.arange(2 * 2 * 32_768, dtype=np.int32).reshape(2, 2, -1)
    wide = write_image(case.image.with_name("wide.nrrd"), voxels, (0.05, 1.5, 4.0))
    result = run(case, image=wide)
    assert result.exit_code == 2
    assert "32,768 voxels along one axis" in result.stderr and ".nrrd or .mha" in result.stderr
    assert predictor.device is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are no UTF-8")
def test_names_that_are_no_unicode_are_read_written_and_printed(case: SimpleNamespace) -> None:
    folder = Path(os.fsdecode(os.fsencode(case.out) + b"/dossi\xe9r"))
    folder.mkdir()
    image, points = (Path(os.fsdecode(os.fsencode(p.parent) + b"/\xe9" + os.fsencode(p.name)))
                     for p in (case.image, case.points))  # fmt: skip
    case.image.rename(image)
    case.points.rename(points)

    result = run(case, image=image, points=points, output=folder / "m.nrrd", report=folder / "r.json")

    assert result.exit_code == 0, result.output
    assert "dossi\\xe9r" in result.stdout.replace("\n", "")
    assert files_in(folder) == ["m.nrrd", "r.json"]
    assert json.loads((folder / "r.json").read_text(encoding="utf-8"))["request"]["image"].endswith(
        "\\xe9" + case.image.name
    )


def test_points_outside_are_named_and_the_rest_is_used(case: SimpleNamespace) -> None:
    write_clicks(case.points, case.image, (8, 9, 2), (8, 9, 400))
    result = run(case)
    assert result.exit_code == 0
    assert "one click was left out" in result.stderr


def test_a_randomly_initialized_model_runs_from_files_to_files(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(case)
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    write_clicks(case.points, case.image, (8, 9, 2), (9, 10, 4), (10, 11, 6), (10, 11, 90))

    result = run(case, "--report", case.out / "r.json", "--device", "cpu")

    assert result.exit_code == 6, "a mask without a voxel is never a plain success"
    report = json.loads((case.out / "r.json").read_text(encoding="utf-8"))
    assert report["model"]["name"] == "tiny-test"
    assert "Nothing was segmented." in report["doubts"] and all(doubt in result.stderr for doubt in report["doubts"])
    assert {entry["id"] for entry in report["points"] if entry["id"]} == {"1", "2", "3", "4"}
    assert [entry["id"] for entry in report["points"] if entry["fate"] == "outside"] == ["4"]
    assert report["notes"][0].endswith("were left out: 4.") and report["notes"][0] in result.stderr
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(case.output))).shape == SHAPE


def test_the_demo_segments_the_shipped_sample_and_prints_its_dice(
    case: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    resources = tmp_path / "Resources"
    sample = resources / "SampleData" / "tiny-test-case"
    sample.mkdir(parents=True)
    case.image.rename(sample / "image.nii.gz")
    case.points.rename(sample / "clicks.mrk.json")
    (sample / "ATTRIBUTION.md").write_text("ours")
    label = np.zeros(SHAPE, dtype=np.uint8)
    for k, j, i in ((2, 9, 8), (4, 10, 9), (6, 11, 10)):
        label[k, j - 2 : j + 3, i - 2 : i + 3] = 3
    label[0, 0, 0:25] = 0
    write_image(sample / "label.nii.gz", label)
    monkeypatch.setattr(app_module, "resources_folder", lambda: resources)
    monkeypatch.setenv("SPDSEGMENT_HOME", str(tmp_path))

    result = CliRunner().invoke(app_module.build_app(), ["demo", "--output", str(tmp_path / "demo")])

    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "demo") == ["tiny-test-case.json", "tiny-test-case.nii.gz", "tiny-test-case.png"]
    assert result.stdout.splitlines()[-1] == "Dice against the shipped label: 1.000"


def test_the_demo_without_a_sample_or_a_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "resources_folder", lambda: tmp_path)
    result = CliRunner().invoke(app_module.build_app(), ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert "No sample is installed" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_an_image_that_does_not_fit_is_said_before_the_run_and_ends_with_6(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(case)
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    result = run(case, "--report", case.out / "r.json", "--device", "cpu", "--axis", "coronal")
    said = "The image is cut into coronal slices; the model tiny-test was trained on axial ones."
    assert result.exit_code == 6 and result.stderr.count(said) == 1
    assert any(said in doubt for doubt in json.loads((case.out / "r.json").read_text(encoding="utf-8"))["doubts"])


@pytest.mark.parametrize(("option", "said"), [("--insist", "to insist on"), ("--ends", "to end at")])
def test_a_click_that_is_not_there_is_neither_insisted_on_nor_an_end(
    case: SimpleNamespace, option: str, said: str
) -> None:
    result = run(case, option, "2, 9")
    assert result.exit_code == 2 and f"no click '9' {said}" in result.stderr
    assert not case.output.exists()
