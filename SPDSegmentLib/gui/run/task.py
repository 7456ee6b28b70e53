"""What is to be segmented with which model, where the result goes, and what is remembered of each segment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slicer.i18n import tr as _

from SPDSegmentLib.batch.cases import BatchModel, batch_model
from SPDSegmentLib.errors import ModelMissing, SPDError
from SPDSegmentLib.models.bundle import Bundle, find_bundle, list_bundles, origin_note

from ..scene.centerlines import Clicks, renameClicks, snapshotClicks, usedClicks
from ..scene.editor_nodes import otherRepresentation
from ..scene.target import SegmentTarget
from ..scene.volumes import VolumeSnapshot, nodeById, takeSnapshot
from ..scene.write_record import WriteRecord, identityOf
from .job import SegmentationJob
from .result_writer import ResultWriter

CT_BELOW = -200


@dataclass(frozen=True)
class ModelEntry(BatchModel):
    """A model that can be chosen; its short name is kept in scenes.

    Attributes:
        title: for people.
        card: Markdown of the model card.
        modality: CT, MR or another DICOM modality, or empty.
    """

    title: str = ""
    card: str = ""
    modality: str = ""


def listModels() -> list[ModelEntry]:
    """Return the usable bundles, shipped ones and the user's."""
    return [_entry(bundle) for bundle in list_bundles()]


def findModel(name: str, *, remote: bool = False) -> ModelEntry:
    """Return a model by name or folder; with ``remote`` an unknown name is left to the worker.

    Raises:
        ModelMissing: no name was given, or there is no such bundle here.
        ModelCorrupt: the bundle is damaged.
    """
    if not name:
        raise ModelMissing(_("No model was chosen."), _("Choose a model; Set-up shows how to get one."))
    try:
        return _entry(find_bundle(name))
    except SPDError:
        if not remote:
            raise
        return ModelEntry(name, name, name.partition("?")[0], digest=f"name:{name}", title=name)


def likelyModel(models: Sequence[ModelEntry], names: Iterable[str], lowestValue: float | None) -> int | None:
    """Return the index of the one model whose structure the scene names, None where it names none or several.

    Args:
        models: to choose from.
        names: of the volume and the clicks.
        lowestValue: of the volume; air in CT lies near -1000, which decides between models of one structure. None where
            there is no volume.
    """
    words = set(_words(" ".join(names)))
    named = [n for n, model in enumerate(models) if (own := _words(model.structure)) and words.issuperset(own)]
    if len(named) > 1 and lowestValue is not None and len({models[n].structure.lower() for n in named}) == 1:
        isCt = lowestValue < CT_BELOW
        named = [n for n in named if (models[n].modality == "CT") == isCt]
    return named[0] if len(named) == 1 else None


def _words(text: str) -> list[str]:
    """Words in small letters, of several things as of one: kidneys count as kidney."""
    return [word.removesuffix("s") for word in re.findall(r"[^\W\d_]+", text.lower())]


def _entry(bundle: Bundle) -> ModelEntry:
    info = bundle.info
    title = _("{title} (yours)").format(title=info.title) if origin_note(bundle) else info.title
    return ModelEntry(**vars(batch_model(bundle)), title=title, card=bundle.card, modality=info.modality)


@dataclass(frozen=True, eq=False)
class VolumeView:
    """A volume as a model looks at it.

    Attributes:
        volumeNode: scalar volume.
        model: the model.
        device: ``auto``, ``cpu`` or ``cuda[:n]``.
        axis: slicing axis; ``auto`` takes the model's.
    """

    volumeNode: Any
    model: ModelEntry
    device: str = "auto"
    axis: str = "auto"

    def snapshot(self) -> VolumeSnapshot:
        """The present state of the volume."""
        return takeSnapshot(self.volumeNode, self.model.axis if self.axis == "auto" else self.axis)


@dataclass(frozen=True, eq=False)
class Task:
    """A segmentation to be made.

    Attributes:
        view: volume and model.
        centerlineNodes: point lists and open curves.
        target: where the result goes.
        prompts: prompting strategy.
        firstSliceRas: a place to begin with, or None.
        saveStateForUndo: makes an undo step in the editor that is used; None for the panel's.
    """

    view: VolumeView
    centerlineNodes: Sequence[Any]
    target: SegmentTarget
    prompts: str = "consensus"
    firstSliceRas: tuple[float, float, float] | None = None
    saveStateForUndo: Callable[[], None] | None = None

    @property
    def volumeNode(self) -> Any:
        """The volume."""
        return self.view.volumeNode

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies the segment, also among those that had or get its ID."""
        node, segmentId = self.target.node, self.target.segmentId
        return self.target.nodeId, segmentId, identityOf(node, segmentId)

    def writtenSnapshot(self, record: WriteRecord | None = None) -> VolumeSnapshot:
        """The slices for which the segment's record holds, as they lie now.

        Args:
            record: that of the segment, where it is at hand: reading it takes some milliseconds.
        """
        record = record or self.target.record
        if record.grid is None and not record.model:
            return self.view.snapshot()
        return self.target.writtenSnapshot(record, self.volumeNode)

    def whyInvalid(self, snapshot: VolumeSnapshot) -> str:
        """Return why results for a state of the volume may no longer be written, empty if they may."""
        if nodeById(snapshot.nodeId) is None:
            return _("The volume was removed while it was segmented.")
        if self.target.node is None:
            return _("The segment was removed while it was written.")
        if otherRepresentation(self.target.node):
            return _("The segmentation is no longer stored as a binary labelmap; run again.")
        if any(nodeById(node.GetID() or "") is None for node in self.centerlineNodes):
            return _("The clicks were removed while they were used.")
        if not snapshot.isCurrent():
            return _("The volume changed while it was segmented; run again.")
        if not self.target.isInPlace(snapshot):
            return _("The segmentation was moved while it was written; run again.")
        return ""


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
        served: name of the volume of the latest result in the worker.
        mark: state of the segment that was seen last, see ``target.MARK_TAG``.
        halfWritten: the way of a run that ended because the segment was removed; what it wrote may come back.
    """

    history: History = field(default_factory=History)
    job: SegmentationJob | None = None
    lastClicks: Clicks | None = None
    startedClicks: Clicks | None = None
    isIncomplete: bool = False
    served: str = ""
    mark: str | None = None
    halfWritten: ResultWriter | None = None

    @property
    def isRunning(self) -> bool:
        """Whether a run is under way."""
        return self.job is not None and not self.job.finished

    @property
    def hasNewClicks(self) -> bool:
        """Whether the nodes of the latest result have other clicks now."""
        if self.lastClicks is None:
            return True
        nodes = [node for nodeId, _markup in self.lastClicks if (node := nodeById(nodeId)) is not None]
        return usedClicks(snapshotClicks(nodes)) != usedClicks(self.lastClicks)

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``."""
        self.history.rename(renamed)
        if self.lastClicks is not None:
            self.lastClicks = renameClicks(self.lastClicks, renamed)
        if self.startedClicks is not None:
            self.startedClicks = renameClicks(self.startedClicks, renamed)
        if self.job is not None:
            self.job.writer.rename(renamed)
