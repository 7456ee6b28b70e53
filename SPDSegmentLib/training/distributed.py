"""Several processes through accelerate: each draws its own batches, gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes."""
        if self.count == 1:
            return
        for parameter in parameters:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(gradient, "mean")

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def join_processes(device: str = "auto") -> Processes:
    """Processes as ``accelerate launch`` or ``torchrun`` started them; a single one otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Processes(device=torch.device(device))
