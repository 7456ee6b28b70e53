"""Segmentation for scripts in Slicer's Python console; no dialog is ever shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SPDSegmentLib.batch.cases import Cases
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseSegmenter
from SPDSegmentLib.errors import BadInput

from ..scene.centerlines import checkClicks
from ..scene.editor_nodes import checkNodes, isEmptySegment, segmentName, segmentNames
from ..scene.target import SegmentTarget, makeTarget
from ..scene.volumes import takeSnapshot
from .job import JobState, SegmentationJob
from .segmenter import Segmenter
from .task import Task, VolumeView, findModel
from .worker_host import WorkerHost, slicerTransport

Centerlines = Any
OPTIONS = ("segmentation", "segmentId", "axis", "device", "prompts")


@dataclass(frozen=True)
class MadeSegment:
    """A segment that was made for a run to write into.

    Attributes:
        target: the segment.
        name: its name.
        withNode: whether its segmentation was made, too.
    """

    target: SegmentTarget
    name: str
    withNode: bool

    @property
    def isUnused(self) -> bool:
        """Whether it is there as it was made: nobody has written or painted into it, or named it."""
        node, segmentId = self.target.node, self.target.segmentId
        return node is not None and self.name == segmentName(node, segmentId) and isEmptySegment(node, segmentId)

    def remove(self) -> None:
        """Take it away, with its segmentation where that holds nothing else and was made with it."""
        node = self.target.node
        if self.withNode and len(segmentNames(node)) == 1:
            self.target.removeNode()
        else:
            node.GetSegmentation().RemoveSegment(self.target.segmentId)


class Console:
    """``segment`` blocks, ``start`` returns at once, ``segmentBatch`` goes through many cases."""

    def __init__(self) -> None:
        self.workerHost = WorkerHost(slicerTransport)
        self.segmenter = Segmenter(self.workerHost, qt.QTimer.singleShot)

    def segment(self, volumeNode: Any, centerlineNode: Centerlines, model: str, **options: Any) -> Any:
        """Segment and return the segmentation node; it blocks. See :meth:`start` for the arguments and errors."""
        job = self._start(volumeNode, centerlineNode, model, options, blocking=True)
        try:
            return job.wait()
        finally:
            job.cancel(urgent=False)  # where it was interrupted

    def start(self, volumeNode: Any, centerlineNode: Centerlines, model: str, **options: Any) -> SegmentationJob:
        """Start a segmentation and return its job: ``cancel()``, ``finished``, ``progress``, ``result``.

        A segment or segmentation that was made for it is taken away where it fails or is cancelled.

        Args:
            volumeNode: scalar volume.
            centerlineNode: point list or open curve, or a list of them.
            model: name or folder of a bundle.
            options: ``segmentation`` (node), ``segmentId`` (of a segment of it, by default a new one), ``axis``,
                ``device``, ``prompts``.

        Raises:
            SPDError: what was given cannot be segmented.
        """
        return self._start(volumeNode, centerlineNode, model, options, blocking=False)

    def segmentBatch(
        self, cases: Cases, outputFolder: str | Path, model: str, *, resume: bool = True, **options: Any
    ) -> dict[str, Any]:
        """Segment many cases to files and return the report, which is also written as CSV and JSON.

        A case that fails is a line of the report and does not stop the others. No node is made.

        Args:
            cases: ``batch.cases.BatchCase`` or (name, image, points) of each, or a table with the columns name, image
                and points; images and points as ``spdsegment segment`` takes them, DICOM folders too.
            outputFolder: gets ``<name>.seg.nrrd`` of each case, ``report.csv`` and ``report.json``.
            model: name or folder of a bundle.
            resume: skip the cases whose result was made of the same image, clicks, model, version and options.
            options: ``axis`` (by default the model's own plane), ``device``, ``prompts``; see :meth:`start`.

        Raises:
            BadInput: a bad list of cases, or the folder cannot be used or is in use.
            ModelMissing, ModelCorrupt: the model cannot be used at all.
            DeviceUnavailable, DependencyMissing, WorkerDied: nor the worker, for any case.
        """
        _checkOptions("segmentBatch", options, OPTIONS[2:])
        entry = replace(findModel(model, remote=self.workerHost.isRemote), info=None)
        settings = BatchSettings(**options)
        run = BatchRun(
            lambda stopped: CaseSegmenter(self.workerHost.client, entry, settings, stopped),
            Path(outputFolder),
            entry,
            settings,
            resume=resume,
        )
        return run(cases)

    def close(self) -> None:
        """Cancel what runs and end the worker."""
        self.segmenter.cancelAll(urgent=False)
        self.segmenter.surfaces.close()
        self.workerHost.close()

    def _start(
        self, volumeNode: Any, centerlineNode: Centerlines, model: str, options: Mapping[str, Any], *, blocking: bool
    ) -> SegmentationJob:
        _checkOptions("segment" if blocking else "start", options, OPTIONS)
        node = options.get("segmentation")
        checkNodes(volumeNode, _listed(centerlineNode), node)
        known = {segmentId for _name, segmentId in segmentNames(node)}
        task = self._task(volumeNode, centerlineNode, model, **options)
        target = task.target
        made = MadeSegment(target, segmentName(target.node, target.segmentId), node is None)
        isMade = target.segmentId not in known

        def drop() -> None:
            if isMade and made.isUnused and not self.segmenter.isBusy(target.node, target.segmentId):
                made.remove()

        def onFinished(job: SegmentationJob) -> None:
            if job.state is not JobState.DONE and blocking:
                drop()
            elif job.state is not JobState.DONE:
                qt.QTimer.singleShot(0, drop)  # another run may be about to take its place

        try:
            job = self.segmenter.start(task, blocking=blocking)
        except BaseException:
            drop()
            raise
        job.onFinished.connect(onFinished)
        return job

    def _task(
        self,
        volumeNode: Any,
        centerlineNode: Centerlines,
        model: str,
        *,
        segmentation: Any = None,
        segmentId: str = "",
        axis: str = "auto",
        device: str = "auto",
        prompts: str = "consensus",
    ) -> Task:
        entry = findModel(model, remote=self.workerHost.isRemote)
        takeSnapshot(volumeNode, axis)
        nodes = [node for node in _listed(centerlineNode) if node is not None]
        checkClicks(nodes)
        _checkSegment(segmentation, segmentId)
        target = makeTarget(segmentation, segmentId, volumeNode, entry.structure, entry.color, entry.terminology)
        return Task(VolumeView(volumeNode, entry, device, axis), nodes, target, prompts)


def _checkOptions(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BadInput(
            _("{call} has no option {name}.").format(call=call, name=unknown[0]),
            _("Its options are {known}.").format(known=", ".join(known)),
        )


def _listed(centerlines: Centerlines) -> list[Any]:
    return list(centerlines) if isinstance(centerlines, (list, tuple)) else [centerlines]


def _checkSegment(segmentationNode: Any, segmentId: str) -> None:
    """Refuse an ID that no segment has: a new segment is made only where none is given."""
    named = {own: f"{own} ({name})" for name, own in segmentNames(segmentationNode)}
    if segmentId and segmentId not in named:
        raise BadInput(
            _("There is no segment with the ID {id}.").format(id=segmentId),
            _("Give one of {ids}, or no segmentId for a new segment.").format(ids=", ".join(named.values()))
            if named
            else _("Give the segmentation that has it, or no segmentId for a new segment."),
        )
