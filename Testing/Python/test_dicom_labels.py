"""SEG and RTSTRUCT as labels: the very voxels that were drawn, on the image that they were drawn on, or a refusal."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_helpers import PIXELS, Change, multi_frame, series
from fuzz_mutations import mutate_bytes, mutate_dicom
from pydicom.dataset import Dataset
from test_dicom_objects import KIDNEY, of_the_patient, some_mask
from typer.testing import CliRunner

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.errors import BadInput, DependencyMissing, GeometryUnsupported
from SPDSegmentLib.evaluation.evaluator import load_targets
from SPDSegmentLib.geometry.dicom_objects import source_of, write_dicom_seg, write_rtstruct
from SPDSegmentLib.geometry.labelmap import write_labelmap
from SPDSegmentLib.geometry.labels import read_labeled, read_labels_of
from SPDSegmentLib.geometry.volume import Volume, read_volume
from SPDSegmentLib.training.cases import load_case
from SPDSegmentLib.training.config import read_training_config
from SPDSegmentLib.training.survey import find_cases

highdicom = pytest.importorskip("highdicom")

WRITERS = {"seg.dcm": write_dicom_seg, "rt.dcm": write_rtstruct}


def drawn(folder: Path, name: str, image: Path, mask: np.ndarray) -> Path:
    """A mask as a SEG or RTSTRUCT file of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder / name, mask, read_volume(image), source_of(image, None), KIDNEY)
    return folder / name


def changed(path: Path, change: Callable[[Dataset], object]) -> Path:
    made = pydicom.dcmread(path)
    change(made)
    made.save_as(path)
    return path


def of_the_patient_with(**fields: object) -> Change:
    def change(t: int, made: Dataset) -> None:
        of_the_patient(t, made)
        for name, value in fields.items():
            setattr(made, name, value)

    return change


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return series(tmp_path / "series", of_the_patient)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("planes", [(1, 2, 4), (3,), (0, 5)])
@pytest.mark.parametrize("kind", ["slices", "frames"])
def test_what_was_written_is_read_back_voxel_by_voxel(
    tmp_path: Path, name: str, planes: tuple[int, ...], kind: str
) -> None:
    image = series(tmp_path / "s", of_the_patient) if kind == "slices" else multi_frame(tmp_path / "f.dcm")
    if kind == "frames":
        changed(image, lambda made: of_the_patient(0, made))
    volume = read_volume(image)
    mask = np.zeros(volume.array.shape, np.uint8)
    mask[list(planes)] = some_mask(mask.shape)[[1, 2, 4]][: len(planes)]
    path = drawn(tmp_path / "labels", name, image, mask)
    np.testing.assert_array_equal(read_labels_of(path, volume), mask)
    np.testing.assert_array_equal(read_labels_of(path.parent, volume, ["KIDNEY"]), mask)


def test_an_outline_longer_than_the_explicit_encoding_has_room_for_is_written_and_read(tmp_path: Path) -> None:
    pixels = np.zeros((6, 96, 96), np.int16)
    image, mask = series(tmp_path / "s", of_the_patient, pixels), pixels.astype(np.uint8)
    mask[2] = np.random.default_rng(0).random((96, 96)) < 0.8
    path = drawn(tmp_path / "labels", "rt.dcm", image, mask)
    np.testing.assert_array_equal(read_labels_of(path, read_volume(image)), mask)
    # and as others write it: in the explicit encoding such an element is of unknown kind
    changed(path, lambda made: setattr(made.file_meta, "TransferSyntaxUID", pydicom.uid.ExplicitVRLittleEndian))
    np.testing.assert_array_equal(read_labels_of(path, read_volume(image)), mask)


def test_a_series_that_says_a_wrong_distance_of_its_slices_does_not_spoil_what_is_written(tmp_path: Path) -> None:
    image = series(tmp_path / "s", of_the_patient_with(SpacingBetweenSlices="0.5"))
    volume = read_volume(image)
    mask = some_mask(volume.array.shape)
    path = drawn(tmp_path / "labels", "seg.dcm", image, mask)
    np.testing.assert_array_equal(read_labels_of(path, volume), mask)
    part = highdicom.seg.segread(path).get_volume(segment_numbers=[1])
    assert part.spacing[0] == pytest.approx(np.linalg.norm(volume.ijk_to_ras[:3, 2]))


@pytest.mark.parametrize("name", WRITERS)
def test_labels_follow_an_image_that_was_turned_when_it_was_converted(tmp_path: Path, image: Path, name: str) -> None:
    # given the same image as a file with its axes in another order and direction, as converters leave it
    volume = read_volume(image)
    mask = some_mask(volume.array.shape)
    path = drawn(tmp_path, name, image, mask)
    turned = volume.ijk_to_ras[:, [2, 0, 1, 3]] @ np.diag([1.0, -1, 1, 1])
    turned[:3, 3] += volume.ijk_to_ras[:3, 0] * (volume.shape_ijk[0] - 1)
    array = np.ascontiguousarray(volume.array.transpose(1, 2, 0)[:, ::-1])
    # when, then
    labels = read_labels_of(path, Volume(array, turned, "turned.nii.gz"))
    np.testing.assert_array_equal(labels, mask.transpose(1, 2, 0)[:, ::-1])


def two_regions(path: Path) -> None:
    """Add a region of the number 7 to a structure set: the square of four pixels beside the first slice's corner."""

    def add(made: Dataset) -> None:
        region, contours = (
            pydicom.dcmread(path)[name].value[0] for name in ("StructureSetROISequence", "ROIContourSequence")
        )
        region.ROINumber, region.ROIName, contours.ReferencedROINumber = 7, "GTV 1", 7
        contour = contours.ContourSequence[0]
        x, y = np.array([[-0.5, 1.5, 1.5, -0.5], [-0.5, -0.5, 1.5, 1.5]])
        points = np.column_stack((-10 + 1.5 * x, -20 + 2 * y, np.full(4, 30.0)))
        contour.ContourData, contour.NumberOfContourPoints = points.ravel().tolist(), 4
        contours.ContourSequence = [contour]
        made.StructureSetROISequence.append(region)
        made.ROIContourSequence.append(contours)

    changed(path, add)


def test_segments_are_chosen_by_name_pattern_or_number_and_what_there_is_is_listed(tmp_path: Path, image: Path) -> None:
    # given
    volume = read_volume(image)
    mask = some_mask(volume.array.shape)
    path = drawn(tmp_path, "rt.dcm", image, mask)
    two_regions(path)
    other = np.zeros_like(mask)
    other[0, :2, :2] = 1
    # when, then: all by their numbers, or those that are named as 1, 2, ...
    np.testing.assert_array_equal(read_labels_of(path, volume), mask + 7 * other)
    for named in (["gtv 1", "Kidney"], ["GTV*", "1"], ["7", "kid*"]):
        np.testing.assert_array_equal(read_labels_of(path, volume, named), other + 2 * mask)
    for named, said in ((["Liver"], "no segment 'Liver'"), (["*"], "several segments '*'")):
        with pytest.raises(BadInput, match=re.escape(said)) as caught:
            read_labels_of(path, volume, named)
        assert "1 'Kidney', 7 'GTV 1'" in caught.value.sentence
    # what lies over one another has no one label
    with pytest.raises(BadInput, match="'Kidney' and 'Kidney' of .* overlap"):
        read_labels_of(path, volume, ["Kidney", "1"])


def test_of_several_objects_in_a_folder_the_ones_of_the_image_count(tmp_path: Path, image: Path) -> None:
    # given a folder with the objects of two series, the image's with two of them
    other = series(tmp_path / "other", of_the_patient_with(SeriesInstanceUID="9.9"))
    volume = read_volume(image)
    mask = some_mask(volume.array.shape)
    labels = tmp_path / "labels"
    drawn(labels / "a", "seg.dcm", other, mask)
    drawn(labels / "b", "rt.dcm", image, mask[:, ::-1])
    np.testing.assert_array_equal(read_labels_of(labels, volume), mask[:, ::-1])
    two_regions(labels / "b" / "rt.dcm")
    drawn(labels / "c", "seg.dcm", image, mask)
    # then: doubt is said, and names choose across files
    with pytest.raises(BadInput, match="holds 2 DICOM objects with 1 'Kidney', 7 'GTV 1', 1 'Kidney'"):
        read_labels_of(labels, volume)
    assert read_labels_of(labels, volume, ["GTV 1"]).sum() == 4


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_drawn_on_another_image_is_refused(tmp_path: Path, image: Path, name: str) -> None:
    volume = read_volume(image)
    path = drawn(tmp_path, name, image, some_mask(volume.array.shape))

    def of(**fields: object) -> Volume:
        return read_volume(series(tmp_path / "odd", of_the_patient_with(**fields)))

    uids = {"SeriesInstanceUID": "series 1.2.3.4, and", "FrameOfReferenceUID": "frame of reference 1.2.3.9, and"}
    for field, said in uids.items():
        with pytest.raises(BadInput, match=f"drawn on the {said} the image odd is of 8.8"):
            read_labels_of(path, of(**{field: "8.8"}))
    turns = {"size or direction|not parallel|apart": {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]},
             "size or direction|beyond it": {"PixelSpacing": [1, 0.75]}}  # fmt: skip
    for said, fields in turns.items():
        odd = of(**fields)
        if name == "rt.dcm" and "ImageOrientationPatient" in fields:
            continue  # contours of a turned image in the same plane are those of that image
        with pytest.raises(GeometryUnsupported, match=said):
            read_labels_of(path, odd)
    for off, said in ((1.5, "of one apart|between slices"), (16, "lie beyond it|lies beyond it")):
        shifted = Volume(volume.array, volume.ijk_to_ras.copy(), "shifted.nii.gz")
        shifted.ijk_to_ras[2, 3] += off
        with pytest.raises(GeometryUnsupported, match=said):
            read_labels_of(path, shifted)


def test_contours_with_gaps_or_across_slices_are_refused(tmp_path: Path, image: Path) -> None:
    volume = read_volume(image)
    mask = np.zeros(volume.array.shape, np.uint8)
    mask[::2, 2:5, 2:5] = 1
    path = drawn(tmp_path, "rt.dcm", image, mask)
    with pytest.raises(GeometryUnsupported, match="drawn on every 2. slice only"):
        read_labels_of(path, volume)

    def tilt(made: Dataset) -> None:
        contour = made.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData[2] = float(contour.ContourData[2]) + 3

    with pytest.raises(GeometryUnsupported, match="not parallel to slices"):
        read_labels_of(changed(path, tilt), volume)


def test_without_highdicom_the_command_that_installs_it_is_named(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_volume(image)
    path = drawn(tmp_path, "seg.dcm", image, some_mask(volume.array.shape))
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(DependencyMissing) as missing:
        read_labels_of(path, volume)
    assert "pip install 'highdicom" in missing.value.remedy


@pytest.mark.parametrize(
    "case",
    ["STS_025/CT", "STS_025/MR_T1", "STS_025/PET", "ibsi1_lungct_rtstruct"],
    ids=lambda case: case.replace("/", "-"),
)
def test_clinical_contours_are_filled_as_by_another_implementation(shared_data: Path, case: str) -> None:
    """Matplotlib's point-in-polygon test at every voxel; what differs lies within a contour's rounding, 0.01 pixel."""
    from matplotlib.path import Path as Outline

    folder = shared_data / "dicom" / case
    volume = read_volume(folder / "image")
    labels = read_labels_of(folder / "mask", volume)
    (file,) = (folder / "mask").iterdir()
    expected = np.zeros(labels.shape, bool)
    near = np.zeros(labels.shape, bool)
    rows, columns = np.mgrid[: labels.shape[1], : labels.shape[2]]
    centers = np.column_stack((columns.ravel(), rows.ravel())).astype(float)
    for contour in pydicom.dcmread(file).ROIContourSequence[0].ContourSequence:
        ijk = volume.to_ijk(np.array(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1))
        k = round(float(ijk[0, 2]))
        outline = Outline(ijk[:, :2], closed=False)
        inner, outer = (outline.contains_points(centers, radius=radius).reshape(rows.shape) for radius in (-0.01, 0.01))
        expected[k] ^= outline.contains_points(centers).reshape(rows.shape)
        near[k] |= inner != outer
    assert labels.max() == 1 and labels.sum() > 500
    odd = (labels > 0) != expected
    assert not (odd & ~near).any() and odd.sum() <= 0.001 * labels.sum()
    with pytest.raises(BadInput, match="holds no segment 'Heart'"):
        read_labels_of(folder / "mask", volume, ["Heart"])


def test_contours_of_one_series_are_no_labels_of_another_one(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "STS_025"
    with pytest.raises(BadInput, match="was drawn on the series .* and the image image is of"):
        read_labels_of(folder / "CT" / "mask", read_volume(folder / "PET" / "image"))


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_a_changed_file_holds_the_answer_is_labels_or_a_sentence(
    tmp_path: Path, image: Path, name: str
) -> None:
    volume = read_volume(image)
    good = drawn(tmp_path, name, image, some_mask(volume.array.shape)).read_bytes()
    refused = 0
    for seed in range(70):
        rng = random.Random(seed)
        path = tmp_path / f"tried-{name}"
        path.write_bytes(rng.choice((mutate_bytes, mutate_dicom))(rng, good))
        try:
            assert read_labels_of(path, volume).shape == volume.array.shape
        except (BadInput, GeometryUnsupported) as error:
            refused += bool(error.message)
    assert refused > 5
    # a name of a segment or a modality of a kind that there is not
    start = good.index(b"RTSTRUCT" if name == "rt.dcm" else b"SEG") - 8
    (tmp_path / "odd.dcm").write_bytes(good[: start + 4] + b"Cw" + good[start + 6 :])
    with pytest.raises(BadInput):
        read_labels_of(tmp_path / "odd.dcm", volume)


def data_set(folder: Path, labels: str = "rt.dcm") -> Path:
    """Four patients, each a folder with a study of two series and an object drawn on one of them."""
    for number in range(1, 5):
        study = folder / f"pat{number}" / "study"
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 300, (6, 24, 24)).astype(np.int16)
        mask = np.zeros(pixels.shape, np.uint8)
        mask[1:5, 6:14, 8 : 12 + number] = 1
        pixels[mask > 0] += 500
        for uid, words in ((f"1.2.{number}.1", "T1 post"), (f"1.2.{number}.2", "localizer")):

            def change(t: int, made: Dataset, uid: str = uid, words: str = words, number: int = number) -> None:
                of_the_patient(t, made)
                made.SeriesInstanceUID, made.SeriesDescription, made.PatientID = uid, words, str(number)
                made.SOPInstanceUID = f"{uid}.{t + 1}"
                made.file_meta.MediaStorageSOPInstanceUID, made.Modality = made.SOPInstanceUID, "MR"

            series(study / uid, change, pixels)
        drawn(study / f"labels.{number}", labels, study / f"1.2.{number}.1", mask)
    return folder


@pytest.mark.parametrize("labels", WRITERS)
def test_init_plans_from_dicom_and_training_and_evaluation_read_what_it_wrote(tmp_path: Path, labels: str) -> None:
    # given
    folder = data_set(tmp_path / "data", labels)
    output = tmp_path / "plan.toml"
    given = ["init", str(folder), "-o", str(output), "--no-measure", "--structure", "Kidney", "--device", "cpu"]
    # when no series is chosen, the two of each case are named with what chooses
    refused = CliRunner().invoke(app_module.build_app(), given)
    assert refused.exit_code == 2 and "holds 2 DICOM image series" in refused.stderr, refused.output
    assert "T1 post" in refused.stderr and "--series" in refused.stderr
    # when it is
    words = ["--series", "T1 post", "--segment", "kid*"]
    result = CliRunner().invoke(app_module.build_app(), [*given, *words])
    # then
    assert result.exit_code == 0, result.output
    config = read_training_config(output)
    data = config.data
    assert (data.image, data.label, data.series, data.segments) == ("{case}/study",) * 2 + ("T1 post", ("kid*",))
    root = (output.parent / data.folder).resolve()
    for number in range(1, 5):
        loaded = load_case(root, f"pat{number}", data, config.intensity)
        assert [target.mask.sum() for target in loaded.targets] == [4 * 8 * (4 + number)]
    (target,) = load_targets(root, data, ["pat2"])
    assert target.mask.sum() == 4 * 8 * 6 and target.path is not None


@pytest.mark.parametrize("apart", [True, False])
def test_init_says_where_cases_of_one_patient_are_divided(tmp_path: Path, apart: bool) -> None:
    for case in ("x7", "y3"):
        number = case if apart else "17"
        made = series(tmp_path / "data" / case / "image", of_the_patient_with(PatientID=number), PIXELS + ord(case[0]))
        mask = np.ones(PIXELS.shape, np.uint8)
        drawn(tmp_path / "data" / case / "label", "rt.dcm", made, mask)
    given = ["init", str(tmp_path / "data"), "-o", str(tmp_path / "p.toml"), "--no-measure", "--structure", "Kidney"]
    result = CliRunner().invoke(app_module.build_app(), given)
    assert result.exit_code == 0, result.output
    assert ("x7, y3 are of one patient by their DICOM files" in result.stderr) is not apart


def test_init_finds_folders_of_series_and_labels_beside_each_other(shared_data: Path, tmp_path: Path) -> None:
    # given cases as a public archive gives them: three modalities, each with its own contours
    result = CliRunner().invoke(
        app_module.build_app(),
        ["init", str(shared_data / "dicom" / "STS_025"), "-o", str(tmp_path / "a.toml"), "--no-measure",
         "--device", "cpu", "--segment", "GTV*", "--structure", "Sarcoma"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = read_training_config(tmp_path / "a.toml").data
    assert "CT, MR_T1, PET are of one patient by their DICOM files" in result.stderr
    assert (data.image, data.label) == ("{case}/image", "{case}/mask")
    assert sorted((*data.train, *data.validation)) == ["CT", "MR_T1", "PET"]


def test_init_pairs_folders_of_series_with_label_maps(tmp_path: Path) -> None:
    # given
    for number in (1, 2, 3):
        image = series(tmp_path / f"p{number}" / "CT", of_the_patient_with(SeriesInstanceUID=f"1.2.{number}"))
        volume = read_volume(image)
        write_labelmap(tmp_path / f"p{number}" / "label.nii.gz", some_mask(volume.array.shape), volume)
    # when
    found = find_cases(tmp_path)
    # then
    assert (found.image, found.label, found.cases) == ("{case}/CT", "{case}/label.nii.gz", ("p1", "p2", "p3"))
    seen, labels = read_labeled(tmp_path, found, "p2")
    assert seen.series_uid == "1.2.2" and (labels == some_mask(labels.shape)).all()
