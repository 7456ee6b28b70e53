"""Cases of a joint training: found as they are named, learned as they are labeled, and what cannot be used is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_training import write_cases

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.networks.config import SegmentationLossConfig
from SPDSegmentLib.training.joint_cases import JointTarget, JointVolume, case_names, load_joint_cases
from SPDSegmentLib.training.joint_config import JointStage, SetConfig

STAGE = JointStage(click_sets=2)
CAUDATE, INSULA = 11, 1035
"""Labels of FreeSurfer that are one in 8 bits."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data")
    return tmp_path


def load(data: Path, said: list[str] | None = None, **settings: object) -> tuple[list[JointVolume], list[JointTarget]]:
    """The cases of a set; what is said of them is appended to ``said``."""
    spec = SetConfig("data", **{"structures": {"blob": (1,)}, **settings})  # type: ignore[arg-type]
    sentences = list[str]() if said is None else said
    return load_joint_cases({"set": spec}, data, STAGE, 0, say=sentences.append)


def change(path: Path, values: np.ndarray) -> None:
    """Write other voxels into a file."""
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(sitk.ReadImage(str(path)))
    sitk.WriteImage(image, str(path))


def voxels(path: Path) -> np.ndarray:
    """Of a file."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def test_label_values_above_255_are_learned_as_they_are(data: Path) -> None:
    blobs = []
    for path in sorted((data / "data").glob("*_label.nii.gz")):
        labels = np.where(voxels(path) > 0, CAUDATE, 0).astype(np.int16)
        labels[:, :10, :10] = INSULA
        blobs.append(int((labels == CAUDATE).sum()))
        change(path, labels)
    structures = {"caudate": (CAUDATE,), "insula": (INSULA,), "both": (CAUDATE, INSULA)}
    volumes, targets = load(data, structures=structures)
    found = {(t.volume, t.group): int(np.isin(volumes[t.volume].labels, t.values).sum()) for t in targets}
    corner = 14 * 10 * 10
    for case, blob in enumerate(blobs):
        sizes = [found[case, f"set:{name}"] for name in structures]
        assert sizes == [blob, corner, blob + corner]


def test_more_label_values_than_a_volume_holds_are_refused() -> None:
    with pytest.raises(BadInput, match="more than 255 different label values"):
        SetConfig("data", {str(value): (value,) for value in range(1, 257)})


def test_a_ct_that_is_shifted_is_refused(data: Path) -> None:
    path = data / "data" / "a_image.nii.gz"
    change(path, (voxels(path) + 1024).astype(np.uint16))
    with pytest.raises(BadInput, match="no Hounsfield units"):
        load(data, modality="CT")


def test_a_set_of_which_everything_is_excluded_is_refused(data: Path) -> None:
    names = tuple(path.name.removesuffix("_image.nii.gz") for path in (data / "data").glob("*_image.nii.gz"))
    with pytest.raises(BadInput, match="Every case of .*data is in exclude"):
        load(data, exclude=names)


def test_a_plane_that_is_none_is_named_with_its_set(data: Path) -> None:
    with pytest.raises(BadInput, match="Unknown plane of data 'top'"):
        load(data, plane="top")


def test_an_excluded_name_that_is_no_case_is_refused(data: Path) -> None:
    with pytest.raises(BadInput, match="holds no case A, which exclude of its set names") as refused:
        load(data, exclude=("A",))
    assert "there are a, b" in refused.value.remedy
    assert [volume.name for volume in load(data, exclude=("a",))[0]] == ["data/b"]


def test_a_case_that_is_named_twice_is_read_once(data: Path) -> None:
    assert len(load(data, cases=("a", "a"))[0]) == 1


def test_a_structure_that_no_case_shows_is_refused_and_one_that_some_lack_is_said(data: Path) -> None:
    path = data / "data" / "b_label.nii.gz"
    change(path, voxels(path) * 2)
    said: list[str] = []
    _, targets = load(data, said)
    assert [target.volume for target in targets] == [0]
    assert len(said) == 1 and said[0].startswith("[sets.set] does not teach blob with b: fewer than 30 voxels")
    with pytest.raises(BadInput, match="None of the data sets holds missing"):
        load(data, structures={"blob": (1,), "missing": (77,)})


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz"),
        ("{case}/t2.nii.gz", "{case}/label.nii.gz"),
        ("{case}/{case}_t2.nii.gz", "{case}/{case}_label.nii.gz"),
        ("[raw] {case}.nii.gz", "{case} mask.nii.gz"),
    ],
)
def test_cases_are_found_in_the_layouts_that_plain_training_takes(tmp_path: Path, image: str, label: str) -> None:
    for case, patterns in {"p2": (image, label), "p1": (image, label), "unlabeled": (image,)}.items():
        for pattern in patterns:
            path = tmp_path / pattern.format(case=case)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert case_names(SetConfig("x", {"a": (1,)}, image=image, label=label), tmp_path) == ["p1", "p2"]


@pytest.mark.parametrize("name", ["psc_weight", "quality_weight", "warmup"])
def test_a_negative_weight_or_warm_up_of_the_stage_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"{name} is -1"):
        JointStage(**{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"dice_weight": -1.0}, {"focal_weight": -20.0}, {"focal_alpha": 7.0}, {"focal_gamma": 0.5}]
)
def test_a_loss_that_rewards_errors_or_has_no_bound_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        SegmentationLossConfig(**settings)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"structures": {"air": (0,)}}, {"structures": {"none": ()}}])
def test_a_set_that_teaches_nothing_or_the_background_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"weight is 0|label values of"):
        SetConfig("data", **{"structures": {"blob": (1,)}, **settings})  # type: ignore[arg-type]
