"""Slicer's ``.mrk.json``: coordinate systems, several nodes, points that are left out, files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from points_files import write_markups

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import BEYOND_MM, ControlPoint, Markup, list_of, read_markups

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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
        (b'{"markups": [{"controlPoints": [{"position": [true, 2, 3]}]}]}', "no position of three numbers"),
        (b'{"markups": [{"coordinateUnits": "um"}]}', "are in um"),
        (b'{"markups": [{"coordinateUnits": ["cm", "UCUM", "centimeter"]}]}', "are in"),
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


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e400", b"1" + b"0" * 5000])
def test_a_position_that_is_not_finite_is_refused_with_its_point_and_file(tmp_path: Path, number: bytes) -> None:
    path = tmp_path / "p.mrk.json"
    path.write_bytes(b'{"markups": [{"name": "F", "controlPoints": [{"position": [%b, 0, 0]}]}]}' % number)
    with pytest.raises(BadInput, match=r"Point 1 of F in .*p\.mrk\.json has a position that is not finite\."):
        read_markups(path)


@pytest.mark.parametrize("word", ["nan", "-inf"])
def test_tables_and_arrays_with_positions_that_are_not_finite_are_refused_unless_unplaced(
    tmp_path: Path, word: str
) -> None:
    head = "# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n"
    for name, text in (
        ("p.csv", f"r,a,s,defined\n1,2,3,1\n{word},2,3,{{}}\n"),
        ("p.fcsv", head + f"2,{word},0,0,0,0,0,1,1,1,0,F-2,,,{{}}\n"),
    ):
        (tmp_path / name).write_text(text.format(0))
        assert not read_markups(tmp_path / name)[0].points[-1].placed
        (tmp_path / name).write_text(text.format("2"))
        with pytest.raises(BadInput, match=rf"Line 3 of .*{name} has a position that is not finite"):
            read_markups(tmp_path / name)
    with pytest.raises(BadInput, match="Point 2 of the array has a position that is not finite"):
        list_of([[1, 2, 3], [1, float(word), 3]], "RAS", None)  # type: ignore[arg-type]


def test_an_unplaced_point_of_a_table_needs_no_position(tmp_path: Path) -> None:
    head = "# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n"
    for name, text in (
        ("p.csv", "r,a,s,defined\n1,2,3,1\n,,,0\n"),
        ("p.fcsv", head + "1,1,2,3,0,0,0,1,1,1,0,F-1,,,2\n2,,,,0,0,0,1,1,1,0,F-2,,,0\n"),
    ):
        (tmp_path / name).write_text(text)
        assert [p.placed for p in read_markups(tmp_path / name)[0].points] == [True, False]


@pytest.mark.parametrize("number", [b"1e300", b"1" + b"0" * 298])
def test_a_coordinate_beyond_any_volume_is_kept_and_its_click_is_outside(tmp_path: Path, number: bytes) -> None:
    path = tmp_path / "p.mrk.json"
    path.write_bytes(b'{"markups": [{"controlPoints": [{"id": 3, "position": [%b, 0, 0]}]}]}' % number)
    (point,) = read_markups(path)[0].points
    assert point.placed and point.id == "3" and not abs(point.position_ras[0]) <= BEYOND_MM


def test_a_points_file_of_another_kind_is_told_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "clicks.txt").write_text("r,a,s\n1,2,3\n")
    with pytest.raises(BadInput, match=r"clicks\.txt is none of \.mrk\.json, \.fcsv and \.csv\. .* r, a, s \.csv\."):
        read_markups(tmp_path / "clicks.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_that_an_editor_saved_with_another_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "p.mrk.json", {"name": "Äorta", "controlPoints": [point(1, 2, 3)]})
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert read_markups(path)[0].points[0].position_ras == (-1, -2, 3)


FCSV = (
    "# Markups fiducial file version = {version}\n# CoordinateSystem = {system}\n# columns = id,x,y,z,ow,ox,oy,oz,..."
)


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [("4.4", "0", (1, 2, 3)), ("4.10", "1", (-1, -2, 3)), ("4.11", "LPS", (-1, -2, 3)), ("5.8", "RAS", (1, 2, 3))],
)
def test_a_list_of_older_slicers_is_read_in_either_coordinate_system(
    tmp_path: Path, version: str, system: str, expected: tuple[float, ...]
) -> None:
    rows = ['7,1,2,3,0,0,0,1,1,1,0,"F, one",,', "8,1,2,4,0,0,0,1,1,0,0,F-2,,,2,0", "9,0,0,0,0,0,0,1,1,1,0,F-3,,,0,0"]
    path = tmp_path / "kidney.fcsv"
    path.write_text("\n".join([FCSV.format(version=version, system=system), *rows, ""]), encoding="utf-8-sig")
    (markup,) = read_markups(path)
    assert (markup.name, markup.kind, markup.points[0].label) == ("kidney", "Fiducial", "F, one")
    assert markup.points[0].position_ras == expected
    assert [(p.id, p.placed, p.selected) for p in markup.points] == [
        ("7", True, True), ("8", True, False), ("9", False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("F-1,1,2,3,1,1\n", "does not say"),
        (FCSV.format(version="4.4", system="2"), "does not say"),
        (FCSV.format(version="4.11", system="LPS") + "\n7,1,2\n", "Line 4 of .*no position"),
        (FCSV.format(version="4.11", system="LPS") + "\n7,1,2,here\n", "Line 4 of .*no position"),
        (FCSV.format(version="4.11", system="LPS") + "\n7,1,2," + "9" * 200_000, "Line 4 of .*no position"),
    ],
)
def test_an_old_list_that_leaves_its_positions_open_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.fcsv").write_text(content)
    with pytest.raises(BadInput, match=words) as caught:
        read_markups(tmp_path / "p.fcsv")
    assert "p.fcsv" in caught.value.message and ".mrk.json" in caught.value.remedy


def test_what_is_neither_a_list_nor_a_curve_is_no_click(tmp_path: Path) -> None:
    kinds = ["Fiducial", "Curve", "ClosedCurve", "Line", "ROI", "Plane", "Angle", "Model", "fiducial "]
    path = write(tmp_path / "p.mrk.json", *({"type": kind, "controlPoints": [point(0, 0, 5)]} for kind in kinds))
    assert [markup.kind for markup in read_markups(path) if not markup.is_shape] == kinds[:4]


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.mrk.json"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_markups(path)


def test_a_failed_write_keeps_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.mrk.json", {"controlPoints": [point(1, 2, 3)]})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("SPDSegmentLib.files.os.replace", fail)
    with pytest.raises(BadInput, match="cannot be written"):
        write_markups(path, [Markup("a", "Fiducial", ())])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.mrk.json"]


@pytest.mark.parametrize(
    "text",
    [
        "label,r,a,s,defined,selected,visible,locked,description\nF-1,1,2.5,-3,1,1,1,0,\nF-2,4,5,6,1,0,1,0,insisted\n",
        "\ufefflabel;l;p;s;selected;description\r\nF-1;-1;-2.5;-3;1;\r\nF-2;-4;-5;6;0;insisted\r\n",
        "S,R,A\n-3,1,2.5\n\n6,4,5\n",
        "sep=;\r\nlabel;R;A;S\r\n;1,0;2,5;-3\r\n;4;5;6\r\n;;;\r\n;;;\r\n",
        '"label","r", "a","s"\n"a, b","1","2,5","-3"\n,4,5,6\n',
        "label\tr\ta\ts\nÖ\t1\t2.5\t-3\nÖ\t4\t5\t6\n",
    ],
    ids=["of Slicer", "semicolons and LPS", "positions alone", "German Excel", "quotes", "tabs"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_table_of_positions_is_a_list_of_clicks(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "clicks.csv"
    path.write_bytes(text.removeprefix("" if encoding == "utf-8" else "\ufeff").encode(encoding))
    (markup,) = read_markups(path)
    assert [point.position_ras for point in markup.points] == [(1.0, 2.5, -3.0), (4.0, 5.0, 6.0)]
    first, second = markup.points
    assert first.placed and first.selected and not first.insisted and markup.kind == "Fiducial"
    assert "description" not in text or (second.label, second.selected, second.insisted) == ("F-2", False, True)


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        ("0", "1"),
        ("0.0", "1.0"),
        ("False", "True"),
        ("FALSE", "TRUE"),
        ("no", "yes"),
        ("n", "y"),
        ("false", ""),
        ("FALSE", "NA"),
        ("0.0", "NaN"),
    ],
)
@pytest.mark.parametrize("column", ["selected", "defined"])
def test_a_click_that_a_table_deselects_in_any_programs_words_is_none(
    tmp_path: Path, column: str, no: str, yes: str
) -> None:
    (tmp_path / "clicks.csv").write_text(f"r,a,s,{column}\n1,2,3,{no}\n4,5,6,{yes}\n")
    (markup,) = read_markups(tmp_path / "clicks.csv")
    assert [point.is_used for point in markup.points] == [False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("r,a,s,selected\n1,2,3,1\n1,2,3,maybe\n", "Line 3 of .* has 'maybe' in the column selected"),
        ("x,y,z\n1,2,3\n", "has no columns r, a, s or l, p, s"),
        ("x,y,z\n1,2,3\n", "Name them r, a, s where they are as 3D Slicer shows them, or l, p, s"),
        ("", "has no columns r, a, s or l, p, s"),
        ("r,a,s\n1,2,3\n1,two,3\n", "Line 3 of .* has no position of three numbers"),
        ("r,a,s\n1,2\n", "Line 2 of .* has no position of three numbers"),
        ("r,a,s\n\n\n1,2,3\n1,two,3\n", "Line 5 of .* has no position of three numbers"),
        ("r,a,s\n1,5,2,5,3,5\n", "Line 2 of .* has more values than columns"),
        ("r,a,s,R\n1,2,3,4\n", "has two columns r, the 1. and the 4."),
        ("PK\x03\x04", "is a workbook"),
    ],
)
def test_a_table_without_positions_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "clicks.csv").write_text(text)
    with pytest.raises(BadInput, match=words) as refused:
        read_markups(tmp_path / "clicks.csv")
    assert refused.value.remedy
