"""Settings out of files: names and kinds are checked before anything is computed with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.settings import build_settings


@dataclass(frozen=True)
class Nested:
    value: int = 0


@dataclass(frozen=True)
class Example:
    count: int
    share: float = 0.5
    name: str = ""
    on: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    groups: tuple[tuple[int, ...], ...] = ()
    limit: int | None = None
    nested: Nested = field(default_factory=Nested)


def test_values_of_the_declared_kinds_are_taken() -> None:
    values: dict[str, Any] = {"count": 3, "share": 1, "range": [0, 2.5], "groups": [[1], [2, 3]], "limit": None}
    assert build_settings(Example, values, kind="example").share == 1


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("count", "many", "a whole number"),
        ("count", 1.5, "a whole number"),
        ("count", True, "a whole number"),
        ("share", "half", "a number"),
        ("share", float("nan"), "a number"),
        ("name", 3, "a text"),
        ("on", 1, "true or false"),
        ("range", [1.0], "a list of 2, each part a number"),
        ("range", 1.0, "a list of 2, each part a number"),
        ("groups", [[1], 2], "a list, each part a list, each part a whole number"),
        ("limit", "x", "int | None"),
        ("nested", 5, "Nested"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_it_should_be(name: str, value: Any, kind: str) -> None:
    with pytest.raises(BadInput) as refused:
        build_settings(Example, {"count": 1} | {name: value}, kind="example")
    assert refused.value.message == f"The example setting {name} is {value!r}, which is not {kind}."


def test_unknown_and_missing_names_are_told() -> None:
    with pytest.raises(BadInput, match=r"Unknown example setting 'cuont'\. Known: count"):
        build_settings(Example, {"cuont": 3}, kind="example")
    with pytest.raises(BadInput, match="incomplete: .*count"):
        build_settings(Example, {}, kind="example")
