"""The SAM variants: image encoder, prompt encoder and mask decoder from segment-anything's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.models.manifest import refetch_command
from SPDSegmentLib.networks.checkpoint import load_state_dict
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.guarded_imports import import_segment_anything_modeling
from SPDSegmentLib.networks.tiny_vit import TinyViTEncoder, convert_checkpoint, fold_batch_norms
from SPDSegmentLib.networks.vit import interpolate_positions


@dataclass(frozen=True)
class ViTShape:
    """Size of a ViT image encoder."""

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]


VIT_SHAPES = {
    "sam_vit_b": ViTShape(768, 12, 12, (2, 5, 8, 11)),
    "medsam_vit_b": ViTShape(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": ViTShape(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": ViTShape(1280, 32, 16, (7, 15, 23, 31)),
}
EMBEDDING_CHANNELS = 256
# (mean, standard deviation) of an RGB pixel in 0..255, as SAM was trained; LiteMedSAM takes values in 0..1.
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass
class SamModules:
    """The three parts of a SAM and how the image enters it.

    Attributes:
        stride: input pixels per embedding cell.
        pixel_mean, pixel_std: (3, 1, 1), applied to a slice in [0, 1].
    """

    image_encoder: nn.Module
    prompt_encoder: nn.Module
    mask_decoder: nn.Module
    stride: int
    pixel_mean: Tensor
    pixel_std: Tensor


def build_sam(config: NetworkConfig, weights: str | Path | None = None) -> SamModules:
    """Build the backbone named in ``config``.

    Args:
        weights: checked base weights; ``None`` leaves the initialization random (tests, speed measurements).

    Raises:
        ModelCorrupt: when the weights do not fit the backbone.
    """
    modeling = import_segment_anything_modeling()
    tiny = config.backbone in ("lite_medsam", "tiny_random")
    stride = TinyViTEncoder.stride if tiny else 16
    side = config.image_size // stride
    encoder: nn.Module
    if config.backbone == "tiny_random":
        encoder = TinyViTEncoder((8, 16, 16, 32), (1, 1, 1, 1), (1, 2, 2, 4), (7, 7, 7, 7), 2.0, 32)
    elif tiny:
        encoder = TinyViTEncoder()
    else:
        encoder = _build_vit(modeling, VIT_SHAPES[config.backbone], config.image_size)
    channels = 32 if config.backbone == "tiny_random" else EMBEDDING_CHANNELS
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(side, side),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=16,
    )
    mask_decoder = modeling.MaskDecoder(
        num_multimask_outputs=3,
        transformer=modeling.TwoWayTransformer(
            depth=2, embedding_dim=channels, mlp_dim=8 * channels, num_heads=8 if channels == 256 else 2
        ),
        transformer_dim=channels,
        iou_head_depth=3,
        iou_head_hidden_dim=channels,
    )
    if weights is not None:
        _load(config, encoder, prompt_encoder, mask_decoder, load_state_dict(weights), str(weights))
    if isinstance(encoder, TinyViTEncoder):
        fold_batch_norms(encoder.eval())
    mean, std = ((0.0,) * 3, (1.0,) * 3) if tiny else (SAM_PIXEL_MEAN, SAM_PIXEL_STD)
    scale = 1.0 if tiny else 255.0
    return SamModules(
        encoder,
        prompt_encoder,
        mask_decoder,
        stride,
        torch.tensor(mean).view(3, 1, 1) / scale,
        torch.tensor(std).view(3, 1, 1) / scale,
    )


def _build_vit(modeling, shape: ViTShape, image_size: int) -> nn.Module:  # type: ignore[no-untyped-def]
    encoder: nn.Module = modeling.ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=4,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=shape.global_blocks,
        out_chans=EMBEDDING_CHANNELS,
    )
    return encoder


def _load(
    config: NetworkConfig,
    encoder: nn.Module,
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
    state: dict[str, Tensor],
    source: str,
) -> None:
    parts: dict[str, dict[str, Tensor]] = {"image_encoder": {}, "prompt_encoder": {}, "mask_decoder": {}}
    try:
        for key, value in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        if isinstance(encoder, TinyViTEncoder):
            parts["image_encoder"] = convert_checkpoint(encoder, parts["image_encoder"])
        else:
            shape = VIT_SHAPES[config.backbone]
            parts["image_encoder"] = interpolate_positions(
                parts["image_encoder"], config.image_size // 16, shape.global_blocks
            )
        for part, module in zip(parts, (encoder, prompt_encoder, mask_decoder), strict=True):
            _check_kinds(parts[part], module.state_dict())
            module.load_state_dict(parts[part], strict=True)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ModelCorrupt(
            f"{source} does not hold the weights of {config.backbone}.",
            f"Run: {refetch_command(config.backbone)}",
            str(error),
        ) from error


def _check_kinds(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise :class:`TypeError` where whole numbers stand for weights, or the reverse; the copy would convert them."""
    for name, value in state.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise TypeError(f"{name} is {value.dtype}, not {own[name].dtype}")
