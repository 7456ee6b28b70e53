"""What people write in files: strict JSON, tables, mappings to frozen dataclasses, every value checked for its kind."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from SPDSegmentLib.errors import BadInput

T = TypeVar("T")
_DELIMITERS = ",;\t|"
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # fmt: skip
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def parse_json(content: str | bytes) -> Any:
    """Parse JSON strictly: UTF-8, finite numbers, no name twice in an object, not too deeply nested.

    Raises:
        ValueError: what is wrong, as words that end a sentence.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded, object_pairs_hook=_unique
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON (line {error.lineno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not a text in UTF-8") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def text_of(path: Path, content: bytes, what: str = "table") -> str:
    """The text of a file as editors and spreadsheet programs save it: UTF-8, UTF-16 or Windows-1252.

    Raises:
        BadInput: it is a workbook, or no text.
    """
    if content.startswith(b"PK\x03\x04"):
        raise BadInput(f"The {what} {path} is a workbook and not a text file.", "Save it as CSV (UTF-8).")
    marked = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    unmarked = ["utf-16-le"] if content[1:2] == b"\0" else ["utf-16-be"] if content[:1] == b"\0" else []
    for encoding in [marked] if marked else [*unmarked, "utf-8", "cp1252"]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.rstrip("\x1a")
    raise BadInput(f"The {what} {path} is not text.", "Save it as CSV (UTF-8).")


def table_rows(path: Path, content: bytes, known: Collection[str]) -> list[tuple[int, list[str]]]:
    """Line number and values of every line of a table that is not empty; the first names the columns.

    Args:
        path: for messages.
        known: names of columns, by which it is found whether commas, semicolons, tabs or bars separate the values.

    Raises:
        BadInput: it is no text, or has a quotation mark that is not closed.
    """
    text, skipped, delimiter = text_of(path, content), 0, ""
    declared = re.match(r"\s*\"?sep=(.)\"?\s*?(\r\n|\r|\n|$)", text, re.IGNORECASE)
    if declared:
        delimiter, text, skipped = declared[1], text[declared.end() :], 1
    first = next((line for line in text.splitlines() if line.strip()), "")

    def named(mark: str) -> tuple[int, int]:
        titles = columns_of(first.split(mark))
        return len(titles.keys() & set(known)), len(titles)

    delimiter = delimiter or max(_DELIMITERS, key=named)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1 + skipped
    try:
        for values in reader:
            if any(value.strip() for value in values):
                rows.append((line, values))
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise BadInput(
            f"Line {line} of the table {path} cannot be read: a quotation mark is not closed, or text follows it.",
            "Correct that line; a quotation mark within a value is written twice.",
            repr(error),
        ) from error
    return rows


def named_columns(path: Path, titles: Sequence[str], known: Collection[str]) -> dict[str, int]:
    """As :func:`columns_of`, of a table whose columns ``known`` are read.

    Raises:
        BadInput: two of them have one name.
    """
    columns = columns_of(titles)
    for n, title in enumerate(titles):
        name = _column_name(title)
        if name in known and columns[name] != n:
            raise BadInput(
                f"{path} has two columns {name}, the {columns[name] + 1}. and the {n + 1}. of its first line.",
                "Remove or rename the one that is not meant.",
            )
    return columns


def columns_of(titles: Sequence[str]) -> dict[str, int]:
    """The places of columns by their names in small letters; of two that are named alike the first."""
    return {_column_name(title): n for n, title in reversed(list(enumerate(titles)))}


def _column_name(title: str) -> str:
    return title.strip().strip('"').casefold()


def build_settings(cls: type[T], values: Any, where: str = "", kind: str = "") -> T:
    """Build the dataclass ``cls`` from a table; a field that is a dataclass, or a mapping to some, takes tables too.

    What is built already is taken as it is; lists become tuples.

    Args:
        where: file and table, for messages.
        kind: word for messages, as in ``prompt`` setting.

    Raises:
        BadInput: an unknown name, a value of another kind than its field, a missing one, or refused by ``cls``.
    """
    word, place = f"{kind} setting".strip(), f" in {where}" if where else ""
    if not isinstance(values, Mapping):
        raise BadInput(f"{where or f'The {word}s'} must be a table.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(str(name) for name in set(values) - set(hints))
    if unknown:
        raise BadInput(f"Unknown {word} '{shorten(unknown[0])}'{place}.", f"Known: {', '.join(sorted(hints))}.")
    arguments = {name: _built(hints[name], value, f"{where} [{name}]".strip()) for name, value in values.items()}
    for name, value in arguments.items():
        if not _fits(value, hints[name]):
            told = f"{shorten(repr(values[name]))}, which is not {_describe(hints[name])}"
            raise BadInput(f"The {word} {name}{place} is {told}.", "Correct this value.")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise BadInput(f"{where or f'The table of {word}s'} is incomplete: {error}.") from error


def _built(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build_settings(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        return {name: _built(typing.get_args(hint)[1], item, f"{where} [{name}]") for name, item in value.items()}
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check_device(name: str) -> None:
    """Raise :class:`BadInput` for what is no name of a device; whether it is there the worker says."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(name)):
        raise BadInput(f"Unknown device '{name}'.", "Use auto, cpu, cuda or cuda:n.")


def check_choice(value: object, choices: Iterable[str], what: str) -> None:
    """Raise :class:`BadInput` where ``value`` is none of the known ones."""
    known = tuple(choices)
    if value not in known:
        raise BadInput(f"Unknown {what} '{value}'.", f"Choose one of {', '.join(known)}.")


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise :class:`BadInput` where a number of ``settings`` is not within its range, the limits included."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise BadInput(f"{name} is {value:g}, which is not {limits}.", "Correct this value.")


def documented(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field under ``Attributes``, as one sentence each.

    Two fields of one entry (``low, high: ...``) share its text, or have a part of it each where ``;`` divides as many.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].partition("\n\nRaises:")[0]
    entries = re.split(r"\n(?=    \w)", f"\n{text}")
    known = "|".join(sorted(names, key=len, reverse=True))
    told: dict[str, str] = {}
    for entry in entries:
        parts = re.split(rf"(?:^|; )((?:{known})(?:, (?:{known}))*): ", " ".join(entry.split()))
        for listed, meaning in zip(parts[1::2], parts[2::2], strict=True):
            of = listed.split(", ")
            each = meaning.rstrip(".").split("; ")
            for n, name in enumerate(of):
                said = each[n] if len(each) == len(of) else meaning.rstrip(".")
                told[name] = _plain(said)
    return told


def _plain(text: str) -> str:
    plain = re.sub(r":\w+:`[~!]?([^`]+)`", r"\1", text).replace("``", "")
    return f"{plain if text.startswith('``') else plain[:1].upper() + plain[1:]}."


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a whole or decimal number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _no_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds the number {shorten(text)}, which is too large")
    return value


def _bounded(text: str) -> int:
    _finite(text)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the name '{shorten(twice)}' twice")
    return values


def shorten(value: object, limit: int = 60) -> str:
    """``value`` as a text for a message: printable, at most ``limit`` characters."""
    text = "".join(character if character.isprintable() else "?" for character in str(value))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint in (int, float):
        return is_finite_number(value) and (hint is float or isinstance(value, int))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return len(kinds) == len(value) and all(_fits(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in arguments)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    if hint in _KINDS:
        return _KINDS[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each part {_describe(arguments[0])}"
        return f"a list of {len(arguments)}, each part {_describe(arguments[0])}"
    return getattr(hint, "__name__", str(hint))
