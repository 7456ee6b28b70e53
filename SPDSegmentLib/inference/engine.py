"""The model on its device: batches in, arrays out, smaller batches when memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import (
    MORE_CARD_MEMORY,
    MORE_MEMORY,
    BadInput,
    DeviceUnavailable,
    ModelCorrupt,
    OutOfMemory,
    is_out_of_memory,
)
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.limits import free_memory_bytes, keep_freed_memory, usable_cores
from SPDSegmentLib.inference import acceleration
from SPDSegmentLib.inference.acceleration import (
    CapturedDecoder,
    CompiledEncoder,
    compiling_is_on,
    each_on_a_core,
    on_cores,
)
from SPDSegmentLib.inference.device_slices import Download, upload
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import ClickTokens, pad_points
from SPDSegmentLib.prompts.distillation import PromptConfig

if TYPE_CHECKING:
    from SPDSegmentLib.models.bundle_info import BundleInfo

T = TypeVar("T")
Rows = Tensor | Sequence[Tensor]
"""Tensors of B slices: (B, ...), or B of them."""
SALIENCY_CLIP = 1e-4
CACHE_BYTES = 1 << 30


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


def list_devices() -> list[tuple[str, str, int | None]]:
    """Name, title and free memory in bytes of the devices that can be used, fastest first."""
    devices: list[tuple[str, str, int | None]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            free: int | None = int(torch.cuda.mem_get_info(index)[0])
        except RuntimeError:
            free = None
        devices.append((f"cuda:{index}", str(torch.cuda.get_device_name(index)), free))
    return [*devices, ("cpu", f"CPU, {usable_cores()} cores", free_memory_bytes())]


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
        batch_size: slices per encoder call; halved when memory runs out, for as long as no other volume is begun.
        cache_bytes: embeddings of a volume that are kept between calls; the rest is encoded again when it is needed.
            Volumes whose embeddings take more than :data:`CACHE_BYTES` in all have them in half precision.
    """

    def __init__(
        self,
        model: SPDModel,
        device: torch.device,
        precision: torch.dtype,
        batch_size: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(device).prepare_for_inference(precision)
        self.encoder = CompiledEncoder(self.model.encode)
        self.device = device
        self.precision = precision
        self.batch_size = self.most_batch = batch_size
        self.cache_bytes = cache_bytes

    @property
    def shares_cores(self) -> bool:
        """Whether each core of a CPU takes slices of its own, as the model's :class:`SliceDecoder` does."""
        return self.model.slice_decoder is not None

    @property
    def image_size(self) -> int:
        """S, side of the network input."""
        return self.model.config.image_size

    @property
    def embedding_bytes(self) -> int:
        """Bytes of a slice's embedding as the encoder gives it."""
        side = self.image_size // self.model.stride
        return self.model.channels * side * side * self.precision.itemsize

    @property
    def decodes_saliency(self) -> bool:
        """Whether S is a prompt of the decoder."""
        return self.model.config.dense_saliency_prompt or self.model.config.conditioned

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """Embed (B, 1 or 3, S, S) slices in [0, 1]; (B, C, h, w) on the device, in the engine's precision."""
        batch = torch.as_tensor(images).to(self.device, self.precision)
        if self.encoder.is_compiled:
            return self.encoder(batch)
        return on_cores(self.model.encode, batch) if self.shares_cores else self.model.encode(batch)

    def compile_encoder(self) -> None:
        """Compile a GPU's encoder in the background, once, and capture its decoder from now on."""
        if compiling_is_on(self.device):
            channels = 3 if self.model.config.conditioned else 1
            shape = (self.batch_size, channels, self.image_size, self.image_size)
            self.model.decoder_pass = self.model.decoder_pass or CapturedDecoder(self.model.decode_batch)
            self.encoder.begin(torch.rand(shape, device=self.device).to(self.precision))

    def _decoded(self, run: Callable[..., tuple[Tensor, ...]], *parts: Rows) -> list[tuple[Tensor, ...]]:
        """What ``run`` gives of parts (B, ...), in batches; a core of a CPU takes one slice at a time."""
        if self.shares_cores:
            rows = list(zip(*parts, strict=True))
            return each_on_a_core(lambda row: run(*(part[None] for part in row)), rows)
        with self._autocast():
            return [run(*(part if isinstance(part, Tensor) else torch.stack(list(part)) for part in parts))]

    @torch.inference_mode()
    def with_context(self, embeddings: Rows, previous: Rows, following: Rows) -> list[Tensor]:
        """What the decoder of a conditioned model takes of B slices, by their embeddings and the adjoining slices'."""
        made = self._decoded(lambda *sides: (self.model.with_context(*sides),), embeddings, previous, following)
        return [row for (batch,) in made for row in batch]

    @torch.inference_mode()
    def saliency(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """S_t of (B, C, h, w) embeddings and their neighbors': (B, S, S) float16, those that :func:`failed` marked."""
        with self._autocast():
            logits = self.model.saliency_logits(embeddings, previous, following)
        return _as_saliency(logits)

    @torch.inference_mode()
    def conditioned_saliency(self, embeddings: Rows, tokens: ClickTokens) -> Tensor:
        """Pass one of a conditioned model: S_t (B, S, S) float16 of what :meth:`with_context` gave of B slices."""

        def run(images: Tensor, *told: Tensor) -> tuple[Tensor]:
            return (_as_saliency(self.model.decode_clicks(images, TokenBatch(*told))[0]),)

        return _joined(self._decoded(run, embeddings, *TokenBatch.of(tokens, self.device).parts))[0]

    @torch.inference_mode()
    def decode(
        self, embeddings: Rows, points: Sequence[np.ndarray], saliency: Tensor | None, places: int
    ) -> tuple[Tensor, Tensor]:
        """Masks of B slices.

        Args:
            embeddings: B, (C, h, w).
            points: B arrays (M_i, 2), (column, row) in network pixels.
            saliency: (B, S, S), where the model :attr:`decodes_saliency`.
            places: that each slice has, filled up with padding, which the decoder sees too.

        Returns:
            Logits (B, S, S) float32 and predicted IoU (B,), NaN where a logit or the IoU is not finite.
        """
        padded, labels = (upload(part, self.device) for part in pad_points(points, places))

        def run(images: Tensor, xy: Tensor, kinds: Tensor, *prompt: Tensor) -> tuple[Tensor, ...]:
            return _judged(*self.model.decode(images, xy, kinds, *map(_as_logits, prompt)))

        logits, quality = _joined(
            self._decoded(run, embeddings, padded, labels, *(() if saliency is None else (saliency,)))
        )
        return logits, quality

    @torch.inference_mode()
    def decode_conditioned(self, embeddings: Rows, tokens: ClickTokens, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """Pass two of a conditioned model: mask logits (B, S, S) of the consensus and S_t (B, S, S), and IoU (B,)."""

        def run(images: Tensor, told: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            return _judged(*self.model.decode_clicks(images, TokenBatch(*parts), _as_logits(told)))

        parts = TokenBatch.of(tokens, self.device).parts
        logits, quality = _joined(self._decoded(run, embeddings, saliency, *parts))
        return logits, quality

    def fit_memory(self, voxel_bytes: int) -> int:
        """Before a volume is begun: the largest batch that fits into the device's free memory, as far as was asked for.

        Returns:
            Bytes of embeddings that there is room for, at most :attr:`cache_bytes`.

        Raises:
            OutOfMemory: one slice alone does not fit.
        """
        free, beside = acceleration.free_bytes_of(self.device), 0 if self.device.type == "cpu" else voxel_bytes
        self.batch_size = acceleration.batch_for(self.device, self.image_size, lambda _: free, self.most_batch, beside)
        left = free and free - beside - self.batch_size * acceleration.slice_bytes(self.image_size)
        return self.cache_bytes if left is None else min(self.cache_bytes, left)

    def with_smaller_batches(self, items: Sequence[T], run: Callable[[Sequence[T]], object], factor: int = 1) -> None:
        """Call ``run`` on batches of ``items``; when memory runs out the batch is halved, down to one.

        Args:
            factor: of the batch size, for steps that take less memory than the encoder.

        Raises:
            OutOfMemory: one item alone does not fit.
        """
        position = 0
        while position < len(items):
            batch = items[position : position + factor * self.batch_size]
            try:
                run(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if self.batch_size == 1 and factor == 1:
                    raise OutOfMemory(
                        f"The device {self.device} has not enough memory for one slice.",
                        MORE_MEMORY if self.device.type == "cpu" else MORE_CARD_MEMORY,
                        str(error),
                    ) from error
                if factor > 1:
                    factor = max(1, factor // 2)
                else:
                    self.batch_size = max(1, self.batch_size // 2)
                continue
            position += len(batch)


@dataclass(eq=False)
class ModelOnDevice:
    """One model on one device.

    Attributes:
        engine: the merged model.
        prompts: how clicks become prompts.
        intensity: how volumes are normalized.
        fov_mm: side of the field of view, 0 for the whole slice.
        plane: slicing plane that the model was trained on.
        identity: JSON-ready description for reports.
        info: the bundle's description, by which images and results are doubted; None: by nothing.
    """

    engine: Engine
    prompts: PromptConfig
    intensity: IntensityConfig
    fov_mm: float
    plane: str = "auto"
    identity: dict[str, Any] = field(default_factory=dict)
    info: BundleInfo | None = None


def require_numbers(slices: Sequence[int], *outputs: np.ndarray) -> None:
    """Raise :class:`ModelCorrupt` where an output (B, ...) of the network has a NaN; an empty mask would be a lie."""
    failed = [t for row, t in enumerate(slices) if any(np.isnan(output[row]).any() for output in outputs)]
    if failed:
        raise ModelCorrupt(
            f"The model failed in slice {failed[0]}: its network gave values that are NaN or infinite.",
            "Check the model with: spdsegment models verify; where that finds nothing, get another copy of the model.",
            f"slices {failed}",
        )


@dataclass(eq=False)
class SaliencyBatch:
    """S of neighboring slices: on the device, and on its way to the CPU or there."""

    slices: list[int]
    maps: Tensor
    download: Download
    arrays: np.ndarray | None = None

    def on_cpu(self) -> np.ndarray:
        """S (B, S, S) float16, once it has arrived."""
        if self.arrays is None:
            maps, faults = self.download.arrays()
            require_numbers(self.slices, faults)
            self.arrays = maps
        return self.arrays


def _as_saliency(logits: Tensor) -> Tensor:
    """S (B, S, S) float16 of logits (B, 1, S, S), which are overwritten; :func:`failed` where one is not finite."""
    faults = 0 * logits.sum((1, 2, 3))
    maps = logits[:, 0].sigmoid_().half()
    maps[:, 0, 0] += faults
    return maps


def failed(maps: Tensor) -> Tensor:
    """What is NaN in those of (B, S, S) that the network failed to give."""
    return maps[:, 0, 0]


def _as_logits(saliency: Tensor) -> Tensor:
    """S (B, S, S) as logits (B, 1, S, S)."""
    return torch.logit(saliency[:, None].float(), SALIENCY_CLIP)


def _judged(logits: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, S, S) of (B, 1, S, S), and the predicted IoU (B,) in [0, 1], NaN where either is not finite."""
    finite = torch.isfinite(logits.sum((1, 2, 3))) & torch.isfinite(quality)
    return logits[:, 0], quality.clamp(0, 1).where(finite, torch.nan)


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Parts of one batch from those of several."""
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True)) if len(batches) > 1 else batches[0]
