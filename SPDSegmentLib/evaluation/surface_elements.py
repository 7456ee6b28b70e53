"""Neighbor codes of a mask and the surface area that belongs to each code.

The surface of a mask runs between its voxels. Every corner of the voxel grid sees 2 x 2 (2-D) or 2 x 2 x 2 (3-D)
voxels; which of them are inside is its neighbor code, and the piece of the marching-cubes surface around the corner is
its surface element (Nikolov et al. 2018, arXiv 1809.04430). The elements are derived here from that definition: the
surface crosses every link between an inside and an outside voxel halfway, the faces of the cube join the crossings to
closed polygons, and the polygons are cut into triangles. What the definition leaves open is decided so that the areas
equal those of DeepMind's ``surface-distance`` on cubic voxels: of an inside pair that lies diagonally on a face each
is cut off on its own, of more than four inside voxels the outside ones are looked at, and a polygon becomes the fan
of triangles with the largest area.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

Voxel = tuple[int, int, int]
Crossing = tuple[float, float, float]  # middle of a link, in voxels


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
