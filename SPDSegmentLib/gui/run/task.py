"""What is to be segmented with which model, where the result goes, and what is remembered of each segment."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slicer.i18n import tr as _

from SPDSegmentLib.batch.cases import BatchModel, batch_model
from SPDSegmentLib.errors import ModelMissing, SPDError
from SPDSegmentLib.models.bundle import Bundle, find_bundle, list_bundles, origin_note

from ..scene.centerlines import Clicks, renameClicks, snapshotClicks, usedClicks, usedPlaces
from ..scene.editor_nodes import otherRepresentation
from ..scene.target import SegmentTarget
from ..scene.volumes import VolumeSnapshot, nodeById, slicesBeside, takeSnapshot, voxelState
from ..scene.write_record import WriteRecord
from .job import History, SegmentationJob, State, isSameStack
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
    """Return a model by name or folder; with ``remote`` the worker is told what was given, known here or not.

    Raises:
        ModelMissing: no name was given, or there is no such bundle here.
        ModelCorrupt: the bundle is damaged.
    """
    if not name:
        remedy = _("Name one that the worker has.") if remote else _("Choose a model; Set-up shows how to get one.")
        raise ModelMissing(_("No model was chosen."), remedy)
    try:
        entry = _entry(find_bundle(name))
    except SPDError:
        if not remote:
            raise
        return ModelEntry(name, name, name.partition("?")[0], digest=f"name:{name}", title=name)
    return replace(entry, key=str(name), info=None, digest=f"name:{name}") if remote else entry


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

    @property
    def slicingAxis(self) -> str:
        """The axis that is used: the model's where none was chosen."""
        return self.model.axis if self.axis == "auto" else self.axis

    def snapshot(self) -> VolumeSnapshot:
        """The present state of the volume."""
        return takeSnapshot(self.volumeNode, self.slicingAxis)

    def cutsAlong(self, axis: str) -> bool:
        """Whether an axis, perhaps by another name, gives the same slices."""
        if axis == self.slicingAxis:
            return True
        try:
            own, others = (takeSnapshot(self.volumeNode, name).stack for name in (self.slicingAxis, axis))
        except SPDError:
            return False
        return (own.order, own.flips) == (others.order, others.flips)

    def isLike(self, other: VolumeView) -> bool:
        """Whether both are the same slices of one volume under the same model."""
        own, others = ((v.volumeNode, v.model.key, v.slicingAxis) for v in (self, other))
        return own == others


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
        """Identifies the segment, as ``SegmentTarget.key``."""
        return self.target.key

    def differences(self, served: str = "", *, hasLesson: bool = True) -> set[str]:
        """Which of ``model``, ``volume``, ``axis``, ``voxels`` the segment's result did not come of; none without one.

        Args:
            served: see ``SegmentMemory``; the voxels of a result of an earlier session are not known, but their place.
            hasLesson: whether the worker still has what corrections taught; else ``lesson`` where the result needs it.
        """
        record = self.target.record
        if not record.model:
            return set()
        nodeId = self.volumeNode.GetID()
        isChanged = served.startswith(f"{nodeId}|") and not served.startswith(f"{voxelState(self.volumeNode)}|")
        isMoved = record.volumeId == nodeId and self.target.isPlaced and not self.writtenSnapshot(record).volumeId
        isOther = {
            "model": record.model != self.view.model.name,
            "volume": record.volumeId not in ("", nodeId),
            "axis": not self.view.cutsAlong(record.axis),
            "voxels": isChanged or isMoved,
            "lesson": bool(record.learned) and record.model == self.view.model.name and not hasLesson,
        }
        return {name for name, differs in isOther.items() if differs}

    def writtenSnapshot(self, record: WriteRecord | None = None) -> VolumeSnapshot:
        """The slices for which the segment's record holds, as they lie now.

        Args:
            record: that of the segment, where it is at hand: reading it takes some milliseconds.
        """
        record = record or self.target.record
        if record.grid is None and not record.model:
            return self.view.snapshot()
        return self.target.writtenSnapshot(record, self.volumeNode)

    def present(self, seen: tuple[WriteRecord, dict[int, str]] | None = None) -> tuple[WriteRecord, dict[int, str]]:
        """Return the segment's record, for its slices as they lie now, and their checksums, or those that were seen."""
        record = self.target.record
        if seen is not None and isSameStack(record, seen[0]):
            return replace(record, grid=seen[0].grid), seen[1]
        written = self.writtenSnapshot(record)
        if record.grid is not None:
            record.grid = self.target.gridOf(written)
        return record, self.target.digests(written)

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


@dataclass
class SegmentMemory:
    """One segment, for as long as its scene is open.

    Attributes:
        task: the latest one for it, or of a run that changed it too; None where its volume is gone.
        history: states of mask and clicks.
        job: the run under way.
        lastClicks: of the latest result, None before the first and where somebody else wrote it.
        startedClicks: of the run that was started last.
        startedEdits: when voxels were edited last as it was started, see ``editor_nodes.editTimes``.
        isIncomplete: whether the next run has to send all slices.
        isCut: whether a run of another segment took voxels; they come back where this is run again as it is, while a
            changed click goes on changing only what it can reach.
        served: name of the volume of the latest result in the worker.
        mark: state of the segment that was seen last, see ``target.MARK_TAG``.
        halfWritten: the way of a run that ended because the segment was removed; what it wrote may come back.
        released: slices that were a person's, since the latest result; undo of the next run makes them so again.
        otherGrids: records for slices that cross those of now, with what a person edited in them.
    """

    task: Task | None = None
    history: History = field(default_factory=History)
    job: SegmentationJob | None = None
    lastClicks: Clicks | None = None
    startedClicks: Clicks | None = None
    startedEdits: Mapping[str, int] = field(default_factory=dict)
    isIncomplete: bool = False
    isCut: bool = False
    served: str = ""
    mark: str | None = None
    halfWritten: ResultWriter | None = None
    released: set[int] = field(default_factory=set)
    otherGrids: list[WriteRecord] = field(default_factory=list)

    @property
    def isRunning(self) -> bool:
        """Whether a run is under way."""
        return self.job is not None and not self.job.finished

    @property
    def newClicks(self) -> float:
        """How many clicks are in the nodes of the latest result that it did not come of; infinite without a result."""
        if self.lastClicks is None:
            return math.inf
        nodes = [node for nodeId, _markup in self.lastClicks if (node := nodeById(nodeId)) is not None]
        return len(usedPlaces(snapshotClicks(nodes)) - usedPlaces(self.lastClicks))

    def areOther(self, clicks: Clicks) -> bool:
        """Whether clicks differ from those of the run under way, or else of the latest result."""
        last = self.startedClicks if self.job is not None else self.lastClicks
        return last is None or usedClicks(last) != usedClicks(clicks)

    def knownOn(self, record: WriteRecord) -> WriteRecord | None:
        """Return what is remembered of the slices of a record."""
        return next((kept for kept in self.otherGrids if isSameStack(kept, record)), None)

    def withReleased(self, record: WriteRecord) -> WriteRecord:
        """Return a copy of a record in which what was released since the latest result is a person's again."""
        return replace(record.copy(), owned=record.owned | self.released)

    def stateOf(self, task: Task, mark: str, record: WriteRecord, digests: Mapping[int, str]) -> State | None:
        """Return the latest state of this mark that the segment has now, voxel for voxel, each on its own slices.

        Args:
            task: for the segment.
            mark: the segment's.
            record: the segment's, which holds on its slices.
            digests: of these.
        """
        seen = [(record, digests)]
        for state in self.history.of(mark):
            present = next((found for known, found in seen if isSameStack(known, state.record)), None)
            if present is None:
                present = task.target.digests(task.writtenSnapshot(state.record))
                seen.append((state.record, present))
            if present == state.digests:
                return state
        return None

    def noteEdits(self, record: WriteRecord, digests: Mapping[int, str]) -> None:
        """Make what a person edited a person's in a record, and what undo has brought back a run's."""
        ours = self.history.givenBack(self.mark or "", record, digests)
        record.release(ours, digests)
        self.released -= ours
        record.noteEdits(digests)

    def rememberBefore(self, task: Task, writer: ResultWriter, former: WriteRecord | None) -> None:
        """Remember the state to which undo of a run leads, with what was released since.

        Args:
            task: of the run.
            writer: the run's way into the segment, which has begun.
            former: what :func:`adoptGrid` returned.
        """
        record, digests = writer.record, writer.digestsBefore
        if former is not None:
            record, digests = former, task.target.digests(task.writtenSnapshot(former))
            record.noteEdits(digests)
        clicks = (self.startedClicks or ()) if self.lastClicks is None else self.lastClicks
        lists = record.lists or tuple(nodeId for nodeId, _markup in clicks)
        self.history.remember(task.target.mark, digests, clicks, replace(self.withReleased(record), lists=lists))

    def crossingNote(self, record: WriteRecord) -> str:
        """Say why slices are kept that nobody touched: those that a person edited lie across them; empty if not so."""
        axes = sorted({kept.axis for kept in self.otherGrids if kept.owned and kept.axis != record.axis})
        if not record.owned or not axes:
            return ""
        text = _("Slices edited along another axis ({axes}) cross all that were kept; choose it to update the others.")
        return str(text.format(axes=", ".join(axes)))

    def noteOtherGrids(self, task: Task, *, isOurs: bool) -> None:
        """Take in what changed in the slices that cross those of now: it is a run's, or a person's."""
        for record in self.otherGrids:
            digests = task.target.digests(task.writtenSnapshot(record))
            if isOurs:
                record.noteWritten(record.findEdits(digests) - record.owned, digests)
            else:
                record.noteEdits(digests)

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``."""
        self.history.rename(renamed)
        if self.lastClicks is not None:
            self.lastClicks = renameClicks(self.lastClicks, renamed)
        if self.startedClicks is not None:
            self.startedClicks = renameClicks(self.startedClicks, renamed)
        if self.job is not None:
            self.job.writer.rename(renamed)


def letGo(memories: Iterable[SegmentMemory]) -> None:
    """Hold no volume that is gone from the scene."""
    for memory in memories:
        if memory.task and nodeById(memory.task.volumeNode.GetID() or "") is not memory.task.volumeNode:
            memory.task = None


def adoptGrid(task: Task, snapshot: VolumeSnapshot, memory: SegmentMemory) -> WriteRecord | None:
    """Translate the record of a segment to the slices of the volume that is segmented now.

    Where a person edited slices that cross these, everything here is a person's; the former record is remembered, so
    that back on its slices no others are.

    Returns:
        The former record where a result holds for other slices or is that of another volume, otherwise None.
    """
    target = task.target
    record, grid = target.record, target.gridOf(snapshot)
    former = record.copy()
    if record.axis == snapshot.axis and (record.grid is None or record.grid.fits(grid)):
        if (record.volumeId, record.grid) != (snapshot.nodeId, grid):
            record.volumeId, record.grid = snapshot.nodeId, grid
            target.saveRecord(record)
        return former if former.model and former.volumeId not in ("", snapshot.nodeId) else None
    old = task.writtenSnapshot(record)
    edited = record.owned | record.findEdits(target.digests(old))
    digests = target.digests(snapshot)
    new = WriteRecord(axis=snapshot.axis, model=record.model, volumeId=snapshot.nodeId, grid=grid)
    beside, known = slicesBeside(old.stack, snapshot.stack, edited), memory.knownOn(new)
    if beside is not None:
        new.owned = beside
        new.noteWritten(set(digests) - beside, digests)
    elif not edited:
        new.noteWritten(digests, digests)
        memory.otherGrids.clear()
    else:
        if known is not None:
            new.written, new.owned = dict(known.written), set(known.owned)
            new.noteEdits(digests)
        memory.otherGrids = [kept for kept in memory.otherGrids if not isSameStack(kept, record)]
        memory.otherGrids.append(replace(former.copy(), owned=set(edited)))
    target.saveRecord(new)
    memory.isIncomplete = True
    return former if former.model else None
