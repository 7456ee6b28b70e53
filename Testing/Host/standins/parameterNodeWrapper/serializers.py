"""Conversion between Python values and what a MRML node can store."""

from __future__ import annotations

import enum
import json
import pathlib
import types
import typing
from dataclasses import dataclass
from typing import Any

import slicer


@dataclass(frozen=True)
class Default:
    """Default of a parameter, given as an annotation."""

    value: Any


@dataclass(frozen=True)
class WithinRange:
    """Smallest and largest value of a number."""

    minimum: float
    maximum: float

    def check(self, value: Any) -> None:
        """Raise ValueError outside the range."""
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not between {self.minimum} and {self.maximum}.")


@dataclass(frozen=True)
class Minimum:
    """Smallest value of a number."""

    minimum: float

    def check(self, value: Any) -> None:
        """Raise ValueError below the minimum."""
        if value < self.minimum:
            raise ValueError(f"{value} is less than {self.minimum}.")


@dataclass(frozen=True)
class Maximum:
    """Largest value of a number."""

    maximum: float

    def check(self, value: Any) -> None:
        """Raise ValueError above the maximum."""
        if value > self.maximum:
            raise ValueError(f"{value} is more than {self.maximum}.")


class Choice:
    """Allowed values of a parameter."""

    def __init__(self, choices: Any) -> None:
        self.choices = tuple(choices)

    def check(self, value: Any) -> None:
        """Raise ValueError for another value."""
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {self.choices}.")


@dataclass(frozen=True)
class Decimals:
    """Decimals that a widget shows."""

    value: int


@dataclass(frozen=True)
class SingleStep:
    """Step of a widget."""

    value: float


class Serializer:
    """Reads and writes one kind of value; `caches` tells that a read value can be kept."""

    caches = True

    def __init__(self, kind: Any, checks: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.checks = checks

    def default(self) -> Any:
        """Return the value of a parameter that was never set."""
        choice = next((check for check in self.checks if isinstance(check, Choice)), None)
        return choice.choices[0] if choice else self.kind()

    def contains(self, node: Any, name: str) -> bool:
        """Tell whether the node has a value."""
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        """Check and store a value; TypeError or ValueError leaves the node as it was."""
        self.check(value)
        node.SetParameter(name, self.encode(value))

    def read(self, node: Any, name: str) -> Any:
        """Return the stored value."""
        return self.decode(node.GetParameter(name))

    def check(self, value: Any) -> None:
        """Refuse a value of another type or outside its limits."""
        accepted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"{value!r} is not a {self.kind.__name__}.")
        for check in self.checks:
            check.check(value)

    def encode(self, value: Any) -> str:
        """Return the text to store."""
        return str(value)

    def decode(self, text: str) -> Any:
        """Return the value of a stored text."""
        return text == "True" if self.kind is bool else self.kind(text)


class EnumSerializer(Serializer):
    """Stores an enumeration by the name of its value."""

    def default(self) -> Any:
        """Return the first value."""
        return next(iter(self.kind))

    def encode(self, value: Any) -> str:
        """Return the name."""
        return str(value.name)

    def decode(self, text: str) -> Any:
        """Return the value of a name."""
        return self.kind[text]


class NodeSerializer(Serializer):
    """Stores a node as a reference of the parameter node, so that it follows the scene."""

    def default(self) -> Any:
        """Return no node."""
        return None

    def write(self, node: Any, name: str, value: Any) -> None:
        """Refer to a node of the scene, or to none."""
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"{value!r} is not a node of the type {self.kind}.")
        node.SetParameter(name, "")  # Tells that no node is a value too.
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        """Return the node, None if it is gone."""
        return node.GetNodeReference(name)


class NodeListSerializer(NodeSerializer):
    """Stores several nodes as Slicer stores a list: its length, and each node under a name with its place."""

    def default(self) -> Any:
        """Return no nodes."""
        return []

    def contains(self, node: Any, name: str) -> bool:
        """Tell whether the node has a list."""
        return bool(node.HasParameter(f"{name}.len"))

    def write(self, node: Any, name: str, value: Any) -> None:
        """Refer to the nodes in their order; one that does not fit leaves the list as it was."""
        for item in value:
            if item is not None and not isinstance(item, self.kind):
                raise TypeError(f"{item!r} is not a node of the type {self.kind}.")
        before = self._length(node, name)
        with slicer.util.NodeModify(node):
            for index, item in enumerate(value):
                super().write(node, f"{name}.{index}", item)
            node.SetParameter(f"{name}.len", str(len(value)))
            for index in range(len(value), before):
                node.UnsetParameter(f"{name}.{index}")
                node.RemoveNodeReferenceIDs(f"{name}.{index}")

    def read(self, node: Any, name: str) -> Any:
        """Return the nodes, None for one that is gone."""
        return [super(NodeListSerializer, self).read(node, f"{name}.{n}") for n in range(self._length(node, name))]

    def _length(self, node: Any, name: str) -> int:
        return int(node.GetParameter(f"{name}.len") or 0)


class JsonSerializer(Serializer):
    """Stores lists, tuples and dictionaries of plain values."""

    caches = False

    def __init__(self, kind: Any) -> None:
        super().__init__(typing.get_origin(kind) or kind)

    def encode(self, value: Any) -> str:
        """Return JSON."""
        return json.dumps(value)

    def decode(self, text: str) -> Any:
        """Return the container."""
        return self.kind(json.loads(text))


def create_serializer(annotation: Any) -> tuple[Serializer, list[Any]]:
    """Return the serializer of an annotated type, and the annotations it does not use."""
    extra: list[Any] = []
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *extra = typing.get_args(annotation)
    checks = tuple(item for item in extra if hasattr(item, "check"))
    rest = [item for item in extra if not hasattr(item, "check")]
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = tuple(member for member in members if member is not type(None))
        if all(_is_node(kind) for kind in kinds):
            return NodeSerializer(kinds), rest
        raise TypeError(f"{annotation} cannot be kept in a parameter node.")
    if _is_node(annotation):
        return NodeSerializer(annotation), rest
    if typing.get_origin(annotation) is list and _is_node(members[0]):
        return NodeListSerializer(members[0]), rest
    if typing.get_origin(annotation) in (list, tuple, dict):
        return JsonSerializer(annotation), rest
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return EnumSerializer(annotation, checks), rest
    if annotation in (str, int, float, bool) or annotation is pathlib.Path:
        return Serializer(annotation, checks), rest
    raise TypeError(f"{annotation} cannot be kept in a parameter node.")


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)
