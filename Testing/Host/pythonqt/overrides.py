"""Exceptions in Python overrides of Qt's virtual methods: recorded and lost, as in PythonQt.

PySide would raise them in whatever Python code called into Qt, or crash.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore

from ..errors import slot_errors

_VIRTUAL = frozenset(
    {
        "event",
        "eventFilter",
        "sizeHint",
        "minimumSizeHint",
        "hitButton",
        "paint",
        "data",
        "setData",
        "flags",
        "headerData",
        "rowCount",
        "columnCount",
        "createEditor",
        "accept",
        "reject",
        "done",
    }
)


def guard_overrides(cls: type, holder: type | None = None) -> None:
    """Guard the virtual methods that a class, or a class that it is mixed with, defines in Python."""
    for name, function in list(vars(holder or cls).items()):
        if inspect.isfunction(function) and (name in _VIRTUAL or name.endswith("Event")):
            setattr(cls, name, _guarded(cls, name, function))


def _guarded(cls: type, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def override(self: Any, *arguments: Any) -> Any:
        try:
            return function(self, *arguments)
        except Exception as error:
            slot_errors.record(f"{type(self).__name__}.{name}", error)
            return _of_base(cls, self, name, arguments)

    return override


def _of_base(cls: type, instance: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    for base in cls.__mro__[1:]:
        method = vars(base).get(name)
        if base.__module__.startswith("PySide6") and callable(method):
            return method(instance, *arguments)
    return None


def install_overrides() -> None:
    """Guard every class that is derived from a Qt class in Python from now on."""

    def guard(cls: type, **_options: Any) -> None:
        guard_overrides(cls)

    base: Any = QtCore.QObject
    base.__init_subclass__ = classmethod(guard)
