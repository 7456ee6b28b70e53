"""Volumes and structures of a joint training: several data sets as one list, clicks simulated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import CT_WINDOW, MR_PERCENTILES, IntensityConfig, intensity_range, normalize
from SPDSegmentLib.geometry.labelmap import read_labels_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import check_image, read_volume
from SPDSegmentLib.prompts.noise import click_path, simulate_clicks_from_path
from SPDSegmentLib.training.joint_config import JointStage, SetConfig
from SPDSegmentLib.training.synthetic import synthetic_structure

MIN_VOXELS, MIN_SLICES = 30, 3
SYNTHETIC = "synthetic"
NOWHERE = -(1 << 30)
"""Slice index of an unused place in the table of clicks."""


@dataclass(frozen=True, eq=False)
class JointVolume:
    """One volume.

    Attributes:
        images: (T, H, W) uint8, 0 to 255 over the modality's range; labels: (T, H, W) uint8.
        pixel_mm: (row, column); slice_mm: distance of slices.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    pixel_mm: tuple[float, float]
    slice_mm: float
    is_ct: bool
    fov_mm: float


@dataclass(frozen=True, eq=False)
class JointTarget:
    """One structure of one volume.

    Attributes:
        volume: index of the volume; group: set and structure, drawn with equal chance.
        values: label values; first, last: slices that it spans.
        clicks: P sets of simulated clicks, each (slice_index (N,), xy (N, 2) in slice pixels).
    """

    volume: int
    group: str
    weight: float
    values: tuple[int, ...]
    first: int
    last: int
    clicks: list[tuple[np.ndarray, np.ndarray]]


def load_joint_cases(
    sets: dict[str, SetConfig],
    root: Path,
    stage: JointStage,
    seed: int,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[JointVolume], list[JointTarget]]:
    """Read all volumes and simulate the clicks of their structures.

    Raises:
        BadInput: a folder without cases, an image and a label of different grids, or no structure at all.
    """
    jobs = [(key, spec, name) for key, spec in sets.items() for name in case_names(spec, root / spec.folder)]
    volumes: list[JointVolume] = []
    targets: list[JointTarget] = []
    for done, (key, spec, name) in enumerate(jobs):
        volume = _read(root / spec.folder, name, spec)
        _add(
            volumes, targets, volume, [(f"{key}:{s}", v) for s, v in spec.structures.items()], spec.weight, stage, seed
        )
        for k in range(spec.synthetic):
            rng = np.random.default_rng([seed, 11, len(volumes), k])
            made = _with_synthetic(volume, rng)
            if made is not None:
                _add(volumes, targets, made, [(SYNTHETIC, (1,))], spec.weight, stage, seed)
        on_case(done + 1, len(jobs))
    if not targets:
        raise BadInput("None of the data sets holds a structure that it names.", "Check [sets.NAME.structures].")
    return volumes, targets


def case_names(spec: SetConfig, folder: Path) -> list[str]:
    """Names of a set's cases, sorted, without the excluded ones.

    Raises:
        BadInput: none is there.
    """
    prefix, _, suffix = spec.image.partition("{case}")
    found = sorted(p.name[len(prefix) : len(p.name) - len(suffix)] for p in folder.glob(f"{prefix}*{suffix}"))
    names = list(spec.cases) or [n for n in found if (folder / spec.label.format(case=n)).exists()]
    names = [name for name in names if name not in spec.exclude]
    if not names:
        raise BadInput(f"{folder} holds no pair {spec.image} and {spec.label}.", "Check folder, image and label.")
    if spec.max_cases and len(names) > spec.max_cases:
        chosen = np.linspace(0, len(names) - 1, spec.max_cases).round().astype(int)
        names = [names[i] for i in chosen]
    return names


def _read(folder: Path, name: str, spec: SetConfig) -> JointVolume:
    volume = read_volume(folder / spec.image.format(case=name))
    check_image(volume)
    labels = read_labels_of(folder / spec.label.format(case=name), volume)
    stack = SliceStack(volume, spec.plane)
    is_ct = spec.modality == "CT"
    config = IntensityConfig("window", *CT_WINDOW) if is_ct else IntensityConfig("percentile", *MR_PERCENTILES)
    images = np.rint(normalize(stack.array, intensity_range(volume.array, config)) * 255).astype(np.uint8)
    label_slices = np.ascontiguousarray(stack.from_volume(labels)).astype(np.uint8)
    return JointVolume(
        f"{folder.name}/{name}", images, label_slices, stack.pixel_mm, stack.slice_mm, is_ct, spec.fov_mm
    )


def _add(
    volumes: list[JointVolume],
    targets: list[JointTarget],
    volume: JointVolume,
    structures: Iterable[tuple[str, tuple[int, ...]]],
    weight: float,
    stage: JointStage,
    seed: int,
) -> None:
    """Append a volume and those of its structures that are large enough to be clicked."""
    index = len(volumes)
    volumes.append(volume)
    for group, values in structures:
        mask = np.isin(volume.labels, values)
        spans = np.flatnonzero(mask.any(axis=(1, 2)))
        if mask.sum() < MIN_VOXELS or len(spans) < MIN_SLICES:
            continue
        path = click_path(mask, volume.pixel_mm, volume.slice_mm)
        rng = np.random.default_rng([seed, 12, index, values[0]])
        clicks = []
        for _ in range(stage.click_sets):
            severity = 0.0 if rng.random() < 0.25 else float(rng.uniform(*stage.severities))
            drawn = simulate_clicks_from_path(path, mask, severity, int(rng.integers(2**31)))
            clicks.append((drawn.slice_index.astype(np.int64), drawn.xy.astype(np.float64)))
        targets.append(JointTarget(index, group, weight, values, int(spans[0]), int(spans[-1]), clicks))


def _with_synthetic(volume: JointVolume, rng: np.random.Generator) -> JointVolume | None:
    made = synthetic_structure(volume.images, volume.pixel_mm, volume.slice_mm, rng)
    if made is None:
        return None
    images, mask = made
    return JointVolume(
        f"{volume.name} with a synthetic structure",
        images,
        mask.astype(np.uint8),
        volume.pixel_mm,
        volume.slice_mm,
        volume.is_ct,
        volume.fov_mm,
    )
