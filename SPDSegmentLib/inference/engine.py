"""The model on its device: batches in, arrays out, smaller batches when memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import (
    MORE_MEMORY,
    BadInput,
    DeviceUnavailable,
    ModelCorrupt,
    OutOfMemory,
    is_out_of_memory,
)
from SPDSegmentLib.inference.memory import keep_freed_memory
from SPDSegmentLib.networks.conditioning import TokenBatch
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import ClickTokens
from SPDSegmentLib.prompts.padding import pad_points

T = TypeVar("T")
SALIENCY_CLIP = 1e-4


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        BadInput: unknown.
        DeviceUnavailable: CUDA asked for where torch has none, or a number beyond the last device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"Unknown device '{name}'.", "Choose auto, cpu, cuda or cuda:0.", str(error)) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("No CUDA device can be used by the installed torch.", "Choose --device cpu or auto.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"There is no device {name}.", f"This machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"Device '{name}' is not supported.", "Choose auto, cpu, cuda or cuda:0.")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 where it is the faster one (GPUs that have it, CPUs with AMX), else float32; or one by name.

    A CPU that has the AVX512-BF16 instructions but no AMX takes 1.3 times as long in bfloat16 as in float32
    (``speed.py`` on one without: ``results/speed-without-amx.json``).
    """
    if name not in ("auto", "bfloat16", "float32"):
        raise BadInput(f"Unknown precision '{name}'.", "Choose auto, bfloat16 or float32.")
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    matrix_unit = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.bfloat16 if matrix_unit else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision of bfloat16, or none where ``precision`` is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


class Engine:
    """A merged SPD model ready for inference.

    Args:
        model: adapters merged.
        device, precision: see :func:`choose_device` and :func:`choose_precision`.
        batch_size: slices per encoder call; halved when memory runs out.
        max_points: K of the prompts, 0 for no limit.
    """

    def __init__(
        self, model: SPDModel, device: torch.device, precision: torch.dtype, batch_size: int, max_points: int
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(device).prepare_for_inference(precision)
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.max_points = max_points

    @property
    def image_size(self) -> int:
        """S, side of the network input."""
        return self.model.config.image_size

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Tensor:
        """Embed (B, 1 or 3, S, S) slices in [0, 1]; (B, C, h, w) on the device, in the engine's precision."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, self.precision)
        return self.model.encode(batch)

    @torch.inference_mode()
    def with_context(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) of a conditioned model that know the adjoining slices'."""
        with self._autocast():
            return self.model.conditioning.with_context(embeddings, previous, following)

    @torch.inference_mode()
    def conditioned_saliency(self, embeddings: Tensor, tokens: ClickTokens) -> tuple[np.ndarray, np.ndarray]:
        """Pass one of a conditioned model: S_t (B, S, S) float16 of (B, C, h, w) embeddings with context, IoU (B,)."""
        with self._autocast():
            logits, quality = self.model.decode_clicks(embeddings, TokenBatch.of(tokens, self.device))
        return logits[:, 0].sigmoid().half().cpu().numpy(), quality.clamp(0, 1).cpu().numpy()

    @torch.inference_mode()
    def decode_conditioned(
        self, embeddings: Tensor, tokens: ClickTokens, saliency: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pass two of a conditioned model: mask logits (B, S, S) of the consensus and S_t (B, S, S), and IoU (B,)."""
        with self._autocast():
            logits, quality = self.model.decode_clicks(
                embeddings, TokenBatch.of(tokens, self.device), self._logits(saliency)
            )
        return logits[:, 0].cpu().numpy(), quality.clamp(0, 1).cpu().numpy()

    def _logits(self, saliency: np.ndarray) -> Tensor:
        """S (B, S, S) as logits (B, 1, S, S) on the device."""
        s = torch.from_numpy(saliency.astype(np.float32)).clamp(SALIENCY_CLIP, 1 - SALIENCY_CLIP).to(self.device)
        return torch.logit(s)[:, None]

    @torch.inference_mode()
    def saliency(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> np.ndarray:
        """S_t of (B, C, h, w) embeddings and their neighbours': (B, S, S) float16, NaN where a logit is not finite."""
        with self._autocast():
            logits = self.model.saliency_logits(embeddings, previous, following)
        return _mark_infinite(logits[:, 0]).sigmoid().half().cpu().numpy()

    @torch.inference_mode()
    def decode(
        self, embeddings: Tensor, points: Sequence[np.ndarray], saliency: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks of B slices.

        Args:
            embeddings: (B, C, h, w).
            points: B arrays (M_i, 2), (column, row) in network pixels.
            saliency: (B, S, S).

        Returns:
            Logits (B, S, S) float32 and predicted IoU (B,), NaN where they are not finite.
        """
        padded, labels = pad_points(points, self.max_points)
        with self._autocast():
            logits, quality = self.model.decode(
                embeddings,
                torch.from_numpy(padded).to(self.device),
                torch.from_numpy(labels).to(self.device),
                self._logits(saliency),
            )
        return _mark_infinite(logits[:, 0]).cpu().numpy(), _mark_infinite(quality).clamp(0, 1).cpu().numpy()

    def with_smaller_batches(self, items: Sequence[T], run: Callable[[Sequence[T]], None]) -> None:
        """Call ``run`` on batches of ``items``; when memory runs out the batch is halved, down to one.

        Raises:
            OutOfMemory: one item alone does not fit.
        """
        position = 0
        while position < len(items):
            batch = items[position : position + self.batch_size]
            try:
                run(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if self.batch_size == 1:
                    raise OutOfMemory(
                        f"The device {self.device} has not enough memory for one slice.",
                        MORE_MEMORY
                        if self.device.type == "cpu"
                        else "Close other programs that use it, or choose the CPU.",
                        str(error),
                    ) from error
                self.batch_size = max(1, self.batch_size // 2)
                continue
            position += len(batch)


def require_numbers(slices: Sequence[int], *outputs: np.ndarray) -> None:
    """Raise :class:`ModelCorrupt` where an output (B, ...) of the network has a NaN; an empty mask would be a lie."""
    failed = [t for row, t in enumerate(slices) if any(np.isnan(output[row]).any() for output in outputs)]
    if failed:
        raise ModelCorrupt(
            f"The model failed in slice {failed[0]}: its network gave values that are NaN or infinite.",
            "Check the model with: spdsegment models verify; where that finds nothing, get another copy of the model.",
            f"slices {failed}",
        )


def _mark_infinite(values: Tensor) -> Tensor:
    return values.where(torch.isfinite(values), torch.nan)
