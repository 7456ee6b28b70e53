"""The optimization loop of all stages: schedule, checkpoints, exact resume, progress, cancellation, several processes.

Several processes train through accelerate: each draws its own batches, gradients are averaged.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from SPDSegmentLib.errors import BadInput, Cancelled, ModelCorrupt
from SPDSegmentLib.files import write_csv, write_error
from SPDSegmentLib.geometry.limits import keep_freed_memory
from SPDSegmentLib.inference.engine import autocast, choose_device, choose_precision
from SPDSegmentLib.networks.backbones import hide_broken_torchvision, save_checkpoint

T = TypeVar("T")
_BEST = "-best.pt"
_AGAIN = " Then run the same command: it goes on from the last checkpoint."


@dataclass
class Processes:
    """This process among all that train together; one process needs no accelerate."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Forward passes in the precision that this device is fastest in."""
        return autocast(self.device, choose_precision("auto", self.device))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes; a parameter that has one in none keeps none."""
        if self.count == 1:
            return
        parameters = list(parameters)
        flags = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        for parameter, processes in zip(parameters, self.accelerator.reduce(flags, "sum").tolist(), strict=True):
            if processes:
                gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.accelerator.reduce(gradient, "mean")

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all of them stop at the same step."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        return bool(self.accelerator.reduce(flags, "sum") > 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def main_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives here, once the main process has made it and left its files to the others."""
        made = make() if self.is_main else None
        self.wait()
        return make() if made is None else made


def join_processes(device: str = "auto") -> Processes:
    """Processes as ``accelerate launch`` or ``torchrun`` started them; a single one otherwise.

    Raises:
        BadInput, DeviceUnavailable: see :func:`SPDSegmentLib.inference.engine.choose_device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        hide_broken_torchvision()
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Processes(device=chosen)


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one set of parameters.

    Attributes:
        name: unique within a run; part of file names and of the random seed.
        loss: step number to named loss terms; ``total`` is minimized. It must depend on the step number and the
            parameters alone, so that a resumed run repeats it.
        encoder: parameters with a learning rate of their own.
        validate: after every ``validate_every`` steps returns a score of the model, the higher the better; the
            parameters of the best one remain in the end.
        patience: scores without a better one after which the phase ends, 0 for never.
    """

    name: str
    parameters: list[nn.Parameter]
    steps: int
    learning_rate: float
    weight_decay: float
    warmup: int
    loss: Callable[[int], dict[str, Tensor]]
    encoder: list[nn.Parameter] = field(default_factory=list)
    encoder_learning_rate: float = 0.0
    validate: Callable[[int], float] | None = None
    validate_every: int = 0
    patience: int = 0

    def validates_at(self, step: int) -> bool:
        """Whether a score is due after so many steps; after the last one always."""
        return self.validate is not None and (step % self.validate_every == 0 or step == self.steps)

    @classmethod
    def of(
        cls,
        name: str,
        parameters: list[nn.Parameter],
        stage: Any,
        loss: Callable[[int], dict[str, Tensor]],
        **more: Any,
    ) -> Phase:
        """A phase with the steps, the rates and the warm-up that a table of the configuration says."""
        return cls(name, parameters, stage.steps, stage.learning_rate, stage.weight_decay, stage.warmup, loss, **more)

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters and their learning rates, those of the encoder last."""
        groups = [(self.parameters, self.learning_rate), (self.encoder, self.encoder_learning_rate)]
        return [(parameters, rate) for parameters, rate in groups if parameters]

    def all_parameters(self) -> list[nn.Parameter]:
        """Everything that learns."""
        return [*self.parameters, *self.encoder]


class Best(NamedTuple):
    """The best score so far, the step that it is of (0 for none), and how many came since."""

    score: float = 0.0
    step: int = 0
    behind: int = 0


@dataclass(frozen=True)
class LoopProgress:
    """Where the loop is; ``seconds_left`` is estimated from the steps of this session."""

    phase: str
    step: int
    steps: int
    losses: dict[str, float]
    seconds_left: float


@dataclass
class Loop:
    """Runs phases with checkpoints in ``folder``.

    Attributes:
        checkpoint_seconds: how often a checkpoint is written.
        on_progress: called after every step.
        cancelled: polled after every step; a checkpoint is written before :class:`Cancelled` is raised.
        key: of the run's settings and of what it starts from; a checkpoint with another one is not continued, one with
            the beginning of it is.
    """

    folder: Path
    checkpoint_seconds: float = 120.0
    on_progress: Callable[[LoopProgress], None] = lambda progress: None
    cancelled: Callable[[], bool] = lambda: False
    processes: Processes = field(default_factory=Processes)
    key: str = ""
    _restarted: bool = field(default=False, init=False)
    _best: Best = field(default=Best(), init=False)

    def check(self) -> None:
        """Read every checkpoint of the folder, so that a damaged one is named before anything is computed.

        Raises:
            ModelCorrupt: one cannot be read, or is of other settings.
        """
        for path in sorted([*self.folder.glob("*.ckpt"), *self.folder.glob(f"*{_BEST}")]):
            self._read(path)

    def is_finished(self, name: str, steps: int) -> bool:
        """Whether a phase has nothing left to do."""
        state = None if steps == 0 or self._restarted else self._state(name)
        if state is None:
            return steps == 0
        return state["step"] == steps or bool(state.get("ended"))

    def _state(self, name: str) -> dict[str, Any] | None:
        """The checkpoint of a phase; None without it, or without the best parameters that it tells of."""
        path = self.folder / f"{name}.ckpt"
        state = self._read(path) if path.exists() else None
        if state is not None and Best(*state.get("best", ())).step and not (self.folder / f"{name}{_BEST}").exists():
            return None
        return state

    def run(self, phase: Phase) -> None:
        """Train ``phase.parameters`` in place, from its checkpoint if there is one.

        A phase that begins again takes the checkpoints of the phases after it with it: they built on another one.

        Raises:
            ModelCorrupt: the checkpoint cannot be read or does not fit.
            BadInput: a checkpoint or the curve cannot be written, or loss or gradient are no numbers any more;
                checkpoints are of the steps before.
            Cancelled: the user stopped.
        """
        if phase.steps == 0 or not phase.all_parameters():
            return
        parameters, groups = phase.all_parameters(), phase.groups()
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW([{"params": p} for p, _ in groups], weight_decay=phase.weight_decay)
        start = self._restore(phase, optimizer)
        best = self._best
        begun = saved = time.monotonic()
        for step in range(start, phase.steps):
            for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate * schedule(step, phase.steps, phase.warmup)
            optimizer.zero_grad(set_to_none=True)
            losses = phase.loss(step)
            losses["total"].backward()
            self.processes.average_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            values = {name: float(value.detach()) for name, value in losses.items()}
            if self.processes.any_of(not (math.isfinite(values["total"]) and math.isfinite(float(norm)))):
                raise _unstable(phase, step)
            optimizer.step()
            now = time.monotonic()
            self._record(phase, step, values)
            left = (now - begun) / (step + 1 - start) * (phase.steps - step - 1)
            self.on_progress(LoopProgress(phase.name, step + 1, phase.steps, values, left))
            ended = False
            if phase.validates_at(step + 1):
                best = self._validated(phase, step + 1, best)
                ended = bool(phase.patience) and best.behind >= phase.patience
            last = step + 1 == phase.steps or ended
            stop = self.processes.any_of(self.cancelled()) and not last
            if last or stop or now - saved > self.checkpoint_seconds:
                self._save(phase, optimizer, step + 1, best, ended)
                saved = now
            if stop:
                raise Cancelled("Training was cancelled; its state is kept.", "Run the same command to go on.")
            if ended:
                break
        if best.step:
            self._take_best(phase)
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _validated(self, phase: Phase, step: int, best: Best) -> Best:
        """Score the model as it is, and keep its parameters where they are the best so far."""
        assert phase.validate is not None
        score = phase.validate(step)
        if best.step and score <= best.score:
            return Best(best.score, best.step, best.behind + 1)
        if self.processes.is_main:
            parameters = [p.detach().clone() for p in phase.all_parameters()]
            save_checkpoint(self._best_file(phase), {"step": step, "parameters": parameters, "key": self.key})
        return Best(score, step)

    def _take_best(self, phase: Phase) -> None:
        self.processes.wait()
        path = self._best_file(phase)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for parameter, value in zip(phase.all_parameters(), state["parameters"], strict=True):
                parameter.data.copy_(value)
        except Exception as error:
            raise _cannot_go_on(path, error) from error

    def _best_file(self, phase: Phase) -> Path:
        return self.folder / f"{phase.name}{_BEST}"

    def _checkpoint(self, phase: Phase) -> Path:
        return self.folder / f"{phase.name}.ckpt"

    def _save(self, phase: Phase, optimizer: torch.optim.Optimizer, step: int, best: Best, ended: bool) -> None:
        if not self.processes.is_main:
            return
        state = {
            "step": step,
            "parameters": [p.detach().clone() for p in phase.all_parameters()],
            "optimizer": optimizer.state_dict(),
            "key": self.key,
            "best": tuple(best),
            "ended": ended,
        }
        try:
            save_checkpoint(self._checkpoint(phase), state)
        except BadInput as error:
            error.remedy += _AGAIN
            raise

    def _restore(self, phase: Phase, optimizer: torch.optim.Optimizer) -> int:
        path = self._checkpoint(phase)
        self._best = Best()
        state = None if self._restarted else self._state(phase.name)
        if state is None:
            self._restarted = True
            if self.processes.is_main:
                path.unlink(missing_ok=True)
            self._forget_after(phase, 0)
            return 0
        try:
            for parameter, value in zip(phase.all_parameters(), state["parameters"], strict=True):
                parameter.data.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise _cannot_go_on(path, error) from error
        self._forget_after(phase, state["step"])
        self._best = Best(*state.get("best", ()))
        return phase.steps if state.get("ended") else int(state["step"])

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state["step"], int) or not self.key.startswith(state.get("key", "")):
                raise ValueError(f"made with the settings {state.get('key')} and not {self.key}")
        except Exception as error:
            raise _cannot_go_on(path, error) from error
        return state

    def _record(self, phase: Phase, step: int, values: dict[str, float]) -> None:
        if not self.processes.is_main:
            return
        path = self.folder / f"{phase.name}.csv"
        new = not path.exists()
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["step", *values])
                writer.writerow([step + 1, *(f"{value:.6g}" for value in values.values())])
        except OSError as error:
            failure = write_error(path, error, "curve")
            failure.remedy += _AGAIN
            raise failure from error

    def _forget_after(self, phase: Phase, step: int) -> None:
        """Drop curve rows that are newer than the checkpoint, and one that a kill cut short."""
        path = self.folder / f"{phase.name}.csv"
        if not path.exists() or not self.processes.is_main:
            return
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
        if not kept:
            path.unlink()
            return
        write_csv(path, [header, *kept], "curve")


def _unstable(phase: Phase, step: int) -> BadInput:
    rates = ", ".join(f"{rate:g}" for _, rate in phase.groups())
    return BadInput(
        f"{phase.name} became unstable: at step {step + 1} loss or gradient is not a finite number (learning rate "
        f"{rates}).",
        "Lower the learning rate in its table of the configuration or raise warmup there, and train into another run "
        "folder.",
    )


def _cannot_go_on(path: Path, error: Exception) -> ModelCorrupt:
    return ModelCorrupt(
        f"The checkpoint {path} cannot be continued: it is damaged, or of other settings.",
        "Delete it to train its phase and those after it from the beginning, or choose another run folder.",
        str(error),
    )


def schedule(step: int, steps: int, warmup: int, power: float = 0.9) -> float:
    """Factor on the learning rate: linear warm-up over at most a tenth of all steps, then polynomial decay."""
    warmup = max(1, min(warmup, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return (1 - (step - warmup) / max(1, steps - warmup)) ** power
