"""A structure straightened along its centerline: curved planar reformation, and what is measured across it.

The centerline leads from the one end of the mask to the other; the planes across it have the directions of a frame that
turns as little as it can (double reflection, Wang et al., ACM Transactions on Graphics 2008). Between slices the mask
is interpolated by its shape, so that areas and lengths do not depend on how thick the slices are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import arc_length, frames, smooth_path, tangents, way_through
from SPDSegmentLib.geometry.slices import SliceStack

COLUMNS = (
    "position_mm", "r", "a", "s", "slice_number", "area_mm2", "diameter_mm", "feret_min_mm", "feret_max_mm",
)  # fmt: skip
MAX_SECTIONS = 150
MAX_SIDE = 129
"""Pixels of the side of a plane across."""
ROUNDS = 2
MAX_NODES = 40_000
"""Points of the mask among which the centerline is looked for."""
APART = 0.02
"""More than this share of the mask apart from the centerline is worth a sentence."""


class MaskField:
    """A mask as a function of place, above 0 inside: signed distance in the slice, linear between slices.

    Between slices it is interpolated along the structure, not across the slices, so that a structure that runs
    obliquely through thick slices does not shrink between them. Where the mask ends, it ends half-way between slices.
    """

    def __init__(self, mask: np.ndarray, stack: SliceStack) -> None:
        places = np.argwhere(mask)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        part = np.pad(mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]], 1)
        self._corner = low - 1
        self._stack = stack
        self.spacing = np.array([stack.slice_mm, *stack.pixel_mm])
        self.mean_spacing = float(self.spacing.mean())
        filled = np.asarray(part.any(axis=(1, 2)))
        signed = np.zeros(part.shape, dtype=np.float32)
        for t in np.flatnonzero(filled):
            within = ndimage.distance_transform_edt(part[t], sampling=stack.pixel_mm)
            signed[t] = within - ndimage.distance_transform_edt(~part[t], sampling=stack.pixel_mm)
        for t in np.flatnonzero(~filled):
            beside = [np.abs(signed[j]) for j in (t - 1, t + 1) if 0 <= j < len(part) and filled[j]]
            signed[t] = -np.maximum.reduce(beside) if beside else -float(self.spacing.max())
        limit = max(0.5 * stack.slice_mm, float(min(stack.pixel_mm)))  # so that neither slice outweighs the other
        self._signed = signed.clip(-limit, limit)

    def at(self, points_ras: np.ndarray, along_ras: np.ndarray, radius: float) -> np.ndarray:
        """Values (S, ...) at points (S, ..., 3), where the structure runs along unit vectors (S, 3).

        Args:
            radius: mm; where the structure moves by more from slice to slice, it runs within them.
        """
        position, xy = self._stack.to_slices(points_ras.reshape(-1, 3))
        thw = np.stack((position, xy[:, 1], xy[:, 0])) - self._corner[:, None]
        slope = self._slopes(along_ras, radius)
        slope = np.repeat(slope, len(position) // len(slope), axis=0).T
        lower = np.floor(thw[0])
        share, found = thw[0] - lower, np.zeros(len(position))
        for t, weight in ((lower, 1 - share), (lower + 1, share)):
            there = np.concatenate((t[None], thw[1:] + slope * (t - thw[0])))
            found += weight * ndimage.map_coordinates(self._signed, there, order=1, mode="constant", cval=-1.0)
        return found.reshape(points_ras.shape[:-1])

    def _slopes(self, along_ras: np.ndarray, radius: float) -> np.ndarray:
        """(S, 2) rows and columns by which the structure moves from slice to slice."""
        step = self._stack.to_slices(along_ras)
        start = self._stack.to_slices(np.zeros((1, 3)))
        t, xy = step[0] - start[0], step[1] - start[1]
        moved = xy[:, ::-1] * self.spacing[1:] / np.copysign(np.maximum(np.abs(t), 1e-6), t)[:, None]
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        slopes: np.ndarray = moved * (2 - length / max(radius, 1e-9)).clip(0, 1) / self.spacing[1:]
        return slopes

    def nodes(self) -> tuple[np.ndarray, float, np.ndarray]:
        """Points (N, 3) of a grid of cubes within the mask, the grid's pitch in mm, and their depth (N,) in mm."""
        inside_mm3 = float((self._signed > 0).sum()) * float(self.spacing.prod())
        pitch = max(float(self.spacing.min()), (inside_mm3 / MAX_NODES) ** (1 / 3))
        axes = [np.arange(0, n - 1 + 1e-9, pitch / s) for n, s in zip(self._signed.shape, self.spacing, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        inside = ndimage.map_coordinates(self._signed, grid, order=1) > 0
        if not inside.any():
            grid = np.argwhere(self._signed > 0).T.astype(float)
            depth = np.full(grid.shape[1], pitch)
        else:
            depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1][inside] * pitch
            grid = grid[:, inside]
        thw = grid + self._corner[:, None]
        return self._stack.to_ras(thw[0], thw[[2, 1]].T), pitch, depth


@dataclass(frozen=True, eq=False)
class Straightened:
    """Planes across a centerline, S of them at equal distances, in the middle of a piece of it each.

    Attributes:
        position_mm: (S,) along the centerline, from its end on the lowest slice.
        center_ras: (S, 3) mm; across_ras: (S, 2, 3) unit vectors of rows and columns of the planes.
        slice_number: (S,) nearest slice, as 3D Slicer numbers them.
        masks: (S, P, P) bool, the cross-sections; P is odd, the centerline in the middle.
        image: (S, P, P) float32, NaN outside the volume; None where it was not asked for.
        pixel_mm: of the planes.
        area_mm2, diameter_mm: (S,) of the cross-section, and of the circle of its area; 0 in a gap of the mask.
        feret_min_mm, feret_max_mm: (S,) least and greatest distance of two parallel lines that enclose it.
        centerline_mm: length of the centerline from end to end; :func:`labelmap.measure` follows another path, through
            the centroids of slices, so that its length and diameters are others.
        left_out: share of the mask that no plane met, as parts and side branches apart from the centerline.
    """

    position_mm: np.ndarray
    center_ras: np.ndarray
    across_ras: np.ndarray
    slice_number: np.ndarray
    masks: np.ndarray
    image: np.ndarray | None
    pixel_mm: float
    area_mm2: np.ndarray
    diameter_mm: np.ndarray
    feret_min_mm: np.ndarray
    feret_max_mm: np.ndarray
    centerline_mm: float
    left_out: float

    def sentence(self) -> str:
        """What was measured, for people; gaps of the mask count for the length alone."""
        k = int(np.argmax(self.diameter_mm))
        full = self.area_mm2 > 0
        mean = float(self.diameter_mm[full].mean()) if full.any() else 0.0
        gaps_mm = self.centerline_mm * float(1 - full.mean())
        gaps = f" ({gaps_mm:.0f} mm of it in gaps)" if gaps_mm > 0.5 else ""
        apart = f" {self.left_out:.0%} of the mask lies apart from it." if self.left_out > APART else ""
        return (
            f"{self.centerline_mm:.0f} mm along the centerline{gaps}, diameter {mean:.1f} mm on average, "
            f"{self.diameter_mm[k]:.1f} mm at its widest (slice {self.slice_number[k]}).{apart}"
        )

    def table(self) -> list[list[float]]:
        """Rows of ``COLUMNS``: millimeters and square millimeters to two decimals."""
        columns = (
            self.position_mm, *self.center_ras.T, self.slice_number, self.area_mm2, self.diameter_mm,
            self.feret_min_mm, self.feret_max_mm,
        )  # fmt: skip
        return [list(row) for row in zip(*(np.round(column, 2).tolist() for column in columns), strict=True)]


def straighten(
    mask: np.ndarray, stack: SliceStack, path_ras: np.ndarray | None = None, image: bool = True
) -> Straightened:
    """Straighten a mask along its centerline.

    Args:
        mask: (T, H, W) bool.
        path_ras: (N, 3) mm, a rough way through the structure from end to end, N > 1; without it that of the mask.
        image: reformat the image as well.

    Raises:
        BadInput: the mask is empty or of another shape.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != stack.shape:
        raise BadInput(f"The mask has the shape {mask.shape}, the slices {stack.shape}.", "Use a mask of this volume.")
    if not mask.any():
        raise BadInput("The mask is empty, so that there is nothing to measure.", "Segment the structure first.")
    field = MaskField(mask, stack)
    nodes, pitch, depth = field.nodes()
    radius = max(float(np.median(depth)) * 2, pitch)
    path = way_through(nodes, pitch, depth) if path_ras is None else np.asarray(path_ras, dtype=float).reshape(-1, 3)
    step = float(field.spacing.min())
    for _ in range(ROUNDS):
        path = smooth_path(path, radius, field.mean_spacing)
        sections = _sections(field, path, nodes, radius, max(2 * step, arc_length(path)[-1] / 60), 49)
        if len(sections.area) < 3:
            break
        radius = float(np.sqrt(sections.area[sections.area > 0].mean() / np.pi))
        inner = sections.at[(sections.at > radius) & (sections.at < sections.at[-1] - radius + sections.at[0])]
        path = sections.centroid[np.isin(sections.at, inner)] if len(inner) > 2 else sections.centroid
    path = smooth_path(path, radius, field.mean_spacing)
    sections = _sections(field, path, nodes, radius, max(step / 2, arc_length(path)[-1] / MAX_SECTIONS), MAX_SIDE)
    order = _from_lowest(sections, stack)
    ferets = np.array([_ferets(part, sections.pixel_mm) for part in sections.masks]).reshape(-1, 2)
    return Straightened(
        position_mm=(np.arange(len(sections.at)) + 0.5) * sections.step_mm,
        center_ras=sections.center[order],
        across_ras=sections.across[order],
        slice_number=_slice_numbers(sections.center[order], stack),
        masks=sections.masks[order],
        image=_reformatted(stack, sections.places(order)) if image else None,
        pixel_mm=sections.pixel_mm,
        area_mm2=sections.area[order],
        diameter_mm=2 * np.sqrt(sections.area[order] / np.pi),
        feret_min_mm=ferets[order, 0],
        feret_max_mm=ferets[order, 1],
        centerline_mm=len(sections.at) * sections.step_mm,
        left_out=_share_left_out(nodes, sections),
    )


@dataclass(frozen=True, eq=False)
class _Sections:
    """Planes that meet the structure, at equal steps of a path; arrays as of :class:`Straightened`."""

    at: np.ndarray
    center: np.ndarray
    across: np.ndarray
    masks: np.ndarray
    area: np.ndarray
    centroid: np.ndarray
    pixel_mm: float
    step_mm: float

    def places(self, order: np.ndarray) -> np.ndarray:
        """(S, P, P, 3) mm, of every pixel of the planes."""
        return _places(self.center[order], self.across[order], self.masks.shape[1], self.pixel_mm)


def _places(center: np.ndarray, across: np.ndarray, side: int, pixel_mm: float) -> np.ndarray:
    offsets = (np.arange(side) - side // 2) * pixel_mm
    rows, columns = across[:, 0, None, None] * offsets[:, None, None], across[:, 1, None, None] * offsets[:, None]
    placed: np.ndarray = center[:, None, None] + rows + columns
    return placed


def _sections(
    field: MaskField, path: np.ndarray, nodes: np.ndarray, radius: float, step: float, side: int
) -> _Sections:
    """Cut across a path (M, 3) every ``step`` mm; a section is what hangs together with the sections beside it."""
    from scipy.spatial import KDTree

    arc = arc_length(path)
    at = np.arange(step / 2, arc[-1], step)
    center = np.stack([np.interp(at, arc, values) for values in path.T], axis=1)
    tangent = tangents(center)
    across = frames(center, tangent)
    reach = float(KDTree(center).query(nodes)[0].max()) + 2 * field.mean_spacing
    pixel = max(float(field.spacing.min()) / 3, 2 * reach / (side - 1))
    side = 2 * int(np.ceil(reach / pixel)) + 1
    inside = field.at(_places(center, across, side, pixel), tangent, radius) > 0
    masks = np.zeros_like(inside)
    middle = _best_start(inside)
    for direction in (1, -1):
        wanted: np.ndarray | None = None
        for s in range(middle, len(at) if direction > 0 else -1, direction):
            part = _component(inside[s], wanted)
            if part is None:
                # A gap: what comes after it is taken only where it lies on the path itself.
                wanted = _disk(side) if wanted is not None else None
                continue
            masks[s] = wanted = part
    on_path = field.at(center, tangent, 0.0) > 0
    met = np.flatnonzero(on_path & masks.any(axis=(1, 2)))
    met = met if len(met) else np.flatnonzero(masks.any(axis=(1, 2)))
    kept = slice(met[0], met[-1] + 1) if len(met) else slice(0, 0)
    masks, center, across = masks[kept], center[kept], across[kept]
    area = masks.sum(axis=(1, 2)) * pixel**2
    offsets = (np.arange(side) - side // 2) * pixel
    total = np.maximum(masks.sum(axis=(1, 2)), 1)
    row, column = masks.sum(axis=2) @ offsets / total, masks.sum(axis=1) @ offsets / total
    centroid = center + across[:, 0] * row[:, None] + across[:, 1] * column[:, None]
    full = area > 0
    if not full.all() and full.any():  # in a gap between its neighbors
        index = np.arange(len(area))
        centroid = np.stack([np.interp(index, index[full], values[full]) for values in centroid.T], axis=1)
    return _Sections(at[kept], center, across, masks, area, centroid, pixel, step)


def _disk(side: int) -> np.ndarray:
    """The middle of a plane, within a quarter of its half side."""
    offsets = np.arange(side) - side // 2
    near: np.ndarray = offsets[:, None] ** 2 + offsets**2 <= max(1.0, side / 8) ** 2
    return near


def _best_start(inside: np.ndarray) -> int:
    """The plane nearest to the middle of the path whose own middle is inside; the fullest one where there is none."""
    half = inside.shape[1] // 2
    through = np.flatnonzero(inside[:, half, half])
    if len(through):
        return int(through[np.argmin(np.abs(through - np.median(through)))])
    return int(np.argmax(inside.sum(axis=(1, 2))))


def _component(inside: np.ndarray, wanted: np.ndarray | None) -> np.ndarray | None:
    """The parts of a plane that overlap ``wanted``, or the part nearest to its middle; None where there is none."""
    if not inside.any():
        return None
    label, count = ndimage.label(inside)
    if count == 1 and wanted is None:
        return inside
    if wanted is not None:
        seen = np.unique(label[wanted & inside])
        return np.isin(label, seen) if len(seen) else None
    half = inside.shape[0] // 2
    rows, columns = np.nonzero(inside)
    k = int(np.argmin((rows - half) ** 2 + (columns - half) ** 2))
    nearest: np.ndarray = label == label[rows[k], columns[k]]
    return nearest


def _ferets(section: np.ndarray, pixel_mm: float) -> tuple[float, float]:
    """Least and greatest Feret diameter of a section (P, P) in mm; pixels count with their whole width."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.argwhere(section).astype(float)
    if not len(points):
        return 0.0, 0.0
    try:
        hull = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # a single pixel, or a line of pixels
        return pixel_mm, (float(np.linalg.norm(points[-1] - points[0])) + 1) * pixel_mm
    apart = (hull[:, None] - hull).reshape(-1, 2)
    farthest = apart[int(np.argmax((apart**2).sum(axis=1)))]
    longest = float(np.linalg.norm(farthest))
    edges = np.roll(hull, -1, axis=0) - hull
    normals = np.stack((-edges[:, 1], edges[:, 0]), axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
    widths = np.ptp(normals @ hull.T, axis=1) + np.abs(normals).max(axis=1)
    return float(widths.min()) * pixel_mm, (longest + float(np.abs(farthest).max()) / longest) * pixel_mm


def _from_lowest(sections: _Sections, stack: SliceStack) -> np.ndarray:
    """Indexes of the sections from the end on the lower slice to the other."""
    index = np.arange(len(sections.at))
    if not len(index):
        return index
    position, _ = stack.to_slices(sections.center[[0, -1]])
    return index[::-1] if position[0] > position[-1] else index


def _slice_numbers(center: np.ndarray, stack: SliceStack) -> np.ndarray:
    position, _ = stack.to_slices(center)
    nearest = np.rint(position).astype(int).clip(0, stack.n_slices - 1)
    return np.array([stack.slice_number(int(t)) for t in nearest], dtype=int)


def _share_left_out(nodes: np.ndarray, sections: _Sections) -> float:
    """Share of the points (N, 3) of a mask that lie in no section."""
    from scipy.spatial import KDTree

    if not len(sections.at):
        return 1.0
    _, nearest = KDTree(sections.center).query(nodes)
    side = sections.masks.shape[1]
    offset = np.einsum("nj,nkj->nk", nodes - sections.center[nearest], sections.across[nearest])
    pixel = np.rint(offset / sections.pixel_mm).astype(int) + side // 2
    within = ((pixel >= 0) & (pixel < side)).all(axis=1)
    grown = ndimage.binary_dilation(sections.masks, np.ones((1, 3, 3), dtype=bool))
    found = np.zeros(len(nodes), dtype=bool)
    found[within] = grown[nearest[within], pixel[within, 0], pixel[within, 1]]
    return float(1 - found.mean())


def _reformatted(stack: SliceStack, places: np.ndarray) -> np.ndarray:
    """The image at places (S, P, P, 3), float32, NaN outside the volume."""
    position, xy = stack.to_slices(places.reshape(-1, 3))
    thw = np.stack((position, xy[:, 1], xy[:, 0]))
    low = np.floor(thw.min(axis=1)).astype(int).clip(0)
    high = np.ceil(thw.max(axis=1)).astype(int) + 2
    box = stack.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    found = ndimage.map_coordinates(box, thw - low[:, None], order=1, mode="nearest")
    sides = np.array(stack.shape)[:, None]
    found[((thw < -0.5) | (thw > sides - 0.5)).any(axis=0)] = np.nan
    reformatted: np.ndarray = found.reshape(places.shape[:-1])
    return reformatted
