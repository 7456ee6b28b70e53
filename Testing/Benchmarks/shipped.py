"""The shipped bundles, and the validation patients of their configurations, whom they never saw in training."""

from __future__ import annotations

from pathlib import Path

from SPDSegmentLib.api import load_model
from SPDSegmentLib.evaluation.evaluator import CaseFiles, patient_of
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.training.config import read_training_config

HERE = Path(__file__).resolve().parent
SHIPPED = ("kidney-mr", "hippocampus-mr", "esophagus-ct")


def predictor_of(name: str) -> Predictor:
    """A shipped bundle, loaded on the CPU."""
    return load_model(HERE.parents[1] / "Resources" / "Models" / name, "cpu").predictor


def first_of_each_patient(name: str) -> list[str]:
    """One validation case of each patient, in the configuration's order."""
    files, cases = validation_of(name)
    first_of: dict[str, str] = {}
    for case in cases:
        first_of.setdefault(patient_of(case, files.patient_pattern), case)
    return list(first_of.values())


def validation_of(name: str) -> tuple[CaseFiles, tuple[str, ...]]:
    """Where the cases of a bundle's configuration lie, and the names of those that validate."""
    config = HERE / "Configs" / f"{name}.toml"
    data = read_training_config(config).data
    return CaseFiles.of((config.parent / data.folder).resolve(), data), tuple(data.validation)
