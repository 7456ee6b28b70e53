"""Comparators that are a network on slices: how every one of them is trained, kept, loaded and applied.

A new one is a :class:`SliceNetwork`; slices, views, click noise, loss, schedule and field of view are the same for all.
Their training ends with the budget, goes on where it stopped, and leaves its cost beside the weights.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spdbench.comparators.inputs import (
    ClickedSlice,
    FeatureCache,
    NetworkClicks,
    RunSource,
    ViewRuns,
    as_cases,
    window_of,
)
from spdbench.comparators.protocol import (
    OUTSIDE_LOGIT,
    Budget,
    ClickedSegmenter,
    InputSettings,
    NotRun,
    OnProgress,
    TrainingCase,
)
from SPDSegmentLib.errors import BadInput, Cancelled, ModelCorrupt
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.files import write_bytes, write_json
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow
from SPDSegmentLib.inference.engine import autocast, choose_device, choose_precision
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.config import SegmentationLossConfig
from SPDSegmentLib.networks.spd import segmentation_loss
from SPDSegmentLib.training.cases import Case
from SPDSegmentLib.training.loop import Loop, LoopProgress, Phase

RECORD_NAME = "training.json"
RECORD_SECONDS = 5.0


@dataclass
class TrainingRecord:
    """What a training has cost so far.

    Attributes:
        steps, seconds: done, over all parts together; parameters: trainable ones.
        finished: whether the budget is spent and the weights are those to use.
        settings: of the comparator; another one may not continue this training.
    """

    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    finished: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into a comparator's folder."""
        write_json(folder / RECORD_NAME, asdict(self))


def open_record(folder: Path, settings: Mapping[str, Any]) -> TrainingRecord:
    """The record of a training that is begun or continued; makes the folder.

    Raises:
        BadInput: the folder belongs to other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(dict(settings)))
    path = folder / RECORD_NAME
    if not path.exists():
        return TrainingRecord(settings=wanted)
    record = TrainingRecord(**json.loads(path.read_text(encoding="utf-8")))
    if record.settings != wanted:
        raise BadInput(f"{folder} holds a training with other settings.", "Choose another folder, or remove this one.")
    return record


def run_phase(phase: Phase, folder: Path, budget: Budget, record: TrainingRecord, on_progress: OnProgress) -> None:
    """Train until the steps or the seconds are spent, and note the cost in ``record``.

    What ``on_progress`` raises is raised again after a checkpoint was written.
    """
    before, begun = record.seconds, time.monotonic()
    written = begun
    failures: list[BaseException] = []

    def note() -> None:
        record.seconds = before + time.monotonic() - begun

    def forward(progress: LoopProgress) -> None:
        nonlocal written
        note()
        record.steps = progress.step
        if time.monotonic() - written > RECORD_SECONDS:
            record.write(folder)
            written = time.monotonic()
        try:
            on_progress(progress.step, progress.steps, progress.losses)
        except (Exception, KeyboardInterrupt) as error:
            failures.append(error)

    def stopped() -> bool:
        return bool(failures) or 0 < budget.seconds <= record.seconds

    with contextlib.suppress(Cancelled):
        Loop(folder, on_progress=forward, cancelled=stopped).run(phase)
    note()
    record.write(folder)
    if failures:
        raise failures[0]


WEIGHTS_NAME = "weights.safetensors"
BATCH = 4
MAX_DRAWS = 20


class SliceNetwork(nn.Module):
    """A network on slices. Its norms keep no running statistics, so that training is repeated exactly on resuming."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name; they are what is kept."""
        return dict(self.named_parameters())

    def embed(self, images: Tensor) -> Tensor:
        """What depends on the slices (B, 1, S, S) in [0, 1] alone; kept between calls with other clicks."""
        return images

    def prompted(self, where: ClickedSlice) -> bool:
        """Whether the network has something to say about a slice; others stay empty."""
        return True

    def predict(self, embedded: Tensor, where: Sequence[ClickedSlice]) -> Tensor:
        """Mask logits (B, 1, S, S) of B embedded slices with their clicks."""
        raise NotImplementedError


class LearnedComparator(ClickedSegmenter):
    """Implements :class:`~spdbench.comparators.protocol.Comparator` for a :class:`SliceNetwork`.

    Args:
        inputs: how slices reach the network.
        learning_rate: highest one, of AdamW with warm-up and polynomial decay.
        learns_union: the truth is all targets of a case together, as for a network without clicks.
    """

    name = ""
    uses_clicks = True
    needs_training = True
    learns_union = False
    learning_rate = 1e-3
    weight_decay = 0.01

    def __init__(self, inputs: InputSettings) -> None:
        self.inputs = inputs
        self.device = choose_device(inputs.device)
        self.precision = choose_precision("auto", self.device)
        self._network: SliceNetwork | None = None
        self._features = FeatureCache(self.inputs)

    def build(self) -> SliceNetwork:
        """A network with its initial weights.

        Raises:
            NotRun: a package or weights are missing.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What identifies a training besides its cases."""
        return {"name": self.name, "inputs": asdict(self.inputs), "learning_rate": self.learning_rate}

    def runs(self, network: SliceNetwork, cases: Sequence[Case], folder: Path, on_progress: OnProgress) -> RunSource:
        """Where training slices come from: fresh views, by default."""
        return ViewRuns(cases, self.inputs, self.learns_union)

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Train within a budget; see the protocol."""
        record = open_record(folder, self.settings())
        if record.finished:
            return
        network = self.fresh()
        parameters = network.trainable()
        record.parameters = sum(p.numel() for p in parameters.values())
        source = self.runs(network, as_cases(cases, self.inputs), folder, on_progress)
        phase = Phase(
            "training",
            list(parameters.values()),
            budget.steps,
            self.learning_rate,
            self.weight_decay,
            250,
            lambda step: self._loss(network, source, step),
        )
        run_phase(phase, folder, budget, record, on_progress)
        keep_weights(parameters, folder / WEIGHTS_NAME)
        record.finished = True
        record.write(folder)

    def load(self, folder: Path) -> None:
        """Load what :meth:`train` kept."""
        path = folder / WEIGHTS_NAME
        if self.needs_training and not path.exists():
            raise NotRun("not trained")
        network = self.fresh()
        if self.needs_training:
            take_weights(network.trainable(), path)
        self.use(network)

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; slices that the network is not asked about stay empty."""
        network, stack = self.network, target.stack
        mask = np.zeros(stack.shape, dtype=bool)
        window = window_of(stack, clicks, self.inputs)
        network_clicks = NetworkClicks.in_window(clicks, window, stack)
        where = [ClickedSlice(network_clicks, t) for t in range(stack.n_slices)]
        where = [slice_ for slice_ in where if network.prompted(slice_)]
        for first in range(0, len(where), BATCH):
            batch = where[first : first + BATCH]
            mask[[slice_.t for slice_ in batch]] = window.restore(self._logits(stack, window, batch), OUTSIDE_LOGIT) > 0
        return mask

    @property
    def network(self) -> SliceNetwork:
        """The network that :meth:`load` got ready."""
        if self._network is None:
            raise RuntimeError("load() comes first")
        return self._network

    def use(self, network: SliceNetwork) -> None:
        """Segment with this network from now on."""
        self._network = network.requires_grad_(False)
        self._features = FeatureCache(self.inputs)

    def fresh(self) -> SliceNetwork:
        """The network with its initial weights, the same at every call."""
        torch.manual_seed(self.inputs.seed)
        return self.build().eval().to(self.device)

    def _loss(self, network: SliceNetwork, source: RunSource, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.inputs.seed, 11, step])
        for _ in range(MAX_DRAWS):
            batch = source.draw(rng)
            chosen = [i for i, where in enumerate(batch.where) if network.prompted(where)]
            if chosen:
                break
        slices, target = batch.slices[chosen].to(self.device), batch.target[chosen].to(self.device)
        with self.autocast():
            embedded = slices if source.embedded else network.embed(slices)
            logits = network.predict(embedded, [batch.where[i] for i in chosen]).float()
        with torch.no_grad():
            predicted = logits > 0
            hard = 2 * (predicted & target).sum() / (predicted.sum() + target.sum()).clamp(min=1)
        return {"total": segmentation_loss(logits, target, SegmentationLossConfig()).mean(), "dsc": hard}

    def autocast(self) -> torch.autocast:
        """The precision that the device multiplies natively."""
        return autocast(self.device, self.precision)

    @torch.inference_mode()
    def embedded(self, stack: SliceStack, window: InputWindow, slices: Sequence[int]) -> Tensor:
        """(B, ...) what the network keeps of these slices."""
        with self.autocast():
            return self._features.get(stack, window, slices, lambda images: self.network.embed(images.to(self.device)))

    @torch.inference_mode()
    def _logits(self, stack: SliceStack, window: InputWindow, batch: Sequence[ClickedSlice]) -> np.ndarray:
        """(B, S, S) mask logits."""
        embedded = self.embedded(stack, window, [slice_.t for slice_ in batch])
        with self.autocast():
            logits = self.network.predict(embedded, batch)
        return logits[:, 0].float().cpu().numpy()


def keep_weights(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write parameters as safetensors."""
    from safetensors.torch import save

    write_bytes(path, save({name: p.detach().cpu().contiguous() for name, p in parameters.items()}), "weights file")


def take_weights(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Copy kept weights into parameters.

    Raises:
        ModelCorrupt: they are those of another network.
    """
    state = load_state_dict(path)
    if {name: p.shape for name, p in parameters.items()} != {name: value.shape for name, value in state.items()}:
        raise ModelCorrupt(f"{path} does not hold the weights of this network.", "Train this comparator again.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
