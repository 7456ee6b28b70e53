"""States of mask and clicks that belong together, so that undo of the mask brings back its clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .centerlines import Clicks, renameClicks
from .write_record import WriteRecord

MAX_STATES = 24


@dataclass(frozen=True)
class State:
    """Content of a segment (checksums by slice), the clicks it came from, and the record at that time."""

    digests: Mapping[int, str]
    clicks: Clicks
    record: WriteRecord


class History:
    """Remembers the latest states and finds the one that a segment has gone back to."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def remember(self, digests: Mapping[int, str], clicks: Clicks, record: WriteRecord) -> None:
        """Add a state; an older one of the same content is replaced."""
        kept = [state for state in self._states if state.digests != digests]
        self._states = [*kept[-(MAX_STATES - 1) :], State(dict(digests), clicks, record.copy())]

    def find(self, digests: Mapping[int, str]) -> State | None:
        """Return the latest state of exactly this content."""
        for state in reversed(self._states):
            if state.digests == digests:
                return state
        return None

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``."""
        self._states = [
            State(state.digests, renameClicks(state.clicks, renamed), state.record.withNames(renamed))
            for state in self._states
        ]

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
