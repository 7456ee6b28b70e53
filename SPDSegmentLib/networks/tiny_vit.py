"""The TinyViT image encoder of LiteMedSAM.

Architecture: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022, as used by
LiteMedSAM (Ma et al., MedSAM project): the patch embedding keeps full resolution, stages 1 and 2 halve it, so that a
256 x 256 slice gives a 256 x 64 x 64 embedding. Parameter names follow the published checkpoint, batch norms included;
:func:`fold_batch_norms` removes them for training and inference, where they are frozen anyway.

Every tensor between modules is (B, C, H, W) in channels-last memory, so that a convolution and a linear layer over
channels read the same memory without a copy. A layer and the GELU behind it are one pass over memory, where torch has
oneDNN. In float32 inference a thread that has one core works through what is wide within a block in tiles that stay in
the cache (``inference/acceleration.py`` gives each core slices of its own). The function is the same up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4096
"""So many pixels are a tile: with 1,280 channels of float32 they fit in a CPU's last cache."""


class ConvNorm(nn.Module):
    """A convolution followed by batch norm; after :meth:`fold` one convolution with bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.c(x))
        return normed

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of this layer."""
        return conv_gelu(x, self.c) if isinstance(self.bn, nn.Identity) else F.gelu(self(x))

    @torch.no_grad()
    def fold(self) -> None:
        """Move the statistics of the batch norm into the convolution (same function, fewer passes over memory)."""
        if not isinstance(self.bn, nn.BatchNorm2d):
            return
        assert self.bn.running_var is not None and self.bn.running_mean is not None
        scale = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        self.c.weight.mul_(scale[:, None, None, None])
        self.c.bias = nn.Parameter(self.bn.bias - self.bn.running_mean * scale, requires_grad=False)
        self.bn = nn.Identity()


class MBConv(nn.Module):
    """Inverted residual block: 1x1 expansion, 3x3 depthwise, 1x1 projection, residual, GELU."""

    def __init__(self, channels: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * expand_ratio)
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv2.bn, nn.Identity) and works_in_tiles(x):
            return self._in_tiles(x)
        y = self.conv2.gelu(self.conv1.gelu(x))
        return F.gelu(self.conv3(y) + x)

    def _in_tiles(self, x: Tensor) -> Tensor:
        """The same, some rows of one slice after the other; the row before and that after come along."""
        height, result = x.shape[2], torch.empty_like(x, memory_format=torch.channels_last)
        rows = max(1, TILE // x.shape[3])
        for maps, out in zip(x.split(1), result.split(1), strict=True):
            for first in range(0, height, rows):
                stop, above = min(first + rows, height), max(first - 1, 0)
                hidden = self.conv2.gelu(self.conv1.gelu(maps[:, :, above : stop + 1]))
                y = self.conv3(hidden[:, :, first - above : stop - above])
                out[:, :, first:stop] = gelu_(y.add_(maps[:, :, first:stop]))
        return result


class PatchMerging(nn.Module):
    """Change of width between stages, with an optional halving of the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(self.conv2.gelu(self.conv1.gelu(x)))
        return merged


class WindowAttention(nn.Module):
    """Multi-head self-attention within one window, with a learned bias per offset.

    ``qkv`` holds the rows of q, k and v one after the other, each ordered by head; the checkpoint interleaves them by
    head, and :func:`deinterleave_qkv` reorders it on loading.
    """

    bias_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        positions = list(itertools.product(range(window_size), repeat=2))
        offsets: dict[tuple[int, int], int] = {}
        index = [
            offsets.setdefault((abs(p[0] - q[0]), abs(p[1] - q[1])), len(offsets)) for p in positions for q in positions
        ]
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, len(offsets)))
        n = len(positions)
        self.register_buffer("bias_index", torch.tensor(index).view(n, n), persistent=False)
        self._bias_key: tuple[int, torch.dtype, torch.device] | None = None
        self._bias = torch.empty(0)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Additive attention bias, (heads, N, N); kept while the parameters do not change."""
        parameters = self.attention_biases
        if parameters.requires_grad and torch.is_grad_enabled():
            return parameters[:, self.bias_index].to(dtype)
        version = -1 if parameters.is_inference() else parameters._version
        key = (version, dtype, parameters.device)
        if self._bias_key != key:
            self._bias, self._bias_key = parameters.detach()[:, self.bias_index].to(dtype), key
        return self._bias

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: (windows, N, C) to (windows, N, C)."""
        windows, n, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = _attend(q, k, v, self.bias(q.dtype)[None])
        projected: Tensor = self.proj(x.transpose(1, 2).reshape(windows, n, channels))
        return projected


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention, (windows, heads, N, d) each.

    Torch's fused CPU kernel is the fastest forward, but its backward with a bias takes several times as long as that of
    the plain products: ``Testing/Benchmarks/attention_backward.py``.
    """
    if q.requires_grad and q.device.type == "cpu":
        return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias, dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Mlp(nn.Module):
    """Layer norm and two linear layers with GELU between, and the residual."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """This of tokens (..., C), added to them."""
        if not works_in_tiles(x):
            mapped: Tensor = x + self.fc2(linear_gelu(self.norm(x), self.fc1))
            return mapped
        tokens = x.reshape(-1, x.shape[-1])
        result = torch.empty_like(tokens)
        for tile, out in zip(tokens.split(TILE), result.split(TILE), strict=True):
            hidden = gelu_(self.fc1(self.norm(tile)))
            torch.addmm(tile, hidden, self.fc2.weight.t(), out=out).add_(self.fc2.bias)
        return result.view(x.shape)


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise 3x3 convolution, an MLP; zero-padded to whole windows."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def _attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C), in windows of ``window_size``."""
        b, h, w, c = x.shape
        size = self.window_size
        pad_h, pad_w = -h % size, -w % size
        if pad_h or pad_w:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = (h + pad_h) // size, (w + pad_w) // size
        x = x.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size * size, c)
        x = self.attn(x)
        x = x.view(b, rows, columns, size, size, c).transpose(2, 3).reshape(b, h + pad_h, w + pad_w, c)
        return x[:, :h, :w]

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        last = last + self._attend(last)
        last = self.local_conv(last.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        maps: Tensor = self.mlp(last).permute(0, 3, 1, 2)
        return maps


class Stage(nn.Module):
    """Blocks of one width, then the change to the next width."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Two 1x1 convolutions from the three input channels to the first width, at full resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, dim // 2), nn.GELU(), ConvNorm(dim // 2, dim))

    def forward(self, x: Tensor) -> Tensor:
        first, _, second = self.seq
        assert isinstance(first, ConvNorm)
        patches: Tensor = second(first.gelu(x))
        return patches


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    @classmethod
    def like(cls, other: Any) -> LayerNorm2d:
        """The same function as another layer norm of this kind, whose parameters it takes over."""
        made = cls(len(other.weight), other.eps)
        made.weight, made.bias = other.weight, other.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class TinyViTEncoder(nn.Module):
    """TinyViT with SAM's neck.

    Args:
        widths, depths, num_heads, window_sizes: one entry per stage; the first stage is convolutional.
        out_channels: channels of the embedding.
    """

    stride = 4

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(widths[0])
        stages: list[nn.Module] = []
        for i, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = [
                MBConv(dim, mlp_ratio) if i == 0 else TinyViTBlock(dim, num_heads[i], window_sizes[i], mlp_ratio)
                for _ in range(depth)
            ]
            last = i == len(widths) - 1
            stages.append(Stage(blocks, None if last else PatchMerging(dim, widths[i + 1], 2 if i < 2 else 1)))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], out_channels, 1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def steps(self) -> list[nn.Module]:
        """The encoder as a chain of modules; a frozen head of the chain can be computed once and kept."""
        chain: list[nn.Module] = [self.patch_embed]
        for stage in self.layers:
            assert isinstance(stage, Stage)
            chain += list(stage.blocks)
            if stage.downsample is not None:
                chain.append(stage.downsample)
        return [*chain, self.neck]

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, 3, S, S), values in [0, 1], to (B, C, S / 4, S / 4)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for step in self.steps():
            x = step(x)
        return x


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm below ``module`` into its convolution, in place."""
    for child in module.modules():
        if isinstance(child, ConvNorm):
            child.fold()


def collapse_gray_input(encoder: TinyViTEncoder) -> None:
    """Let the encoder take one channel instead of three equal ones: the first layer's weights are summed, in place."""
    first = encoder.patch_embed.seq[0]
    assert isinstance(first, ConvNorm) and first.c.in_channels == 3
    first.c.weight = nn.Parameter(first.c.weight.sum(1, keepdim=True), requires_grad=False)
    first.c.in_channels = 1


def deinterleave_qkv(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from (head, {q, k, v}, d), the checkpoint's order, to ({q, k, v}, head, d)."""
    rows = tensor.shape[0]
    return tensor.view(num_heads, 3, rows // (3 * num_heads), *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def convert_checkpoint(encoder: TinyViTEncoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring an encoder state dict as published into this module's order of the qkv rows."""
    heads = {name: m.num_heads for name, m in encoder.named_modules() if isinstance(m, WindowAttention)}
    converted = dict(state)
    for name, num_heads in heads.items():
        for kind in ("weight", "bias"):
            key = f"{name}.qkv.{kind}"
            converted[key] = deinterleave_qkv(state[key], num_heads)
    return converted


def works_in_tiles(x: Tensor) -> bool:
    """Whether inference takes a tile after the other: in float32 on one core; several would wait for one another."""
    return (
        x.device.type == "cpu"
        and torch.get_num_threads() == 1
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def gelu_(x: Tensor) -> Tensor:
    """GELU in place."""
    changed: Tensor = torch.ops.aten.gelu_(x)
    return changed


def conv_gelu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """GELU of a convolution of (B, C, H, W)."""
    if not _can_fuse(x, conv.weight):
        return F.gelu(conv(x))
    convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "gelu", [], "none"
    )
    return convolved


def linear_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """GELU of a linear layer over the last axis."""
    if not _can_fuse(x, linear.weight):
        return F.gelu(linear(x))
    mapped: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, "gelu", [], "none")
    return mapped


def _can_fuse(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.dtype == weight.dtype
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
