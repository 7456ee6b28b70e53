"""Settings that come from files: mappings to frozen dataclasses, every value checked for its kind."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from SPDSegmentLib.errors import BadInput

T = TypeVar("T")
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def settings_from(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Build the dataclass ``cls`` from a mapping.

    Args:
        what: word for messages, as in ``prompt`` setting.

    Raises:
        BadInput: an unknown name, a value of another kind than its field, a missing one, or refused by ``cls``.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise BadInput(f"Unknown {what} setting '{unknown[0]}'.", f"Known: {', '.join(sorted(known))}.")
    for name, value in values.items():
        check_kind(cls, name, value, f"The {what} setting {name}")
    try:
        return cls(**values)
    except TypeError as error:
        raise BadInput(f"The {what} settings are incomplete: {error}.") from error


def check_kind(cls: type, name: str, value: Any, what: str) -> None:
    """Raise :class:`BadInput` where ``value`` is not of the kind that the field ``name`` of ``cls`` has."""
    hint = typing.get_type_hints(cls)[name]
    if not _fits(value, hint):
        raise BadInput(f"{what} is {value!r}, which is not {_describe(hint)}.", "Correct this value.")


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise :class:`BadInput` where a number of ``settings`` is not within its range, the limits included."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise BadInput(f"{name} is {value:g}, which is not {limits}.", "Correct this value.")


def _fits(value: Any, hint: Any) -> bool:
    if hint in (int, float):
        number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return len(kinds) == len(value) and all(_fits(v, kind) for v, kind in zip(value, kinds, strict=True))
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
