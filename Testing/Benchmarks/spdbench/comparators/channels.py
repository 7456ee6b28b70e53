"""Networks that take the clicks as a second image channel, or do without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spdbench.comparators.clicks import ClickedSlice
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
