"""Markups as flat arrays for the wire, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput

from .messages import PointGroup

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.markups import Markup

FlatPoints = tuple[np.ndarray, tuple[str, ...], tuple[PointGroup, ...]]


def flatten_markups(markups: Iterable[Markup]) -> FlatPoints:
    """Return points (N, 3) in RAS mm, their ids and groups; unplaced and unselected ones are left out.

    What is no number or beyond any volume becomes finite, and stays beyond: numbers on the wire are finite.
    """
    from SPDSegmentLib.geometry.markups import BEYOND_MM

    positions: list[Sequence[float]] = []
    ids: list[str] = []
    groups: list[PointGroup] = []
    for markup in markups:
        used = [point for point in markup.points if point.placed and point.selected]
        positions.extend(point.position_ras for point in used)
        ids.extend(point.id for point in used)
        insisted = tuple(n for n, point in enumerate(used) if point.insisted)
        groups.append(PointGroup(markup.name, markup.kind, len(used), insisted))
    points = np.nan_to_num(np.array(positions, dtype="<f8").reshape(-1, 3), nan=2 * BEYOND_MM)
    return points.clip(-2 * BEYOND_MM, 2 * BEYOND_MM), tuple(ids), tuple(groups)


def restore_markups(points_ras: np.ndarray, ids: Sequence[str], groups: Sequence[PointGroup]) -> list[Markup]:
    """Return the markups of flat points, the inverse of :func:`flatten_markups`.

    Raises:
        BadInput: the numbers of points, ids and group members differ, or a point that is insisted on is not there.
    """
    from SPDSegmentLib.geometry.markups import ControlPoint, Markup

    total = sum(group.count for group in groups)
    if not len(points_ras) == len(ids) == total or any(group.count < 0 for group in groups):
        raise BadInput(f"{len(points_ras)} clicks arrived with {len(ids)} names in groups of {total}.")
    if any(not 0 <= n < group.count for group in groups for n in group.insisted):
        raise BadInput("A click that is insisted on is not among those that arrived.")
    markups: list[Markup] = []
    start = 0
    for group in groups:
        members, insisted = range(start, start + group.count), set(group.insisted)
        points = tuple(
            ControlPoint(
                id=ids[n],
                label=ids[n],
                position_ras=(float(points_ras[n, 0]), float(points_ras[n, 1]), float(points_ras[n, 2])),
                placed=True,
                selected=True,
                insisted=n - start in insisted,
            )
            for n in members
        )
        markups.append(Markup(group.name, group.kind, points))
        start += group.count
    return markups
