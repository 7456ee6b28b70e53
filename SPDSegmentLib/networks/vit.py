"""Use segment-anything's ViT encoder at another input size than it was trained for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
