"""The shipped bundles, and the validation patients of their configurations, whom they never saw in training."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from SPDSegmentLib.api import load_model
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import Bundle, read_bundle
from SPDSegmentLib.training.config import DataConfig, patient_of, read_training_config

HERE = Path(__file__).resolve().parent
SHIPPED = ("kidney-mr", "hippocampus-mr", "esophagus-ct", "spleen-mr", "spinal-cord-ct")


def shipped_name(text: str) -> str:
    """A name of ``SHIPPED``, as the type of a script's argument."""
    if text not in SHIPPED:
        raise argparse.ArgumentTypeError(f"there is no shipped bundle '{text}'; choose from {', '.join(SHIPPED)}")
    return text


def folder_of(name: str) -> Path:
    """Where a shipped bundle lies."""
    return HERE.parents[1] / "Resources" / "Models" / name


def bundle_of(name: str) -> Bundle:
    """A shipped bundle."""
    return read_bundle(folder_of(name))


def predictor_of(name: str) -> Predictor:
    """A shipped bundle, loaded on the CPU."""
    return load_model(folder_of(name), "cpu").predictor


def first_of_each_patient(name: str) -> list[str]:
    """One validation case of each patient, in the configuration's order."""
    data = data_of(name)[1]
    first_of: dict[str, str] = {}
    for case in data.validation:
        first_of.setdefault(patient_of(case, data.patient_pattern), case)
    return list(first_of.values())


@cache
def data_of(name: str) -> tuple[Path, DataConfig]:
    """Folder and description of the cases of a bundle's configuration."""
    config = HERE / "Configs" / f"{name}.toml"
    data = read_training_config(config).data
    return (config.parent / data.folder).resolve(), data
