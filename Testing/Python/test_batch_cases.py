"""Tables of cases as spreadsheet programs save them, and names that every file system takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest

from SPDSegmentLib.batch.cases import BatchCase, _is_whole, checked_cases, input_stamp, read_cases
from SPDSegmentLib.errors import BadInput

HEADER = "name,image,points\n"


def table(folder: Path, content: bytes | str) -> Path:
    """A table in a folder."""
    path = folder / "cases.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"name,image,points\nM\xc3\xbcller,i.nii,p.json\n",
        b"\xef\xbb\xbfname,image,points\r\nM\xc3\xbcller,i.nii,p.json\r\n",
        b"name;image;points\nM\xfcller;i.nii;p.json\n",
        b"name\timage\tpoints\rM\xc3\xbcller\ti.nii\tp.json\r",
        "name\timage\tpoints\nM\xfcller\ti.nii\tp.json\n".encode("utf-16"),
        "name;image;points\nM\xfcller;i.nii;p.json\n".encode("utf-16-le"),
        b"sep=;\r\nname;image;points\r\nM\xfcller;i.nii;p.json\r\n",
        b'"name","image","points"\n"M\xc3\xbcller","i.nii","p.json"\n',
        b" Name , IMAGE , Points \n M\xc3\xbcller , i.nii , p.json \n",
        b"\n\nname,image,points,,\n,,,,\nM\xc3\xbcller,i.nii,p.json,,\n,,,,\n\n",
        b"points;ward;image;name\np.json;3, left;i.nii;M\xfcller",
        b"name|image|points\nM\xc3\xbcller|i.nii|p.json\n\x1a",
    ],
    ids=["utf-8", "excel-utf-8", "semicolons-cp1252", "tabs-cr", "excel-unicode", "utf-16-unmarked", "sep", "quotes",
         "spaces-capitals", "trailing", "other-columns", "bars"],
)  # fmt: skip
def test_a_table_is_read_as_any_spreadsheet_program_saves_it(tmp_path: Path, content: bytes) -> None:
    (case,) = read_cases(table(tmp_path, content))
    assert (case.name, case.image, case.points) == ("Müller", str(tmp_path / "i.nii"), str(tmp_path / "p.json"))


def test_quoted_values_keep_separators_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = table(tmp_path, HEADER + '"a ""b""","x, y.nii",p.json\nc,i.nii,p.json\n')
    first, second = read_cases(path)
    assert first.name == 'a "b"' and first.image == str(tmp_path / "x, y.nii")
    assert (first.line, second.line) == (2, 3)


def test_absolute_paths_and_a_series_are_taken_as_they_are(tmp_path: Path) -> None:
    (case,) = read_cases(table(tmp_path, f"name,image,points,series\na,{tmp_path}/dicom,p.json,12.7\n"))
    assert case.image == f"{tmp_path}/dicom" and case.series == "12.7"


def test_frames_and_series_are_read_as_programs_write_columns_with_gaps(tmp_path: Path) -> None:
    lines = ["a,i,p,2.0,3.0", "b,i,p,,", "c,i,p,nan,NaN", "d,i,p,NA,<NA>", "e,i,p,12,1.2.30", 'f,i,p,"4,0",T2 3.0']
    cases = checked_cases(table(tmp_path, "name,image,points,frame,series\n" + "\n".join(lines)))
    assert [case.frame for case in cases] == [2, 0, 0, 0, 12, 4] and not any(case.problem for case in cases)
    assert [case.series for case in cases] == ["3", "", "", "", "1.2.30", "T2 3.0"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "lists no case. Its first line names the columns name, image, points"),
        (HEADER, "lists no case"),
        (HEADER + "\n,,\n", "lists no case"),
        ("name,image\na,i\n", "has no column points; its first line is: name, image"),
        ("a,i.nii,p.json\n", "has no column name"),
        ("name,image,points,Image\na,i,p,j\n", "has two columns image, the 2. and the 4. of its first line"),
        (HEADER + 'a,"i.nii,p.json\nb,i,p\n', "Line 2 of the table .* a quotation mark is not closed"),
        (b"PK\x03\x04 a workbook", "is a workbook and not a text file"),
        (b"name,image,points\na,\x00,p\n", "is not text"),
        (HEADER + "a,i,p\nb,i,p\na,i,p\n", r"Line 4 \('a'\) and line 2 \('a'\) would write the same file"),
        (HEADER + "ca\u0301,i,p\nC\u00e1,i,p\n", "would write the same file"),
        (HEADER + "a/b,i,p\na b,i,p\n", "would write the same file"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence_with_the_line(
    tmp_path: Path, content: bytes | str, sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence) as refused:
        checked_cases(table(tmp_path, content))
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (",i.nii,p.json", "Line 3 of cases.csv has no name that a file can have"),
        ("...,i.nii,p.json", "Line 3 of cases.csv has no name that a file can have"),
        ("b,,p.json", "Line 3 of cases.csv has no value in the column image"),
        ("b,i.nii", "Line 3 of cases.csv has no value in the column points"),
        ("b,x, y.nii,p.json", "Line 3 of cases.csv has more values than columns"),
        pytest.param(
            "b,of\\b.nii,p.json",
            r"Line 3 of cases.csv has backslashes in of\b.nii; here / separates folders.",
            marks=pytest.mark.skipif(os.sep != "/", reason="backslashes separate folders here"),
        ),
    ],
)
def test_a_line_that_cannot_be_used_does_not_stop_the_others(tmp_path: Path, line: str, problem: str) -> None:
    first, second = checked_cases(table(tmp_path, f"{HEADER}a,i.nii,p.json\n{line}\n"))
    assert not first.problem and problem in second.problem and second.file_name


@pytest.mark.skipif(os.sep != "/", reason="backslashes separate folders here")
def test_a_backslash_in_a_name_that_exists_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "of\\b.nii").touch()
    (case,) = checked_cases(table(tmp_path, HEADER + "b,of\\b.nii,p.json\n"))
    assert not case.problem and case.image.endswith("of\\b.nii")


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.csv cannot be read: No such file"):
        checked_cases(tmp_path / "none.csv")


@pytest.mark.parametrize("gap", ["", "  ", None, float("nan")])
def test_a_given_case_with_a_gap_is_never_the_current_folder(gap: object) -> None:
    good, image, points = checked_cases([("a", "i", "p"), ("b", gap, "p"), BatchCase("c", "i", cast(str, gap))])
    assert not good.problem and (image.image, points.points) == ("", "")
    assert image.problem == "The case 'b' has no value for image."
    assert points.problem == "The case 'c' has no value for points."


def test_long_names_become_short_file_names_that_differ() -> None:
    names = ["é" * 400 + end for end in ("a", "b")]
    cases = checked_cases([(name, "i", "p") for name in names])
    assert [case.name for case in cases] == names
    assert len({case.file_name for case in cases}) == 2
    assert all(len(case.file_name.encode()) <= 100 for case in cases)


@pytest.mark.parametrize(
    ("name", "file_name"),
    [("a/b c", "a_b_c"), ("con", "_con"), ("LPT1.x", "_LPT1.x"), (".hidden", "hidden"), ("Müller-3", "Müller-3")],
)
def test_names_become_file_names_that_every_system_takes(name: str, file_name: str) -> None:
    (case,) = checked_cases([BatchCase(name, "i", "p")])
    assert (case.name, case.file_name) == (name, file_name)


def test_voxels_that_look_like_empty_lines_take_no_time_to_look_through(tmp_path: Path) -> None:
    image = tmp_path / "a.nrrd"
    image.write_bytes(b"NRRD0004\nencoding: raw\n\n" + b"\n" * (1 << 16))
    begun = time.process_time()
    assert _is_whole(image) and time.process_time() - begun < 1


def test_a_header_that_leads_nowhere_has_no_stamp(tmp_path: Path) -> None:
    image = tmp_path / "a.mhd"
    for name in (b"a\0b.raw", b"gone.raw", b"LIST"):
        image.write_bytes(b"ObjectType = Image\nElementDataFile = " + name + b"\n")
        assert input_stamp(BatchCase("a", str(image), str(image))) == ""
