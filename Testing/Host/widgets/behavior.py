"""Base of all hand-written behavior, and the register of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_behaviors: dict[str, type[Behavior]] = {}


class Behavior:
    """Behavior of the Slicer class of the same name; the factory joins it with the listed members.

    A class may define listed methods, `_read_<property>(self)`, `_changed_<property>(self, value)` and
    `_defaults_`, the values of properties that were never set.
    """

    _defaults_: dict[str, Any] = {}
    _beyond_table_: tuple[str, ...] = ()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)  # type: ignore[call-arg]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.__name__.startswith("_") and cls.__bases__[0].__module__ != "slicer":
            _behaviors.setdefault(cls.__name__, cls)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


def behavior_of(name: str) -> type[Behavior] | None:
    """Return the behavior registered for a class of Slicer."""
    return _behaviors.get(name)
