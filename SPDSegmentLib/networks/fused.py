"""Convolution and linear layers with GELU in one pass over memory, where the CPU build of torch has oneDNN.

The same function as the layer followed by an exact GELU, up to rounding; used for inference only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
