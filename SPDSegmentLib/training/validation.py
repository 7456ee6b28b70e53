"""Validation during stage II: Dice of cases that the training does not see, by the clicks of a clinic."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.files import write_csv
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.noise import SEVERITIES
from SPDSegmentLib.training.bank import EmbeddingBank, build_bank
from SPDSegmentLib.training.cases import Case
from SPDSegmentLib.training.config import AugmentationConfig, TrainingConfig
from SPDSegmentLib.training.loop import Processes
from SPDSegmentLib.training.stages import Stage2

CURVE_NAME = "validation.csv"
WORST_NAME = "validation-cases.csv"
SEVERITY = float(list(SEVERITIES).index("clinic"))
SHOWN_WORST = 3
BATCH = 16


class Validation:
    """Measures the decoder on every target of the validation cases, in views without any change.

    A target's Dice is that of all its slices together, at the network's resolution, with slices beyond the last prompt
    empty: what the session does, without the way back to the volume's voxels. The clicks are the same every time.

    Args:
        folder: of the run, for the curve and the table of all cases.
        say: told a sentence with the worst cases after each measurement.
    """

    def __init__(
        self, stage2: Stage2, processes: Processes, folder: Path, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stage2, self._processes, self._folder, self._say = stage2, processes, folder, say
        self._prompts = [
            stage2.prompts_of(entry, saliency, np.random.default_rng([n, 9]), stage2.config.stage2.strategy)
            for n, (entry, saliency) in enumerate(zip(stage2.bank.entries, stage2.bank.saliency, strict=True))
        ]

    @torch.no_grad()
    def __call__(self, step: int) -> float:
        """Mean Dice; leaves it in the run's curve, and names the worst cases."""
        scores = {entry.target.name: self._dice(n) for n, entry in enumerate(self._stage2.bank.entries)}
        mean = float(np.mean(list(scores.values())))
        worst = sorted(scores.items(), key=lambda pair: pair[1])
        if self._processes.is_main:
            best = self._record(step, mean, worst[0][1])
            write_csv(self._folder / WORST_NAME, [["case", "dsc"], *([name, f"{s:.4f}"] for name, s in worst)])
            named = ", ".join(f"{name} {score:.2f}" for name, score in worst[:SHOWN_WORST])
            self._say(
                f"Validation after step {step}: DSC {mean:.3f}{', the best so far' if best else ''}; worst: {named}."
            )
        return round(mean, 6)

    def _dice(self, n: int) -> float:
        stage2, entry = self._stage2, self._stage2.bank.entries[n]
        tensors = entry.tensors()
        truth = tensors["mask"].numpy().astype(bool)
        found = np.zeros_like(truth)
        prompted = [p for p in self._prompts[n] if len(p.points)]
        for start in range(0, len(prompted), BATCH):
            part = prompted[start : start + BATCH]
            where = np.array([p.slice_index for p in part])
            logits = stage2.decode_slices(tensors["embeddings"][where], part, stage2.bank.saliency[n][where])
            found[where] = (logits[:, 0] > 0).cpu().numpy()
        return dice(found, truth) or 0.0

    def _record(self, step: int, mean: float, lowest: float) -> bool:
        """Append to the curve; returns whether this is its best."""
        path, rows = self._folder / CURVE_NAME, []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit() and int(row[0]) < step]
        write_csv(path, [["step", "dsc", "lowest"], *rows, [step, f"{mean:.5f}", f"{lowest:.5f}"]], "curve")
        return all(mean > float(row[1]) for row in rows)


def make_validation(
    model: SPDModel,
    cases: Sequence[Case],
    config: TrainingConfig,
    folder: Path,
    run_folder: Path,
    processes: Processes,
    on_entry: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    say: Callable[[str], None],
) -> Validation | None:
    """The validation of a run, its embeddings computed or found in ``folder``; None where no case has the structure.

    Call it once everything before the decoder is frozen.
    """
    targets = sum(len(case.targets) for case in cases)
    if not targets:
        say("No validation case has the structure: no checkpoint is better than another.")
        return None
    still = AugmentationConfig(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    plain = dataclasses.replace(
        config,
        augmentation=still,
        stage2=dataclasses.replace(config.stage2, entries=targets, severities=(SEVERITY, SEVERITY), beyond_share=0.0),
    )

    def build() -> EmbeddingBank:
        main = processes.is_main
        return build_bank(model, cases, plain, folder, processes.device, on_entry, cancelled, may_compute=main)

    bank = processes.main_first(build)
    bank.compute_saliency(model, processes.device)
    return Validation(Stage2(model, bank, plain, processes), processes, run_folder, say)
