"""DSC, IoU, HD95 and NSD of a mask against the truth, per volume and per slice (docs/method.md, section 10).

Surface distances are in millimeters; HD95 is the larger of the two directed 95th percentiles, NSD the share of both
surfaces within a tolerance. :func:`empty_mask_metrics` is the one place that says what an empty mask is worth.

Definition of DeepMind's ``surface-distance`` (Nikolov et al. 2018, arXiv 1809.04430): the surface lies at the corners
between voxels whose 2 x 2 (2-D) or 2 x 2 x 2 (3-D) neighbors are not all alike, which is their neighbor code; distances
are taken between such corners, and each corner weighs as much as its surface element, the piece of the marching-cubes
surface around it. The border of the image counts as surface. The elements are derived here from that definition: the
surface crosses every link between an inside and an outside voxel halfway, the faces of the cube join the crossings to
closed polygons, and the polygons are cut into triangles. What the definition leaves open is decided so that the areas
equal those of DeepMind's ``surface-distance`` on cubic voxels: of an inside pair that lies diagonally on a face each
is cut off on its own, of more than four inside voxels the outside ones are looked at, and a polygon becomes the fan
of triangles with the largest area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from SPDSegmentLib.errors import BadInput

TOLERANCE_MM = 2.0
Voxel = tuple[int, int, int]
Crossing = tuple[float, float, float]  # middle of a link, in voxels


@dataclass(frozen=True)
class MaskMetrics:
    """Agreement of a mask with the truth; ``None`` where both are empty."""

    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None


def empty_mask_metrics(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> MaskMetrics | None:
    """The empty-mask policy, or ``None`` when neither mask is empty.

    Both empty: no values, the case is left out of every mean. One empty, which is a miss or a pure false alarm: DSC,
    IoU and NSD are 0 and HD95 is the diagonal of the image.
    """
    if a.any() and b.any():
        return None
    if a.any() or b.any():
        return MaskMetrics(0.0, 0.0, diagonal_mm(a.shape, spacing_mm), 0.0)
    return MaskMetrics(None, None, None, None)


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the image's diagonal, from the outer corner of the first voxel to that of the last."""
    return float(np.linalg.norm(np.asarray(shape) * np.asarray(spacing_mm, dtype=float)))


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """Dice similarity coefficient (DSC) of two masks of one shape.

    Raises:
        BadInput: different shapes.
    """
    a, b = _masks(a, b)
    empty = empty_mask_metrics(a, b, (1.0,) * a.ndim)
    return empty.dsc if empty else _dice(a, b)


def volume_metrics(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> MaskMetrics:
    """All metrics of one volume (3-D) or one slice (2-D), with a single search for surface distances.

    Args:
        spacing_mm: voxel spacing in the order of the axes.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(predicted, truth, spacing_mm)
    empty = empty_mask_metrics(a, b, spacing_mm)
    if empty:
        return empty
    distances = surface_distances(a, b, spacing_mm)
    return MaskMetrics(_dice(a, b), _iou(a, b), distances.robust_hausdorff(95), distances.surface_dice(tolerance_mm))


def slice_metrics(predicted: np.ndarray, truth: np.ndarray, pixel_mm: Sequence[float]) -> MaskMetrics:
    """Means over the slices that hold the target of the metrics in their plane; no values where the truth is empty.

    Args:
        predicted, truth: (T, H, W) masks; pixel_mm: (row, column) spacing.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(predicted, truth)
    rows = [volume_metrics(a[t], b[t], pixel_mm) for t in np.flatnonzero(b.any(axis=(1, 2)))]
    if not rows:
        return MaskMetrics(None, None, None, None)
    return MaskMetrics(*(float(np.mean([getattr(row, field.name) for row in rows])) for field in fields(MaskMetrics)))


def _masks(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both as bool, once they are known to fit."""
    if a.shape != b.shape:
        raise BadInput(f"The masks differ in shape, {a.shape} and {b.shape}.", "Resample one to the other's grid.")
    if spacing_mm is not None:
        spacing = np.asarray(spacing_mm, dtype=float)
        if a.ndim not in (2, 3) or spacing.shape != (a.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise BadInput(
                f"The spacing {tuple(spacing_mm)} does not fit a mask of shape {a.shape}.",
                "Give one positive number in mm for each of its two or three axes.",
            )
    return np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each surface element of one mask to the other's surface, and the element's size.

    Attributes:
        a_to_b: (N,) mm; a_area: (N,) mm2 (2-D: mm); b_to_a: (M,); b_area: (M,).
    """

    a_to_b: np.ndarray
    a_area: np.ndarray
    b_to_a: np.ndarray
    b_area: np.ndarray

    def robust_hausdorff(self, percent: float = 95.0) -> float:
        """The larger of the two directed percentiles, in mm."""
        return max(
            weighted_percentile(self.a_to_b, self.a_area, percent),
            weighted_percentile(self.b_to_a, self.b_area, percent),
        )

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within ``tolerance_mm`` of the other one."""
        near = self.a_area[self.a_to_b <= tolerance_mm].sum() + self.b_area[self.b_to_a <= tolerance_mm].sum()
        return float(near / (self.a_area.sum() + self.b_area.sum()))


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two non-empty bool arrays of one shape, 2-D or 3-D.

    Nearest elements are found by a k-d tree, whose cost does not grow with the distance of the masks.

    Args:
        spacing_mm: voxel spacing in the order of the axes.
    """
    a_points, a_area = _surface(a, spacing_mm)
    b_points, b_area = _surface(b, spacing_mm)
    return SurfaceDistances(_nearest(a_points, b_points), a_area, _nearest(b_points, a_points), b_area)


def weighted_percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """Smallest of the distances within which ``percent`` of the area lies."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    position = int(np.searchsorted(covered, percent / 100 - 1e-12))
    return float(distances[order][min(position, len(order) - 1)])


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around a mask that is not empty."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(box)


def _surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, D) in mm of the corners on the surface, and their areas (N,)."""
    box = bounding_box(mask)
    codes = neighbor_codes(np.pad(mask[box], 1))
    corners = np.nonzero((codes > 0) & (codes < 2**2**mask.ndim - 1))
    first = np.array([s.start for s in box])
    return (np.transpose(corners) + first) * np.asarray(spacing_mm, dtype=float), element_areas(spacing_mm)[
        codes[corners]
    ]


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(KDTree(others, balanced_tree=False, compact_nodes=False).query(points)[0])


def neighbor_codes(mask: np.ndarray) -> np.ndarray:
    """Codes of all corners between the voxels of a bool array, uint8, one fewer than voxels along each axis.

    Bit i of a code is voxel i of the cube in the order of ``numpy.ndindex``.
    """
    inside = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
    codes = np.zeros([n - 1 for n in mask.shape], dtype=np.uint8)
    for bit, offset in enumerate(np.ndindex(*[2] * mask.ndim)):
        codes |= inside[tuple(slice(o, n - 1 + o) for o, n in zip(offset, mask.shape, strict=True))] << np.uint8(bit)
    return codes


def element_areas(spacing_mm: Sequence[float]) -> np.ndarray:
    """Area in mm2 (3-D) or length in mm (2-D) of every code's surface element, (256,) or (16,).

    Only the codes all outside and all inside have none.
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    code, normals = _normals(len(spacing))
    scaled = np.linalg.norm(normals * (spacing.prod() / spacing), axis=1)
    return np.bincount(code, scaled, minlength=2**2 ** len(spacing))


@lru_cache
def _normals(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Code (N,) and normal (N, D) of all pieces of surface; a normal's length is the area on cubic voxels."""
    voxels = list(np.ndindex(*[2] * dimensions))
    pieces = _lines if dimensions == 2 else _triangles
    found = [
        (code, normal)
        for code in range(1, 2 ** len(voxels) - 1)
        for normal in pieces({voxel for bit, voxel in enumerate(voxels) if code >> bit & 1})
    ]
    return np.array([code for code, _ in found]), np.array([normal for _, normal in found])


def _lines(inside: set[tuple[int, ...]]) -> list[np.ndarray]:
    square: list[Voxel] = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)]
    links = _face_links(square, {(0, voxel[0], voxel[1]) for voxel in inside})
    return [np.array([b[2] - a[2], a[1] - b[1]]) for a, b in links]


def _triangles(inside: set[tuple[int, ...]]) -> list[np.ndarray]:
    cube: set[Voxel] = {(i, j, k) for i, j, k in np.ndindex(2, 2, 2) if ((i, j, k) in inside) == (len(inside) <= 4)}
    links = [link for face in _faces() for link in _face_links(face, cube)]
    return [normal for polygon in _polygons(links) for normal in _fan(np.array(polygon))]


def _faces() -> list[list[Voxel]]:
    """The six faces of the cube, each as its four voxels in order around it."""
    faces = []
    for axis, side in product(range(3), range(2)):
        around = []
        for u, v in ((0, 0), (0, 1), (1, 1), (1, 0)):
            voxel = [u, v]
            voxel.insert(axis, side)
            around.append((voxel[0], voxel[1], voxel[2]))
        faces.append(around)
    return faces


def _face_links(face: list[Voxel], inside: set[Voxel]) -> list[tuple[Crossing, Crossing]]:
    """Lines in which the surface cuts a face: one for each run of inside voxels around it."""
    links = []
    for first in range(4):
        if face[first] in inside and face[first - 1] not in inside:
            last = first
            while face[(last + 1) % 4] in inside:
                last += 1
            links.append((_middle(face[first - 1], face[first]), _middle(face[last % 4], face[(last + 1) % 4])))
    return links


def _middle(a: Voxel, b: Voxel) -> Crossing:
    return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)


def _polygons(links: list[tuple[Crossing, Crossing]]) -> list[list[Crossing]]:
    """Closed polygons of the lines; every crossing lies on two faces and so ends two lines."""
    joined: dict[Crossing, list[Crossing]] = {}
    for a, b in links:
        joined.setdefault(a, []).append(b)
        joined.setdefault(b, []).append(a)
    polygons = []
    while joined:
        polygon = [next(iter(joined))]
        while following := joined[polygon[-1]]:
            crossing = following.pop()
            joined[crossing].remove(polygon[-1])
            polygon.append(crossing)
        polygons.append(polygon[:-1])
        joined = {crossing: ends for crossing, ends in joined.items() if ends}
    return polygons


def _fan(points: np.ndarray) -> np.ndarray:
    """Normals (N - 2, 3) of the largest fan of triangles in a polygon (N, 3) that need not be flat."""
    fans = []
    for first in range(len(points)):
        edges = np.roll(points, -first, axis=0)[1:] - points[first]
        fans.append(np.cross(edges[:-1], edges[1:]) / 2)
    return max(fans, key=lambda normals: round(float(np.linalg.norm(normals, axis=1).sum()), 9))
