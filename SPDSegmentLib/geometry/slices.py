"""The slices of a volume along one axis, in one canonical orientation.

Whatever the order and direction of a volume's axes, the network sees the same picture: axial slices run to Posterior
and to the patient's Left and ascend to Superior; coronal slices run to Inferior and Left and ascend to Anterior;
sagittal slices run to Inferior and Posterior and ascend to Left. Oblique volumes take the nearest of these.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from SPDSegmentLib.geometry.volume import Volume, transformed
from SPDSegmentLib.settings import check_choice

AXES = ("auto", "i", "j", "k", "axial", "coronal", "sagittal")
_LEFT, _ANTERIOR, _SUPERIOR = np.array([-1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
# Directions in RAS of ascending slices, rows and columns.
_PLANES = {
    "axial": (_SUPERIOR, -_ANTERIOR, _LEFT),
    "coronal": (_ANTERIOR, -_SUPERIOR, _LEFT),
    "sagittal": (_LEFT, -_SUPERIOR, -_ANTERIOR),
}


class SliceStack:
    """Slices of a volume.

    Args:
        volume: the volume; its array is viewed, not copied.
        axis: ``i``, ``j``, ``k``, an anatomical plane, or ``auto`` for the axis with the largest spacing (of equal ones
            the nearest to Superior).

    Attributes:
        axis: IJK axis that is cut across, 0 to 2.
        plane: nearest anatomical plane.
        array: (T, H, W) view of the voxels.
        order, flips: axes of the volume's array that are slices, rows and columns, and which of them run backwards.
        pixel_mm: (row, column) spacing.
        slice_mm: distance of slices.
    """

    def __init__(self, volume: Volume, axis: str = "auto") -> None:
        check_choice(axis, AXES, "slicing axis")
        self.volume = volume
        spacing = volume.spacing_mm
        directions = volume.ijk_to_ras[:3, :3] / spacing  # columns: RAS direction of I, J, K
        self.axis = _cut_axis(axis, spacing, directions)
        normal = directions[:, self.axis]
        self.plane = axis if axis in _PLANES else max(_PLANES, key=lambda p: abs(float(_PLANES[p][0] @ normal)))
        self._axes, self.flips = _nearest_orientation(self.axis, directions, np.array(_PLANES[self.plane]))
        self.order = tuple(2 - a for a in self._axes)
        # 3D Slicer makes a left-handed volume right-handed as it reads it, by reversing K.
        left_handed = bool(np.linalg.det(directions) < 0)
        self._counts_down = self.flips[0] != (self.axis == 2 and left_handed)
        _, row_axis, column_axis = self._axes
        self.pixel_mm = (float(spacing[row_axis]), float(spacing[column_axis]))
        self.slice_mm = float(spacing[self.axis])
        self.array = self.from_volume(volume.array)
        self._thw_to_ras = volume.ijk_to_ras @ self._thw_to_ijk()
        self._ras_to_thw = np.linalg.inv(self._thw_to_ras)

    @property
    def n_slices(self) -> int:
        """T."""
        return int(self.array.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        t, h, w = self.array.shape
        return t, h, w

    def from_volume(self, array_kji: np.ndarray) -> np.ndarray:
        """View an array on the volume's grid (K, J, I) as slices (T, H, W)."""
        view = array_kji.transpose(self.order)
        return view[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def to_volume(self, array_thw: np.ndarray) -> np.ndarray:
        """Slices (T, H, W) as a contiguous array on the volume's grid (K, J, I)."""
        view = array_thw[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.ascontiguousarray(view.transpose(np.argsort(self.order)))

    def to_slices(self, points_ras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patient millimeters (N, 3) to continuous slice positions (N,) and pixels (N, 2), (column, row)."""
        thw = transformed(np.reshape(points_ras, (-1, 3)), self._ras_to_thw)
        return thw[:, 0], thw[:, [2, 1]]

    def to_ras(self, slice_position: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`to_slices`: (N, 3) patient millimeters."""
        xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        position = np.broadcast_to(np.asarray(slice_position, dtype=np.float64), len(xy))
        thw = np.stack((position, xy[:, 1], xy[:, 0]), axis=1)
        return transformed(thw, self._thw_to_ras)

    def slice_number(self, t: int) -> int:
        """Index of slice t along the volume's own axis, as 3D Slicer shows it, which holds every file right-handed."""
        return self.n_slices - 1 - t if self._counts_down else t

    def _thw_to_ijk(self) -> np.ndarray:
        """(4, 4) matrix from (slice, row, column) to (I, J, K) indexes."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for source, (axis, flip) in enumerate(zip(self._axes, self.flips, strict=True)):
            matrix[axis, source] = -1 if flip else 1
            matrix[axis, 3] = self.volume.shape_ijk[axis] - 1 if flip else 0
        return matrix


def _cut_axis(axis: str, spacing: np.ndarray, directions: np.ndarray) -> int:
    if axis in ("i", "j", "k"):
        return "ijk".index(axis)
    if axis in _PLANES:
        return int(np.argmax(np.abs(_PLANES[axis][0] @ directions)))
    coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - 1e-3))
    return int(max(coarsest, key=lambda a: abs(float(directions[2, a]))))


def _nearest_orientation(
    cut: int, directions: np.ndarray, wanted: np.ndarray
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """IJK axes of (slice, row, column) and which of them are reversed.

    Of the four turns of the slice that do not mirror it, the one nearest to the wanted directions.

    Args:
        directions: (3, 3), columns are the unit vectors of I, J, K in RAS.
        wanted: (3, 3), rows are the wanted directions of slices, rows, columns.
    """
    agreement = wanted @ directions
    slice_sign = -1.0 if agreement[0, cut] < 0 else 1.0
    handedness = np.sign(np.linalg.det(wanted))
    best, best_axes, best_signs = -np.inf, (0, 0, 0), (1.0, 1.0, 1.0)
    for row, column in itertools.permutations([a for a in range(3) if a != cut]):
        axes = (cut, row, column)
        for row_sign, column_sign in itertools.product((1.0, -1.0), repeat=2):
            signs = (slice_sign, row_sign, column_sign)
            turned = directions[:, axes] * signs
            score = row_sign * agreement[1, row] + column_sign * agreement[2, column]
            if np.sign(np.linalg.det(turned)) == handedness and score > best + 1e-9:
                best, best_axes, best_signs = score, axes, signs
    flip_slice, flip_row, flip_column = (sign < 0 for sign in best_signs)
    return best_axes, (flip_slice, flip_row, flip_column)


def slice_ranges(slices: Iterable[int]) -> str:
    """Slice numbers in words: ``3, 5-7`` for 3, 5, 6, 7."""
    ranges: list[list[int]] = []
    for t in sorted(set(slices)):
        if ranges and t == ranges[-1][1] + 1:
            ranges[-1][1] = t
        else:
            ranges.append([t, t])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
