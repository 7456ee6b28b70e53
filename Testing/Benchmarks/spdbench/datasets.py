"""Data sets of the benchmark: folds by patient, and cases that are read when they are needed.

The clicks of one run: noisy, clean, an oracle's choice of the noisy ones, or another patient's.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from spdbench.comparators.protocol import InputSettings, NotRun, TrainingCase
from spdbench.config import CLEAN, DatasetSpec, parse_noise
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, load_targets, shuffled_clicks
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.prompts.click_path import nearest_pixel
from SPDSegmentLib.training.config import TrainingConfig, patient_of, read_training_config


def clicks_for(kind: str, dataset: Dataset, target: EvaluationTarget, noise: str, seed: int) -> tuple[Clicks, float]:
    """Clicks of one of the kinds in ``MethodSpec.clicks``, and the share of the noisy ones outside the target.

    The noisy clicks behind every kind depend on case, target, noise and seed only: they are the same for all methods.
    """
    noisy, outside = target.clicks(parse_noise(noise), seed)
    if kind == "clean":
        return target.clicks(parse_noise(CLEAN), seed)[0], outside
    if kind == "oracle":
        return oracle_clicks(noisy, target.mask), outside
    if kind == "shuffled":
        return _of_another_patient(dataset, target, noise, seed), outside
    return noisy, outside


def oracle_clicks(clicks: Clicks, mask: np.ndarray) -> Clicks:
    """The clicks inside the target, and its deepest point in every slice that is left without one.

    What a perfect choice of points would prompt with: an upper bound, since it looks at the truth.

    Args:
        mask: (T, H, W) bool.
    """
    pixel = nearest_pixel(clicks.xy).clip(0, np.array(mask.shape[:0:-1]) - 1)
    inside = mask[clicks.slice_index, pixel[:, 1], pixel[:, 0]]
    missing = np.setdiff1d(np.flatnonzero(mask.any(axis=(1, 2))), clicks.slice_index[inside])
    deepest = np.array([_deepest_point(mask[t]) for t in missing]).reshape(-1, 2)
    index = np.concatenate((clicks.slice_index[inside], missing)).astype(int)
    xy = np.concatenate((clicks.xy[inside], deepest))
    return Clicks(index, xy, np.zeros(len(index), dtype=bool), tuple(str(i + 1) for i in range(len(index))))


def _deepest_point(mask: np.ndarray) -> tuple[float, float]:
    """(column, row) of the place farthest from the border of a mask (H, W)."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(column - 1), float(row - 1)


def _of_another_patient(dataset: Dataset, target: EvaluationTarget, noise: str, seed: int) -> Clicks:
    """The clicks on the like target of the next patient of the data set, test cases of all folds in a ring.

    Raises:
        NotRun: no other patient has one.
    """
    cases = [case for fold in dataset.folds for case in fold.test]
    if len({dataset.patient(case) for case in cases}) < 2:
        cases += [case for fold in dataset.folds for case in fold.train]
    start = cases.index(target.case)
    for case in [*cases[start + 1 :], *cases[:start]]:
        if dataset.patient(case) == target.patient:
            continue
        like = [other for other in dataset.targets(case) if other.name == target.name]
        if like:
            return shuffled_clicks([target, like[0]], 0, parse_noise(noise), seed)
    raise NotRun(f"no other patient has a structure {target.name}, whose clicks are wanted")


KEPT_CASES = 6
ADDED_LATER = ("usual_low", "usual_high")
"""Settings of the normalization that are younger than measured rows; at their default they are no part of a key."""


@dataclass(frozen=True)
class Fold:
    """One split: ``train`` and ``test`` are case names, no patient is in both."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


class Dataset:
    """One data set with its folds and cases.

    Args:
        spec: what the benchmark's file says.
        folder: where that file lies.
        limit: at most so many test patients, 0 for all; evenly picked.
    """

    def __init__(self, spec: DatasetSpec, folder: Path, limit: int = 0) -> None:
        self.spec = spec
        self.name = spec.name
        config_path = folder / spec.config
        self.training: TrainingConfig = read_training_config(config_path)
        data = self.training.data
        self.config_folder = config_path.parent
        self.data_folder = (config_path.parent / data.folder).resolve()
        self.inputs = InputSettings(
            self.training.network.image_size,
            self.training.fov_mm,
            self.training.intensity,
            self.training.stage2.severities,
            spec.box_margin_mm,
        )
        limits = [n for n in (limit, spec.limit) if n > 0]
        self.folds = _limited(self._all_folds(), min(limits, default=0), self.patient)
        self._kept: OrderedDict[str, list[EvaluationTarget]] = OrderedDict()

    @property
    def cross_validated(self) -> bool:
        """Whether every patient is tested once."""
        return self.spec.folds > 0

    @property
    def trains(self) -> bool:
        """Whether our own models are trained here where no bundle is found."""
        return self.spec.train or self.cross_validated

    def patient(self, case: str) -> str:
        """The patient that a case is of."""
        return patient_of(case, self.training.data.patient_pattern)

    def targets(self, case: str) -> list[EvaluationTarget]:
        """The targets of a case; the latest few cases stay in memory."""
        if case not in self._kept:
            self._kept[case] = load_targets(self.data_folder, self.training.data, [case])
            while len(self._kept) > KEPT_CASES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(case)
        return self._kept[case]

    def training_cases(self, fold: Fold, patients: int = 0) -> list[TrainingCase]:
        """Read the training cases of a fold, at most those of so many patients."""
        cases = []
        for name in self.training_names(fold, patients):
            targets = tuple(load_targets(self.data_folder, self.training.data, [name]))
            cases.append(TrainingCase(targets[0].patient, name, targets[0].stack, targets))
        return cases

    def training_names(self, fold: Fold, patients: int = 0) -> tuple[str, ...]:
        """Names of the training cases of a fold, evenly picked when only some patients are wanted."""
        known = list(dict.fromkeys(self.patient(case) for case in fold.train))
        if patients == 0 or patients >= len(known):
            return fold.train
        chosen = set(_evenly(known, patients))
        return tuple(case for case in fold.train if self.patient(case) in chosen)

    def definition(self, whole: bool = False) -> dict[str, object]:
        """What a result depends on, JSON-ready; the list of cases is left out, since every row names its case.

        Args:
            whole: with settings that were added after rows had been measured and change nothing at their default.
        """
        data = self.training.data
        inputs = dataclasses.asdict(dataclasses.replace(self.inputs, device="auto"))
        for name in () if whole else ADDED_LATER:
            if inputs["intensity"][name] == getattr(IntensityConfig(), name):
                del inputs["intensity"][name]
        return {
            "files": [data.folder.rstrip("/").rpartition("/")[2], data.image, data.label],
            "targets": data.targets,
            "plane": data.plane,
            "inputs": inputs,
        }

    def _all_folds(self) -> list[Fold]:
        data = self.training.data
        if not self.cross_validated:
            shown = data.test or data.validation
            if not shown:
                raise BadInput(f"{self.spec.config} names no test or validation case.", "List some, or set folds.")
            return [Fold("0", data.train, shown)]
        cases = sorted({*data.train, *data.validation, *data.test})
        patients = sorted({self.patient(case) for case in cases})
        if self.spec.folds > len(patients):
            raise BadInput(f"{self.name} has fewer patients than folds.", f"Set folds to {len(patients)} or less.")
        folds = []
        for k in range(self.spec.folds):
            tested = set(patients[k :: self.spec.folds])
            test = tuple(case for case in cases if self.patient(case) in tested)
            folds.append(Fold(str(k), tuple(case for case in cases if case not in test), test))
        return folds


def _evenly(items: Sequence[str], count: int) -> list[str]:
    return [items[i * len(items) // count] for i in range(count)]


def _limited(folds: list[Fold], limit: int, patient_of_case: Callable[[str], str]) -> list[Fold]:
    """The folds with at most ``limit`` test patients in all; those without any are left out."""
    patients = [patient_of_case(case) for fold in folds for case in fold.test]
    unique = list(dict.fromkeys(patients))
    if limit == 0 or limit >= len(unique):
        return folds
    chosen = set(_evenly(unique, limit))
    limited = [
        dataclasses.replace(fold, test=tuple(case for case in fold.test if patient_of_case(case) in chosen))
        for fold in folds
    ]
    return [fold for fold in limited if fold.test]
