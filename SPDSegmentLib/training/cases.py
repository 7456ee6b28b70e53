"""Training cases: normalized slices, targets and click paths, read once; and random views of their slices.

A view changes geometry and intensity; the clicks move with the image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from SPDSegmentLib.errors import BadInput, GeometryUnsupported, SPDError
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.intensity import IntensityConfig, check_values, intensity_range, normalize
from SPDSegmentLib.geometry.labels import read_labeled
from SPDSegmentLib.geometry.markups import read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.prompts.click_path import ClickPath, click_path
from SPDSegmentLib.prompts.noise import simulate_clicks_from_path
from SPDSegmentLib.prompts.saliency_maps import SliceClicks
from SPDSegmentLib.training.config import AugmentationConfig, DataConfig, TrainingConfig

SAME_SIZE = 0.01  # pixels that differ by a smaller share are not averaged
SHOWN_CASES = 5
SHOWN_VALUES = 8


@dataclass(frozen=True, eq=False)
class TargetMask:
    """One structure of a case that can be clicked.

    Attributes:
        name: case and label values.
        mask: (T, H, W) bool.
        path: for the noise simulator.
        first, last: slices that the target spans.
        center_xy: (column, row) of its centroid in slice pixels.
        given: clicks of a person in slice pixels, when the data set has some.
    """

    name: str
    mask: np.ndarray
    path: ClickPath
    first: int
    last: int
    center_xy: np.ndarray
    given: SliceClicks | None = None

    def clicks(self, severity: str | float, seed: int) -> SliceClicks:
        """Given clicks, or simulated ones, in slice pixels."""
        if self.given is not None:
            return self.given
        simulated = simulate_clicks_from_path(self.path, self.mask, severity, seed)
        return SliceClicks(simulated.slice_index, simulated.xy)


@dataclass(frozen=True, eq=False)
class Case:
    """One volume.

    Attributes:
        images: (T, H, W) float16 in [0, 1].
        salient: (T, H, W) bool, what the saliency head learns.
        targets: none where the structure is not in the volume: such a case is background for the saliency head.
        pixel_mm: (row, column); slice_mm: distance of slices.
        note: what the user should know of it, a sentence or empty.
        digest: of image, masks and given clicks as they were read.
    """

    name: str
    images: np.ndarray
    salient: np.ndarray
    targets: tuple[TargetMask, ...]
    pixel_mm: tuple[float, float]
    slice_mm: float
    note: str = ""
    digest: str = ""


def check_cases(
    folder: Path, names: Sequence[str], data: DataConfig, on_case: Callable[[int, int], None] | None = None
) -> list[str]:
    """Read everything of some cases and keep nothing; returns sentences about cases without the structure.

    Raises:
        BadInput: naming every case that cannot be used, and why.
    """
    notes = []

    def check(name: str) -> None:
        stack, labels, _ = read_labeled_case(folder, name, data)
        present = [bool(np.isin(labels, values).any()) for values in data.targets]
        if not any(present):
            notes.append(_without_structure(name, folder, labels, data))
        _given_clicks(folder, name, data, stack, present)

    _each(names, check, on_case)
    return notes


def require_files(folder: Path, names: Sequence[str], data: DataConfig) -> None:
    """Raise BadInput, naming all of them, where files of the cases are not there."""
    patterns = [pattern for pattern in (data.image, data.label, data.clicks) if pattern]
    wanted = [folder / pattern.format(case=name) for name in dict.fromkeys(names) for pattern in patterns]
    missing = [path for path in wanted if not path.exists()]
    if missing:
        more = f" and {len(missing) - SHOWN_CASES} more files" if len(missing) > SHOWN_CASES else ""
        raise BadInput(
            f"{', '.join(map(str, missing[:SHOWN_CASES]))}{more} cannot be read: "
            f"{'they are' if len(missing) > 1 else 'it is'} not there.",
            "Correct folder, the file names or the lists of cases in [data].",
        )


def load_case(folder: Path, name: str, data: DataConfig, intensity: IntensityConfig) -> Case:
    """Read a case.

    Raises:
        BadInput: a file that cannot be used, or image and label do not have the same grid.
    """
    stack, labels, volume = read_labeled_case(folder, name, data)
    label_slices = stack.from_volume(labels)
    check_values(volume.array, intensity, volume.name)
    images = normalize(stack.array, intensity_range(volume.array, intensity)).astype(np.float16)
    masks = [np.ascontiguousarray(np.isin(label_slices, values)) for values in data.targets]
    given = _given_clicks(folder, name, data, stack, [bool(mask.any()) for mask in masks])
    targets = []
    for values, mask, clicks in zip(data.targets, masks, given, strict=True):
        if mask.any():
            title = f"{name}:{'+'.join(map(str, values))}"
            targets.append(make_target(title, mask, click_path(mask, stack.pixel_mm, stack.slice_mm), clicks))
    salient = np.ascontiguousarray(np.isin(label_slices, data.saliency_values()))
    note = "" if targets else _without_structure(name, folder, labels, data)
    seen = [volume.array, np.round([*stack.pixel_mm, stack.slice_mm], 6), salient, *(t.mask for t in targets)]
    seen += [array for t in targets if t.given is not None for array in (t.given.slice_index, np.round(t.given.xy, 3))]
    return Case(name, images, salient, tuple(targets), stack.pixel_mm, stack.slice_mm, note, digest_of(*seen))


def digest_of(*arrays: np.ndarray) -> str:
    """Digest of arrays: of their shapes, types and values."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load_cases(
    folder: Path,
    names: Sequence[str],
    data: DataConfig,
    intensity: IntensityConfig,
    on_case: Callable[[int, int], None] | None = None,
) -> list[Case]:
    """Read several cases; ``on_case(done, total)`` reports progress.

    Raises:
        BadInput: naming every case that cannot be used, and why; or no case has the structure.
    """
    cases: list[Case] = []
    _each(names, lambda name: cases.append(load_case(folder, name, data, intensity)), on_case)
    if not any(case.targets for case in cases):
        raise BadInput(
            f"No training case has the structure: {cases[0].note.partition('): case ')[0]}).",
            "Correct targets in [data].",
        )
    if not any(case.salient.any() for case in cases):
        values = " or ".join(map(str, data.saliency_values()))
        raise BadInput(
            f"No training case has what the saliency is to learn: the label values {values} are in none.",
            "Correct saliency in [data].",
        )
    return cases


def _each(names: Sequence[str], use: Callable[[str], None], on_case: Callable[[int, int], None] | None) -> None:
    """Go through cases to the end, then raise what was wrong with all of them."""
    errors: list[SPDError] = []
    for done, name in enumerate(names, start=1):
        try:
            use(name)
        except (BadInput, GeometryUnsupported) as error:
            errors.append(error)
        if on_case is not None:
            on_case(done, len(names))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f" And {len(errors) - SHOWN_CASES} more." if len(errors) > SHOWN_CASES else ""
        raise BadInput(
            f"{len(errors)} of {len(names)} cases cannot be used. "
            + " ".join(error.message for error in errors[:SHOWN_CASES])
            + more,
            "Mend these files, or leave the cases out of [data].",
            "\n".join(error.sentence for error in errors),
        )


def read_labeled_case(folder: Path, name: str, data: DataConfig) -> tuple[SliceStack, np.ndarray, Volume]:
    """Slices, labels (K, J, I) and volume of a case, checked."""
    volume, labels = read_labeled(folder, data, name)
    return SliceStack(volume, data.plane), labels, volume


def _given_clicks(
    folder: Path, name: str, data: DataConfig, stack: SliceStack, present: Sequence[bool]
) -> list[SliceClicks | None]:
    """Clicks of a person, by target; where a case shows several targets each has a list of its own, in their order."""
    if not data.clicks:
        return [None for _ in present]
    path = folder / data.clicks.format(case=name)
    markups = read_markups(path)
    lists = [markup for markup in markups if not markup.is_shape]
    apart = len(lists) == len(present)
    if not apart and sum(present) > 1:
        raise BadInput(
            f"{path} holds {len(lists)} lists of points for {len(present)} targets, which need one each.",
            "Give a list for each entry of targets, in that order, or leave clicks out of [data] to simulate them.",
        )
    given: list[SliceClicks | None] = []
    for k, there in enumerate(present):
        placed = clicks_from_markups([lists[k]] if apart else markups, stack) if there else None
        clicks = None if placed is None else placed.up_to_ends(stack.n_slices).inside()
        given.append(None if clicks is None else SliceClicks(clicks.slice_index, clicks.xy))
    return given


def _without_structure(name: str, folder: Path, labels: np.ndarray, data: DataConfig) -> str:
    """What is said of a case without the structure."""
    present = np.unique(labels)
    found = ", ".join(str(int(value)) for value in present[present != 0][:SHOWN_VALUES])
    wanted = " or ".join("+".join(map(str, values)) for values in data.targets)
    return (
        f"{folder / data.label.format(case=name)} holds none of the label values {wanted} "
        f"(it holds {found or 'nothing but 0'}): case {name} is taken as one without the structure. If it shows it, "
        "correct its labels or targets in [data]."
    )


def make_target(name: str, mask: np.ndarray, path: ClickPath, given: SliceClicks | None = None) -> TargetMask:
    """A target from its mask (T, H, W) bool, not empty, and the path that clicks are simulated along."""
    spans = np.flatnonzero(mask.any(axis=(1, 2)))
    _, rows, columns = np.nonzero(mask)
    center_xy = np.array([columns.mean(), rows.mean()])
    return TargetMask(name, mask, path, int(spans[0]), int(spans[-1]), center_xy, given)


@dataclass(frozen=True, eq=False)
class AugmentedView:
    """An affine map from network pixels to slice pixels, and intensity changes.

    Attributes:
        matrix: (2, 2), slice pixels per network pixel, for (column, row) vectors.
        offset: (2,), slice position of network pixel (0, 0).
        gamma: exponent of the intensities.
        field: (4, 4) logarithm of a smooth multiplicative field.
        noise: standard deviation of added noise; noise_seed: where it comes from.
    """

    size: int
    matrix: np.ndarray
    offset: np.ndarray
    gamma: float = 1.0
    field: np.ndarray | None = None
    noise: float = 0.0
    noise_seed: int = 0

    @property
    def coarseness(self) -> tuple[float, float]:
        """Slice pixels per network pixel along the slice's columns and rows, 1 where the network's are not larger."""
        across, down = (float(size) if size > 1 + SAME_SIZE else 1.0 for size in np.linalg.norm(self.matrix, axis=1))
        return across, down

    def to_input(self, xy: np.ndarray) -> np.ndarray:
        """Slice pixels (N, 2) to network pixels."""
        return (np.asarray(xy, float) - self.offset) @ np.linalg.inv(self.matrix).T


def random_view(
    rng: np.random.Generator,
    config: AugmentationConfig,
    size: int,
    fov_mm: float,
    pixel_mm: tuple[float, float],
    center_xy: np.ndarray,
    dither: float = 0.0,
) -> AugmentedView:
    """Draw a view around ``center_xy`` (column, row in slice pixels).

    Args:
        fov_mm: the unscaled field of view.
        dither: standard deviation of the noise that every view has.
    """
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale = 1 + rng.uniform(-config.scale, config.scale)
    mirror = -1.0 if rng.random() < config.flip else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mm = rotation @ np.diag([mirror, 1.0]) * (fov_mm / size * scale)
    spacing = np.array([pixel_mm[1], pixel_mm[0]])
    matrix = mm / spacing[:, None]
    center = center_xy + rng.uniform(-config.shift, config.shift, 2) * fov_mm / spacing
    offset = center - matrix @ np.full(2, (size - 1) / 2)
    return AugmentedView(
        size,
        matrix,
        offset,
        float(np.exp(rng.uniform(-config.gamma, config.gamma))),
        rng.normal(0, config.bias_field, (4, 4)) if config.bias_field > 0 else None,
        noise_seed=int(rng.integers(2**31)),
        noise=dither + float(rng.uniform(0, config.noise)),
    )


def draw_view(rng: np.random.Generator, case: Case, target: TargetMask | None, config: TrainingConfig) -> AugmentedView:
    """A random view around a target, or of the whole slice where the field of view is not limited.

    In a case without the structure it lies anywhere in the middle half of the slice.
    """
    center = target.center_xy if config.fov_mm > 0 and target is not None else slice_middle(case)
    if config.fov_mm > 0 and target is None:
        center = center * rng.uniform(0.5, 1.5, 2)
    fov = field_of_view(case, config.fov_mm)
    size, dither = config.network.image_size, config.intensity.dither
    return random_view(rng, config.augmentation, size, fov, case.pixel_mm, center, dither)


def field_of_view(case: Case, fov_mm: float) -> float:
    """The configured field of view, or the longest side of the case's slices, in mm."""
    height, width = case.images.shape[1:]
    return fov_mm if fov_mm > 0 else max(height * case.pixel_mm[0], width * case.pixel_mm[1])


def slice_middle(case: Case) -> np.ndarray:
    """(column, row) of a slice's center."""
    height, width = case.images.shape[1:]
    return np.array([(width - 1) / 2, (height - 1) / 2])


def apply_view(slices: np.ndarray, view: AugmentedView, image: bool) -> Tensor:
    """Resample (R, H, W) slices to (R, 1, S, S) float32; zero outside.

    An ``image`` is averaged where the network's pixels are larger, as in use, and its intensities are changed.
    """
    height, width = slices.shape[1:]
    pixels = torch.arange(view.size, dtype=torch.float32)
    rows, columns = torch.meshgrid(pixels, pixels, indexing="ij")
    matrix = torch.tensor(view.matrix, dtype=torch.float32)
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + float(view.offset[0])
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + float(view.offset[1])
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    source = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32))[None]
    if image:
        for size, axis in zip(view.coarseness, (3, 2), strict=True):
            source = _blurred(source, size, axis)
    resampled = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    if image:
        resampled = _change_intensities(resampled, view)
    return resampled[:, None]


def _blurred(images: Tensor, size: float, axis: int) -> Tensor:
    """Images (1, R, H, W) averaged along one axis, so that linear interpolation then weights them by a triangle.

    It is as wide as one of half the base ``size``: exactly where that is whole, else in its second moment.
    """
    if size == 1:
        return images
    length, whole = images.shape[axis], math.floor(size)
    share = (size**2 - whole**2) / (2 * whole + 1)  # of the next whole size
    own, wider = ([max(0.0, 1 - step / n) / n for step in range(whole + 1)] for n in (whole, whole + 1))
    weights = [(1 - share) * w + share * v for w, v in zip(own, wider, strict=True)]
    total = images * weights[0]
    within = torch.full([length if k == axis else 1 for k in range(4)], weights[0])
    for step, weight in enumerate(weights[1:length], start=1):
        for first, second in ((0, step), (step, 0)):
            total.narrow(axis, first, length - step).add_(images.narrow(axis, second, length - step), alpha=weight)
            within.narrow(axis, first, length - step).add_(weight)
    return total.div_(within)


def _change_intensities(images: Tensor, view: AugmentedView) -> Tensor:
    """(R, S, S) in [0, 1] to the same range."""
    if view.field is not None:
        log_field = torch.tensor(view.field, dtype=torch.float32)[None, None]
        smooth = F.interpolate(log_field, (view.size, view.size), mode="bicubic", align_corners=True)[0]
        images = images * smooth.exp()
    images = images.clamp(0, 1) ** view.gamma
    if view.noise > 0:
        generator = torch.Generator().manual_seed(view.noise_seed)
        images = images + torch.randn(images.shape, generator=generator) * view.noise * (images > 0)
    return images.clamp(0, 1)
