"""Read weights without ever unpickling objects."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from SPDSegmentLib.errors import ModelCorrupt


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` or a torch file of tensors.

    Torch files are opened with ``weights_only=True``; a file that needs more raises :class:`ModelCorrupt`.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelCorrupt(
            f"{path} does not hold plain model weights.", "Remove it and fetch it again.", str(error)
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelCorrupt(f"{path} does not hold a dictionary of tensors.", "Remove it and fetch it again.")
    return state
