"""4-D images and sequences: one frame is chosen by its number, from 1, or the number of frames is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from batch_helpers import Run, times, write_clicks
from dicom_helpers import series
from segment_case import run as segment

from SPDSegmentLib.batch.cases import read_cases
from SPDSegmentLib.batch.segmenting import BatchSettings
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.volume import read_volume

pytest_plugins = ["segment_case", "batch_helpers"]

FILM = np.random.default_rng(1).integers(0, 900, (3, 9, 30, 32)).astype(np.int16)
"""(T, K, J, I)."""
NAMES = ("film.nii.gz", "film.nii", "film.nrrd", "film.mha", "film.seq.nrrd", "last.seq.nrrd")


def write_film(path: Path, film: np.ndarray = FILM) -> Path:
    """A 4-D image, or a sequence as 3D Slicer saves one: NRRD with a list of frames as the first or the last axis."""
    if path.name.endswith(".seq.nrrd"):
        last = path.name.startswith("last")
        sizes, kinds, directions = ["32", "30", "9"], ["domain"] * 3, ["(1,0,0)", "(0,1,0)", "(0,0,3)"]
        for values, value in ((sizes, "3"), (kinds, "list"), (directions, "none")):
            values.insert(3 if last else 0, value)
        fields = {
            "type": "short", "dimension": "4", "space": "left-posterior-superior", "sizes": " ".join(sizes),
            "space directions": " ".join(directions), "kinds": " ".join(kinds), "endian": "little", "encoding": "gzip",
            "space origin": "(0,0,0)",
        }  # fmt: skip
        head = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
        stored = film if last else film.transpose(1, 2, 3, 0)
        path.write_bytes(head.encode() + gzip.compress(stored.astype("<i2").tobytes()))
        return path
    image = sitk.JoinSeries([sitk.GetImageFromArray(frame) for frame in film])
    image.SetSpacing((1.0, 1.0, 3.0, 0.5))
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_frame_is_read_and_without_a_choice_their_number_is_said(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name)
    for number, values in enumerate(FILM, start=1):
        volume = read_volume(path, frame=number)
        np.testing.assert_array_equal(volume.array, values)
        np.testing.assert_allclose(volume.ijk_to_ras, np.diag([-1.0, -1, 3, 1]))
    with pytest.raises(BadInput, match="4 dimensions: it holds 3 frames. Choose one, 1 to 3: --frame N"):
        read_volume(path)
    for number in (0, 4):
        with pytest.raises(BadInput, match=f"no frame {number}: it holds 3 frames"):
            read_volume(path, frame=number)


@pytest.mark.parametrize("name", ["film.nii.gz", "film.nii"])
def test_a_film_that_is_cut_short_is_refused_for_every_frame(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 3000])
    for number in (1, 3):
        with pytest.raises(BadInput, match="cut short"):
            read_volume(path, frame=number)


def test_an_image_of_one_frame_has_no_second_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"one{suffix}" for suffix in (".nii.gz", ".nrrd", ".mha")]
    for path in paths:
        sitk.WriteImage(sitk.GetImageFromArray(FILM[0]), str(path))
    for path in (*paths, series(tmp_path / "dicom")):
        read_volume(path, frame=1)
        with pytest.raises(BadInput, match="no frame 2: it holds a single frame. Leave the frame out."):
            read_volume(path, frame=2)


def test_colors_and_overlapping_segments_are_no_frames(tmp_path: Path) -> None:
    layers = write_film(tmp_path / "a.seq.nrrd").rename(tmp_path / "a.seg.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(FILM.transpose(1, 2, 3, 0), isVector=True), str(tmp_path / "b.nrrd"))
    for path in (layers, tmp_path / "b.nrrd"):
        for frame in (None, 1):
            with pytest.raises(BadInput, match="3 values per voxel"):
                read_volume(path, frame=frame)


def test_the_command_takes_a_frame_and_reports_it(case: SimpleNamespace, predictor: SimpleNamespace) -> None:
    single = sitk.ReadImage(str(case.image))
    case.image = case.image.with_name("film.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([single * 0, single, single + 5]), str(case.image))
    refused = segment(case)
    assert refused.exit_code == 2 and "it holds 3 frames" in refused.stderr and "--frame N" in refused.stderr
    result = segment(case, "--frame", "2", "--report", case.out / "a.json")
    assert result.exit_code == 0, result.output
    assert json.loads((case.out / "a.json").read_text(encoding="utf-8"))["request"]["frame_number"] == 2
    mask = sitk.ReadImage(str(case.output))
    assert mask.GetDimension() == 3 and mask.GetSize() == single.GetSize()


def test_a_batch_takes_frames_from_its_table_and_another_one_is_done_again(run: Run, tmp_path: Path) -> None:
    # given
    write_film(tmp_path / "film.seq.nrrd")
    write_clicks(tmp_path / "a.mrk.json")
    table = tmp_path / "cases.csv"

    def batch(rows: str, frame: int = 0) -> dict[str, dict[str, Any]]:
        table.write_text(f"name,image,points,frame\n{rows}", encoding="utf-8")
        return {row["case"]: row for row in run(table, settings=BatchSettings(frame=frame))["cases"]}

    def seen(name: str) -> float:
        row = json.loads((tmp_path / "out" / f"{name}.case.json").read_text(encoding="utf-8"))
        return float(row["report"]["values"])

    # when
    rows = batch("none,film.seq.nrrd,a.mrk.json,\nsecond,film.seq.nrrd,a.mrk.json,2\n")
    # then: the worker got that frame, and the case without one says how many there are
    assert rows["second"]["state"] == "done" and seen("second") == FILM[1].sum()
    assert rows["none"]["state"] == "failed" and "it holds 3 frames" in rows["none"]["error"]
    before = times(tmp_path / "out")
    batch("second,film.seq.nrrd,a.mrk.json,2\n")
    assert times(tmp_path / "out") == before
    # the option stands for empty cells, and another frame is another case
    batch("second,film.seq.nrrd,a.mrk.json,\n", frame=3)
    assert times(tmp_path / "out") != before and seen("second") == FILM[2].sum()


def test_a_frame_that_is_no_number_is_a_problem_of_its_line_alone(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text(
        "name,image,points,Frame\na,a.nrrd,a.csv,last\nb,b.nrrd,b.csv,0\nc,c.nrrd,c.csv,12\n", encoding="utf-8"
    )
    first, zero, good = read_cases(table)
    assert "Line 2 of cases.csv has 'last' for a frame" in first.problem and zero.problem
    assert (good.frame, good.problem) == (12, "")
