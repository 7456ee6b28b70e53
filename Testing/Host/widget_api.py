"""What Python sees of a ctk, qMRML or qSlicer class: the host's own list, and Slicer's full table where present."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN_LIST = Path(__file__).with_name("widget_list.toml")
VERSIONS = ("5.10", "5.12", "5.13")


@dataclass(frozen=True)
class PropertyInfo:
    """A Qt property: type name, whether it can be set, and the signal that tells of changes."""

    type: str
    writable: bool = True
    notify: str | None = None


@dataclass(frozen=True)
class ClassInfo:
    """Members that one class adds to its base class; signals and methods are full Qt signatures."""

    name: str
    base: str
    properties: dict[str, PropertyInfo] = field(default_factory=dict)
    signals: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    enums: dict[str, int] = field(default_factory=dict)
    versions: tuple[str, ...] = VERSIONS
    member_versions: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def members(self) -> set[str]:
        """Return the names of all properties, signals, methods and enumeration values."""
        names = {signature.split("(")[0] for signature in self.signals + self.methods}
        return names | set(self.properties) | set(self.enums)

    def versions_of(self, member: str) -> tuple[str, ...]:
        """Return the Slicer versions that have this member."""
        return self.member_versions.get(member, self.versions)


class WidgetApi:
    """Look-up of classes by name, following base classes up to Qt's own."""

    def __init__(self, classes: dict[str, ClassInfo]) -> None:
        self._classes = classes

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __getitem__(self, name: str) -> ClassInfo:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def chain(self, name: str) -> list[ClassInfo]:
        """Return the class and its listed base classes, nearest first."""
        chain = []
        while name in self._classes:
            chain.append(self._classes[name])
            name = self._classes[name].base
        return chain

    def qt_base(self, name: str) -> str:
        """Return the Qt class below the listed ones."""
        chain = self.chain(name)
        return chain[-1].base if chain else name

    def find_property(self, name: str, property_name: str) -> PropertyInfo | None:
        """Return an own or inherited property of a listed class."""
        for info in self.chain(name):
            if property_name in info.properties:
                return info.properties[property_name]
        return None

    def enum_value(self, name: str, value: str) -> int | None:
        """Return a value of an enumeration of the class or its listed bases."""
        for info in self.chain(name):
            if value in info.enums:
                return info.enums[value]
        return None


def load_own_list(path: Path = OWN_LIST) -> WidgetApi:
    """Read the host's own list of the classes that the project uses."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return WidgetApi({name: _own_class(name, entry) for name, entry in table.items()})


def _own_class(name: str, entry: dict[str, Any]) -> ClassInfo:
    properties = {}
    for key, text in entry.get("properties", {}).items():
        read_only = text.startswith("const ")
        kind, _, notify = text.removeprefix("const ").partition(" -> ")
        properties[key] = PropertyInfo(kind, not read_only, notify or None)
    return ClassInfo(
        name,
        entry.get("base", "QWidget"),
        properties,
        tuple(entry.get("signals", ())),
        tuple(entry.get("methods", ())),
        dict(entry.get("enums", {})),
    )


def load_slicer_table(path: Path) -> WidgetApi:
    """Read the table of Slicer's real classes (JSON, all versions together)."""
    table = json.loads(path.read_text(encoding="utf-8"))["classes"]
    return WidgetApi({name: _slicer_class(name, entry) for name, entry in table.items()})


def _slicer_class(name: str, entry: dict[str, Any]) -> ClassInfo:
    properties = {
        key: PropertyInfo(value["type"], bool(value.get("write")), value.get("notify"))
        for key, value in entry.get("properties", {}).items()
    }
    methods = [m for kind in ("slots", "invokables", "decorated") for m in entry.get(kind, ())]
    return ClassInfo(
        name,
        entry.get("base") or "QObject",
        properties,
        tuple(entry.get("signals", ())),
        tuple(methods),
        {key: value for values in entry.get("enums", {}).values() for key, value in values.items()},
        _short_versions(entry.get("versions")),
        _member_versions(entry.get("partial", {})),
    )


def _member_versions(partial: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Merge the overloads of a name: it is there in every version that has one of them."""
    found: dict[str, set[str]] = {}
    for members in partial.values():
        for signature, versions in members.items():
            found.setdefault(signature.split("(")[0], set()).update(_short_versions(versions))
    return {name: tuple(v for v in VERSIONS if v in versions) for name, versions in found.items()}


def _short_versions(versions: list[str] | None) -> tuple[str, ...]:
    if not versions:
        return VERSIONS
    return tuple(v for v in VERSIONS if any(full.startswith(v) for full in versions))
