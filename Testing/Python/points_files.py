"""Writes points files as 3D Slicer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from SPDSegmentLib.files import write_json
from SPDSegmentLib.geometry.markups import CURVES, SPLINE, Markup, marks_as_text

_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


def write_markups(path: str | Path, markups: Sequence[Markup]) -> None:
    """Write nodes to one file in LPS, in one piece.

    Raises:
        BadInput: as :func:`SPDSegmentLib.files.write_whole`.
    """
    write_json(path, {"@schema": _SCHEMA, "markups": [_node(markup) for markup in markups]}, "points file", indent=1)


def _node(markup: Markup) -> dict[str, Any]:
    return {
        "type": markup.kind,
        **({"curveType": markup.curve_type} if markup.kind in CURVES and markup.curve_type != SPLINE else {}),
        "name": markup.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "controlPoints": [
            {
                "id": point.id,
                "label": point.label,
                "description": marks_as_text(point.insisted, point.ends),
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
