"""``spdsegment init``: what belongs together, what is wrong, what is planned, and a configuration that trains."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tomllib
import typing
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_training import write_cases
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.labelmap import write_labelmap
from SPDSegmentLib.geometry.volume import Volume, read_volume, set_geometry
from SPDSegmentLib.models.bundle import read_bundle
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.settings import documented
from SPDSegmentLib.training import planning
from SPDSegmentLib.training.config import TrainingConfig, patient_of, patient_pattern, read_training_config
from SPDSegmentLib.training.planning import configuration_text, measure_time, plan
from SPDSegmentLib.training.survey import find_cases, shared_numbers, survey


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app_module.build_app(), [str(a) for a in arguments])


def init(folder: Path, *extra: str | Path) -> Result:
    return run("init", folder, "--output", folder.parent / "plan.toml", "--no-measure", *extra)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def write_case(
    folder: Path, name: str, values: dict[int, tuple[slice, slice, slice]], spacing: tuple[float, float, float],
    shape: tuple[int, int, int] = (20, 40, 40), is_ct: bool = False,
) -> None:  # fmt: skip
    """A volume (K, J, I) of noise with boxes of label values."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    image = rng.normal(30, 15, shape) - (1000 * (rng.random(shape) < 0.4) if is_ct else 0)
    labels = np.zeros(shape, np.uint8)
    for value, box in values.items():
        labels[box] = value
        image[box] += 60
    volume = Volume(np.rint(image if is_ct else image.clip(1)).astype(np.int16), np.diag([*spacing, 1.0]), name)
    sitk.WriteImage(
        set_geometry(sitk.GetImageFromArray(volume.array), volume.ijk_to_ras), str(folder / f"{name}_image.nii.gz")
    )
    write_labelmap(folder / f"{name}_label.nii.gz", labels, volume)


BOX = (slice(4, 16), slice(10, 20), slice(12, 20))


@pytest.mark.parametrize(
    ("names", "image", "label", "cases"),
    [
        (["p1_image.nii.gz", "p1_label.nii.gz", "p2_image.nii.gz", "p2_label.nii.gz"], "{case}_image.nii.gz",
         "{case}_label.nii.gz", ("p1", "p2")),
        (["imagesTr/li_1_0000.nii.gz", "labelsTr/li_1.nii.gz", "imagesTr/li_2_0000.nii.gz", "labelsTr/li_2.nii.gz",
          "imagesTs/li_9_0000.nii.gz"], "imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz", ("li_1", "li_2")),
        ([f"imagesTr/{c}_{n}.nii.gz" for c in "ab" for n in ("0000", "0001")] + [f"labelsTr/{c}.nii.gz" for c in "ab"],
         "imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz", ("a", "b")),
        (["C0.mhd", "C0_segmentation.mhd", "C1.mhd", "C1_segmentation.mhd"], "{case}.mhd", "{case}_segmentation.mhd",
         ("C0", "C1")),
        (["a.nhdr", "a_label.nhdr", "b.nhdr", "b_label.nhdr"], "{case}.nhdr", "{case}_label.nhdr", ("a", "b")),
        (["a/ct.nrrd", "a/seg.seg.nrrd", "b/ct.nrrd", "b/seg.seg.nrrd"], "{case}/ct.nrrd", "{case}/seg.seg.nrrd",
         ("a", "b")),
        (["s-1/s-1_t2.mha", "s-1/s-1_mask.mha", "s-2/s-2_t2.mha", "s-2/s-2_mask.mha"], "{case}/{case}_t2.mha",
         "{case}/{case}_mask.mha", ("s-1", "s-2")),
        (["x 1.nii", "x 1_seg.nii", "x 2.nii", "x 2_seg.nii"], "{case}.nii", "{case}_seg.nii", ("x 1", "x 2")),
    ],
)  # fmt: skip
def test_usual_ways_to_name_files_are_recognized(
    tmp_path: Path, names: list[str], image: str, label: str, cases: tuple[str, ...]
) -> None:
    found = find_cases(touch(tmp_path, *names))
    assert (found.image, found.label, found.cases) == (image, label, cases)


def test_names_of_ones_own_are_said_by_patterns(tmp_path: Path) -> None:
    folder = touch(tmp_path, "scan7.nii", "kidney7.nii", "scan8.nii", "kidney8.nii", "scan9.nii")
    with pytest.raises(BadInput, match="No image of .* has a label"):
        find_cases(folder)
    found = find_cases(folder, "scan{case}.nii", "kidney{case}.nii")
    assert found.cases == ("7", "8") and found.unpaired == ("9",)


@pytest.mark.parametrize(
    "label", ["{case}/segmentations/{part}.nii.gz", "{case}/label_{part}.nii.gz", "segmentations/{case}_{part}.nii.gz"]
)
def test_labels_of_several_namings_are_listed_and_one_is_to_be_chosen(tmp_path: Path, label: str) -> None:
    image, parts = "{case}/ct.nii.gz", ("kidney_left", "vertebrae_T9")
    names = (image, *(label.replace("{part}", part) for part in parts))
    folder = touch(tmp_path, *(name.format(case=f"s000{n}") for n in range(4) for name in names))
    (folder / names[1].format(case="s0003")).unlink()
    with pytest.raises(BadInput, match="labels of 2 kinds of names") as refused:
        find_cases(folder)
    assert names[1] in refused.value.message and f"--label '{names[1]}'" in refused.value.remedy
    found = find_cases(folder, label=names[1])
    assert (found.image, found.label, found.cases) == (image, names[1], ("s0000", "s0001", "s0002"))


def test_cases_in_folders_of_sessions_are_said_by_one_pattern_and_stay_with_their_patient(tmp_path: Path) -> None:
    visits = [f"sub-0{n}/ses-{k}/anat/sub-0{n}_ses-{k}" for n in (1, 2) for k in (1, 2)]
    folder = touch(tmp_path, *(f"{v}_T1w.nii.gz" for v in visits), *(f"labels/{v}_T1w_seg.nii.gz" for v in visits))
    with pytest.raises(BadInput, match="labels of 2 kinds of names") as refused:
        find_cases(folder)
    assert "let {case} stand for folders too" in refused.value.remedy
    found = find_cases(folder, "{case}_T1w.nii.gz", "labels/{case}_T1w_seg.nii.gz")
    assert found.cases == tuple(visits) and not found.unpaired
    touch(tmp_path, "labels/template_T1w_seg.nii.gz")
    assert find_cases(folder, found.image, found.label).cases == tuple(visits)
    pattern = patient_pattern(found.cases)
    assert [patient_of(case, pattern) for case in found.cases] == ["sub-01", "sub-01", "sub-02", "sub-02"]


def test_a_map_of_very_many_structures_is_no_image(tmp_path: Path) -> None:
    boxes = {
        n: (slice(4 * (n // 30), 4 * (n // 30) + 4), slice(n % 30, n % 30 + 1), slice(2, 30)) for n in range(1, 90)
    }
    for name in ("c0", "c1"):
        write_case(tmp_path / "data", name, boxes, (1, 1, 4))
    found = find_cases(tmp_path / "data")
    seen = survey(tmp_path / "data", found, targets=[(5,), (6, 7)])
    assert not seen.unusable and [set(facts.structures) for facts in seen.facts] == [{(5,), (6, 7)}] * 2
    result = init(tmp_path / "data", "--target", "5")
    assert result.exit_code == 0, result.output
    assert read_training_config(tmp_path / "plan.toml").data.targets == ((5,),)


def test_every_file_is_checked_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("p1", "p2", "p3", "p4", "p5", "p6", "p7"):
        write_case(folder, name, {1: BOX}, (1, 1, 4))
    for kind in ("image", "label"):
        shutil.copy(folder / f"p1_{kind}.nii.gz", folder / f"p8_{kind}.nii.gz")  # a copy under another name
    write_case(folder, "p9", {}, (1, 1, 4))
    write_case(folder, "pa", {1: BOX, 5: (slice(0, 2), slice(0, 3), slice(0, 3))}, (1, 1, 4))
    label = read_volume(folder / "p2_label.nii.gz")
    write_labelmap(
        folder / "p2_label.nii.gz", label.array[:-1], Volume(label.array[:-1], label.ijk_to_ras)
    )  # another grid than its image
    (folder / "p3_image.nii.gz").write_bytes((folder / "p3_image.nii.gz").read_bytes()[:-200])
    shutil.copy(folder / "p4_image.nii.gz", folder / "p4_label.nii.gz")  # no label map
    result = init(folder, "--target", "1")
    assert result.exit_code == 0, result.output
    said = result.stderr
    assert "Case p2 is left out" in said and "does not have the same grid" in said
    assert "Case p3 is left out" in said and "Case p4 is left out" in said
    assert "Case p8 is left out: its image is that of p1" in said
    assert "1 cases have no label but 0 and serve as background: p9" in said
    assert "Case pa has the label values 5, which most have not" in said and "on fewer than 3 slices" in said
    data = read_training_config(tmp_path / "plan.toml").data
    assert set(data.train) | set(data.validation) == {"p1", "p5", "p6", "p7", "p9", "pa"}
    assert "p9" in data.train  # background is nothing to validate by


def test_plane_view_intensity_and_size_come_from_the_data(tmp_path: Path) -> None:
    thick, long, ct = tmp_path / "thick", tmp_path / "long", tmp_path / "ct"
    for n in range(4):
        write_case(thick, f"c{n}", {1: (slice(4, 16), slice(5, 12), slice(10, 30))}, (1.5, 1.5, 6.0))
        write_case(long, f"c{n}", {1: (slice(5, 12), slice(2, 38), slice(10, 18))}, (1.0, 1.0, 1.0))
        write_case(ct, f"c{n}", {1: BOX}, (1.0, 1.0, 1.0), is_ct=True)
    assert init(thick).exit_code == 0
    config = read_training_config(tmp_path / "plan.toml")
    assert (config.data.plane, config.intensity.kind, config.bundle.modality) == ("axial", "percentile", "MR")
    assert config.fov_mm == 72 and config.network.image_size == 112  # 20 voxels of 1.5 mm, 2.4 times
    assert init(long, "--replace").exit_code == 0
    assert read_training_config(tmp_path / "plan.toml").data.plane == "coronal"
    halves = {1: (slice(5, 12), slice(2, 20), slice(10, 30)), 2: (slice(5, 12), slice(20, 38), slice(10, 30))}
    for n in range(4):
        write_case(tmp_path / "halves", f"c{n}", halves, (1.0, 1.0, 1.0))
    assert init(tmp_path / "halves", "--replace", "--target", "1+2").exit_code == 0
    assert read_training_config(tmp_path / "plan.toml").data.plane == "coronal"  # of both together; of one: sagittal
    assert init(ct, "--replace").exit_code == 0
    config = read_training_config(tmp_path / "plan.toml")
    assert config.intensity.kind == "window" and config.bundle.modality == "CT"
    assert config.intensity.low <= -160 and config.intensity.high >= 240 and config.augmentation.bias_field == 0


def test_a_dataset_json_names_structure_and_modality(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001"
    for n in range(3):
        write_case(folder, f"c{n}", {2: BOX}, (1, 1, 3))
    text = {"labels": {"background": 0, "spleen": 2}, "channel_names": {"0": "MRI"}, "name": "D", "licence": "CC0"}
    (folder / "dataset.json").write_text(json.dumps(text), encoding="utf-8")
    assert init(folder).exit_code == 0
    bundle = read_training_config(tmp_path / "plan.toml").bundle
    assert (bundle.name, bundle.structure, bundle.license) == ("spleen-mr", "spleen", "CC0")


def test_no_patient_trains_and_validates(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for person in range(12):
        for side in ("left", "right"):
            write_case(folder, f"subj{person:02d}_{side}", {1: BOX}, (1, 1, 4))
    assert init(folder).exit_code == 0
    data = read_training_config(tmp_path / "plan.toml").data  # which itself refuses a patient in two parts
    assert data.patient_pattern != "(.*)"
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 4)
    refused = init(folder, "--replace", "--validation", "subj03_left")
    assert refused.exit_code == 2 and "Patient subj03 is in both train and validation" in refused.stderr
    assert init(folder, "--replace", "--validation", "subj03_left,subj03_right").exit_code == 0
    assert read_training_config(tmp_path / "plan.toml").data.validation == ("subj03_left", "subj03_right")


def test_patients_are_read_from_usual_names() -> None:
    assert patient_pattern(["chaos_01", "chaos_02"]) == "(.*)"
    assert patient_pattern(["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]) != "(.*)"
    assert patient_pattern(["k1_left", "k1_right", "k2_left"]) != "(.*)"


@pytest.mark.parametrize(
    ("cases", "patients"),
    [
        ("p01_t1_left p01_t1_right p01_t2_left p02_t1_left", "p01 p01 p01 p02"),
        ("p01_left p01_right p12_left p13", "p01 p01 p12 p13"),
        ("p13 p13_left p14", "p13 p13 p14"),
        ("sub-01_run-1 sub-01_run-2 control", "sub-01 sub-01 control"),
        ("CT_scan001 CT_scan002 CT_scan003", "CT_scan001 CT_scan002 CT_scan003"),
        ("MR-T00 MR-T01", "MR-T00 MR-T01"),
        ("ptx01_000 ptx01_001", "ptx01_000 ptx01_001"),
        (" ".join(f"{kind}_t{n}" for kind in ("ct", "mr") for n in range(20)),) * 2,
        ("case000_baseline case000_followup case001_baseline", "case000 case000 case001"),
        ("000_Day0 000_Day30 001_Day0", "000 000 001"),
        ("patient00L patient00R patient01L", "patient00 patient00 patient01"),
        ("p01/ses1 p01/ses2 p02/ses1 p02/ses2", "p01 p01 p02 p02"),
        ("Doe/first Doe/second Roe/first", "Doe Doe Roe"),
    ],
)
def test_cases_of_one_patient_belong_together_though_not_every_name_says_so(cases: str, patients: str) -> None:
    pattern = patient_pattern(cases.split())
    assert [patient_of(case, pattern) for case in cases.split()] == patients.split()


def test_cases_that_may_be_of_one_patient_are_said(tmp_path: Path) -> None:
    cases = [f"Case {n:02d} {side}" for n in range(3) for side in ("left", "right")]
    assert {patient_of(case, patient_pattern(cases)) for case in cases} == {"Case 00", "Case 01", "Case 02"}
    for n in range(6):
        write_case(tmp_path / "data", f"P{n // 2}_{n % 2}", {1: BOX}, (1, 1, 4))
    said = init(tmp_path / "data").stderr
    assert r"P0_0, P0_1 count as 2 patients" in said and r"--patient '(\D*\d+)'" in said
    assert "count as" not in init(tmp_path / "data", "--replace", "--patient", r"(\D*\d+)").stderr
    assert not any(shared_numbers(names, "(.*)") for names in (["chaos_01", "chaos_02"], ["BraTS_19_1", "BraTS_19_2"]))


@pytest.mark.parametrize("pattern", [r"c\d+", "(", r"(case\d+)", "(c[01])", "(x)?", ""])
def test_a_pattern_of_patients_is_checked_before_the_files(tmp_path: Path, pattern: str) -> None:
    folder = touch(tmp_path / "data", *(f"c{n}_{kind}.nii.gz" for n in range(3) for kind in ("image", "label")))
    result = init(folder, "--patient", pattern)
    assert result.exit_code == 2
    assert ("--patient" in result.stderr) == bool(pattern), result.stderr


def test_names_with_spaces_and_signs_are_written_as_toml_and_patients_are_said(tmp_path: Path) -> None:
    folder, names = tmp_path / "data", [f"Patient {n:03d}, of the {n}. ward{sign}" for n in range(4) for sign in "'\\"]
    for name in names:
        write_case(folder, name, {1: BOX}, (1, 1, 4))
    result = init(folder, "--patient", r"(Patient \d+)")
    assert result.exit_code == 0, result.output
    assert f"4, as in Patient 000: {names[0]}, {names[1]}" in result.output
    data = read_training_config(tmp_path / "plan.toml").data
    assert sorted([*data.train, *data.validation]) == sorted(names)
    odd = ["a\u2028b", "c\nd", "e\\\tf", "g\x7fh", "i  j"] * 9
    assert tomllib.loads(f"x = {planning._toml(odd)}")["x"] == odd


def test_what_cannot_be_planned_is_refused_and_nothing_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert "There is no folder" in init(folder).stderr
    for n in range(2):
        write_case(folder, f"c{n}", {1: BOX}, (1, 1, 4))
    assert "no list of label values" in init(folder, "--target", "one").stderr
    assert "No case has the label value 7; they have 1" in init(folder, "--target", "7").stderr
    assert "There is no case x to validate with" in init(folder, "--validation", "x").stderr
    assert "has no {case} in it" in init(folder, "--image", "image.nii.gz").stderr
    assert "No case is left to train with" in init(folder, "--validation", "c0,c1").stderr
    for option, text in (("--name", "My Model!"), ("--structure", " "), ("--structure", "x" * 197)):
        refused = init(folder, option, text)
        assert refused.exit_code == 2 and "Correct --name or --structure" in refused.stderr
        assert "2 cases" not in refused.stderr, "before the files are read"
    assert init(folder, "--structure", "x" * 150).exit_code == 0
    read_training_config(tmp_path / "plan.toml")
    (tmp_path / "plan.toml").unlink()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"x" * 300: 1}}), encoding="utf-8")
    assert "Correct --name or --structure" in init(folder).stderr
    (tmp_path / "plan.toml").write_text("mine", encoding="utf-8")
    assert "is there already" in init(folder).stderr
    assert (tmp_path / "plan.toml").read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.glob(".*")) and sorted(p.name for p in tmp_path.iterdir()) == ["data", "plan.toml"]


def test_every_key_is_documented_by_its_dataclass_and_read_again_as_it_was_written(tmp_path: Path) -> None:
    def check(cls: type) -> None:
        told = documented(cls)
        for name, kind in typing.get_type_hints(cls).items():
            assert len(told.get(name, "")) > 4, f"{cls.__name__}.{name} is documented nowhere"
            if dataclasses.is_dataclass(kind):
                check(kind)  # type: ignore[arg-type]

    check(TrainingConfig)
    folder = tmp_path / "data"
    for n in range(6):
        write_case(folder, f"c{n}", {1: BOX, 2: (slice(4, 16), slice(24, 34), slice(12, 20))}, (1, 1, 4))
    made = plan(survey(folder, find_cases(folder)), "data", structure='The "odd" \\ one', name="odd")
    path = tmp_path / "odd.toml"
    path.write_text(configuration_text(made, ["head"]), encoding="utf-8")
    assert read_training_config(path) == made.config
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120
    assert any("each is a structure of its own" in note for note in made.notes)
    uncommented = [re.sub(r"^# (\w+ = )", r"\1", line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(line.startswith("psc_direction = ") for line in uncommented) == 1
    path.write_text("\n".join(uncommented), encoding="utf-8")  # what is commented out is at its default
    assert read_training_config(path) == made.config


def test_init_then_train_then_a_bundle_that_kept_its_best_checkpoint(tmp_path: Path) -> None:
    """The written file trains as it is; here with the tiny network and few steps, which are the file's own keys."""
    write_cases(tmp_path / "data")
    shutil.copy(tmp_path / "data" / "a_image.nii.gz", tmp_path / "data" / "c_image.nii.gz")
    image = read_volume(tmp_path / "data" / "a_image.nii.gz")
    shutil.copy(tmp_path / "data" / "a_label.nii.gz", tmp_path / "data" / "c_label.nii.gz")
    noisy = set_geometry(sitk.GetImageFromArray(image.array + np.int16(1)), image.ijk_to_ras)
    sitk.WriteImage(noisy, str(tmp_path / "data" / "c_image.nii.gz"))
    planned = init(tmp_path / "data", "--structure", "Blob", "--backbone", "tiny_random", "--validation", "c")
    assert planned.exit_code == 0, planned.output
    path = tmp_path / "plan.toml"
    text = path.read_text(encoding="utf-8")
    short = {"steps = 900": "steps = 6", "steps = 1200": "steps = 12", "head_steps = 400": "head_steps = 3",
             "entries = 60": "entries = 3", "validate_every = 100": "validate_every = 4",
             "image_size = 112": "image_size = 64"}  # fmt: skip
    for old, new in short.items():
        assert text.count(f"\n{old}\n") == 1, old
        text = text.replace(f"\n{old}\n", f"\n{new}\n")
    path.write_text(text, encoding="utf-8")
    places = ["--run-folder", str(tmp_path / "run"), "--output", str(tmp_path / "bundle"), "--device", "cpu"]
    result = run("train", path, *places)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Validation after step") == 3 and "worst: c:1" in result.stderr
    rows = (tmp_path / "run" / "validation.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "4", "8", "12"]
    assert not (tmp_path / "run" / "embeddings").exists()
    assert read_bundle(tmp_path / "bundle").info.training["validation_patients"] == ["c"]
    assert run("train", path, *places).exit_code == 0  # finished: the same bundle again


def test_the_expected_time_is_measured_with_real_steps(tmp_path: Path) -> None:
    from SPDSegmentLib.training.cases import load_case

    write_cases(tmp_path / "data")
    made = plan(survey(tmp_path / "data", find_cases(tmp_path / "data")), "data", backbone="tiny_random")
    case = load_case(tmp_path / "data", "a", made.config.data, made.config.intensity)
    timing = measure_time(made.config, case, None, "cpu")
    assert min(timing) > 0 and timing.total == pytest.approx(sum(timing))


def test_the_planned_disk_is_what_the_embeddings_take(tmp_path: Path) -> None:
    from SPDSegmentLib.training.bank import build_bank
    from SPDSegmentLib.training.cases import load_case

    write_cases(tmp_path / "data")
    made = plan(survey(tmp_path / "data", find_cases(tmp_path / "data")), "data")
    config, entries = made.config, made.config.stage2.entries + 1  # and one of the validation case
    few = dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, entries=1))
    case = load_case(tmp_path / "data", config.data.train[0], config.data, config.intensity)
    build_bank(SPDModel(config.network, None), [case], few, tmp_path / "bank", torch.device("cpu"))
    (each,) = (path.stat().st_size for path in (tmp_path / "bank").iterdir())
    slices = 10 + 2 * config.stage2.margin  # of the structure and beyond; the volume has no more than 14
    assert made.disk_bytes == pytest.approx(entries * slices * each / 14, rel=0.05)


@pytest.mark.parametrize(
    ("free", "runs", "said"), [(10**9, 1, "runs_per_step is 1; init on"), (1_500_100_000, 2, "crop the images")]
)
def test_batches_are_halved_only_where_the_images_are_not_what_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, runs: int, said: str
) -> None:
    write_cases(tmp_path / "data")
    monkeypatch.setattr(planning, "free_memory_bytes", lambda: free)
    made = plan(survey(tmp_path / "data", find_cases(tmp_path / "data")), "data", backbone="tiny_random")
    assert (made.config.stage1.runs_per_step, made.config.stage2.runs_per_step) == (runs, runs)
    assert said in made.notes[-1] and ("crop" in made.notes[-1]) == (runs == 2)
