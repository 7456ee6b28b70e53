"""Curves of files lie where Slicer shows them, whatever their type, and so do the clicks that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from points_files import write_markups

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import clicks_from_markups, curve_vertices, resolve_curve
from SPDSegmentLib.geometry.markups import CURVE_TYPES, ControlPoint, Markup, read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume

pytest_plugins = ["Testing.Host.pytest_plugin"]

PLACES = np.array([[10.0, 12, 3], [52, 25, 30], [14, 55, 61], [40, 20, 88], [30, 50, 117]])
SETTERS = dict(zip(CURVE_TYPES, ("Linear", "CardinalSpline", "KochanekSpline", "Polynomial"), strict=True))


@pytest.fixture
def stack() -> SliceStack:
    """40 slices of 64 x 64 pixels, 3 mm apart; slice t lies at S = 3 t."""
    return SliceStack(Volume(np.zeros((40, 64, 64), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0])), "k")


def shown(places: np.ndarray, curve_type: str = "spline", closed: bool = False) -> np.ndarray:
    """The vertices of the curve that Slicer itself makes."""
    import slicer

    node = slicer.vtkMRMLMarkupsClosedCurveNode() if closed else slicer.vtkMRMLMarkupsCurveNode()
    for place in places:
        node.AddControlPointWorld(*map(float, place))
    getattr(node, f"SetCurveTypeTo{SETTERS[curve_type]}")()
    points = node.GetCurvePointsWorld()
    return np.array([points.GetPoint(n) for n in range(points.GetNumberOfPoints())])


def away(points: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Distance of points (N, 3) from a path of straight lines."""
    starts, steps = path[:-1], np.diff(path, axis=0)
    share = ((points[:, None] - starts) * steps).sum(2) / (steps**2).sum(1).clip(1e-9)
    return np.linalg.norm(starts + share.clip(0, 1)[..., None] * steps - points[:, None], axis=2).min(axis=1)


def positions(markup: Markup, stack: SliceStack) -> np.ndarray:
    """Where a curve is clicked, (N, 3)."""
    return np.array([point.position_ras for point in resolve_curve(markup, stack).points])


def curve(kind: str = "Curve", curve_type: str = "spline", left_out: int = -1, n_points: int = 5) -> Markup:
    places = enumerate(PLACES[:n_points].tolist())
    points = tuple(ControlPoint(str(n), "", (x, y, z), selected=n != left_out) for n, (x, y, z) in places)
    return Markup("line", kind, points, curve_type=curve_type)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    ("curve_type", "n_points"),  # Slicer finds no polynomial through two points
    [(name, n) for name in CURVE_TYPES for n in (2, 3, 4, 5) if (name, n) != ("polynomial", 2)],
)
def test_vertices_are_those_of_slicers_own_curve(host: Any, curve_type: str, n_points: int, closed: bool) -> None:
    vertices, parameter = curve_vertices(PLACES[:n_points], curve_type, closed)
    np.testing.assert_allclose(vertices, shown(PLACES[:n_points], curve_type, closed), atol=1e-4)
    assert len(parameter) == len(vertices) and (parameter[::10] == np.arange(len(parameter[::10]))).all()


@pytest.mark.parametrize("kind", ["Curve", "ClosedCurve"])
def test_a_curve_that_slicer_saved_is_clicked_where_slicer_shows_it(
    host: Any, stack: SliceStack, tmp_path: Path, kind: str
) -> None:
    import slicer

    # given: a file of Slicer's; it does not say the type, and Slicer shows such a file as a cardinal spline
    node = getattr(slicer, f"vtkMRMLMarkups{kind}Node")()
    for place in PLACES:
        node.AddControlPointWorld(*map(float, place))
    storage = slicer.vtkMRMLMarkupsJsonStorageNode()
    storage.SetFileName(str(tmp_path / "curve.mrk.json"))
    assert storage.WriteData(node)

    # when
    markups = read_markups(tmp_path / "curve.mrk.json")

    # then
    assert away(positions(markups[0], stack), shown(PLACES, closed=kind == "ClosedCurve")).max() < 1e-4
    assert set(range(1, 40)) <= set(clicks_from_markups(markups, stack).slice_index.tolist())


@pytest.mark.parametrize("curve_type", CURVE_TYPES)
def test_the_type_that_a_file_names_is_followed(host: Any, stack: SliceStack, tmp_path: Path, curve_type: str) -> None:
    write_markups(tmp_path / "a.mrk.json", [curve(curve_type=curve_type)])
    (markup,) = read_markups(tmp_path / "a.mrk.json")
    places = positions(markup, stack)
    assert markup.curve_type == curve_type and len(places) > 35
    assert away(places, shown(PLACES, curve_type)).max() < 1e-4


@pytest.mark.parametrize("curve_type", ["shortestSurfaceDistance", "bezier", 3, ["spline"]])
def test_a_type_of_curve_whose_course_is_not_known_is_refused(tmp_path: Path, curve_type: object) -> None:
    path = tmp_path / "a.mrk.json"
    write_markups(path, [curve()])
    content = json.loads(path.read_text(encoding="utf-8"))
    content["markups"][0]["curveType"] = curve_type
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="The curve line in .*a.mrk.json is of the type ") as refused:
        read_markups(path)
    assert "Resample" in refused.value.remedy


def test_an_excluded_point_keeps_its_curve_and_loses_the_clicks_around_it(stack: SliceStack) -> None:
    whole, part = (clicks_from_markups([curve(left_out=n)], stack) for n in (-1, 2))
    kept = [n for n, click in enumerate(whole.ids) if click != "2"]
    assert part.ids == tuple(whole.ids[n] for n in kept) and "2" in whole.ids
    np.testing.assert_array_equal(part.xy, whole.xy[kept])
