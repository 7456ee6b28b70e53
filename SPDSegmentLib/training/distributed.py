"""Several processes through accelerate: each draws its own batches, gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from SPDSegmentLib.geometry.limits import keep_freed_memory
from SPDSegmentLib.inference.engine import autocast, choose_device, choose_precision
from SPDSegmentLib.networks.guarded_imports import hide_broken_torchvision


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
        """Replace every gradient by its mean over all processes."""
        if self.count == 1:
            return
        for parameter in parameters:
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
