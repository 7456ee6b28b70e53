"""Volumes and structures of a joint training: several data sets as one list, clicks simulated once, and synthetic ones.

Synthetic structures in real volumes let a model learn "what was clicked" instead of a list of organs (ours): tubes run
along random smooth, sometimes branching paths, bright or dark, textured and blurred; regions are unions of supervoxels
whose intensities stay as they are.
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import check_values, intensity_range, normalize
from SPDSegmentLib.geometry.labels import case_expression, read_labeled
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.prompts.click_path import click_path
from SPDSegmentLib.prompts.noise import simulate_clicks_from_path
from SPDSegmentLib.settings import shorten
from SPDSegmentLib.training.joint_config import JointStage, SetConfig

MIN_VOXELS, MIN_SLICES = 30, 3
SYNTHETIC = "synthetic"
WITH_SYNTHETIC = " with a synthetic structure"
"""What the name of a volume ends with that has one."""
NOWHERE = -(1 << 30)
"""Slice index of an unused place in the table of clicks."""
REGION_SHARE = 0.3
RADIUS_MM = (2.0, 14.0)
BRANCH_CHANCE = 0.35
MAX_BRANCHES = 3
STEP_MM = 1.5
SHOWN_CASES = 3


@dataclass(frozen=True, eq=False)
class JointVolume:
    """One volume.

    Attributes:
        images: (T, H, W) uint8, 0 to 255 over the modality's range; labels: (T, H, W) uint8, the numbers that
            :func:`numbers_of` gives the label values of the file.
        pixel_mm: (row, column); slice_mm: distance of slices; of_set: name of its set.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    pixel_mm: tuple[float, float]
    slice_mm: float
    is_ct: bool
    fov_mm: float
    of_set: str


@dataclass(frozen=True, eq=False)
class JointTarget:
    """One structure of one volume.

    Attributes:
        volume: index of the volume; group: set and structure, drawn with equal chance.
        values: numbers of its label values in the volume; first, last: slices that it spans.
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
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[list[JointVolume], list[JointTarget]]:
    """Read all volumes and simulate the clicks of their structures.

    Args:
        say: takes a sentence for each structure that some or all cases of a set do not show.

    Raises:
        BadInput: a folder without cases, an image and a label of different grids, a CT that is none, or a structure
            that no case shows.
    """
    jobs = [(key, spec, name) for key, spec in sets.items() for name in case_names(spec, root / spec.folder)]
    volumes: list[JointVolume] = []
    targets: list[JointTarget] = []
    without: dict[tuple[str, str], list[str]] = defaultdict(list)
    for done, (key, spec, name) in enumerate(jobs):
        numbers = numbers_of(spec)
        volume = _read(root / spec.folder, name, spec, numbers, key)
        structures = [
            (f"{key}:{structure}", values[0], tuple(numbers[value] for value in values))
            for structure, values in spec.structures.items()
        ]
        shown = _add(volumes, targets, volume, structures, spec.weight, stage, seed)
        for structure in spec.structures:
            if f"{key}:{structure}" not in shown:
                without[key, structure].append(name)
        for k in range(spec.synthetic):
            rng = np.random.default_rng([seed, 11, len(volumes), k])
            made = _with_synthetic(volume, rng)
            if made is not None:
                _add(volumes, targets, made, [(SYNTHETIC, 1, (1,))], spec.weight, stage, seed)
        on_case(done + 1, len(jobs))
    _check_shown(sets, {target.group for target in targets})
    for (key, structure), names in without.items():
        more = f" and {len(names) - SHOWN_CASES} more" if len(names) > SHOWN_CASES else ""
        say(
            f"[sets.{key}] does not teach {structure} with {', '.join(names[:SHOWN_CASES])}{more}: fewer than "
            f"{MIN_VOXELS} voxels or {MIN_SLICES} slices of it are labeled there."
        )
    return volumes, targets


def _check_shown(sets: Mapping[str, SetConfig], groups: set[str]) -> None:
    """Refuse structures that the model would be said to know, and has never seen."""
    named = {structure for spec in sets.values() for structure in spec.structures}
    missing = sorted(name for name in named if not any(f"{key}:{name}" in groups for key in sets))
    if missing or not groups:
        raise BadInput(
            f"None of the data sets holds {', '.join(missing) or 'a structure'}, with at least {MIN_VOXELS} voxels on "
            f"{MIN_SLICES} slices.",
            "Correct the label values in [sets.NAME.structures], or leave it out there.",
        )


def numbers_of(spec: SetConfig) -> dict[int, int]:
    """The numbers, from 1, that stand for the label values of a set's structures in its volumes."""
    values = sorted({value for values in spec.structures.values() for value in values})
    return {value: number for number, value in enumerate(values, start=1)}


def case_names(spec: SetConfig, folder: Path) -> list[str]:
    """Names of a set's cases, each once and without the excluded ones; sorted where the set lists none.

    Raises:
        BadInput: none is there, or a name that is excluded is that of no case.
    """
    found = _named(folder, spec.image)
    unknown = [name for name in spec.exclude if name not in found and name not in spec.cases]
    if unknown:
        raise BadInput(
            f"{folder} holds no case {unknown[0]}, which exclude of its set names.",
            f"Correct exclude; there are {shorten(', '.join(found) or 'none', 200)}.",
        )
    every = list(spec.cases) or [n for n in found if (folder / spec.label.format(case=n)).exists()]
    if not every:
        raise BadInput(f"{folder} holds no pair {spec.image} and {spec.label}.", "Check folder, image and label.")
    names = [name for name in dict.fromkeys(every) if name not in spec.exclude]
    if not names:
        raise BadInput(f"Every case of {folder} is in exclude of its set.", "Leave at least one to learn from.")
    if spec.max_cases and len(names) > spec.max_cases:
        chosen = np.linspace(0, len(names) - 1, spec.max_cases).round().astype(int)
        names = [names[i] for i in chosen]
    return names


def _named(folder: Path, pattern: str) -> list[str]:
    """Names of the cases whose files or folders are named as a pattern with ``{case}`` says, sorted."""
    expression, anything = case_expression(pattern), "*".join(map(glob.escape, pattern.split("{case}")))
    places = (path.relative_to(folder).as_posix() for path in folder.glob(anything))
    return sorted(match["case"] for place in places if (match := expression.fullmatch(place)))


def _read(folder: Path, name: str, spec: SetConfig, numbers: Mapping[int, int], key: str) -> JointVolume:
    volume, labels = read_labeled(folder, spec, name)
    check_values(volume.array, spec.intensity, volume.name)
    stack = SliceStack(volume, spec.plane)
    is_ct = spec.modality == "CT"
    images = np.rint(normalize(stack.array, intensity_range(volume.array, spec.intensity)) * 255).astype(np.uint8)
    slices = stack.from_volume(labels)
    numbered = np.zeros(slices.shape, dtype=np.uint8)
    for value, number in numbers.items():
        numbered[slices == value] = number
    name, pixel_mm, slice_mm = f"{folder.name}/{name}", stack.pixel_mm, stack.slice_mm
    return JointVolume(name, images, numbered, pixel_mm, slice_mm, is_ct, spec.fov_mm, key)


def _add(
    volumes: list[JointVolume],
    targets: list[JointTarget],
    volume: JointVolume,
    structures: Iterable[tuple[str, int, tuple[int, ...]]],
    weight: float,
    stage: JointStage,
    seed: int,
) -> set[str]:
    """Append a volume and those of its structures that are large enough to be clicked; returns their groups.

    Args:
        structures: group, the file's label value that its clicks are seeded with, and numbers in the volume.
    """
    index, shown = len(volumes), set[str]()
    volumes.append(volume)
    for group, seeded, values in structures:
        mask = np.isin(volume.labels, values)
        spans = np.flatnonzero(mask.any(axis=(1, 2)))
        if mask.sum() < MIN_VOXELS or len(spans) < MIN_SLICES:
            continue
        path = click_path(mask, volume.pixel_mm, volume.slice_mm)
        shown.add(group)
        rng = np.random.default_rng([seed, 12, index, seeded])
        clicks = []
        for _ in range(stage.click_sets):
            severity = 0.0 if rng.random() < 0.25 else float(rng.uniform(*stage.severities))
            drawn = simulate_clicks_from_path(path, mask, severity, int(rng.integers(2**31)))
            clicks.append((drawn.slice_index.astype(np.int64), drawn.xy.astype(np.float64)))
        targets.append(JointTarget(index, group, weight, values, int(spans[0]), int(spans[-1]), clicks))
    return shown


def _with_synthetic(volume: JointVolume, rng: np.random.Generator) -> JointVolume | None:
    made = synthetic_structure(volume.images, volume.pixel_mm, volume.slice_mm, rng)
    if made is None:
        return None
    images, mask = made
    name = volume.name + WITH_SYNTHETIC
    return replace(volume, name=name, images=images, labels=mask.astype(np.uint8))


def synthetic_structure(
    images: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """A tube or a region in a volume.

    Args:
        images: (T, H, W) uint8; pixel_mm: (row, column); slice_mm: distance of slices.

    Returns:
        The changed images and the structure's mask (T, H, W) bool, ``None`` where nothing fits.
    """
    spacing = np.array([slice_mm, *pixel_mm])
    made = (region if rng.random() < REGION_SHARE else tube)(images, spacing, rng)
    return made if made is not None and made[1].any(axis=(1, 2)).sum() >= 4 else None


def tube(images: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A tube along a random path, blended into the volume at its blurred border."""
    inside = np.argwhere(images[:: max(1, len(images) // 40), ::4, ::4] > 12)
    if len(inside) == 0:
        return None
    scale = np.array([max(1, len(images) // 40), 4, 4])
    start = inside[rng.integers(len(inside))] * scale * spacing
    extent = np.array(images.shape) * spacing
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_MM))))
    lines = [_path(start, extent, rng, min(rng.uniform(60, 220), 3 * float(extent.max())))]
    while len(lines) <= MAX_BRANCHES and rng.random() < BRANCH_CHANCE:
        trunk = lines[rng.integers(len(lines))]
        lines.append(_path(trunk[rng.integers(len(trunk))], extent, rng, rng.uniform(25, 90)))
    points = np.concatenate(lines)
    radii = np.concatenate([radius * (0.75 if i else 1.0) * _wobble(len(line), rng) for i, line in enumerate(lines)])
    low = np.maximum(((points.min(0) - 2 * radius) / spacing).astype(int), 0)
    high = np.minimum(((points.max(0) + 2 * radius) / spacing).astype(int) + 2, images.shape)
    if np.any(high - low < 1):
        return None
    grid = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
    distance, nearest = KDTree(points).query(grid.reshape(-1, 3) * spacing, distance_upper_bound=2 * radius + 4)
    reached = np.append(radii, 1.0)[nearest]
    depth = (reached - np.where(np.isfinite(distance), distance, 1e3)).reshape(grid.shape[:3])
    blur = rng.uniform(0.3, 1.5)
    share = 1 / (1 + np.exp(-np.clip(depth / blur, -30, 30)))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    around = images[box].astype(np.float32)
    middle = float(np.median(around[depth > 0])) if (depth > 0).any() else 0.0
    contrast = rng.uniform(25, 110) * (1 if rng.random() < 0.6 else -1)
    level = np.clip(middle + contrast, 8, 250)
    if abs(level - middle) < 20:
        level = middle - contrast
    texture = ndimage.gaussian_filter(rng.normal(size=depth.shape), rng.uniform(0.6, 2.0))
    filling = level + texture / max(float(texture.std()), 1e-6) * rng.uniform(0, 12)
    if rng.random() < 0.25:  # a wall of another brightness, as bowel and vessels have
        wall = np.exp(-((depth / max(0.15 * radius, 0.8)) ** 2))
        filling = filling + wall * rng.uniform(-60, 60)
    changed = images.copy()
    changed[box] = np.rint(np.clip(around * (1 - share) + filling * share, 0, 255)).astype(np.uint8)
    mask = np.zeros(images.shape, dtype=bool)
    mask[box] = depth > 0
    return changed, mask


def region(images: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A union of neighboring supervoxels of the volume as it is."""
    from skimage.segmentation import slic

    half = np.maximum((rng.uniform(20, 45) / spacing).astype(int), 3)
    inside = np.argwhere(images[:, ::4, ::4] > 25)
    if len(inside) == 0:
        return None
    center = inside[rng.integers(len(inside))] * np.array([1, 4, 4])
    low, high = np.maximum(center - half, 0), np.minimum(center + half, images.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = ndimage.gaussian_filter(images[box].astype(np.float32) / 255, 1.0 / spacing.clip(1.0))
    labels = slic(part, n_segments=24, compactness=0.03, spacing=spacing, channel_axis=None, start_label=1)
    mask = np.zeros(images.shape, dtype=bool)
    at = tuple((center - low).clip(0, np.array(part.shape) - 1))
    own = labels == labels[at]
    similar = [v for v in np.unique(labels[ndimage.binary_dilation(own)]) if v != labels[at]]
    level = float(part[own].mean())
    joined = [v for v in similar if abs(float(part[labels == v].mean()) - level) < 0.06]
    region_mask = own | np.isin(labels, joined)
    region_mask = ndimage.binary_opening(ndimage.binary_fill_holes(region_mask), iterations=1)
    components, count = ndimage.label(region_mask)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    mask[box] = components == largest
    return images, mask


def _path(start: np.ndarray, extent: np.ndarray, rng: np.random.Generator, length_mm: float) -> np.ndarray:
    """(N, 3) points in mm along a smooth random walk that turns back at the volume's borders."""
    direction = rng.normal(size=3) * np.array([rng.choice([0.6, 1.5, 3.0]), 1.0, 1.0])
    direction /= np.linalg.norm(direction)
    turn = rng.normal(size=3) * rng.uniform(0.0, 0.03)
    points, at = [], start.astype(float)
    for _ in range(max(4, int(length_mm / STEP_MM))):
        points.append(at)
        turn = 0.97 * turn + rng.normal(size=3) * 0.008
        direction = direction + turn
        direction /= np.linalg.norm(direction)
        at = at + direction * STEP_MM
        outside = (at < 0) | (at > extent)
        direction = np.where(outside, -direction, direction)
        at = np.clip(at, 0, extent)
    return np.array(points)


def _wobble(n: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) smooth factors around 1 by which a tube's radius changes along its path."""
    noise = ndimage.gaussian_filter1d(rng.normal(size=n), 8, mode="nearest")
    return np.exp(rng.uniform(0.0, 0.25) * noise / max(float(np.abs(noise).max()), 1e-6))
