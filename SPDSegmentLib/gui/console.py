"""Segmentation for scripts in Slicer's Python console; no dialog is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer

from SPDSegmentLib import __version__

from .batch import Cases, runBatch
from .job import Job
from .models import findModel
from .qprocess_transport import slicerTransport
from .segmenter import Segmenter
from .target import makeTarget
from .task import Task, View
from .worker_host import WorkerHost

Centerlines = Any


class Console:
    """``segment`` blocks, ``start`` returns at once, ``segmentBatch`` goes through many cases."""

    def __init__(self) -> None:
        self.workerHost = WorkerHost(slicerTransport, __version__)
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
                slicer.mrmlScene.RemoveNode(task.target.node)
            raise

    def start(self, volumeNode: Any, centerlineNode: Centerlines, model: str, **options: Any) -> Job:
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

        A case that fails is a line of the report and does not stop the others.

        Args:
            cases: ``BatchCase`` or (name, image file, points file) of each; or a CSV file with the columns name, image
                and points.
            outputFolder: gets ``<name>.seg.nrrd`` of each case, ``report.csv`` and ``report.json``.
            model: name or folder of a bundle.
            resume: skip the cases that were finished with the same files, model and options.
            options: ``axis``, ``device``, ``prompts``; see :meth:`start`.

        Raises:
            BadInput: a bad list of cases, or the folder cannot be written.
            ModelMissing, ModelCorrupt: the model cannot be used at all.
        """
        findModel(model, remote=self.workerHost.isRemote)

        def segment(volumeNode: Any, centerlineNodes: list[Any]) -> Any:
            self.workerHost.client.reset()  # workers that died on other cases do not count
            return self.segment(volumeNode, centerlineNodes, model, **options)

        settings = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
        try:
            return runBatch(segment, cases, Path(outputFolder), model, resume=resume, settings=settings)
        finally:
            self.workerHost.forgetVolumes()

    def close(self) -> None:
        """Cancel what runs and end the worker."""
        self.segmenter.cancelAll(urgent=False)
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
        from .centerlines import checkClicks
        from .volumes import takeSnapshot

        entry = findModel(model, remote=self.workerHost.isRemote)
        takeSnapshot(volumeNode, axis)
        nodes = list(centerlineNode) if isinstance(centerlineNode, (list, tuple)) else [centerlineNode]
        checkClicks([node for node in nodes if node is not None])
        target = makeTarget(segmentation, segmentId, volumeNode, entry.structure, entry.color, entry.terminology)
        return Task(View(volumeNode, entry, device, axis), nodes, target, prompts)
