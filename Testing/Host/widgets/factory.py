"""Makes PySide6 classes for Slicer's widget classes.

A class has exactly the members of the tables. Behavior comes from a `Behavior` of the same name.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6 import QtCore

from ..errors import HostError, UnknownWidget
from ..pythonqt.overrides import guard_overrides
from ..pythonqt.signals import SignalAttribute, normalize
from ..runtime import qt
from ..widget_api import ClassInfo, PropertyInfo, WidgetApi
from .behavior import Behavior, behavior_of

_PYTHON_TYPES: dict[str, type] = {"bool": bool, "int": int, "double": float, "float": float, "QString": str}
_QtProperty: Any = QtCore.Property
_DEFAULTS: dict[str, Any] = {"bool": False, "int": 0, "double": 0.0, "float": 0.0, "QString": ""}
_MEMBER_KINDS = ("properties", "signals", "methods")


@dataclass(frozen=True)
class IdleCall:
    """A call of a real method that has no behavior in the host."""

    class_name: str
    method: str
    arguments: tuple[Any, ...]


class WidgetFactory:
    """Builds each class once; tells which members came from Slicer's table but not from the own list."""

    def __init__(self, own: WidgetApi, slicer_table: WidgetApi | None) -> None:
        self._own = own
        self._table = slicer_table
        self._classes: dict[str, type] = {}
        self.idle_calls: list[IdleCall] = []
        self.unlisted: set[str] = set()

    def knows(self, name: str) -> bool:
        """Tell whether the class is one of Slicer's."""
        return name in self._own or (self._table is not None and name in self._table)

    def info(self, name: str) -> ClassInfo:
        """Return the members of a class: Slicer's table where present, the own list otherwise."""
        if self._table is not None and name in self._table:
            return self._table[name]
        if name in self._own:
            return self._own[name]
        raise UnknownWidget(f"Slicer has no class {name}, or Testing/Host/widget_list.toml lacks it.")

    def chain(self, name: str) -> list[ClassInfo]:
        """Return the class and its listed base classes, nearest first."""
        infos = []
        while self.knows(name):
            infos.append(self.info(name))
            name = infos[-1].base
        return infos

    def create(self, name: str, parent: qt.QWidget | None = None) -> Any:
        """Make a widget."""
        return self.build(name)(parent)

    def qt_base(self, name: str) -> Any:
        """Return the Qt class below a class of Slicer."""
        return _qt_class(self.chain(name)[-1].base)

    def has_property(self, name: str, property_name: str) -> bool:
        """Tell whether a class, or a listed base class, adds this property."""
        found = any(property_name in info.properties for info in self.chain(name))
        if found:
            self.note(name, property_name)
        return found

    def enum_number(self, name: str, text: str) -> int:
        """Return the number of `Class::Value` or `A|B` as written in a .ui file."""
        return functools.reduce(operator.or_, (self._one_enum(name, part) for part in text.split("|")))

    def _one_enum(self, name: str, part: str) -> int:
        value = part.split("::")[-1]
        for info in self.chain(name):
            if value in info.enums:
                return info.enums[value]
        for holder in (self.qt_base(name), qt.Qt, qt.QFrame):
            found = getattr(holder, value, None)
            if found is not None:
                return int(found)
        raise HostError(f"{name} has no enumeration value {part}.")

    def build(self, name: str) -> type[Any]:
        """Return the class, made at the first call; UnknownWidget if Slicer does not have it."""
        if name not in self._classes:
            self._classes[name] = self._make(name)
        return self._classes[name]

    def _make(self, name: str) -> type[Any]:
        info = self.info(name)
        base = self.build(info.base) if self.knows(info.base) else _qt_class(info.base)
        namespace: dict[str, Any] = {
            "_host_api_": True,
            "_host_signals_": dict(getattr(base, "_host_signals_", {})),
            "_host_setters_": dict(getattr(base, "_host_setters_", {})),
            "_host_factory_": self,
            "__module__": "slicer",
        }
        signal_names = _add_signals(namespace, info)
        for property_name, details in info.properties.items():
            getter, setter = _accessors(property_name, details)
            if self._is_unlisted(name, property_name):
                getter, setter = self._noted(getter, property_name), self._noted(setter, property_name)
            qt_type: Any = _PYTHON_TYPES.get(details.type, "QVariant")
            namespace[property_name] = _QtProperty(qt_type, getter, setter if details.writable else None)
            namespace["_host_setters_"][property_name] = setter if details.writable else None
        namespace.update({key: value for key, value in info.enums.items() if key not in namespace})
        self._add_methods(namespace, info, base)
        generated = type(name, (base,), namespace)
        for attribute, signature in signal_names.items():
            setattr(generated, attribute, SignalAttribute(attribute, signature, generated.__dict__[attribute]))
        hand_written = behavior_of(name)
        if hand_written is None:
            return generated
        self._check_behavior(name, hand_written)
        joined = type(name, (hand_written, generated), {"_host_api_": True, "__module__": "slicer"})
        guard_overrides(joined, hand_written)
        return joined

    def _add_methods(self, namespace: dict[str, Any], info: ClassInfo, base: type) -> None:
        for signature in info.methods:
            method = signature.split("(")[0]
            if method in namespace:
                continue
            target = method[3:4].lower() + method[4:] if method.startswith("set") else ""
            if target in info.properties:
                namespace[method] = _property_setter(target)
            elif not hasattr(base, method):
                namespace[method] = self._idle(info.name, method)

    def _idle(self, class_name: str, method: str) -> Callable[..., None]:
        def call(_self: Any, *arguments: Any) -> None:
            self.note(class_name, method)
            self.idle_calls.append(IdleCall(class_name, method, arguments))

        call.__name__ = method
        return call

    def _noted(self, accessor: Callable[..., Any], member: str) -> Callable[..., Any]:
        def access(widget: Any, *arguments: Any) -> Any:
            self.note(type(widget).__name__, member)
            return accessor(widget, *arguments)

        return access

    def _check_behavior(self, name: str, hand_written: type[Behavior]) -> None:
        known = set(hand_written._beyond_table_)
        known = known.union(*(info.members() for info in self.chain(name)))
        extra = [
            member
            for member in vars(hand_written)
            if not member.startswith("_") and member not in known and not hasattr(self.qt_base(name), member)
        ]
        if extra:
            raise HostError(f"The host's {name} has members that Slicer's lacks: {', '.join(extra)}.")

    def note(self, name: str, member: str) -> None:
        """Remember the use of a member that only Slicer's table has: the own list should have it too."""
        if self._is_unlisted(name, member):
            self.unlisted.add(f"{name}.{member}")

    def _is_unlisted(self, name: str, member: str) -> bool:
        return self._table is not None and not any(member in info.members() for info in self._own.chain(name))


def _qt_class(name: str) -> Any:
    return getattr(qt, name, qt.QWidget)


def _add_signals(namespace: dict[str, Any], info: ClassInfo) -> dict[str, str]:
    """Add the signals of a class; an overload gets an attribute of its own."""
    names: dict[str, str] = {}
    for signature in info.signals:
        name, arguments = signature[:-1].split("(", 1)
        kinds = [_PYTHON_TYPES.get(kind, object) for kind in arguments.split(",") if kind]
        attribute = name
        while attribute in names:
            attribute = f"_{attribute}_overload"
        namespace[attribute] = QtCore.Signal(*kinds, name=attribute)
        real = f"{attribute}({','.join(_SIGNAL_TYPES.get(kind, 'PyObject') for kind in kinds)})"
        namespace["_host_signals_"][normalize(signature)] = real
        namespace["_host_signals_"].setdefault(real, real)
        names[attribute] = real
    return names


_SIGNAL_TYPES = {bool: "bool", int: "int", float: "double", str: "QString"}


def _accessors(name: str, info: PropertyInfo) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    default = _DEFAULTS.get(info.type)
    convert = _PYTHON_TYPES.get(info.type)

    def read(self: Any) -> Any:
        own = getattr(type(self), f"_read_{name}", None)
        if own is not None:
            return own(self)
        if info.type == "QStringList":
            return list(_values(self).get(name, ()))
        return _values(self).get(name, default)

    def write(self: Any, value: Any) -> None:
        if convert is not None:
            value = convert(value)
        before = read(self)
        _values(self)[name] = value
        changed = getattr(type(self), f"_changed_{name}", None)
        if changed is not None:
            changed(self, value)
        elif info.notify and before != value:
            getattr(self, info.notify).emit(value)

    return read, write


def _property_setter(name: str) -> Callable[..., None]:
    def assign(self: Any, value: Any = None) -> None:
        setattr(self, name, value)

    return assign


def _values(widget: Any) -> dict[str, Any]:
    """Return the stored values of a widget's properties."""
    return widget.__dict__.setdefault("_values_", dict(getattr(type(widget), "_defaults_", {})))
