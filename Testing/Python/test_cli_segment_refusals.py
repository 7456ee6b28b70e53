"""``spdsegment segment`` refuses bad input with one sentence, an exit code, and no file left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models_helpers import tiny_info
from segment_case import SHAPE, files_in, run, tiny_bundle, write_clicks, write_image
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.models.bundle import write_bundle
from SPDSegmentLib.models.bundle_info import FORMAT_VERSION

sitk = pytest.importorskip("SimpleITK")
torch = pytest.importorskip("torch")


pytest_plugins = ["segment_case"]


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
        ({"format_version": FORMAT_VERSION + 1}, "Update SPDSegment"),
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
    description = json.loads((case.model / "model.json").read_text(encoding="utf-8"))
    (case.model / "model.json").write_text(json.dumps(description | changes))
    result = run(case, "--device", "cpu")
    refused(result, case, text)
    assert str(case.model) in result.stderr


def test_a_bundle_on_other_base_weights_is_refused(case: SimpleNamespace, lite_medsam: Path, tmp_path: Path) -> None:
    home = Path(os.environ["SPDSEGMENT_HOME"]) / "weights"
    home.mkdir(parents=True)
    (home / lite_medsam.name).symlink_to(lite_medsam)
    tiny_bundle(case)
    description = json.loads((case.model / "model.json").read_text(encoding="utf-8"))
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


def test_clicks_are_needed_and_positions_are_three_numbers(case: SimpleNamespace) -> None:
    given = ["segment", "--image", case.image, "--model", case.model, "--output", case.output]

    def said(*words: str) -> str:
        result = CliRunner().invoke(app_module.build_app(), list(map(str, [*given, *words])))
        assert result.exit_code == 2
        return result.stderr

    assert "There are no clicks. Give --points FILE, or --point X,Y,Z" in said()
    assert "'1,2' is no position. Give a click as in --point" in said("--point", "1,2")
    assert "No click lies inside the volume: all 1 of --point are outside." in said("--point", "900,0,0")


def test_an_unknown_axis_is_told_in_words_of_the_command(case: SimpleNamespace) -> None:
    result = run(case, "--axis", "oblique")
    assert result.exit_code == 2
    assert "'oblique' is not one of 'auto', 'i'" in result.output and "Value error" not in result.output
