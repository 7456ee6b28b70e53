"""Medical SAM Adapter: bottleneck adapters in a SAM (Wu et al. 2023, arXiv 2304.12620), our own implementation.

Encoder, every attention block: one adapter after the attention, one beside the MLP, scaled by a half.
Decoder, every two-way block: one after the tokens' look at the image, one beside the MLP, one after the image's look at
the tokens. Of the paper are left out: its variant for 3-D (the network sees slices), and the adapters' weights that are
generated from the prompt (HyP-Adpt); the first adapter of a decoder block is an ordinary one instead.

The last layer of an adapter starts at zero: before training, SAM's own output comes back.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

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
    """A module with an adapter in parallel, on the same normalised input."""

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
