"""Low-rank adaptation of SAM's encoder and mask decoder through ``peft``.

Encoder: rank-r updates of the q and v rows of the fused ``qkv`` projection of every adapted attention block, with B
initialized to zero (Hu et al. 2022; placement after SAMed, Zhang and Liu 2023). Decoder: the q and v projections of its
self-attention and of both cross-attentions. With adapters disabled the base model's output comes back bit for bit.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from SPDSegmentLib.networks.backbones import import_peft

DECODER_TARGETS = r"transformer\..*\.(q_proj|v_proj)|transformer\.final_attn_token_to_image\.(q_proj|v_proj)"


class AdaptableQKV(nn.Module):
    """A fused qkv projection whose q and v rows can be adapted.

    The frozen fused layer computes as before; ``q`` and ``v`` are layers of zeros that ``peft`` wraps, so their output
    is the low-rank update alone and nothing is added while adapters are off.

    Args:
        fused: the layer to adapt, rows in the order q, k, v.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.fused = fused
        self.q: nn.Module = ZeroLinear(fused.in_features, fused.out_features // 3)
        self.v: nn.Module = ZeroLinear(fused.in_features, fused.out_features // 3)

    def forward(self, x: Tensor) -> Tensor:
        qkv: Tensor = self.fused(x)
        if not adapters_active(self.q):
            return qkv
        q, v = self.q(x), self.v(x)
        return qkv + torch.cat((q, torch.zeros_like(q), v), dim=-1)


class ZeroLinear(nn.Linear):
    """A linear layer that stands for a zero matrix without storing or multiplying one."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight = nn.Parameter(torch.zeros(1).expand(out_features, in_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing to save."""

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing to load."""


def adapters_active(layer: nn.Module) -> bool:
    """Whether ``layer`` is wrapped by peft and its adapters are on."""
    return hasattr(layer, "lora_A") and not layer.disable_adapters


def attention_modules(encoder: nn.Module) -> list[nn.Module]:
    """Attention modules with a fused ``qkv``, first to last (segment-anything's ViT and TinyViT alike)."""
    return [module for module in encoder.modules() if hasattr(module, "qkv")]


def add_encoder_lora(encoder: nn.Module, rank: int, alpha: float, blocks: int = -1) -> None:
    """Adapt q and v of the last ``blocks`` attention blocks (-1: all), in place; everything else is frozen."""
    encoder.requires_grad_(False)
    if rank == 0 or blocks == 0:
        return
    attentions = attention_modules(encoder)
    for attention in attentions if blocks < 0 else attentions[-blocks:]:
        attention.qkv = AdaptableQKV(attention.qkv)  # type: ignore[arg-type]
    _inject(encoder, r".*\.qkv\.(q|v)", rank, alpha)


def add_decoder_lora(decoder: nn.Module, rank: int, alpha: float) -> None:
    """Adapt the q and v projections of the decoder's attentions, in place; everything else is frozen."""
    decoder.requires_grad_(False)
    if rank:
        _inject(decoder, DECODER_TARGETS, rank, alpha)


def encoder_lora_layers(encoder: nn.Module, blocks: int = -1) -> dict[str, tuple[int, int]]:
    """Rows and columns of the layers that :func:`add_encoder_lora` would adapt, by name."""
    names = [name for name, module in encoder.named_modules() if hasattr(module, "qkv")]
    chosen = names if blocks < 0 else names[len(names) - min(blocks, len(names)) :]
    layers: dict[str, tuple[int, int]] = {}
    for name in chosen:
        rows, columns = encoder.get_parameter(f"{name}.qkv.weight").shape
        layers |= {f"{name}.qkv.{part}": (rows // 3, columns) for part in "qv"}
    return layers


def decoder_lora_layers(decoder: nn.Module) -> dict[str, tuple[int, int]]:
    """Rows and columns of the layers that :func:`add_decoder_lora` would adapt, by name."""
    names = [name for name, _ in decoder.named_modules() if re.fullmatch(DECODER_TARGETS, name)]
    return {name: tuple(decoder.get_parameter(f"{name}.weight").shape) for name in names}  # type: ignore[misc]


def _inject(module: nn.Module, targets: str, rank: int, alpha: float) -> None:
    peft = import_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(config, module)


def merge_adapter_tensors(module: nn.Module, state: dict[str, Tensor], alpha_over_rank: float) -> set[str]:
    """Add the low-rank updates of ``state`` to the weights of a module without adapters, in place; needs no peft.

    Args:
        state: ``<layer>.lora_A.default.weight`` and ``<layer>.lora_B.default.weight`` as :func:`add_encoder_lora` and
            :func:`add_decoder_lora` name them, relative to ``module``.

    Returns:
        The names that were used.

    Raises:
        KeyError, RuntimeError: a layer or a partner is missing, or a shape does not fit.
    """
    used: set[str] = set()
    for a_name in sorted(name for name in state if ".lora_A." in name):
        b_name = a_name.replace(".lora_A.", ".lora_B.")
        layer_name = a_name.partition(".lora_A.")[0]
        update = (state[b_name].float() @ state[a_name].float()) * alpha_over_rank
        path, _, part = layer_name.rpartition(".")
        fused = part in ("q", "v") and path.endswith(".qkv")
        weight = module.get_parameter(f"{path if fused else layer_name}.weight")
        rows = weight.shape[0] // 3
        with torch.no_grad():
            target = {"q": weight[:rows], "v": weight[2 * rows :]}[part] if fused else weight
            if target.shape != update.shape:
                raise RuntimeError(f"{layer_name}: update {tuple(update.shape)}, weight {tuple(target.shape)}")
            target += update
        used |= {a_name, b_name}
    return used
