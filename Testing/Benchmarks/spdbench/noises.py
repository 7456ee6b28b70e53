"""Labels of click noise: a severity (``clinic``, ``1.5``) or one kind of noise alone (``drift_share:clinic``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.noise import NoiseConfig, noise_config, single_noise

CLEAN = "clean"
PARTS = tuple(field.name for field in fields(NoiseConfig))
PART_TITLES = {
    "jitter": "jitter",
    "drift_share": "drift",
    "over_run": "over-run",
    "dropout": "dropout",
    "off_slice": "slice slip",
}


def parse_noise(label: str) -> NoiseConfig:
    """The noise that a label stands for.

    Raises:
        BadInput: unknown severity or part.
    """
    part, colon, severity = label.partition(":")
    if colon:
        return single_noise(part, _severity(severity))
    return noise_config(_severity(label))


def is_clean(label: str) -> bool:
    """Whether the clicks are free of noise, and so alike for all seeds."""
    return not any(astuple(parse_noise(label)))


def part_labels(parts: Iterable[str], levels: Iterable[str]) -> list[str]:
    """Labels of each part alone at each level; those without any noise are left out (clean stands for them)."""
    labels = [f"{part}:{level}" for part in parts for level in levels]
    return [label for label in labels if not is_clean(label)]


def _severity(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def check_labels(labels: Iterable[str], where: str) -> None:
    """Raise :class:`BadInput`, naming the setting, where a label means nothing."""
    for label in labels:
        try:
            parse_noise(label)
        except BadInput as error:
            raise BadInput(f"{where}: {error.message}", error.remedy) from error
