"""Training cases: normalized slices, targets and click paths, read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported, SPDError
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.intensity import IntensityConfig, check_values, intensity_range, normalize
from SPDSegmentLib.geometry.labelmap import read_labels_of
from SPDSegmentLib.geometry.markups import read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume
from SPDSegmentLib.prompts.noise import ClickPath, click_path, simulate_clicks_from_path
from SPDSegmentLib.prompts.saliency_maps import SliceClicks
from SPDSegmentLib.training.config import DataConfig

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
    """

    name: str
    images: np.ndarray
    salient: np.ndarray
    targets: tuple[TargetMask, ...]
    pixel_mm: tuple[float, float]
    slice_mm: float
    note: str = ""


def check_cases(
    folder: Path, names: Sequence[str], data: DataConfig, on_case: Callable[[int, int], None] | None = None
) -> list[str]:
    """Read everything of some cases and keep nothing; returns sentences about cases without the structure.

    Raises:
        BadInput: naming every case that cannot be used, and why.
    """
    notes = []

    def check(name: str) -> None:
        stack, labels, _ = _read(folder, name, data)
        if not np.isin(labels, [value for values in data.targets for value in values]).any():
            notes.append(_without_structure(name, folder, labels, data))
        _given_clicks(folder, name, data, stack)

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
    stack, labels, volume = _read(folder, name, data)
    label_slices = stack.from_volume(labels)
    check_values(volume.array, intensity, volume.name)
    images = normalize(stack.array, intensity_range(volume.array, intensity)).astype(np.float16)
    given = _given_clicks(folder, name, data, stack)
    targets = []
    for values in data.targets:
        mask = np.ascontiguousarray(np.isin(label_slices, values))
        if mask.any():
            title = f"{name}:{'+'.join(map(str, values))}"
            targets.append(make_target(title, mask, click_path(mask, stack.pixel_mm, stack.slice_mm), given))
    salient = np.ascontiguousarray(np.isin(label_slices, data.saliency_values()))
    note = "" if targets else _without_structure(name, folder, labels, data)
    return Case(name, images, salient, tuple(targets), stack.pixel_mm, stack.slice_mm, note)


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
            f"No training case has the structure: {cases[0].note.partition(':')[0]}.", "Correct targets in [data]."
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


def _read(folder: Path, name: str, data: DataConfig) -> tuple[SliceStack, np.ndarray, Volume]:
    """Slices, labels (K, J, I) and volume of a case, checked."""
    volume = read_volume(folder / data.image.format(case=name))
    check_image(volume)
    labels = read_labels_of(folder / data.label.format(case=name), volume)
    return SliceStack(volume, data.plane), labels, volume


def _given_clicks(folder: Path, name: str, data: DataConfig, stack: SliceStack) -> SliceClicks | None:
    if not data.clicks:
        return None
    clicks = clicks_from_markups(read_markups(folder / data.clicks.format(case=name)), stack).inside()
    return SliceClicks(clicks.slice_index, clicks.xy)


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
