"""The saliency S_t: the light head of the paper, and what a click-conditioned saliency adds to SAM.

The head is S_t = f_sal(I_t) (paper, stage I; the layers are our choice, after SAM's upscaling). The conditioned
saliency, S_t = f_sal(I_t-1..t+1 | clicks) (ours; docs/method.md), is a first pass of SAM's own mask decoder, prompted
with all clicks near the slice; the clicks enter only behind the encoder, so embeddings stay as cached when a click
changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.networks.tiny_vit import LayerNorm2d
from SPDSegmentLib.prompts.click_tokens import ClickTokens, TokenKind

SECOND_PASS = len(TokenKind)


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


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens of B slices on a device: ``xy`` (B, K, 2), ``kind`` (B, K), ``distance`` (B, K, 4), ``valid`` (B, K)."""

    xy: Tensor
    kind: Tensor
    distance: Tensor
    valid: Tensor

    @classmethod
    def of(cls, tokens: ClickTokens, device: torch.device | str = "cpu") -> TokenBatch:
        """Bring the tokens of slices to a device."""
        parts = (tokens.xy, tokens.kind, tokens.distance, tokens.valid)
        return cls(*(torch.from_numpy(part).to(device, non_blocking=True) for part in parts))

    def restricted(self, valid: Tensor) -> TokenBatch:
        """The same places with fewer of them valid, ``valid`` (B, K)."""
        return TokenBatch(self.xy, self.kind, self.distance, self.valid & valid)


class ClickConditioning(nn.Module):
    """Embeddings of a token's kind and distance, and projections of the adjoining slices; all start at zero.

    Args:
        channels: channels of the embedding (256 for every SAM).
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.kind = nn.Embedding(SECOND_PASS + 1, channels)
        self.distance = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, channels))
        self.previous = nn.Conv2d(channels, channels, 1, bias=False)
        self.following = nn.Conv2d(channels, channels, 1, bias=False)
        last = self.distance[2]
        assert isinstance(last, nn.Linear)
        for parameter in (self.kind.weight, last.weight, last.bias, self.previous.weight, self.following.weight):
            nn.init.zeros_(parameter)

    def with_context(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) that know the two adjoining slices'; edges repeat the slice itself."""
        conditioned: Tensor = embeddings + self.previous(previous) + self.following(following)
        return conditioned

    def token_offsets(self, tokens: TokenBatch) -> Tensor:
        """What a token adds to SAM's point embedding, (B, K, C)."""
        embedded: Tensor = self.kind(tokens.kind) + self.distance(tokens.distance)
        return embedded

    def second_pass_token(self, batch: int) -> Tensor:
        """The token that tells the decoder's second pass from its first, (B, 1, C)."""
        return self.kind.weight[SECOND_PASS].expand(batch, 1, -1)
