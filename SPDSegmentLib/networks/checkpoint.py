"""Read weights without ever unpickling objects, and write checkpoints in one piece."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from SPDSegmentLib.errors import DependencyMissing, ModelCorrupt, missing_package
from SPDSegmentLib.files import write_whole
from SPDSegmentLib.settings import shorten

LOWEST_TORCH = (2, 6)
"""Before it, ``weights_only`` could be made to run code."""

AGAIN = "Remove this file and fetch or copy it again."


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
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            _require_safe_torch()
            state = torch.load(path, map_location="cpu", weights_only=True)
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
