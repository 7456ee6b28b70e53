"""States of mask and clicks that belong together, so that undo of the mask brings back its clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..scene.centerlines import Clicks, renameClicks
from ..scene.write_record import WriteRecord

MAX_STATES = 24


@dataclass(frozen=True)
class State:
    """One state of a segment.

    Attributes:
        mark: its name in the segment, see ``target.MARK_TAG``; a person's edits do not change it.
        digests: checksums by slice.
        clicks: it came from these.
        record: at that time.
    """

    mark: str
    digests: Mapping[int, str]
    clicks: Clicks
    record: WriteRecord


class History:
    """Remembers the latest states and finds the one that undo or redo has brought back."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def remember(self, mark: str, digests: Mapping[int, str], clicks: Clicks, record: WriteRecord) -> None:
        """Add a state; an older one of the same mark and content is replaced."""
        kept = [state for state in self._states if (state.mark, state.digests) != (mark, digests)]
        self._states = [*kept[-(MAX_STATES - 1) :], State(mark, dict(digests), clicks, record.copy())]

    def find(self, mark: str, digests: Mapping[int, str]) -> State | None:
        """Return the latest state of this mark and exactly this content."""
        for state in reversed(self._states):
            if (state.mark, state.digests) == (mark, digests):
                return state
        return None

    def latest(self, mark: str) -> State | None:
        """Return the latest state of this mark, whatever a person has edited since."""
        return next((state for state in reversed(self._states) if state.mark == mark), None)

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``."""
        self._states = [
            replace(state, clicks=renameClicks(state.clicks, renamed), record=state.record.withNames(renamed))
            for state in self._states
        ]

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
