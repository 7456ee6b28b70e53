"""What the SPD network consists of and what its masks learn by: frozen dataclasses that validate themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.settings import build_settings, check_choice, check_ranges

BACKBONES = ("lite_medsam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b", "tiny_random")
DECODER_MODES = ("lora", "full", "frozen")
RANGES = {
    "image_size": (16, 1024),  # SAM's own input; the work grows with its fourth power
    "lora_rank": (0, 256),
    "lora_alpha": (0, 1024),
    "lora_encoder_blocks": (-1, 64),
    "decoder_lora_rank": (0, 256),
    "neighbor_tokens": (0, 16),
}
"""Lowest and highest value of each number."""
SALIENCY_KINDS = ("image", "conditioned")


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of one SPD model.

    Attributes:
        backbone: base weights: ``lite_medsam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, ``medsam_vit_b``; or
            ``tiny_random``, none, for tests.
        image_size: side of the square network input in pixels.
        lora_rank: rank of every LoRA update, 0 for none (SAMed: 4).
        lora_alpha: LoRA scale numerator; the update is scaled by ``lora_alpha / lora_rank``.
        lora_encoder_blocks: number of attention blocks of the encoder, counted from its end, that LoRA adapts;
            -1 for all of them.
        decoder: how stage II adapts the mask decoder: ``lora`` (paper), ``full`` fine-tuning, ``frozen``.
        decoder_lora_rank: rank in the decoder.
        saliency_slice_context: let the saliency head see the features of the two adjoining slices as well.
        dense_saliency_prompt: give the saliency logits to the decoder as SAM's mask prompt as well (ours).
        saliency: ``image``, S_t = f_sal(I_t) of a saliency head (paper), or ``conditioned``, a first pass of the
            decoder that is told the clicks (ours).
        neighbor_tokens: conditioned: clicks that a slice sees on either side.
        interpolated_token: conditioned: a token between or beyond the clicks for slices without one.
        local_normalization: conditioned: the second input channel is normalized inside the field of view.
        second_pass: conditioned: decode the consensus; off: the saliency is the mask (an ablation).
    """

    backbone: str = "lite_medsam"
    image_size: int = 256
    lora_rank: int = 4
    lora_alpha: float = 4.0
    lora_encoder_blocks: int = -1
    decoder: str = "lora"
    decoder_lora_rank: int = 4
    saliency_slice_context: bool = False
    dense_saliency_prompt: bool = False
    saliency: str = "image"
    neighbor_tokens: int = 4
    interpolated_token: bool = True
    local_normalization: bool = True
    second_pass: bool = True

    @property
    def conditioned(self) -> bool:
        """Whether the saliency is told the clicks."""
        return self.saliency == "conditioned"

    def __post_init__(self) -> None:
        check_choice(self.backbone, BACKBONES, "backbone")
        check_choice(self.decoder, DECODER_MODES, "decoder mode")
        check_choice(self.saliency, SALIENCY_KINDS, "saliency")
        check_ranges(self, RANGES)
        multiple = 8 if self.backbone in ("lite_medsam", "tiny_random") else 16
        if self.image_size % multiple:
            raise BadInput(f"image_size {self.image_size} is not a positive multiple of {multiple}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Build from a mapping; an unknown key or a value of another kind raises :class:`BadInput`."""
        return build_settings(cls, values, kind="network")


@dataclass(frozen=True)
class SegmentationLossConfig:
    """Weights of the segmentation loss.

    Attributes:
        dice_weight, focal_weight: of the Dice loss; of the focal loss, 20 to 1 as in SAM.
        focal_gamma, focal_alpha: how much easy pixels count less (paper); share of the structure's pixels (SAM).
    """

    dice_weight: float = 1.0
    focal_weight: float = 20.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("dice_weight", "focal_weight", "focal_gamma"), (0.0, math.inf))
        check_ranges(self, weights | {"focal_alpha": (0.0, 1.0)})
        if 0 < self.focal_gamma < 1:  # the gradient of a pixel that is surely right has no bound
            raise BadInput(f"focal_gamma is {self.focal_gamma:g}, between 0 and 1.", "Set it to 0, or to 1 or more.")
