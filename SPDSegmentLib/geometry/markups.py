"""Slicer's markups files (``.mrk.json``, older ``.fcsv``, exported ``.csv``): points and curves, in patient mm.

A caller of the library may also give points as numbers (:func:`list_of`).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.limits import check_points_size
from SPDSegmentLib.settings import named_columns, shorten, table_rows, text_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from SPDSegmentLib.geometry.volume import Volume

    Points: TypeAlias = "str | Path | Sequence[Markup] | Mapping[str, Point] | ArrayLike"

FRAMES = ("RAS", "LPS", "IJK")
"""Of a caller's points."""
Point = tuple[float, float, float]
LIST = "Fiducial"
CURVES = ("Curve", "ClosedCurve", "Line")
LINEAR, SPLINE, KOCHANEK, POLYNOMIAL = CURVE_TYPES = ("linear", "spline", "kochanekSpline", "polynomial")
"""Slicer's names for the ways in which a curve joins its points; ``spline`` unless a file says otherwise."""
INSISTED, END = "insisted", "end"
"""Words of a control point's description: it prompts whatever the model believes; the structure ends at its slice."""
BEYOND_MM = 1e5
"""No volume reaches as far; a coordinate beyond it is a click outside the volume."""
_PLACED_IN_FCSV = "2"
_YES, _NO = ("", "true", "t", "yes", "y", "na", "<na>", "nan"), ("false", "f", "no", "n")
"""Words of programs in the columns defined and selected; a gap is yes."""
_WORDS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)
CLICK_COLUMNS = ("r", "a", "s", "l", "p", "label", "defined", "selected", "description")
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
        insisted: it prompts whatever the model believes.
        ends: the structure ends at its slice.
    """

    id: str
    label: str
    position_ras: Point
    placed: bool = True
    selected: bool = True
    insisted: bool = False
    ends: bool = False

    @property
    def is_used(self) -> bool:
        """Whether it counts as a click."""
        return self.placed and self.selected


@dataclass(frozen=True)
class Markup:
    """One markups node; ``kind`` is Slicer's type (``Fiducial``, ``Curve``, ``ClosedCurve``, ...).

    Attributes:
        path: vertices of a curve as it is shown, in RAS mm; empty where only its points are known.
        curve_type: one of ``CURVE_TYPES``; what Slicer itself writes to ``.mrk.json`` is always shown as ``spline``.
    """

    name: str
    kind: str
    points: tuple[ControlPoint, ...]
    path: tuple[Point, ...] = ()
    curve_type: str = SPLINE

    @property
    def is_curve(self) -> bool:
        """Whether the points are joined by a spline or a line."""
        return self.kind in CURVES

    @property
    def is_shape(self) -> bool:
        """Whether the points describe a box, a plane, an angle or something else that is no click on a structure."""
        return self.kind != LIST and not self.is_curve


def read_markups(path: str | Path) -> list[Markup]:
    """Read all nodes of a file.

    A coordinate beyond :data:`BEYOND_MM` is kept: its click counts as outside the volume.

    Raises:
        BadInput: missing, neither markups JSON nor ``.fcsv`` nor a table with positions, an unknown coordinate system,
            unit or type of curve, or a position that is not three finite numbers.
    """
    path = Path(path)
    try:
        check_points_size(path)
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"The points file {path} cannot be read.", "Check the path.", str(error)) from error
    if path.suffix.lower() == ".fcsv":
        return [_fcsv_markup(content, path)]
    if path.suffix.lower() == ".csv":
        return [_csv_markup(content, path)]
    try:
        parsed = json.loads(content, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json":
            raise BadInput(
                f"The points file {path} is none of .mrk.json, .fcsv and .csv.",
                "Save the points from Slicer as .mrk.json, or name a table with columns r, a, s .csv.",
                str(error),
            ) from error
        raise BadInput(
            f"The points file {path} is not markups JSON.", "Save the points from Slicer as .mrk.json.", str(error)
        ) from error
    nodes = parsed.get("markups") if isinstance(parsed, dict) else None
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes) or not nodes:
        raise BadInput(f"The points file {path} holds no markups.", "Save the points from Slicer as .mrk.json.")
    return [_markup(node, n, path) for n, node in enumerate(nodes)]


def named_apart(markups: Sequence[Markup]) -> list[Markup]:
    """Markups with names of their own; an id that points of several lists have becomes LIST:ID.

    A name that several have, or with a comma, is replaced by the number of the list.
    """
    names = Counter(markup.name for markup in markups)
    ids = Counter(name for m in markups if not m.is_shape for name in {point.id for point in m.points if point.is_used})
    apart = []
    for number, markup in enumerate(markups, start=1):
        own = markup.name and names[markup.name] == 1 and "," not in markup.name
        name = markup.name if own else f"list {number}"
        points = (replace(p, id=f"{name}:{p.id}") if ids[p.id] > 1 else p for p in markup.points)
        apart.append(replace(markup, name=name, points=tuple(points)))
    return apart


def mark_clicks(markups: Sequence[Markup], insist: Sequence[str] = (), ends: Sequence[str] = ()) -> list[Markup]:
    """Markups whose points have ids of their own; those of some ids, or labels, are insisted on or marked as ends.

    An id that several points of a list have, as scripts write them, becomes ID (NUMBER OF THE POINT). The name of the
    list (:func:`named_apart`) and a colon may stand before either.

    Raises:
        BadInput: a name that no placed and selected point has, or that points of several lists have.
    """
    named: tuple[dict[str, list[tuple[int, int]]], ...] = ({}, {}, {}, {})
    markups = [_with_own_ids(markup) for markup in markups]
    used, all_apart = [], named_apart(markups)
    for n, (markup, apart) in enumerate(zip(markups, all_apart, strict=True)):
        for i, point in enumerate(() if markup.is_shape else markup.points):
            if point.is_used:
                used.append(apart.points[i].id)
                ways = (point.id, f"{apart.name}:{point.id}", point.label, f"{apart.name}:{point.label}")
                for known, way in zip(named, ways, strict=True):
                    known.setdefault(way, []).append((n, i))
    told: dict[str, set[tuple[int, int]]] = {"insist on": set(), "end at": set()}
    for name, purpose in [*((name, "insist on") for name in insist), *((name, "end at") for name in ends)]:
        found = next((known[name] for known in named if name in known), [])
        if not found:
            some = ", ".join(dict.fromkeys(used[:10])) + (", ..." if len(used) > 10 else "")
            raise BadInput(f"There is no click '{name}' to {purpose}.", f"Give ids of the points file: {some}.")
        lists = [all_apart[n].name for n in dict(found)]
        if len(lists) > 1:
            choice = " or ".join(f"{listed}:{name}" for listed in lists)
            raise BadInput(f"The click '{name}' to {purpose} is in several lists.", f"Give {choice}.")
        told[purpose].update(found)

    def marked(point: ControlPoint, place: tuple[int, int]) -> ControlPoint:
        insisted, ends = point.insisted or place in told["insist on"], point.ends or place in told["end at"]
        return replace(point, insisted=insisted, ends=ends)

    return [replace(m, points=tuple(marked(p, (n, i)) for i, p in enumerate(m.points))) for n, m in enumerate(markups)]


def _with_own_ids(markup: Markup) -> Markup:
    ids = Counter(point.id for point in markup.points)
    points = enumerate(markup.points, start=1)
    apart = (replace(p, id=f"{p.id} ({n})") if ids[p.id] > 1 else p for n, p in points)
    return replace(markup, points=tuple(apart)) if len(ids) < len(markup.points) else markup


def are_numbers(points: Points) -> bool:
    """Whether points are numbers, neither a file nor markups."""
    listed = isinstance(points, Sequence) and all(isinstance(point, Markup) for point in points)
    return not isinstance(points, str | Path) and not listed


def markups_of(points: Points, frame: str) -> list[Markup]:
    """Markups of a file, or those that were given; their frame is known, and no other can be asked for."""
    if frame != "RAS" and points:
        raise BadInput(f"The frame '{frame}' was given for points that say themselves where they lie.", "Leave it out.")
    return read_markups(points) if isinstance(points, str | Path) else list(points)  # type: ignore[arg-type]


def list_of(points: Points, frame: str, volume: Volume) -> Markup:
    """Points (N, 3) as a list in RAS mm with the ids 1 to N, or by id; a masked value counts as not finite."""
    ids = [str(name) for name in points] if isinstance(points, Mapping) else None
    try:
        values: Any = list(points.values()) if isinstance(points, Mapping) else points
        array: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    except (TypeError, ValueError) as error:
        raise BadInput("The points are no numbers.", "Give an array (N, 3) or a markups file.", str(error)) from error
    if array.ndim != 2 or array.shape[1] != 3:
        raise BadInput(f"The points are an array of shape {array.shape}.", "Give one of shape (N, 3).")
    for number, place in enumerate(array.tolist(), start=1):
        _check_finite(place, f"Point {number} of the array", "Leave it out.")
    if frame not in FRAMES:
        raise BadInput(f"Unknown frame '{frame}'.", f"Use {', '.join(FRAMES)}.")
    if frame == "LPS":
        array = array * (-1, -1, 1)
    elif frame == "IJK":
        array = volume.to_ras(array)
    ids = ids or [str(n) for n in range(1, len(array) + 1)]
    named = [ControlPoint(name, name, (r, a, s)) for name, (r, a, s) in zip(ids, array.tolist(), strict=True)]
    return Markup("the points", LIST, tuple(named))


def _markup(node: dict[str, Any], number: int, path: Path) -> Markup:
    name = str(node.get("name") or f"markup {number + 1}")
    system = str(node.get("coordinateSystem", "LPS")).upper()
    if system not in _TO_RAS:
        raise BadInput(
            f"The coordinate system '{node.get('coordinateSystem')}' of {name} in {path} is not known.",
            "Use LPS or RAS.",
        )
    unit = node.get("coordinateUnits", "mm")
    if (unit[:1] if isinstance(unit, list) else [unit]) != ["mm"]:
        raise BadInput(f"The coordinates of {name} in {path} are in {unit}.", "Save the points in mm.")
    points = node.get("controlPoints", [])
    if not isinstance(points, list):
        raise BadInput(f"The control points of {name} in {path} are not a list.", "Save the points from Slicer again.")
    kind = str(node.get("type", LIST))
    clicks = tuple(_point(p, i, _TO_RAS[system], name, path) for i, p in enumerate(points))
    curve_type = LINEAR if kind == "Line" else node.get("curveType", SPLINE)
    if kind in CURVES and curve_type not in CURVE_TYPES:
        raise BadInput(
            f"The curve {name} in {path} is of the type '{curve_type}', whose course is not known here.",
            f"Use {', '.join(CURVE_TYPES)}; in the Markups module of Slicer, Resample makes points along any curve.",
        )
    return Markup(name, kind, clicks, curve_type=curve_type if kind in CURVES else SPLINE)


def _point(point: Any, number: int, signs: Point, name: str, path: Path) -> ControlPoint:
    where = f"Point {number + 1} of {name} in {path}"
    if not isinstance(point, dict):
        raise BadInput(f"{where} is not an object.", "Save the points from Slicer again.")
    placed = str(point.get("positionStatus", "defined")) == "defined"
    position = point.get("position")
    identity = str(point.get("id") or number + 1)
    label = str(point.get("label", ""))
    selected = bool(point.get("selected", True))
    marks = marks_in(point.get("description", ""))
    if not placed or position is None:
        return ControlPoint(identity, label, (0.0, 0.0, 0.0), False, selected, *marks)
    if not isinstance(position, list) or len(position) != 3 or not all(map(_is_number, position)):
        raise BadInput(f"{where} has no position of three numbers.", "Place it again in Slicer.")
    _check_finite(position, where, "Place it again in Slicer.")
    x, y, z = (float(v) * s for v, s in zip(position, signs, strict=True))
    return ControlPoint(identity, label, (x, y, z), True, selected, *marks)


def _check_finite(position: Iterable[float], where: str, remedy: str) -> None:
    """Raise BadInput for a position that is nowhere."""
    if not all(math.isfinite(value) for value in position):
        raise BadInput(f"{where} has a position that is not finite.", remedy)


def marks_in(description: Any) -> tuple[bool, bool]:
    """Whether a control point's description says that its person insists on it, and that the structure ends there.

    It says so with the words ``insisted`` and ``end`` and no others.
    """
    words = set(re.findall(r"[^\s,;]+", description.lower())) if isinstance(description, str) else set()
    return (INSISTED in words, END in words) if words <= {INSISTED, END} else (False, False)


def marks_as_text(insisted: bool, ends: bool) -> str:
    """The description that :func:`marks_in` understands; empty for neither."""
    return ", ".join(word for word, said in ((INSISTED, insisted), (END, ends)) if said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole_number(digits: str) -> int | float:
    """A whole number of JSON; one that is too long for Python is infinite."""
    return int(digits) if len(digits) < 300 else float(digits)


def _fcsv_markup(content: bytes, path: Path) -> Markup:
    """The one list of a ``.fcsv`` file: comments with version and coordinate system, then a line for each point."""
    lines = text_of(path, content, "points file").splitlines()
    said = dict(line.lstrip("# ").split(" = ", 1) for line in lines if line.startswith("#") and " = " in line)
    system = said.get("CoordinateSystem", "").strip().upper()
    if "Markups fiducial file version" not in said or system not in _TO_RAS:
        raise BadInput(
            f"The points file {path} does not say that it is of Slicer 4 or later with coordinates in LPS or RAS.",
            "Load it in Slicer and save it as .mrk.json.",
        )
    points = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            points.append(_fcsv_point(line, number, _TO_RAS[system], path))
    return Markup(path.stem, LIST, tuple(points))


def _csv_markup(content: bytes, path: Path) -> Markup:
    """A table with the columns r, a, s or l, p, s in mm; also label, defined, selected, description, as Slicer's.

    Where commas do not separate the values they are those of decimals.
    """
    rows = table_rows(path, content, CLICK_COLUMNS[:6])
    titles = rows[0][1] if rows else []
    columns = named_columns(path, titles, CLICK_COLUMNS)
    system = next((system for system in ("RAS", "LPS") if set(system.lower()) <= columns.keys()), None)
    if system is None:
        raise BadInput(
            f"The table {path} has no columns r, a, s or l, p, s with positions in mm.",
            "Name them r, a, s where they are as 3D Slicer shows them, or l, p, s where they are as in DICOM and ITK.",
        )
    points = []
    for count, (line, values) in enumerate(rows[1:], 1):
        found = {name: values[n].strip() for name, n in columns.items() if n < len(values)}
        if any(value.strip() for value in values[len(titles) :]):
            raise BadInput(
                f"Line {line} of {path} has more values than columns.", "Write decimals with a point, or in quotes."
            )
        placed, selected = (_said_yes(found.get(name, ""), name, line, path) for name in ("defined", "selected"))
        try:
            numbers = [float(found[axis].replace(",", ".")) if placed else 0.0 for axis in system.lower()]
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"Line {line} of {path} has no position of three numbers.", "Correct that line of the table."
            ) from error
        x, y, z = (number * sign for number, sign in zip(numbers, _TO_RAS[system], strict=True))
        _check_finite(numbers, f"Line {line} of {path}", "Correct that line of the table.")
        marks = marks_in(found.get("description", ""))
        points.append(ControlPoint(str(count), found.get("label", ""), (x, y, z), placed, selected, *marks))
    return Markup(path.stem, LIST, tuple(points))


def _said_yes(text: str, name: str, line: int, path: Path) -> bool:
    """What a table says in the columns defined and selected, as Slicer, R, pandas or a person writes; empty is yes."""
    if (word := text.casefold()) in _WORDS:
        return _WORDS[word]
    try:
        return float(word.replace(",", ".")) != 0
    except ValueError as error:
        raise BadInput(
            f"Line {line} of {path} has '{shorten(text)}' in the column {name}.", "Write 1 or 0 there."
        ) from error


def _fcsv_point(line: str, number: int, signs: Point, path: Path) -> ControlPoint:
    """One point from the columns id, x, y, z, four of its orientation, vis, sel, lock, label, desc, node, status."""
    try:
        fields = [field.strip() for field in next(csv.reader([line]))] + [""] * 15
        placed = fields[14] in ("", _PLACED_IN_FCSV)
        x, y, z = (float(v) * s if placed else 0.0 for v, s in zip(fields[1:4], signs, strict=True))
    except (ValueError, csv.Error) as error:
        raise BadInput(
            f"Line {number} of {path} has no position of three numbers.", "Load it in Slicer and save it as .mrk.json."
        ) from error
    _check_finite((x, y, z), f"Line {number} of {path}", "Load it in Slicer and place that point again.")
    return ControlPoint(
        fields[0] or str(number), fields[11], (x, y, z), placed, _said_yes(fields[9], "sel", number, path),
        *marks_in(fields[12]),
    )  # fmt: skip
