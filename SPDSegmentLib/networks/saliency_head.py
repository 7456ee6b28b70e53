"""The light saliency head, S_t = f_sal(I_t) (paper, stage I; the layers are our choice, after SAM's upscaling)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.networks.tiny_vit import LayerNorm2d


class SaliencyHead(nn.Module):
    """Embedding to one saliency logit at four times the embedding's resolution.

    Args:
        channels: channels of the embedding (256 for every SAM).
        slice_context: also see the embeddings of the two adjoining slices, through 1x1 projections that start at zero.
    """

    def __init__(self, channels: int = 256, slice_context: bool = False) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(channels, channels // 4, 2, 2)
        self.norm = LayerNorm2d(channels // 4)
        self.up2 = nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2)
        self.logit = nn.Conv2d(channels // 8, 1, 1)
        assert self.logit.bias is not None
        nn.init.constant_(self.logit.bias, -3.0)
        self.previous: nn.Conv2d | None = None
        self.following: nn.Conv2d | None = None
        if slice_context:
            self.previous = nn.Conv2d(channels, channels, 1, bias=False)
            self.following = nn.Conv2d(channels, channels, 1, bias=False)
            nn.init.zeros_(self.previous.weight)
            nn.init.zeros_(self.following.weight)

    @property
    def uses_slice_context(self) -> bool:
        """Whether :meth:`forward` looks at the adjoining slices."""
        return self.previous is not None

    def forward(self, embeddings: Tensor, previous: Tensor | None = None, following: Tensor | None = None) -> Tensor:
        """Saliency logits (B, 1, 4h, 4w) of embeddings (B, C, h, w); neighbors have the same shape.

        At a volume's edge the caller repeats the slice itself as its neighbor.
        """
        x = embeddings
        if self.previous is not None and self.following is not None:
            x = x + self.previous(embeddings if previous is None else previous)
            x = x + self.following(embeddings if following is None else following)
        x = F.gelu(self.norm(self.up1(x)))
        logits: Tensor = self.logit(F.gelu(self.up2(x)))
        return logits


def adjoining(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Previous and following embeddings of a run of neighboring slices (T, C, h, w), edges repeated."""
    return torch.cat((embeddings[:1], embeddings[:-1])), torch.cat((embeddings[1:], embeddings[-1:]))
