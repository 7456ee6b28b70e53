"""A signal without Qt, so that logic can be tested anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls what is connected, in order; a receiver that disconnects meanwhile is not called."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` from now on."""
        self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` no more."""
        if receiver in self._receivers:
            self._receivers.remove(receiver)

    def emit(self, *arguments: Any) -> None:
        """Tell everybody."""
        for receiver in list(self._receivers):
            if receiver in self._receivers:
                receiver(*arguments)
