"""A case on disk and a fake model for tests of ``spdsegment segment``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models_helpers import tiny_info
from typer.testing import CliRunner, Result

from SPDSegmentLib.cli import app as app_module
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
            doubts=[],
            quality=None,
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


def write_image(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
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
    path.write_text(json.dumps({"markups": [markups]}), encoding="utf-8")
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


def tiny_bundle(case: SimpleNamespace) -> None:
    """Put a randomly initialized model in the place of the case's."""
    from SPDSegmentLib.networks.config import NetworkConfig
    from SPDSegmentLib.networks.spd import SPDModel

    torch.manual_seed(0)
    network: dict[str, Any] = {"lora_rank": 2, "decoder_lora_rank": 2}
    model = SPDModel(NetworkConfig(backbone="tiny_random", image_size=64, **network))
    write_bundle(case.model, tiny_info(network=network, prompts={}), model.adapter_state(), "")
