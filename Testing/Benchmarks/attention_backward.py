"""Forward and backward of window attention with a bias on the CPU: plain products against torch's fused kernel.

.venv/bin/python Testing/Benchmarks/attention_backward.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ((24, 5, 49, 32), (6, 5, 196, 32), (96, 5, 49, 32))  # windows, heads, tokens, channels per head


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As in training."""
    return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias, dim=-1).to(v.dtype) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As at inference."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def milliseconds(shape: tuple[int, int, int, int], attend: Callable[..., Tensor]) -> float:
    """Median of 15 runs after one to warm up, under autocast to bfloat16."""
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    bias = torch.randn(shape[1], shape[2], shape[2])[None]
    times = []
    for _ in range(16):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
        out.float().sum().backward()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[1:])


def main() -> None:
    """Print both times and their ratio for the window sizes of TinyViT."""
    for shape in SHAPES:
        a, b = milliseconds(shape, fused), milliseconds(shape, plain)
        print(f"{shape}: fused {a:.1f} ms, plain {b:.1f} ms, ratio {a / b:.1f}")


if __name__ == "__main__":
    main()
