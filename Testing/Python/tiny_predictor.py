"""A predictor on a tiny random network whose saliency is the image's brightness, and a volume to try it on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.inference.engine import Engine, Rows
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import ClickTokens
from SPDSegmentLib.prompts.distillation import PromptConfig

SIZE = 64


class BrightnessEngine(Engine):
    """The first channel of an embedding carries the slice; S is high where the slice is bright."""

    encoded_batches: list[int]

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        images = torch.as_tensor(images)
        embeddings = super().encode(images)
        embeddings[:, 0] = F.avg_pool2d(images[:, :1], 4)[:, 0]
        self.encoded_batches = [*getattr(self, "encoded_batches", []), len(images)]
        return embeddings

    @torch.inference_mode()
    def saliency(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        bright = F.interpolate(embeddings[:, :1].float(), (SIZE, SIZE), mode="bilinear", align_corners=False)
        return torch.sigmoid(20 * (bright[:, 0] - 0.5)).half()


def reached(session: Session, before: Clicks, after: Clicks, prompts: str = "consensus") -> set[int]:
    """Slices that a change of clicks reaches: those whose prompts differ. No other slice may change."""
    found = []
    for clicks in (before, after):
        session.extent = clicks.extent(session.stack.n_slices)
        inside = clicks.within(session.extent)
        if len(inside):
            session._place_window(clicks.xy[inside])
        slices = session._distill(session.features.network_clicks(clicks, inside)[0], prompts, Call()).slices
        found.append([(p, session.features.told(p.slice_index)) for p in slices])
    return {
        a.slice_index
        for (a, told_a), (b, told_b) in zip(*found, strict=True)
        if not a.same_as(b) or (told_a != told_b and (len(a.points) or len(b.points)))
    }


def tiny_predictor(batch_size: int = 4, slice_context: bool = True, fov_mm: float = 0.0) -> Predictor:
    torch.manual_seed(0)
    network = NetworkConfig("tiny_random", SIZE, saliency_slice_context=slice_context)
    model = SPDModel(network, adapters=False)
    engine = BrightnessEngine(model, torch.device("cpu"), torch.float32, batch_size)
    intensity = IntensityConfig("window", 0.0, 100.0)
    return Predictor(engine, PromptConfig(), intensity, fov_mm, "axial", {"name": "tiny"})


class ListeningEngine(BrightnessEngine):
    """A conditioned saliency: high where the slice is bright near a token; masks are where S is high."""

    @torch.inference_mode()
    def with_context(self, embeddings: Rows, previous: Rows, following: Rows) -> list[Tensor]:
        return list(embeddings)

    @torch.inference_mode()
    def conditioned_saliency(self, embeddings: Rows, tokens: ClickTokens) -> Tensor:
        stacked = torch.stack(list(embeddings))
        bright = self.saliency(stacked, stacked, stacked)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        near = np.hypot(columns - tokens.xy[..., 0, None, None], rows - tokens.xy[..., 1, None, None]) < 9
        return bright * torch.from_numpy((near & tokens.valid[..., None, None]).any(1))

    @torch.inference_mode()
    def decode_conditioned(self, embeddings: Rows, tokens: ClickTokens, saliency: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.from_numpy(tokens.valid.sum(1))[:, None, None]
        return saliency.float() - 0.5 + 1e-3 * count, torch.ones(len(saliency))


def listening_predictor() -> Predictor:
    torch.manual_seed(0)
    model = SPDModel(NetworkConfig("tiny_random", SIZE, saliency="conditioned"), adapters=False)
    engine = ListeningEngine(model, torch.device("cpu"), torch.float32, 4)
    return Predictor(engine, PromptConfig(), IntensityConfig("window", 0.0, 100.0), 64.0, "axial", {"name": "tiny"})


def tube_volume(n_slices: int = 24) -> Volume:
    """A bright tube that wanders through slices 3 to n - 4 of a dark volume with another bright body beside it."""
    array = np.full((n_slices, SIZE, SIZE), 10, dtype=np.int16)
    for t in range(3, n_slices - 3):
        column = 20 + t // 2
        array[t, 24:36, column : column + 10] = 95
        array[t, 48:60, 48:60] = 95
    ijk_to_ras = np.diag([-1.0, -1.0, 3.0, 1.0])
    return Volume(array, ijk_to_ras, "tube")


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within the context every LoRA update below ``module`` is off."""
    layers = [m for m in module.modules() if hasattr(m, "lora_A") and hasattr(m, "enable_adapters")]
    states = [not bool(layer.disable_adapters) for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)  # type: ignore[operator]
    try:
        yield
    finally:
        for layer, state in zip(layers, states, strict=True):
            layer.enable_adapters(state)  # type: ignore[operator]
