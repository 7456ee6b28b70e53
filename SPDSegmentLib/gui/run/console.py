"""Segmentation for scripts in Slicer's Python console; no dialog is ever shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SPDSegmentLib.batch.cases import Cases
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseSegmenter
from SPDSegmentLib.errors import BadInput

from ..scene.target import makeTarget
from .job import SegmentationJob
from .segmenter import Segmenter
from .task import Task, VolumeView, findModel
from .worker_host import WorkerHost, slicerTransport

Centerlines = Any


class Console:
    """``segment`` blocks, ``start`` returns at once, ``segmentBatch`` goes through many cases."""

    def __init__(self) -> None:
        self.workerHost = WorkerHost(slicerTransport)
        self.segmenter = Segmenter(self.workerHost, qt.QTimer.singleShot)

    def segment(self, volumeNode: Any, centerlineNode: Centerlines, model: str, **options: Any) -> Any:
        """Segment and return the segmentation node; see :meth:`start` for the arguments and errors.

        It blocks, and a segmentation that it made is removed if it fails.
        """
        task = self._task(volumeNode, centerlineNode, model, **options)
        try:
            return self.segmenter.start(task, blocking=True).wait()
        except BaseException:
            if options.get("segmentation") is None and task.target.node is not None:
                task.target.removeNode()
            raise

    def start(self, volumeNode: Any, centerlineNode: Centerlines, model: str, **options: Any) -> SegmentationJob:
        """Start a segmentation and return its job: ``cancel()``, ``finished``, ``progress``, ``result``.

        Args:
            volumeNode: scalar volume.
            centerlineNode: point list or open curve, or a list of them.
            model: name or folder of a bundle.
            options: ``segmentation`` (node), ``segmentId``, ``axis``, ``device``, ``prompts``.

        Raises:
            SPDError: what was given cannot be segmented.
        """
        return self.segmenter.start(self._task(volumeNode, centerlineNode, model, **options))

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
        """
        unknown = sorted(set(options) - {"axis", "device", "prompts"})
        if unknown:
            raise BadInput(
                _("A batch has no option {name}.").format(name=unknown[0]),
                _("Its options are axis, device and prompts."),
            )
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
        from ..scene.centerlines import checkClicks
        from ..scene.volumes import takeSnapshot

        entry = findModel(model, remote=self.workerHost.isRemote)
        takeSnapshot(volumeNode, axis)
        nodes = list(centerlineNode) if isinstance(centerlineNode, (list, tuple)) else [centerlineNode]
        checkClicks([node for node in nodes if node is not None])
        target = makeTarget(segmentation, segmentId, volumeNode, entry.structure, entry.color, entry.terminology)
        return Task(VolumeView(volumeNode, entry, device, axis), nodes, target, prompts)
