"""What the networks of comparators are given: clicks, slices, and batches to train on.

Clicks are points, a box, or a map of how near the clicks are.

Slices between the first and the last click that have none get one point on the centerline through the clicks, as in the
strategy ``interpolated``: the strongest simple use of clicks, so every comparator gets it.

The slices of a volume, and what a network made of them, are kept while the volume stays the same. Training cases and
settings have the form that the training code of SPD takes; every draw has a fresh view and fresh click noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from spdbench.comparators.protocol import InputSettings, TrainingCase
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import dither, intensity_range, normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, place_window
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.prompts.saliency_maps import SliceClicks
from SPDSegmentLib.prompts.strategies import interpolate_clicks
from SPDSegmentLib.training.bank import EmbeddingBank
from SPDSegmentLib.training.cases import AugmentedView, Case, apply_view, draw_view, make_target
from SPDSegmentLib.training.config import BundleText, DataConfig, Stage2Config, TrainingConfig
from SPDSegmentLib.training.stages import draw_slices


def as_case(case: TrainingCase, inputs: InputSettings) -> Case:
    """Normalized slices and targets of one volume."""
    stack = case.stack
    images = normalize(stack.array, intensity_range(stack.volume.array, inputs.intensity)).astype(np.float16)
    targets = tuple(make_target(f"{t.case}:{t.name}", t.mask, t.path) for t in case.targets)
    return Case(case.name, images, case.union(), targets, stack.pixel_mm, stack.slice_mm)


def as_config(
    inputs: InputSettings, backbone: str = "lite_medsam", stage2: Stage2Config | None = None
) -> TrainingConfig:
    """The settings that random views and kept embeddings are made with; no adapters, the whole decoder learns."""
    return TrainingConfig(
        BundleText("comparator", "Comparator", "any", "any"),
        DataConfig("", "{case}", "{case}", ((1,),), ("given",)),  # the cases are in memory already
        NetworkConfig(backbone, inputs.image_size, lora_rank=0, decoder="full"),
        intensity=inputs.intensity,
        stage2=stage2 or Stage2Config(severities=inputs.severities),
        fov_mm=inputs.fov_mm,
        seed=inputs.seed,
    )


def random_severity(rng: np.random.Generator, inputs: InputSettings) -> tuple[float, int]:
    """Severity and seed of fresh click noise."""
    low, high = inputs.severities
    return float(rng.uniform(low, high)), int(rng.integers(2**31))


def as_cases(cases: Sequence[TrainingCase], inputs: InputSettings) -> list[Case]:
    """:func:`as_case` of each."""
    return [as_case(case, inputs) for case in cases]


def window_of(stack: SliceStack, clicks: Clicks, inputs: InputSettings) -> InputWindow:
    """The field of view at these clicks, which lie inside the volume: the one that SPD takes too."""
    height, width = stack.array.shape[1:]
    center = np.median(clicks.xy, axis=0)
    return place_window((height, width), stack.pixel_mm, inputs.image_size, inputs.fov_mm, center)


BLOCK = 4


def pixels_in(window: InputWindow) -> tuple[slice, slice]:
    """Rows and columns of a slice that lie in the field of view."""
    height, width = window.slice_shape
    corners = window.to_slice(np.array([[-0.5, -0.5], [window.size - 0.5, window.size - 0.5]]))
    (left, top), (right, bottom) = np.rint(corners + 0.5).clip(0, [width, height]).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


class FeatureCache:
    """Embedded slices of the last volume, by field of view and slice.

    Slices are embedded in fixed blocks of neighbors, so that a result never depends on what was asked for before.
    """

    def __init__(self, inputs: InputSettings) -> None:
        self.inputs = inputs
        self._stack: SliceStack | None = None
        self._limits = (0.0, 1.0)
        self._kept: dict[tuple[float, float], dict[int, Tensor]] = {}

    def get(
        self, stack: SliceStack, window: InputWindow, slices: Sequence[int], embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(B, ...) what ``embed`` makes of the images (B, 1, S, S) of these slices; computed once."""
        if self._stack is not stack:
            self._stack, self._kept = stack, {}
            self._limits = intensity_range(stack.array, self.inputs.intensity)
        kept = self._kept.setdefault(window.origin_xy, {})
        for block in sorted({t // BLOCK for t in slices if t not in kept}):
            part = range(block * BLOCK, min(stack.n_slices, (block + 1) * BLOCK))
            kept.update(zip(part, embed(self._images(stack, window, part)), strict=True))
        return torch.stack([kept[t] for t in slices])

    def _images(self, stack: SliceStack, window: InputWindow, slices: Sequence[int]) -> Tensor:
        images = window.resample(normalize(stack.array[list(slices)], self._limits))
        return torch.from_numpy(dither(images, self.inputs.intensity.dither))[:, None]


@dataclass(frozen=True, eq=False)
class Batch:
    """B slices with their clicks.

    Attributes:
        slices: images (B, 1, S, S) or embeddings (B, C, h, w); target: (B, 1, S, S) bool.
    """

    slices: Tensor
    target: Tensor
    where: list[ClickedSlice]


class RunSource(Protocol):
    """Draws batches; ``embedded`` says that their slices have been through the network's ``embed``."""

    embedded: bool

    def draw(self, rng: np.random.Generator) -> Batch:
        """A batch that depends on the state of ``rng`` alone."""
        ...


class ViewRuns:
    """Runs of neighboring slices in random views, as in SPD's stage I.

    Args:
        union: the truth is all targets of a case together.
    """

    embedded = False

    def __init__(self, cases: Sequence[Case], inputs: InputSettings, union: bool) -> None:
        self.cases = cases
        self.inputs = inputs
        self.union = union
        self.config = as_config(inputs)

    def draw(self, rng: np.random.Generator) -> Batch:
        runs = [self._run(rng) for _ in range(self.config.stage1.runs_per_step)]
        images, targets, where = zip(*runs, strict=True)
        return Batch(torch.cat(images), torch.cat(targets), [slice_ for run in where for slice_ in run])

    def _run(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[ClickedSlice]]:
        case = self.cases[int(rng.integers(len(self.cases)))]
        target = case.targets[int(rng.integers(len(case.targets)))]
        part = draw_slices(rng, case, target, self.config.stage1)
        view = draw_view(rng, case, target, self.config)
        clicks = NetworkClicks.in_view(target.clicks(*random_severity(rng, self.inputs)), view, case)
        truth = apply_view((case.salient if self.union else target.mask)[part], view, image=False) > 0.5
        where = [ClickedSlice(clicks, t) for t in range(part.start, part.stop)]
        return apply_view(case.images[part], view, image=True), truth, where


class BankRuns:
    """Prompted slices of embeddings that were computed once, as in SPD's stage II: the encoder is frozen."""

    embedded = True

    def __init__(self, bank: EmbeddingBank, cases: Sequence[Case], inputs: InputSettings) -> None:
        self.bank = bank
        self.inputs = inputs
        self.stage = as_config(inputs).stage2
        self._cases = {id(target): case for case in cases for target in case.targets}

    def draw(self, rng: np.random.Generator) -> Batch:
        runs = [self._run(rng) for _ in range(self.stage.runs_per_step)]
        embeddings, targets, where = zip(*runs, strict=True)
        return Batch(torch.cat(embeddings), torch.cat(targets), [slice_ for run in where for slice_ in run])

    def _run(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[ClickedSlice]]:
        entry = self.bank.entries[int(rng.integers(len(self.bank.entries)))]
        simulated = entry.target.clicks(*random_severity(rng, self.inputs))
        clicks = NetworkClicks.in_view(simulated, entry.view, self._cases[id(entry.target)])
        count = entry.last + 1 - entry.first
        first = int(rng.integers(0, max(1, count - self.stage.run_length + 1)))
        part = slice(first, min(first + self.stage.run_length, count))
        tensors = entry.tensors()
        where = [ClickedSlice(clicks, entry.first + i) for i in range(part.start, part.stop)]
        return tensors["embeddings"][part].float(), tensors["mask"][part, None].bool(), where


REACH = 0.25
"""Share of the field of view beyond which a pixel counts as far from every click."""


@dataclass(frozen=True, eq=False)
class NetworkClicks:
    """The clicks of one volume in network pixels; those outside the field of view are left out.

    Attributes:
        clicks: (N,) slices and (N, 2) network pixels, (column, row).
        size: S; pixel_mm: side of a network pixel; slice_mm: distance of slices.
    """

    clicks: SliceClicks
    size: int
    pixel_mm: float
    slice_mm: float

    @classmethod
    def in_window(cls, clicks: Clicks, window: InputWindow, stack: SliceStack) -> NetworkClicks:
        """For inference; ``clicks`` lie inside the volume."""
        pixel_mm = window.scale_xy[0] * stack.pixel_mm[1]
        return cls(
            _visible(clicks.slice_index, window.to_input(clicks.xy), window.size), window.size, pixel_mm, stack.slice_mm
        )

    @classmethod
    def in_view(cls, clicks: SliceClicks, view: AugmentedView, case: Case) -> NetworkClicks:
        """For training: clicks in slice pixels of a case, seen through a random view."""
        spacing = np.array([case.pixel_mm[1], case.pixel_mm[0]])
        pixel_mm = float(np.sqrt(abs(np.linalg.det(view.matrix * spacing[:, None]))))
        return cls(
            _visible(clicks.slice_index, view.to_input(clicks.xy), view.size), view.size, pixel_mm, case.slice_mm
        )

    @cached_property
    def _between(self) -> dict[int, np.ndarray]:
        return interpolate_clicks(self.clicks)

    def points(self, t: int) -> np.ndarray:
        """(M, 2) clicks of slice t, or the centerline's point; none before the first and after the last click."""
        own = self.clicks.xy[self.clicks.on(t)]
        return own if len(own) else self._between.get(t, np.empty((0, 2)))

    def box(self, t: int, margin_mm: float) -> np.ndarray:
        """(4,) first column, first row, last column, last row around the points of slice t; it must have some."""
        points, margin = self.points(t), margin_mm / self.pixel_mm
        corners = np.concatenate((points.min(axis=0) - margin, points.max(axis=0) + margin))
        return corners.clip(0, self.size - 1)

    def nearness(self, t: int) -> np.ndarray:
        """(S, S) float32: 1 at a click, falling linearly with the distance in 3-D mm to 0 at a quarter of the view."""
        reach = REACH * self.size * self.pixel_mm
        slices = np.concatenate((self.clicks.slice_index, np.fromiter(self._between, int, len(self._between))))
        points = np.concatenate((self.clicks.xy, *self._between.values()))
        away = (slices - t) * self.slice_mm
        near = np.abs(away) < reach
        if not near.any():
            return np.zeros((self.size, self.size), dtype=np.float32)
        grid = np.arange(self.size, dtype=np.float32)
        columns = ((grid - points[near, :1].astype(np.float32)) * self.pixel_mm) ** 2
        rows = ((grid - points[near, 1:].astype(np.float32)) * self.pixel_mm) ** 2
        squared = rows[:, :, None] + columns[:, None, :] + (away[near] ** 2).astype(np.float32)[:, None, None]
        return 1 - np.sqrt(squared.min(axis=0)).clip(max=reach) / reach


class ClickedSlice(NamedTuple):
    """Slice ``t`` of a volume with these clicks."""

    clicks: NetworkClicks
    t: int


def _visible(slice_index: np.ndarray, uv: np.ndarray, size: int) -> SliceClicks:
    seen = ((uv >= -0.5) & (uv <= size - 0.5)).all(axis=1)
    return SliceClicks(np.asarray(slice_index)[seen], uv[seen])
