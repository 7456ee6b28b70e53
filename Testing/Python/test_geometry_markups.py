"""Slicer's ``.mrk.json``: coordinate systems, several nodes, points that are left out, files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, read_markups, write_markups

numbers = st.floats(-1000, 1000)
points = st.builds(
    ControlPoint,
    id=st.text("abc123", min_size=1, max_size=4),
    label=st.text(max_size=8),
    position_ras=st.tuples(numbers, numbers, numbers),
    selected=st.booleans(),
)
nodes = st.builds(
    Markup,
    name=st.text("Kidney éß", min_size=1, max_size=8).map(lambda name: f"N{name}"),
    kind=st.sampled_from(["Fiducial", "Curve", "ClosedCurve"]),
    points=st.lists(points, max_size=4).map(tuple),
)


def point(*position: float, **changes: Any) -> dict[str, Any]:
    """A control point as Slicer writes it."""
    return {"id": "7", "label": "F-7", "position": list(position), "positionStatus": "defined"} | changes


def write(path: Path, *markups: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"markups": list(markups)}), encoding="utf-8")
    return path


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(nodes, min_size=1, max_size=3))
def test_written_nodes_are_read_back_the_same(tmp_path: Path, markups: list[Markup]) -> None:
    write_markups(tmp_path / "points.mrk.json", markups)
    assert read_markups(tmp_path / "points.mrk.json") == markups
    assert [path.name for path in tmp_path.iterdir()] == ["points.mrk.json"]


@pytest.mark.parametrize(("system", "expected"), [("LPS", (-1, -2, 3)), ("RAS", (1, 2, 3)), ("lps", (-1, -2, 3))])
def test_positions_come_in_ras_whatever_the_file_uses(tmp_path: Path, system: str, expected: tuple[float, ...]) -> None:
    path = write(tmp_path / "p.mrk.json", {"coordinateSystem": system, "controlPoints": [point(1, 2, 3)]})
    assert read_markups(path)[0].points[0].position_ras == expected


def test_a_file_without_a_coordinate_system_is_lps_as_slicer_takes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "p.mrk.json", {"controlPoints": [point(1, 2, 3)]})
    assert read_markups(path)[0].points[0].position_ras == (-1, -2, 3)


def test_every_node_of_a_file_is_read_with_its_kind(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.mrk.json",
        {"type": "Fiducial", "name": "rough", "controlPoints": [point(0, 0, 0)]},
        {"type": "Curve", "name": "line", "controlPoints": [point(0, 0, 1), point(0, 0, 9)]},
        {"type": "ROI", "name": "box", "controlPoints": [point(0, 0, 5)]},
    )
    rough, line, box = read_markups(path)
    assert (rough.name, rough.is_curve, len(line.points), line.is_curve) == ("rough", False, 2, True)
    assert box.is_shape and not line.is_shape


@pytest.mark.parametrize("status", ["undefined", "preview", "missing"])
def test_a_point_without_a_place_is_marked_as_unplaced(tmp_path: Path, status: str) -> None:
    path = write(tmp_path / "p.mrk.json", {"controlPoints": [point(1, 2, 3, positionStatus=status), {"id": "8"}]})
    assert [p.placed for p in read_markups(path)[0].points] == [False, False]


def test_a_point_that_the_user_excluded_is_marked_as_unselected(tmp_path: Path) -> None:
    path = write(tmp_path / "p.mrk.json", {"controlPoints": [point(1, 2, 3, selected=False), point(1, 2, 3)]})
    assert [p.selected for p in read_markups(path)[0].points] == [False, True]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not markups JSON"),
        (b"# Markups fiducial file version = 4.11\n", "is not markups JSON"),
        (b"\xff\xfe\x00\x01", "is not markups JSON"),
        (b"[" * 100_000, "is not markups JSON"),
        (b"[]", "holds no markups"),
        (b'{"type": "FeatureCollection"}', "holds no markups"),
        (b'{"markups": []}', "holds no markups"),
        (b'{"markups": ["a"]}', "holds no markups"),
        (b'{"markups": [{"coordinateSystem": "XYZ"}]}', "coordinate system 'XYZ'"),
        (b'{"markups": [{"coordinateSystem": null}]}', "coordinate system 'None'"),
        (b'{"markups": [{"controlPoints": null}]}', "are not a list"),
        (b'{"markups": [{"controlPoints": [3]}]}', "Point 1 of markup 1"),
        (b'{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "no position of three numbers"),
        (b'{"markups": [{"controlPoints": [{"position": ["1", 2, 3]}]}]}', "no position of three numbers"),
        (b'{"markups": [{"controlPoints": [{"position": [NaN, 0, 0]}]}]}', "no position of three numbers"),
        (b'{"markups": [{"controlPoints": [{"position": [1e400, 0, 0]}]}]}', "no position of three numbers"),
        (b'{"markups": [{"controlPoints": [{"position": [1%b, 0, 0]}]}]}' % (b"0" * 400), "of three numbers"),
    ],
)
def test_what_is_no_points_file_is_refused_in_one_sentence_with_its_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "p.mrk.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        read_markups(path)
    assert "p.mrk.json" in caught.value.message and caught.value.remedy


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.mrk.json"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_markups(path)


def test_a_failed_write_keeps_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.mrk.json", {"controlPoints": [point(1, 2, 3)]})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("SPDSegmentLib.geometry.markups.os.replace", fail)
    with pytest.raises(BadInput, match="cannot be written"):
        write_markups(path, [Markup("a", "Fiducial", ())])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.mrk.json"]
