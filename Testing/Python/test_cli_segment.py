"""``spdsegment segment`` and ``demo``: bad input is refused before torch, outputs appear together or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models_helpers import tiny_info
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli import demo_command, segment_run
from SPDSegmentLib.cli.paths import StagedOutputs
from SPDSegmentLib.errors import OutOfMemory
from SPDSegmentLib.models.bundle import write_bundle

sitk = pytest.importorskip("SimpleITK")
torch = pytest.importorskip("torch")

SHAPE = (9, 24, 20)  # K, J, I
SPACING = (2.0, 1.5, 4.0)


class FakeSession:
    """Segments a box round every click."""

    def __init__(self, stack: Any, failure: BaseException | None) -> None:
        self.stack = stack
        self.failure = failure

    def segment(self, clicks: Any, *, prompts: str, saliency_only: bool, on_progress: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        mask = np.zeros(self.stack.array.shape, dtype=bool)
        inside = clicks.inside()
        for t, (x, y) in zip(inside.slice_index, inside.xy.round().astype(int), strict=True):
            mask[t, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = True
        on_progress(SimpleNamespace(stage="decoding", done=1, total=1, seconds_left=0.0))
        fates = [
            SimpleNamespace(slice_index=int(t), xy=(float(x), float(y)), fate="kept", click=i)
            for i, (t, (x, y)) in enumerate(zip(inside.slice_index, inside.xy, strict=True))
        ]
        report = {"slices": [{"slice": int(t)} for t in np.flatnonzero(mask.any(axis=(1, 2)))], "prompts": prompts}
        return SimpleNamespace(
            mask=mask,
            slices=[SimpleNamespace(slice_index=t, mask=m, status="supported") for t, m in enumerate(mask)],
            fates=fates,
            seconds=0.5,
            device="cpu",
            notes=["one click was left out"] if clicks.outside.any() else [],
            report=lambda: report | {"saliency_only": saliency_only},
        )


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the predictor; set ``failure`` to let it fail."""
    state = SimpleNamespace(failure=None, device=None)

    def load(bundle: Any, device: str = "auto", **_: Any) -> Any:
        state.device = device
        return SimpleNamespace(open=lambda stack: FakeSession(stack, state.failure))

    module = ModuleType("SPDSegmentLib.inference.predictor")
    module.Predictor = SimpleNamespace(load=load)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SPDSegmentLib.inference.predictor", module)
    return state


def write_image(path: Path, array: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((10.0, -20.0, 30.0))
    sitk.WriteImage(image, str(path))
    return path


def write_clicks(path: Path, image: Path, *indexes: tuple[float, float, float]) -> Path:
    """Clicks at continuous IJK positions of an image, as Slicer saves them."""
    volume = sitk.ReadImage(str(image))
    points = [
        {
            "id": str(number),
            "label": f"F-{number}",
            "position": list(volume.TransformContinuousIndexToPhysicalPoint(index)),
            "selected": True,
            "positionStatus": "defined",
        }
        for number, index in enumerate(indexes, start=1)
    ]
    markups = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    path.write_text(json.dumps({"markups": [markups]}))
    return path


@pytest.fixture
def case(tmp_path: Path, spd_home: Path, predictor: SimpleNamespace) -> SimpleNamespace:
    """An image, three clicks, a model, and an empty output folder."""
    array = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    image = write_image(tmp_path / "image.nii.gz", array)
    points = write_clicks(tmp_path / "clicks.mrk.json", image, (8, 9, 2), (9, 10, 4), (10, 11, 6))
    model = write_bundle(tmp_path / "models" / "tiny-test", tiny_info(), {"w": torch.zeros(2)}, "").folder
    out = tmp_path / "out"
    out.mkdir()
    return SimpleNamespace(image=image, points=points, model=model, out=out, output=out / "mask.nii.gz")


def run(case: SimpleNamespace, *extra: str | Path, **changes: Any) -> Result:
    """Run ``spdsegment segment`` on the case."""
    values = {"image": case.image, "points": case.points, "model": case.model, "output": case.output} | changes
    arguments = ["segment", *(str(part) for name, value in values.items() for part in (f"--{name}", value))]
    return CliRunner().invoke(app_module.build_app(), [*arguments, *map(str, extra)])


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    report = json.loads((case.out / "r.json").read_text())
    assert report["volume_ml"] == pytest.approx(75 * np.prod(SPACING) / 1000)
    assert report["request"]["image"] == str(case.image)
    assert sorted(entry["slice_number"] for entry in report["slices"]) == [2, 4, 6]
    assert report["slicing"] == {"axis": "K", "plane": "axial", "slices": 9}
    assert str(case.output) in result.stdout.replace("\n", "")


def test_the_options_reach_the_predictor(case: SimpleNamespace, predictor: SimpleNamespace) -> None:
    arguments = ["--prompts", "raw", "--saliency-only", "--device", "cuda:1", "--axis", "j"]
    assert run(case, *arguments, "--report", case.out / "r.json").exit_code == 0
    report = json.loads((case.out / "r.json").read_text())
    assert (report["prompts"], report["saliency_only"]) == ("raw", True)
    assert report["slicing"]["axis"] == "J"
    assert predictor.device == "cuda:1"


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


def test_a_failing_picture_leaves_no_mask_either(case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def fail(path: Path, outcome: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(segment_run, "_write_preview", fail)
    result = run(case, "--preview", case.out / "p.png")
    assert result.exit_code == 2
    assert "disk is full" in result.stderr
    assert files_in(case.out) == []


def test_points_outside_are_named_and_the_rest_is_used(case: SimpleNamespace) -> None:
    write_clicks(case.points, case.image, (8, 9, 2), (8, 9, 400))
    result = run(case)
    assert result.exit_code == 0
    assert "one click was left out" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.nii.gz", None, "There is no image"),
        ("b.nii.gz", b"not an image", "b.nii.gz"),
        ("c.nii.gz", np.full(SHAPE, 7.0, np.float32), "the same value everywhere"),
        ("d.nii.gz", np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 3, np.nan, 1.0).astype(np.float32), "NaN"),
        ("d.nrrd", np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 3, np.nan, 1.0).astype(np.float32), "NaN"),
    ],
)
def test_an_image_that_cannot_be_used_is_exit_code_2(
    case: SimpleNamespace, tmp_path: Path, name: str, content: Any, text: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        write_image(tmp_path / name, content)
    refused(run(case, image=tmp_path / name), case, text)


@pytest.mark.parametrize("pixels", ["4-D", "color"])
def test_images_of_more_dimensions_or_components_are_refused(
    case: SimpleNamespace, tmp_path: Path, pixels: str
) -> None:
    path = tmp_path / "x.nrrd"
    if pixels == "4-D":
        sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(case.image))] * 2), str(path))
    else:
        sitk.WriteImage(sitk.Compose([sitk.ReadImage(str(case.image))] * 3), str(path))
    refused(run(case, image=path), case, "")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "There is no points file"),
        ("not json", ""),
        ('{"points": []}', ""),
        ('{"markups": [{"type": "Fiducial", "coordinateSystem": "XYZ", "controlPoints": []}]}', ""),
        ('{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": []}]}', ""),
    ],
)
def test_a_points_file_that_cannot_be_used_is_exit_code_2(
    case: SimpleNamespace, content: str | None, text: str
) -> None:
    case.points.unlink()
    if content is not None:
        case.points.write_text(content)
    refused(run(case), case, text)


def test_clicks_that_are_all_outside_are_exit_code_2(case: SimpleNamespace) -> None:
    write_clicks(case.points, case.image, (8, 9, 400), (8, 9, 500))
    refused(run(case), case, "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"output": "out/mask.png"}, "no known file name extension"),
        ({"output": "nowhere/mask.nii.gz"}, "does not exist"),
        ({"output": "image.nii.gz"}, "is also an input"),
        ({"output": "./out/../image.nii.gz"}, "is also an input"),
        ({"report": "out/r.txt"}, "no known file name extension"),
        ({"report": "nowhere/r.json"}, "does not exist"),
        ({"report": "clicks.mrk.json"}, "is also an input"),
        ({"preview": "out/p.jpg"}, "no known file name extension"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_at_once(
    case: SimpleNamespace, tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    before = {path.name: path.read_bytes() for path in (case.image, case.points)}
    refused(run(case, **{name: tmp_path / value for name, value in changes.items()}), case, text)
    assert {path.name: path.read_bytes() for path in (case.image, case.points)} == before


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "Update SPDSegment"),
        ({"backbone": "sam9"}, "the field 'backbone'"),
        ({"backbone": "lite_medsam"}, "the field 'backbone_sha256'"),
        ({"image_size": 65}, "not a positive multiple of 8"),
        ({"network": {"lora_rank": "four"}}, "lora_rank is 'four', which is not a whole number"),
        ({"network": {"lora_rank": 3, "decoder_lora_rank": 2}}, "was not made for tiny_random"),
        ({"network": {"lora_rank": 2, "decoder_lora_rank": 2, "saliency_slice_context": True}}, "was not made for"),
        ({"network": {"rank": 2}}, "Unknown network setting 'rank'"),
        ({"prompts": {"n_neighbors": 1.5}}, "n_neighbors is 1.5, which is not a whole number"),
        ({"normalization": {"kind": "percentile", "low": -5, "high": 99}}, "not between 0 and 100"),
    ],
)
def test_a_bundle_that_does_not_fit_is_named_and_refused(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str
) -> None:
    """With the real predictor: of a newer format, for another backbone, or with settings that cannot be."""
    tiny_bundle(case)
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    description = json.loads((case.model / "model.json").read_text())
    (case.model / "model.json").write_text(json.dumps(description | changes))
    result = run(case, "--device", "cpu")
    refused(result, case, text)
    assert str(case.model) in result.stderr


def test_a_bundle_on_other_base_weights_is_refused(case: SimpleNamespace, lite_medsam: Path, tmp_path: Path) -> None:
    home = Path(os.environ["SPDSEGMENT_HOME"]) / "weights"
    home.mkdir(parents=True)
    (home / lite_medsam.name).symlink_to(lite_medsam)
    tiny_bundle(case)
    description = json.loads((case.model / "model.json").read_text())
    other = {"backbone": "lite_medsam", "backbone_sha256": "0" * 64, "image_size": 256}
    (case.model / "model.json").write_text(json.dumps(description | other))
    refused(run(case), case, "was trained on other weights of lite_medsam")


def test_a_device_that_is_not_there_is_exit_code_4(case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bundle(case)
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    result = run(case, "--device", "cuda:99")
    assert result.exit_code == 4
    assert "device" in result.stderr and files_in(case.out) == []


def test_a_missing_model_is_exit_code_3_and_a_damaged_one_2(case: SimpleNamespace) -> None:
    missing = run(case, model="unheard-of")
    assert missing.exit_code == 3
    assert "unheard-of" in missing.stderr
    (case.model / "adapter.safetensors").write_bytes(b"")
    refused(run(case), case, "is damaged")


def test_missing_base_weights_name_the_command_that_fetches_them(case: SimpleNamespace) -> None:
    info = tiny_info(name="lite", backbone="lite_medsam", backbone_sha256="0" * 64)
    write_bundle(case.model.parent / "lite", info, {"w": torch.zeros(2)}, "")
    result = run(case, model=case.model.parent / "lite")
    assert result.exit_code == 3
    assert "spdsegment models fetch lite_medsam" in result.stderr


def test_an_unknown_device_is_refused(case: SimpleNamespace) -> None:
    refused(run(case, "--device", "tpu"), case, "Unknown device 'tpu'")


def refused(result: Result, case: SimpleNamespace, text: str) -> None:
    """Check that it was bad input: one sentence, exit code 2, nothing written."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert text in result.stderr
    assert result.stdout == ""
    assert files_in(case.out) == []


def test_bad_input_is_refused_without_loading_torch(case: SimpleNamespace, tmp_path: Path, repository: Path) -> None:
    write_image(tmp_path / "flat.nii.gz", np.full(SHAPE, 7.0, np.float32))
    arguments = ["--image", tmp_path / "flat.nii.gz", "--points", case.points, "--model", case.model]
    code = (
        "import sys\n"
        "from SPDSegmentLib.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    sys.exit(77 if 'torch' in sys.modules else end.code)\n"
    )
    command = [sys.executable, "-c", code, "segment", *arguments, "--output", case.output]
    done = subprocess.run(list(map(str, command)), cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr


def tiny_bundle(case: SimpleNamespace) -> None:
    """Put a randomly initialised model in the place of the case's."""
    from SPDSegmentLib.networks.config import NetworkConfig
    from SPDSegmentLib.networks.spd import SPDModel

    torch.manual_seed(0)
    network: dict[str, Any] = {"lora_rank": 2, "decoder_lora_rank": 2}
    model = SPDModel(NetworkConfig(backbone="tiny_random", image_size=64, **network))
    write_bundle(case.model, tiny_info(network=network, prompts={}), model.adapter_state(), "")


def test_staged_outputs_vanish_without_commit(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StagedOutputs() as outputs:
        staged = outputs.stage(tmp_path / "a.nii.gz")
        assert staged.parent == tmp_path and staged.name.endswith("a.nii.gz")
        staged.write_bytes(b"half")
        raise RuntimeError
    assert files_in(tmp_path) == []


def test_a_randomly_initialised_model_runs_from_files_to_files(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(case)
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    write_clicks(case.points, case.image, (8, 9, 2), (9, 10, 4), (10, 11, 6), (10, 11, 90))

    result = run(case, "--report", case.out / "r.json", "--device", "cpu")

    assert result.exit_code == 0, result.output
    report = json.loads((case.out / "r.json").read_text())
    assert report["model"]["name"] == "tiny-test"
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
    monkeypatch.setattr(demo_command, "resources_folder", lambda: resources)
    monkeypatch.setenv("SPDSEGMENT_HOME", str(tmp_path))

    result = CliRunner().invoke(app_module.build_app(), ["demo", "--output", str(tmp_path / "demo")])

    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "demo") == ["tiny-test-case.json", "tiny-test-case.nii.gz", "tiny-test-case.png"]
    assert result.stdout.splitlines()[-1] == "Dice against the shipped label: 1.000"


def test_the_demo_without_a_sample_or_a_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_command, "resources_folder", lambda: tmp_path)
    result = CliRunner().invoke(app_module.build_app(), ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert "No sample is installed" in result.stderr
    assert not (tmp_path / "demo").exists()
