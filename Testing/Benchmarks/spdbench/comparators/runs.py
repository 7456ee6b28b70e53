"""Where the training slices of a comparator come from; every draw has a fresh view and fresh click noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spdbench.comparators.clicks import ClickedSlice, NetworkClicks
from spdbench.comparators.data import as_config, random_severity
from spdbench.comparators.protocol import InputSettings
from SPDSegmentLib.training.augmentation import apply_view
from SPDSegmentLib.training.bank import EmbeddingBank
from SPDSegmentLib.training.cases import Case
from SPDSegmentLib.training.stage1 import draw_slices, draw_view


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
    """Runs of neighbouring slices in random views, as in SPD's stage I.

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
