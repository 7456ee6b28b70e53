"""UNet (Ronneberger et al. 2015), 2-D, from MONAI; without clicks, and with a channel that says how near clicks are.

Starts from random weights. Without clicks it learns all structures of a case together, because nothing tells it which
one is meant; the clicks then only place its field of view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets import BasicUNet

from spdbench.comparators.channel_networks import ChannelComparator, ChannelNetwork
from spdbench.comparators.learned import SliceNetwork
from spdbench.comparators.protocol import InputSettings

FEATURES = (32, 32, 64, 128, 256, 32)


class UNet(ChannelComparator):
    """UNet without clicks."""

    name = "unet"
    with_clicks = False

    def __init__(self, inputs: InputSettings, features: Sequence[int] = FEATURES) -> None:
        super().__init__(inputs)
        self.features = tuple(features)

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().settings(), "features": self.features}

    def build(self) -> SliceNetwork:
        """A UNet with four levels below full resolution."""
        channels = 2 if self.with_clicks else 1
        return ChannelNetwork(BasicUNet(2, channels, 1, self.features), self.with_clicks)


class UNetWithClicks(UNet):
    """UNet with the click channel."""

    name = "unet-clicks"
    with_clicks = True
