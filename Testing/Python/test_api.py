"""Segmentation from Python: one function, one class, and the examples in their docstrings."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from models_helpers import tiny_info
from points_files import write_markups
from segment_case import tiny_bundle
from tiny_predictor import listening_predictor, tube_volume

from SPDSegmentLib import InteractiveSegmenter, api, interactive, load_model, segment
from SPDSegmentLib.errors import BadInput, ModelMissing
from SPDSegmentLib.geometry.markups import FRAMES, LIST, ControlPoint, Markup
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import read_volume, set_geometry
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import write_bundle

ON_TUBE = ((27, 30, 10), (28, 30, 12), (29, 30, 14), (30, 30, 16))
BESIDE = (54, 5, 12)
"""Voxels (I, J, K) of the tube, and one of the dark."""


def ras(*voxels: tuple[int, int, int]) -> np.ndarray:
    return np.array(voxels) * (-1.0, -1.0, 3.0)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path) -> SimpleNamespace:
    """A folder with the image of a tube, four clicks on it and one beside it, and a model that finds tubes."""
    volume = tube_volume()
    image = set_geometry(sitk.GetImageFromArray(volume.array), volume.ijk_to_ras)
    sitk.WriteImage(image, str(tmp_path / "abdomen.nii.gz"))
    points = [
        ControlPoint(str(n), f"F-{n}", (r, a, s)) for n, (r, a, s) in enumerate(ras(*ON_TUBE, BESIDE).tolist(), start=1)
    ]
    markups = [Markup("clicks", LIST, tuple(points))]
    write_markups(tmp_path / "clicks.mrk.json", markups)
    write_bundle(
        spd_home / "models" / "kidney-mr",
        tiny_info(name="kidney-mr"),
        {"w": torch.zeros(2)},
        "",
    )
    monkeypatch.setattr(Predictor, "load", classmethod(lambda *_, **__: listening_predictor()))
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(volume=volume, image=image, markups=markups, folder=tmp_path)


def test_the_examples_in_the_docstrings_run(case: SimpleNamespace) -> None:
    names = {"array": case.volume.array, "affine": case.volume.ijk_to_ras}
    results = [doctest.testmod(module, extraglobs=names) for module in (api, interactive)]
    assert [r.failed for r in results] == [0, 0] and sum(r.attempted for r in results) >= 10
    assert Path("kidney.seg.nrrd").is_file()


def test_an_image_may_be_a_file_an_array_a_volume_or_of_simpleitk(case: SimpleNamespace) -> None:
    expected = segment("abdomen.nii.gz", "clicks.mrk.json", "kidney-mr").mask
    assert expected.any()
    for image, affine in ((case.volume.array, case.volume.ijk_to_ras), (case.volume, None), (case.image, None)):
        for points in (case.markups, ras(*ON_TUBE, BESIDE), ras(*ON_TUBE, BESIDE).tolist()):
            found = segment(image, points, "kidney-mr", ijk_to_ras=affine)
            np.testing.assert_array_equal(found.mask, expected)


@pytest.mark.parametrize("frame", FRAMES)
def test_points_may_be_in_ras_lps_or_voxels(case: SimpleNamespace, frame: str) -> None:
    points = {"RAS": ras(*ON_TUBE), "LPS": ras(*ON_TUBE) * (-1, -1, 1), "IJK": np.array(ON_TUBE)}[frame]
    found = segment(case.volume, points, "kidney-mr", frame=frame)
    assert all(found.mask[k, j, i] for i, j, k in ON_TUBE)


def test_mask_and_report_are_saved_and_name_no_folders(case: SimpleNamespace) -> None:
    image = case.folder / "abdomen.nii.gz"
    found = segment(image, case.folder / "clicks.mrk.json", "kidney-mr")
    found.save("mask.nii.gz", "report.json")

    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage("mask.nii.gz")), found.mask)
    text = Path("report.json").read_text(encoding="utf-8")
    assert json.loads(text)["request"]["image"] == "abdomen.nii.gz" and str(case.folder) not in text
    assert found.report(full_paths=True)["request"]["image"] == str(image)
    assert found.volume_ml == pytest.approx(found.mask.sum() * 3 / 1000)


def test_neither_mask_nor_report_replaces_an_input_or_the_other(case: SimpleNamespace) -> None:
    before = {path: path.read_bytes() for path in case.folder.iterdir() if path.is_file()}
    found = segment("abdomen.nii.gz", "clicks.mrk.json", "kidney-mr")
    for mask, report in (("abdomen.nii.gz", None), ("m.nrrd", "clicks.mrk.json"), ("m.nrrd", "./m.nrrd")):
        with pytest.raises(BadInput, match="is also an input or another output"):
            found.save(mask, report)
    assert {path: path.read_bytes() for path in case.folder.iterdir() if path.is_file()} == before


def test_inputs_are_known_by_their_place_whatever_folder_is_current_when_the_mask_is_saved(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [case.folder / name for name in ("abdomen.nii.gz", "clicks.mrk.json")]
    before = [path.read_bytes() for path in inputs]
    found = [segment("abdomen.nii.gz", "clicks.mrk.json", "kidney-mr")]
    found.append(InteractiveSegmenter("abdomen.nii.gz", "kidney-mr").add("clicks.mrk.json"))
    (case.folder / "masks").mkdir()
    monkeypatch.chdir("masks")
    for made in found:
        for mask, report in (("../abdomen.nii.gz", None), ("m.nrrd", "../clicks.mrk.json")):
            with pytest.raises(BadInput, match="is also an input"):
                made.save(mask, report)
        made.save("abdomen.nii.gz", "clicks.mrk.json")
    assert [path.read_bytes() for path in inputs] == before


def test_a_mask_may_have_the_name_of_a_volume_that_was_read_elsewhere(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_volume("abdomen.nii.gz")
    (case.folder / "masks").mkdir()
    monkeypatch.chdir("masks")
    found = segment(volume, "../clicks.mrk.json", "kidney-mr", output="abdomen.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage("abdomen.nii.gz")), found.mask)


def test_one_loaded_model_segments_many_cases(case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("kidney-mr")
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: pytest.fail("loaded again"))
    first, second = (segment(case.volume, ras(*ON_TUBE), model) for _ in range(2))
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.report()["request"]["model"] == "kidney-mr"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"image": np.zeros((4, 4, 4))}, "needs ijk_to_ras"),
        ({"image": np.zeros((4, 4)), "ijk_to_ras": np.eye(4)}, "array of shape (4, 4)"),
        ({"image": np.zeros((4, 4, 4)), "ijk_to_ras": np.eye(4)[:3]}, "ijk_to_ras has the shape (3, 4)"),
        ({"image": np.zeros((4, 4, 4)), "ijk_to_ras": "affine"}, "ijk_to_ras is no matrix of numbers"),
        ({"points": [[1, 2]]}, "array of shape (1, 2)"),
        ({"points": [["a", "b", "c"]]}, "are no numbers"),
        ({"points": ras(*ON_TUBE), "frame": "XYZ"}, "Unknown frame 'XYZ'"),
        ({"points": []}, "No placed point"),
        ({"points": [], "frame": "IJK"}, "No placed point"),
        ({"points": np.ma.masked_less(ras(*ON_TUBE), -27)}, "Point 1 of the array"),
        ({"prompts": "nonsense"}, "Unknown prompt strategy 'nonsense'"),
        ({"points": ras(*ON_TUBE) + 1e4}, "No click lies inside the volume"),
        ({"insist": ["nobody"]}, "no click 'nobody'"),
        ({"insist": "nobody"}, "no click 'nobody'"),
        ({"insist": 99}, "no click '99'"),
        ({"image": sitk.Image([4, 4], sitk.sitkUInt8)}, "The image has 2 dimensions"),
        ({"image": sitk.Image([4, 4, 4, 4], sitk.sitkUInt8)}, "The image has 4 dimensions"),
        ({"axis": "upward"}, "Unknown slicing axis"),
        ({"output": "mask.txt"}, "no known extension"),
        ({"output": "abdomen.nii.gz"}, "is also an input"),
        ({"ijk_to_ras": np.eye(4)}, "says itself where its voxels lie"),
        ({"frame": "IJK"}, "say themselves where they lie"),
        ({"points": None}, "array of shape ()"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=r".") as raised:
        segment(**{"image": "abdomen.nii.gz", "points": "clicks.mrk.json", "model": "kidney-mr"} | wrong)
    assert sentence in raised.value.sentence and raised.value.remedy


def test_a_model_that_is_not_there_is_named(case: SimpleNamespace) -> None:
    with pytest.raises(ModelMissing, match="no model 'nothing'"):
        segment("abdomen.nii.gz", "clicks.mrk.json", "nothing")


def test_interactive_clicks_give_what_one_call_gives(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr")
    work.add(ras(*ON_TUBE[:2]))
    work.add(ras(BESIDE))
    work.remove("3")
    found = work.add("clicks.mrk.json")
    assert list(work.clicks) == ["1", "2", "4", "5", "6", "7", "8"]
    at_once = segment(case.volume, ras(*ON_TUBE[:2], *ON_TUBE, BESIDE), "kidney-mr")
    np.testing.assert_array_equal(found.mask, at_once.mask)


def test_ids_may_be_numbers_and_clicks_may_be_given_by_id(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr")
    found = work.add(ras(*ON_TUBE, BESIDE))
    assert np.array_equal(segment(case.volume, work.clicks, "kidney-mr").mask, found.mask)
    assert np.array_equal(InteractiveSegmenter(case.volume, "kidney-mr").add(work.clicks).mask, found.mask)
    insisted = segment(case.volume, work.clicks, "kidney-mr", insist=5)
    assert np.array_equal(insisted.mask, segment(case.volume, work.clicks, "kidney-mr", insist=["5"]).mask)
    work.move(1, ras(ON_TUBE[1])[0])
    assert list(work.clicks) == ["1", "2", "3", "4", "5"] and work.clicks["1"] == work.clicks["2"]
    work.remove(2, 5)
    assert list(work.clicks) == ["1", "3", "4"]


def test_an_array_that_is_written_into_later_does_not_matter(case: SimpleNamespace) -> None:
    expected = InteractiveSegmenter(case.volume, "kidney-mr").add(ras(*ON_TUBE)).mask
    for as_volume in (False, True):
        array = case.volume.array.copy()
        affine = None if as_volume else case.volume.ijk_to_ras
        image = replace(case.volume, array=array) if as_volume else array
        work = InteractiveSegmenter(image, "kidney-mr", ijk_to_ras=affine)
        array[:] = 0
        np.testing.assert_array_equal(work.add(ras(*ON_TUBE)).mask, expected)


def test_an_unknown_strategy_is_said_before_the_model_is_loaded(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(BadInput, match="Unknown prompt strategy 'nonsense'"):
        InteractiveSegmenter(case.volume, "kidney-mr", prompts="nonsense")


def test_a_failed_change_leaves_clicks_and_mask_as_they_were(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr")
    before = work.add(ras(ON_TUBE[0]))
    for change in (
        lambda: work.remove("1"),
        lambda: work.move("1", (9e3, 9e3, 9e3)),
        lambda: work.move("2", (0, 0, 0)),
        lambda: work.move("1", (np.nan, 0, 0)),
        lambda: work.move("1", (0, 0)),
        lambda: work.correct(np.zeros((2, 2, 2))),
        lambda: work.correct(np.full(before.mask.shape, np.nan)),
        lambda: work.add([[1, 2]]),
    ):
        with pytest.raises(BadInput):
            change()
        assert work.found is before and list(work.clicks) == ["1"]


def test_corrected_slices_stay_until_they_are_released(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr", axis="coronal")
    first = work.add(ras(*ON_TUBE))
    mask = first.mask.copy()
    mask[:, 30, :5] = 1
    t = int(np.flatnonzero((SliceStack(case.volume, "coronal").from_volume(mask) != first.result.mask).any((1, 2)))[0])

    assert work.correct(mask).mask[:, 30, :5].all() and work.corrected == [t]
    assert work.add(ras((29, 31, 14))).mask[:, 30, :5].all()
    assert not work.release(t).mask[:, 30, :5].any() and work.corrected == []


def test_hand_work_is_released_only_where_it_is_named(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr", axis="axial")
    mask = work.add(ras(*ON_TUBE)).mask.copy()
    mask[10:14, 50, 50] = 1
    work.correct(mask)
    corrected = work.corrected
    assert len(corrected) == 4
    for wrong in ((), (999,), (str(corrected[0]),), ([corrected[0], 999],), (None,)):
        with pytest.raises(BadInput, match=r"case\.corrected"):
            work.release(*wrong)
    assert work.release([]) is work.found and work.corrected == corrected
    work.release(*np.array(corrected[:1]), corrected[1:3])
    assert work.corrected == corrected[3:]
    assert not work.release(work.corrected).mask[:, 50, 50].any() and work.corrected == []


def test_a_model_or_clicks_to_insist_on_of_another_kind_are_refused_in_a_sentence(case: SimpleNamespace) -> None:
    for model in (None, 3):
        with pytest.raises(BadInput, match="is no model"):
            load_model(model)  # type: ignore[arg-type]
    for ids in (None, 1.5):
        with pytest.raises(BadInput, match="to insist on"):
            segment(case.volume, ras(*ON_TUBE), "kidney-mr", insist=ids)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="at the ends"):
            segment(case.volume, ras(*ON_TUBE), "kidney-mr", ends=ids)  # type: ignore[arg-type]


def test_nothing_is_segmented_past_clicks_that_are_ends_and_they_can_be_taken_back(case: SimpleNamespace) -> None:
    work = InteractiveSegmenter(case.volume, "kidney-mr")
    free = work.add(ras(*ON_TUBE)).mask
    work.end(1)
    bounded = work.end(len(ON_TUBE))
    slices = [t for _, _, t in ON_TUBE]
    filled = set(np.flatnonzero(bounded.result.mask.any(axis=(1, 2))).tolist())
    assert filled and not filled - set(range(min(slices), max(slices) + 1))
    at_once = segment(case.volume, ras(*ON_TUBE), "kidney-mr", ends=[1, len(ON_TUBE)])
    np.testing.assert_array_equal(bounded.mask, at_once.mask)
    assert at_once.report()["request"]["ends"] == ["1", str(len(ON_TUBE))]
    work.end(1, False)
    np.testing.assert_array_equal(work.end(len(ON_TUBE), False).mask, free)


def test_a_model_of_random_weights_runs_through_the_real_predictor(tmp_path: Path, spd_home: Path) -> None:
    bundle = SimpleNamespace(model=tmp_path / "tiny")
    tiny_bundle(bundle)
    model = load_model(bundle.model, "cpu")
    found = segment(tube_volume(), ras(*ON_TUBE), model, prompts="raw")
    assert found.mask.shape == (24, 64, 64) and found.report()["device"] == "cpu"
    work = InteractiveSegmenter(tube_volume(), model, prompts="raw")
    np.testing.assert_array_equal(work.add(ras(*ON_TUBE)).mask, found.mask)


def test_importing_the_package_loads_neither_torch_nor_simpleitk(repository: Path) -> None:
    code = (
        "import SPDSegmentLib, sys; before = len(sys.modules); assert before < 150\n"
        "assert not {'torch', 'SimpleITK', 'numpy'} & set(sys.modules)\n"
        "from SPDSegmentLib import segment, InteractiveSegmenter, load_model\n"
        "assert 'torch' not in sys.modules\n"
        "try: SPDSegmentLib.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert "has no attribute 'nothing'" in done.stdout
