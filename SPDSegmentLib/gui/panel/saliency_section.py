"""The check box that lays the saliency of the shown slice over the volume, and follows the view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vtk
from slicer.util import VTKObservationMixin

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.worker.client import Request
from SPDSegmentLib.worker.messages import SaliencyReady

from ..run.segmenter import Segmenter
from ..run.task import Task
from ..scene.centerlines import middleOfClicks
from ..scene.events import idleTimer
from ..scene.views import SaliencyOverlay, viewCenter, viewNode
from .inputs_section import InputsSection

FOLLOW_MS = 120


class SaliencySection(VTKObservationMixin):
    """Asks the worker for one slice at a time: the one that is shown."""

    def __init__(
        self, ui: Any, segmenter: Segmenter, inputs: InputsSection, showError: Callable[[SPDError], None]
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.overlay = SaliencyOverlay()
        self._segmenter = segmenter
        self._inputs = inputs
        self._showError = showError
        self._request: Request | None = None
        self._shown: tuple[str, int] | None = None
        self._timer = idleTimer(self.update, FOLLOW_MS)
        ui.saliencyCheck.connect("toggled(bool)", self._onToggled)

    def restart(self) -> None:
        """The inputs may have changed: follow their view and ask again if need be."""
        self.removeObservers()
        if not self.ui.saliencyCheck.checked:
            return
        view = self._inputs.currentView()
        node = viewNode(view.snapshot().stack.plane) if view is not None else None
        if node is not None:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._timer.start())
        self._timer.start()

    def update(self) -> None:
        """Ask for the slice that is shown, unless it is there already."""
        view = self._inputs.currentView()
        if not self.ui.saliencyCheck.checked or view is None:
            self.overlay.remove()
            return
        snapshot = view.snapshot()
        node = viewNode(snapshot.stack.plane)
        t = snapshot.sliceAt(viewCenter(node)) if node is not None else snapshot.grid.shape[0] // 2
        task = self._segmentedTask()
        center = task.target.record.anchorRas if task is not None else middleOfClicks(self._inputs.centerlineNodes)
        wanted = (f"{view.model.key}|{snapshot.volumeId}|{center}", t)
        if wanted == self._shown and self.overlay.node is not None:
            return
        self._stop()

        def answer(result: SaliencyReady | SPDError) -> None:
            if isinstance(result, SaliencyReady):
                if snapshot.isCurrent() and self.ui.saliencyCheck.checked:
                    self._shown = wanted
                    self.overlay.show(result.saliency, t, snapshot)
            elif not isinstance(result, Cancelled):
                self.ui.saliencyCheck.checked = False
                self._showError(result)

        try:
            self._request = self._segmenter.saliency(view, task, t, answer, center)
        except SPDError as error:
            answer(error)

    def close(self) -> None:
        """Take the layer away and ask no more."""
        self._timer.stop()
        self.removeObservers()
        self._stop()
        self._shown = None
        self.overlay.remove()
        self.ui.saliencyCheck.checked = False

    def _segmentedTask(self) -> Task | None:
        task = self._inputs.currentTask()
        return task if task is not None and task.target.record.model else None

    def _stop(self) -> None:
        request, self._request = self._request, None
        if request is not None and not request.finished:
            self._segmenter.workerHost.client.cancel(request, urgent=False)

    def _onToggled(self, on: bool) -> None:
        if on and self._inputs.currentView() is None:
            self.ui.saliencyCheck.checked = False
        elif on:
            self.restart()
        else:
            self.close()
