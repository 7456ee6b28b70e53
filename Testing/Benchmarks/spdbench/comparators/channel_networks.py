"""Networks that take the clicks as a second image channel, or do without them; among them TransUNet.

TransUNet (Chen et al. 2021, arXiv 2102.04306) in a compact form of our own: a convolutional encoder halves the
resolution four times; a transformer works on its last map, one token per cell; the decoder doubles the resolution step
by step and takes the encoder's maps on the way (the paper's CUP with three skips). The paper starts from ImageNet
weights of R50 and ViT-B; this one is smaller and starts from random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spdbench.comparators.inputs import ClickedSlice
from spdbench.comparators.learned import LearnedComparator, SliceNetwork
from spdbench.comparators.protocol import InputSettings


class ChannelNetwork(SliceNetwork):
    """A network from image channels to one logit; clicks, if it uses them, are its second channel."""

    def __init__(self, network: nn.Module, with_clicks: bool) -> None:
        super().__init__()
        self.network = network
        self.with_clicks = with_clicks

    def predict(self, embedded: Tensor, where: Sequence[ClickedSlice]) -> Tensor:
        """Mask logits (B, 1, S, S) of images (B, 1, S, S)."""
        channels = embedded
        if self.with_clicks:
            nearness = np.stack([clicks.nearness(t) for clicks, t in where])[:, None]
            channels = torch.cat((embedded, torch.from_numpy(nearness).to(embedded.device)), dim=1)
        return self.network(channels)


class ChannelComparator(LearnedComparator):
    """A comparator with a :class:`ChannelNetwork`.

    Without clicks it learns all structures of a case together, because nothing tells it which one is meant; the clicks
    then only decide where the field of view lies.
    """

    with_clicks = True

    def __init__(self, inputs: InputSettings) -> None:
        super().__init__(inputs)
        self.learns_union = not self.with_clicks
        self.uses_clicks = self.with_clicks or inputs.fov_mm > 0


STRIDE = 16
GROUPS = 8


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, group norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.GroupNorm(GROUPS, out_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; the first may halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, out_channels, stride)
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False), nn.GroupNorm(GROUPS, out_channels)
        )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class TransUNetBody(nn.Module):
    """Channels (B, C, S, S) to one logit (B, 1, S, S).

    Args:
        image_size: S; padded to a multiple of 16 inside.
        width: channels at half resolution; doubled at each step down.
        dim, depth, heads: of the transformer.
    """

    def __init__(self, in_channels: int, image_size: int, width: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.side = -(-image_size // STRIDE)
        w = width
        self.stem = conv_norm(in_channels, w, 2)
        self.down = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, 2), ResidualBlock(b, b))
            for a, b in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))
        )
        self.to_tokens = nn.Conv2d(8 * w, dim, 1)
        self.positions = nn.Parameter(torch.zeros(1, self.side**2, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.from_tokens = conv_norm(dim, 8 * w)
        self.up = nn.ModuleList(
            nn.Sequential(conv_norm(a + skip, b), conv_norm(b, b))
            for a, skip, b in ((8 * w, 4 * w, 4 * w), (4 * w, 2 * w, 2 * w), (2 * w, w, w), (w, 0, w))
        )
        self.logit = nn.Conv2d(w, 1, 1)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = self.side * STRIDE
        x = self.stem(F.pad(x, (0, padded - width, 0, padded - height)))
        skips = [x]
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        tokens = self.to_tokens(x).flatten(2).transpose(1, 2) + self.positions
        x = self.transformer(tokens).transpose(1, 2).unflatten(2, (self.side, self.side))
        x = self.from_tokens(x)
        skips.pop()
        for step in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = step(torch.cat((x, skips.pop()), dim=1) if skips else x)
        return self.logit(x)[:, :, :height, :width]


class TransUNet(ChannelComparator):
    """TransUNet with the click channel; from random weights.

    Args:
        width, dim, depth, heads: see :class:`TransUNetBody`.
    """

    name = "transunet-clicks"
    learning_rate = 5e-4

    def __init__(self, inputs: InputSettings, width: int = 32, dim: int = 256, depth: int = 6, heads: int = 8) -> None:
        super().__init__(inputs)
        self.shape = {"width": width, "dim": dim, "depth": depth, "heads": heads}

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().settings(), **self.shape}

    def build(self) -> SliceNetwork:
        """The network with random weights."""
        channels = 2 if self.with_clicks else 1
        return ChannelNetwork(TransUNetBody(channels, self.inputs.image_size, **self.shape), self.with_clicks)


class TransUNetWithoutClicks(TransUNet):
    """TransUNet as published, on the image alone; learns all structures of a case together."""

    name = "transunet"
    with_clicks = False
