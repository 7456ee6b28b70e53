"""What SPD adds to SAM: low-rank adaptation through ``peft``, the saliency S_t, and the clicks that condition it.

Encoder: rank-r updates of the q and v rows of the fused ``qkv`` projection of every adapted attention block, with B
initialized to zero (Hu et al. 2022; placement after SAMed, Zhang and Liu 2023). Decoder: the q and v projections of its
self-attention and of both cross-attentions. With adapters disabled the base model's output comes back bit for bit.

The head is S_t = f_sal(I_t) (paper, stage I; the layers are our choice, after SAM's upscaling). The conditioned
saliency, S_t = f_sal(I_t-1..t+1 | clicks) (ours; docs/method.md), is a first pass of SAM's own mask decoder, prompted
with all clicks near the slice; the clicks enter only behind the encoder, so embeddings stay as cached when a click
changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.networks.backbones import import_peft
from SPDSegmentLib.networks.tiny_vit import LayerNorm2d
from SPDSegmentLib.prompts.click_tokens import ClickTokens, TokenKind

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
        return self.upscaled(self.with_neighbors(embeddings, previous, following))

    def with_neighbors(self, embeddings: Tensor, previous: Tensor | None, following: Tensor | None) -> Tensor:
        """What :meth:`upscaled` takes, (B, C, h, w)."""
        x = embeddings
        if self.previous is not None and self.following is not None:
            x = x + self.previous(embeddings if previous is None else previous)
            x = x + self.following(embeddings if following is None else following)
        return x

    def upscaled(self, x: Tensor) -> Tensor:
        """Logits (B, 1, 4h, 4w) of (B, C, h, w); a block of 4 x 4 of them depends on nothing but its own pixel of x."""
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

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What it is made of, in that order."""
        return self.xy, self.kind, self.distance, self.valid


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
