"""What a click-conditioned saliency adds to SAM, S_t = f_sal(I_t-1..t+1 | clicks) (ours; docs/method.md).

The saliency is a first pass of SAM's own mask decoder, prompted with all clicks near the slice; the clicks enter only
behind the encoder, so embeddings stay as cached when a click changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from SPDSegmentLib.prompts.click_tokens import ClickTokens, TokenKind

SECOND_PASS = len(TokenKind)


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
