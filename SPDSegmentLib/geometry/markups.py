"""Slicer's markups files (``.mrk.json``): point lists and curves, in patient millimetres."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput

Point = tuple[float, float, float]
CURVES = ("Curve", "ClosedCurve", "Line")
SHAPES = ("ROI", "Plane", "Angle")
"""Kinds whose points describe a shape; they are no clicks on a structure."""
_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
_TO_RAS: dict[str, Point] = {
    "LPS": (-1.0, -1.0, 1.0),
    "RAS": (1.0, 1.0, 1.0),
    "1": (-1.0, -1.0, 1.0),
    "0": (1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class ControlPoint:
    """One click.

    Attributes:
        placed: it has a position; selected: the user did not exclude it.
    """

    id: str
    label: str
    position_ras: Point
    placed: bool = True
    selected: bool = True


@dataclass(frozen=True)
class Markup:
    """One markups node; ``kind`` is Slicer's type (``Fiducial``, ``Curve``, ``ClosedCurve``, ...)."""

    name: str
    kind: str
    points: tuple[ControlPoint, ...]

    @property
    def is_curve(self) -> bool:
        """Whether the points are joined by a spline or a line."""
        return self.kind in CURVES

    @property
    def is_shape(self) -> bool:
        """Whether the points describe a box, a plane or an angle."""
        return self.kind in SHAPES


def read_markups(path: str | Path) -> list[Markup]:
    """Read all nodes of a file.

    Raises:
        BadInput: missing, not JSON, not markups, an unknown coordinate system, or a position that is not three numbers.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"The points file {path} cannot be read.", "Check the path.", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"The points file {path} is not markups JSON.", "Save the points from Slicer as .mrk.json.", str(error)
        ) from error
    nodes = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes) or not nodes:
        raise BadInput(f"The points file {path} holds no markups.", "Save the points from Slicer as .mrk.json.")
    return [_markup(node, n, path) for n, node in enumerate(nodes)]


def write_markups(path: str | Path, markups: Sequence[Markup]) -> None:
    """Write nodes to one file in LPS, in one piece.

    Raises:
        BadInput: the folder is missing or cannot be written.
    """
    path = Path(path)
    content = {"@schema": _SCHEMA, "markups": [_node(markup) for markup in markups]}
    beside = path.with_name(f".{uuid.uuid4().hex}.mrk.json")
    try:
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written.", "Check its folder.", str(error)) from error


def _markup(node: dict[str, Any], number: int, path: Path) -> Markup:
    name = str(node.get("name") or f"markup {number + 1}")
    system = str(node.get("coordinateSystem", "LPS")).upper()
    if system not in _TO_RAS:
        raise BadInput(
            f"The coordinate system '{node.get('coordinateSystem')}' of {name} in {path} is not known.",
            "Use LPS or RAS.",
        )
    points = node.get("controlPoints", [])
    if not isinstance(points, list):
        raise BadInput(f"The control points of {name} in {path} are not a list.", "Save the points from Slicer again.")
    kind = str(node.get("type", "Fiducial"))
    return Markup(name, kind, tuple(_point(p, i, _TO_RAS[system], name, path) for i, p in enumerate(points)))


def _point(point: Any, number: int, signs: Point, name: str, path: Path) -> ControlPoint:
    where = f"Point {number + 1} of {name} in {path}"
    if not isinstance(point, dict):
        raise BadInput(f"{where} is not an object.", "Save the points from Slicer again.")
    placed = str(point.get("positionStatus", "defined")) == "defined"
    position = point.get("position")
    identity = str(point.get("id") or number + 1)
    label = str(point.get("label", ""))
    selected = bool(point.get("selected", True))
    if not placed or position is None:
        return ControlPoint(identity, label, (0.0, 0.0, 0.0), False, selected)
    if not isinstance(position, list) or len(position) != 3 or not all(map(_is_finite, position)):
        raise BadInput(f"{where} has no position of three numbers.", "Place it again in Slicer.")
    x, y, z = (float(v) * s for v, s in zip(position, signs, strict=True))
    return ControlPoint(identity, label, (x, y, z), True, selected)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of a float
        return False


def _node(markup: Markup) -> dict[str, Any]:
    return {
        "type": markup.kind,
        "name": markup.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "controlPoints": [
            {
                "id": point.id,
                "label": point.label,
                "description": "",
                "associatedNodeID": "",
                "position": [-point.position_ras[0], -point.position_ras[1], point.position_ras[2]]
                if point.placed
                else None,
                "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
                "selected": point.selected,
                "locked": False,
                "visibility": True,
                "positionStatus": "defined" if point.placed else "undefined",
            }
            for point in markup.points
        ],
    }
