"""What is remembered of a segment: states of mask and clicks that belong together, so that undo brings back both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..scene.centerlines import Clicks, renameClicks
from ..scene.write_record import WriteRecord
from .job import SegmentationJob

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


@dataclass
class SegmentMemory:
    """One segment, for as long as its scene is open.

    Attributes:
        history: states of mask and clicks.
        job: the run under way.
        lastClicks: of the latest result, None before the first.
        startedClicks: of the run that was started last.
        isIncomplete: whether the next run has to send all slices.
        savedFor: checksums for which the editor's history already has an undo step.
        served: name of the volume of the latest result in the worker.
        mark: state of the segment that was seen last, see ``target.MARK_TAG``.
    """

    history: History = field(default_factory=History)
    job: SegmentationJob | None = None
    lastClicks: Clicks | None = None
    startedClicks: Clicks | None = None
    isIncomplete: bool = False
    savedFor: dict[int, str] | None = None
    served: str = ""
    mark: str | None = None
