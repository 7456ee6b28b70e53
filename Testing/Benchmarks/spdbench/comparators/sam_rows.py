"""SAM-type comparators: prompted with boxes (MedSAM) or with points through adapters (Medical SAM Adapter).

``medsam-box``: MedSAM (Ma et al. 2024) segments what a box holds. The box lies around the slice's clicks with the data
set's margin; encoder frozen, decoder tuned on such boxes with the same budget as SPD's decoder.
``medsam-box-zero-shot``: the same without tuning.
``msa``: Medical SAM Adapter (Wu et al. 2023), our own implementation; points prompt.

All take the backbone of SPD, ``lite_medsam`` by default, so that methods and not backbones are compared.

The adapters of ``msa`` (arXiv 2304.12620) are bottlenecks. Encoder, every attention block: one adapter after the
attention, one beside the MLP, scaled by a half. Decoder, every two-way block: one after the tokens' look at the image,
one beside the MLP, one after the image's look at the tokens. Of the paper are left out: its variant for 3-D (the
network sees slices), and the adapters' weights that are generated from the prompt (HyP-Adpt); the first adapter of a
decoder block is an ordinary one instead.

The last layer of an adapter starts at zero: before training, SAM's own output comes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spdbench.comparators.inputs import BankRuns, ClickedSlice, RunSource, as_config
from spdbench.comparators.learned import LearnedComparator, SliceNetwork
from spdbench.comparators.protocol import InputSettings, NotRun, OnProgress
from SPDSegmentLib.errors import ModelCorrupt, ModelMissing
from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import pad_points
from SPDSegmentLib.training.bank import build_bank
from SPDSegmentLib.training.cases import Case
from SPDSegmentLib.training.config import Stage2Config

PARALLEL_SCALE = 0.5


class Adapter(nn.Module):
    """Down-projection, GELU, up-projection over the last axis."""

    def __init__(self, channels: int, width: float) -> None:
        super().__init__()
        hidden = max(1, round(channels * width))
        self.down = nn.Linear(channels, hidden)
        self.up = nn.Linear(hidden, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


class AdapterAfter(nn.Module):
    """A module whose output an adapter corrects."""

    def __init__(self, inner: nn.Module, channels: int, width: float) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = Adapter(channels, width)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = self.inner(*args, **kwargs)
        return y + self.adapter(y)


class AdapterBeside(nn.Module):
    """A module with an adapter in parallel, on the same normalized input."""

    def __init__(self, inner: nn.Module, channels: int, width: float) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = Adapter(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + PARALLEL_SCALE * self.adapter(F.layer_norm(x, x.shape[-1:]))


def insert_adapters(image_encoder: nn.Module, mask_decoder: nn.Module, width: float) -> None:
    """Put adapters into every attention block, in place; works for segment-anything's ViT and for TinyViT.

    Args:
        width: of the bottleneck as a share of the block's channels.
    """
    for block in _blocks(image_encoder, "attn", "mlp"):
        channels = block.attn.qkv.in_features
        _wrap(block, channels, width, after=("attn",), beside=("mlp",))
    for block in _blocks(mask_decoder, "cross_attn_token_to_image", "cross_attn_image_to_token"):
        channels = block.self_attn.embedding_dim
        crossing = ("cross_attn_token_to_image", "cross_attn_image_to_token")
        _wrap(block, channels, width, after=crossing, beside=("mlp",))


def _blocks(module: nn.Module, *attributes: str) -> list[Any]:
    return [m for m in module.modules() if all(hasattr(m, name) for name in attributes)]


def _wrap(block: nn.Module, channels: int, width: float, after: tuple[str, ...], beside: tuple[str, ...]) -> None:
    for name in after:
        setattr(block, name, AdapterAfter(getattr(block, name), channels, width))
    for name in beside:
        setattr(block, name, AdapterBeside(getattr(block, name), channels, width))


MAX_POINTS = 10
CORNERS = ("point_embeddings.2.", "point_embeddings.3.")


class SamNetwork(SliceNetwork):
    """A SAM of one backbone; slices without a prompt stay empty."""

    def __init__(self, model: SPDModel) -> None:
        super().__init__()
        self.model = model

    def trainable(self) -> dict[str, nn.Parameter]:
        """The decoder and the parts of the prompt encoder that belong to the prompts."""
        names = {id(p): name for name, p in self.named_parameters()}
        return {names[id(p)]: p for p in self.model.stage2_parameters()}

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) of slices (B, 1, S, S)."""
        return self.model.encode(images)

    def prompted(self, where: ClickedSlice) -> bool:
        """Whether the slice lies between the first and the last click."""
        return len(where.clicks.points(where.t)) > 0


class BoxNetwork(SamNetwork):
    """Prompted with the box around a slice's clicks."""

    def __init__(self, model: SPDModel, margin_mm: float) -> None:
        super().__init__(model)
        self.margin_mm = margin_mm

    def trainable(self) -> dict[str, nn.Parameter]:
        """The decoder and the embeddings of a box's corners."""
        corners = {name: p for name, p in self.named_parameters() if any(part in name for part in CORNERS)}
        return {**super().trainable(), **corners}

    def predict(self, embedded: Tensor, where: Sequence[ClickedSlice]) -> Tensor:
        """Mask logits (B, 1, S, S) of embeddings (B, C, h, w)."""
        boxes = np.stack([clicks.box(t, self.margin_mm) for clicks, t in where]).astype(np.float32)
        return self.model.decode(embedded, None, None, boxes=torch.from_numpy(boxes).to(embedded.device))[0]


class PointNetwork(SamNetwork):
    """Prompted with a slice's clicks."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """The decoder and the adapters."""
        adapters = {name: p for name, p in self.named_parameters() if ".adapter." in name}
        return {**super().trainable(), **adapters}

    def predict(self, embedded: Tensor, where: Sequence[ClickedSlice]) -> Tensor:
        """Mask logits (B, 1, S, S) of embeddings (B, C, h, w)."""
        points, labels = pad_points([clicks.points(t)[:MAX_POINTS] for clicks, t in where], MAX_POINTS)
        device = embedded.device
        return self.model.decode(embedded, torch.from_numpy(points).to(device), torch.from_numpy(labels).to(device))[0]


class SamComparator(LearnedComparator):
    """A comparator on one of our SAM backbones.

    Args:
        backbone: a name of :data:`SPDSegmentLib.networks.config.BACKBONES`.
        image_size: side of the network input, 0 for that of the data set.
    """

    learning_rate = 5e-4

    def __init__(self, inputs: InputSettings, backbone: str = "lite_medsam", image_size: int = 0) -> None:
        super().__init__(dataclasses.replace(inputs, image_size=image_size or inputs.image_size))
        self.backbone = backbone

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().settings(), "backbone": self.backbone}

    def sam(self) -> SPDModel:
        """The published SAM, every parameter frozen.

        Raises:
            NotRun: its weights are not on this machine.
        """
        return SPDModel(as_config(self.inputs, self.backbone).network, backbone_weights(self.backbone), adapters=False)


def backbone_weights(backbone: str) -> Path | None:
    """Checked weights of a backbone, ``None`` for the random one of tests.

    Raises:
        NotRun: they are not on this machine.
    """
    if backbone == "tiny_random":
        return None
    try:
        return find_base_weights(backbone)
    except (ModelMissing, ModelCorrupt) as error:
        raise NotRun(f"weights not available: {backbone}") from error


class MedSamBox(SamComparator):
    """A box around the clicks, decoder tuned on such boxes.

    Args:
        entries: random views of targets whose embeddings are computed once and kept, as in SPD's stage II.
    """

    name = "medsam-box"

    def __init__(
        self, inputs: InputSettings, backbone: str = "lite_medsam", image_size: int = 0, entries: int = 60
    ) -> None:
        super().__init__(inputs, backbone, image_size)
        self.entries = entries

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().settings(), "entries": self.entries}

    def build(self) -> SliceNetwork:
        """The network with the backbone's weights."""
        return BoxNetwork(self.sam(), self.inputs.box_margin_mm)

    def runs(self, network: SliceNetwork, cases: Sequence[Case], folder: Path, on_progress: OnProgress) -> RunSource:
        """Runs of slices from kept embeddings."""
        assert isinstance(network, BoxNetwork)
        config = as_config(self.inputs, self.backbone, Stage2Config(entries=self.entries))

        def on_entry(done: int, entries: int) -> None:
            on_progress(done, entries, {})

        bank = build_bank(network.model, cases, config, folder / "embeddings", self.device, on_entry)
        return BankRuns(bank, cases, self.inputs)


class MedSamBoxZeroShot(MedSamBox):
    """The same box, nothing tuned."""

    name = "medsam-box-zero-shot"
    needs_training = False


class MedicalSamAdapter(SamComparator):
    """Adapters in encoder and decoder learn together with the decoder; clicks prompt as points.

    Args:
        width: of the bottleneck as a share of the block's channels.
    """

    name = "msa"

    def __init__(
        self, inputs: InputSettings, backbone: str = "lite_medsam", image_size: int = 0, width: float = 0.25
    ) -> None:
        super().__init__(inputs, backbone, image_size)
        self.width = width

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().settings(), "width": self.width}

    def build(self) -> SliceNetwork:
        """The network with the backbone's weights; its adapters change nothing before they have learned."""
        model = self.sam()
        insert_adapters(model.image_encoder, model.mask_decoder, self.width)
        return PointNetwork(model)
