"""The SAM variants: image encoder, prompt encoder and mask decoder from segment-anything's classes, and their weights.

Weights are read without ever unpickling objects. segment-anything and peft are imported although the machine's
torchvision may be broken: a wheel built for another torch fails on import ("operator torchvision::nms does not exist"),
segment-anything's ``__init__`` imports it for its predictor and mask generator, and peft reaches it through
transformers. None of the code used here needs it. So of segment-anything only ``segment_anything.modeling`` is loaded,
below a bare parent package, and a torchvision that cannot be imported is hidden from peft, as if it were missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.errors import DependencyMissing, ModelCorrupt, import_package, missing_package
from SPDSegmentLib.files import plain_path, write_whole
from SPDSegmentLib.models.base_weights import refetch_command
from SPDSegmentLib.models.bundle import Bundle, base_weights_for
from SPDSegmentLib.models.storage import changed_names, from_changes
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.tiny_vit import TinyViTEncoder, convert_checkpoint, fold_batch_norms
from SPDSegmentLib.settings import shorten

LOWEST_TORCH = (2, 6)
"""Before it, ``weights_only`` could be made to run code."""

AGAIN = "Remove this file and fetch or copy it again."


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


def interpolate_positions(
    state: dict[str, Tensor], embedding_size: int, global_blocks: tuple[int, ...]
) -> dict[str, Tensor]:
    """Resize the position embeddings of an ``ImageEncoderViT`` state dict.

    Args:
        state: keys as in segment-anything, without the ``image_encoder.`` prefix.
        embedding_size: side of the new embedding, ``image_size / 16``.
        global_blocks: indexes of the blocks with global attention, whose relative positions span the whole image.

    Returns:
        A new state dict: ``pos_embed`` (1, n, n, C) interpolated bicubically, the relative positions (2n - 1, d) of
        global blocks linearly; windowed blocks keep theirs.
    """
    resized = dict(state)
    positions = state["pos_embed"]
    if positions.shape[1] == embedding_size:
        return resized
    resized["pos_embed"] = F.interpolate(
        positions.permute(0, 3, 1, 2), size=(embedding_size, embedding_size), mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)
    for block in global_blocks:
        for axis in ("h", "w"):
            key = f"blocks.{block}.attn.rel_pos_{axis}"
            if key in state:
                resized[key] = F.interpolate(
                    state[key].T[None], size=2 * embedding_size - 1, mode="linear", align_corners=False
                )[0].T.contiguous()
    return resized


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` or a torch file of tensors, every value of which is finite in single precision.

    Torch files are opened with ``weights_only=True``; a file that needs more raises :class:`ModelCorrupt`.

    Raises:
        ModelCorrupt: not plain tensors by name, or values that are NaN or infinite.
        DependencyMissing: a torch file, and a torch that is too old to open it safely.
    """
    path = Path(path)
    state: Any
    try:
        with plain_path(path) as plain:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(plain)
            else:
                _require_safe_torch()
                state = torch.load(plain, map_location="cpu", weights_only=True)
    except DependencyMissing:
        raise
    except Exception as error:
        raise ModelCorrupt(f"{path} does not hold plain model weights.", AGAIN, str(error)) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(_is_plain(name, value) for name, value in state.items()):
        raise ModelCorrupt(f"{path} does not hold a dictionary of plain tensors.", AGAIN)
    for name, value in state.items():
        if value.is_floating_point() and not is_finite(value.float()):
            raise ModelCorrupt(
                f"{path} is damaged: the tensor '{shorten(name)}' holds values that are NaN or infinite.", AGAIN
            )
    return state


def load_adapter(bundle: Bundle, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read the adapter of a bundle, what is stored as a change of the base weights added to them.

    Args:
        base: the base weights of the decoder and the prompt encoder, None to read their file where it is needed.

    Raises:
        ModelMissing: the file is needed and not on this machine.
        ModelCorrupt: it is another one than the bundle was trained on, or the adapter is damaged.
    """
    stored = load_state_dict(bundle.adapter_path)
    if base is None and changed_names(stored):
        weights = base_weights_for(bundle)
        base = {} if weights is None else load_state_dict(weights)
    return from_changes(stored, base or {})


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; without a copy of ``tensor``."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _is_plain(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized or value.is_nested)
    )


def _require_safe_torch() -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < LOWEST_TORCH:
        needed = ".".join(map(str, LOWEST_TORCH))
        raise DependencyMissing(
            f"torch {torch.__version__} cannot open model weights safely; {needed} is needed.",
            missing_package("torch", "").remedy,
        )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write what ``torch.load(weights_only=True)`` reads, see :func:`SPDSegmentLib.files.write_whole`."""
    write_whole(path, lambda part: torch.save(state, part), _is_whole_archive, "checkpoint")


def _is_whole_archive(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def import_segment_anything_modeling() -> ModuleType:
    """Return ``segment_anything.modeling`` (``ImageEncoderViT``, ``MaskDecoder``, ``PromptEncoder``, ...).

    Raises:
        DependencyMissing: when segment-anything is not installed.
    """
    if "segment_anything.modeling" in sys.modules:
        return sys.modules["segment_anything.modeling"]
    if "segment_anything" in sys.modules:
        return importlib.import_module("segment_anything.modeling")
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.submodule_search_locations is None:
        raise missing_package("segment_anything", "it is not installed")
    parent = types.ModuleType("segment_anything")
    parent.__path__ = list(spec.submodule_search_locations)
    parent.__spec__ = spec
    sys.modules["segment_anything"] = parent
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:
        # A later "import segment_anything" by somebody else gets the whole package, with its own __init__.
        del sys.modules["segment_anything"]


def import_peft() -> ModuleType:
    """Return ``peft``.

    Raises:
        DependencyMissing: when it is not installed or cannot be imported.
    """
    hide_broken_torchvision()
    peft: ModuleType = import_package("peft")
    return peft


def hide_broken_torchvision() -> None:
    """Make an installed torchvision that fails on import look like one that is not installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
