"""What is laid over the views: signs of the clicks' fates, saliency of the shown slice, and how the result looks.

The signs, also those around synthesized points, are drawn into the views and are no nodes: a point list in the scene
would become the one that is placed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.prompts.fates import SIGNS, PointFate
from SPDSegmentLib.worker.client import Request
from SPDSegmentLib.worker.messages import SaliencyReady

from ..run.segmenter import Segmenter
from ..run.task import Task
from ..scene.centerlines import middleOfClicks
from ..scene.state import ModuleState, idleTimer
from ..scene.surfaces import ShownSurfaces
from ..scene.volumes import SaliencyOverlay, viewCenter, viewNode
from .inputs_section import InputsSection

RADIUS_SHARE = 0.016
"""Of a sign, as share of the height of a slice view."""
MIN_RADIUS = 6.0
LINE_WIDTH = 2.0
POINT_SIZE = 12.0
OPACITY_3D = 0.5
BARS_MM = 7.0 * np.array([sign * axis for axis in np.eye(3) for sign in (-1, 1)])
"""Ends (6, 3) of the three bars of a cross in 3-D."""


def _polygon(corners: int, first_degrees: float) -> np.ndarray:
    """Ends (2 * corners, 3) of the sides of a regular polygon within the unit circle, one side after the other."""
    angles = np.radians(first_degrees) + np.linspace(0, 2 * np.pi, corners + 1)
    places = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(corners + 1)])
    return np.stack([places[:-1], places[1:]], axis=1).reshape(-1, 3)


OUTLINES = {
    "circle": _polygon(24, 0),
    "square": _polygon(4, 45),
    "triangle": _polygon(3, 90),
    "diamond": _polygon(4, 0),
    "cross": np.array([[-0.7, -0.7, 0], [0.7, 0.7, 0], [-0.7, 0.7, 0], [0.7, -0.7, 0]]),
}
"""Ends (2 n, 3) of the n bars of each shape's sign of radius 1 in a slice view."""


class FateMarks(VTKObservationMixin):
    """Follows the slice views; it ends with :meth:`remove`."""

    def __init__(self) -> None:
        VTKObservationMixin.__init__(self)
        self.fates: list[PointFate] = []
        self._slices: list[_SliceMarks] = []
        self._threeDs: list[_ThreeDMarks] = []
        self._positions = np.zeros((0, 3))
        self._colors = np.zeros((0, 3), dtype=np.uint8)
        self._shapes = np.zeros(0, dtype=object)
        manager = slicer.app.layoutManager()
        if manager is not None:
            manager.connect("layoutChanged(int)", self._onLayout)

    def show(self, fates: Iterable[PointFate]) -> None:
        """Show these fates and nothing else."""
        self.fates = [fate for fate in fates if fate.fate in SIGNS]
        self._positions = np.array([fate.position_ras for fate in self.fates], dtype=float).reshape(-1, 3)
        colors = np.array([SIGNS[fate.fate].color for fate in self.fates], dtype=float).reshape(-1, 3)
        self._colors = np.rint(255 * colors).astype(np.uint8)
        self._shapes = np.array([SIGNS[fate.fate].shape for fate in self.fates], dtype=object)
        if self.fates and not self._slices and not self._threeDs:
            self._attach()
        self._draw()

    def clear(self) -> None:
        """Take all marks out of the views, as when the scene closes."""
        self.fates = []
        self._detach()

    def remove(self) -> None:
        """Do the same for good."""
        manager = slicer.app.layoutManager()
        if manager is not None:
            manager.disconnect("layoutChanged(int)", self._onLayout)
        self.clear()

    def _attach(self) -> None:
        manager = slicer.app.layoutManager()
        if manager is None:
            return
        for name in manager.sliceViewNames():
            marks = _SliceMarks(manager.sliceWidget(name))
            self._slices.append(marks)
            self.addObserver(marks.node, vtk.vtkCommand.ModifiedEvent, self._onSlice)
        self._threeDs = [_ThreeDMarks(manager.threeDWidget(n).threeDView()) for n in range(manager.threeDViewCount)]

    def _detach(self) -> None:
        self.removeObservers()
        for marks in (*self._slices, *self._threeDs):
            marks.remove()
        self._slices = []
        self._threeDs = []

    def _draw(self) -> None:
        for marks in self._slices:
            marks.draw(self._positions, self._colors, self._shapes)
        for threeD in self._threeDs:
            threeD.draw(self._positions, self._colors, self._shapes)

    def _onSlice(self, caller: Any, event: str) -> None:
        for marks in self._slices:
            if marks.node is caller:
                marks.draw(self._positions, self._colors, self._shapes)

    def _onLayout(self, layout: int) -> None:
        self._detach()
        if self.fates:
            self._attach()
            self._draw()


class _Marks:
    """One actor in one view."""

    def __init__(self, view: Any, actor: Any, mapper: Any) -> None:
        self._view = view
        self._data = vtk.vtkPolyData()
        self._actor = actor
        mapper.SetInputData(self._data)
        actor.SetMapper(mapper)
        actor.PickableOff()
        actor.UseBoundsOff()
        self._renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        self._renderer.AddViewProp(actor)

    def remove(self) -> None:
        self._renderer.RemoveViewProp(self._actor)
        self._view.scheduleRender()

    def _fill(self, positions: np.ndarray, colors: np.ndarray) -> None:
        """Set points (n, 3) and their colors (n, 3)."""
        points = vtk.vtkPoints()
        points.SetData(numpy_to_vtk(np.ascontiguousarray(positions, dtype=np.float32), deep=True))
        self._data.SetPoints(points)
        self._data.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(colors), deep=True))
        self._view.scheduleRender()


class _SliceMarks(_Marks):
    """Rings of the points that lie in the slice which a view shows."""

    def __init__(self, widget: Any) -> None:
        actor = vtk.vtkActor2D()
        super().__init__(widget.sliceView(), actor, vtk.vtkPolyDataMapper2D())
        actor.GetProperty().SetLineWidth(LINE_WIDTH)
        self.node = widget.mrmlSliceNode()

    def draw(self, positions: np.ndarray, colors: np.ndarray, shapes: np.ndarray) -> None:
        """Draw the signs of points (n, 3) in world mm, with colors (n, 3) and shapes (n,)."""
        toXY = np.linalg.inv(slicer.util.arrayFromVTKMatrix(self.node.GetXYToRAS()))
        xyz = positions @ toXY[:3, :3].T + toXY[:3, 3]
        here = np.abs(xyz[:, 2]) < 0.5
        if not here.any() and not self._data.GetNumberOfPoints():
            return
        radius = max(MIN_RADIUS, RADIUS_SHARE * self.node.GetDimensions()[1])
        outlines = [OUTLINES[shape] * radius for shape in shapes[here]]
        ends = [center + outline for center, outline in zip(xyz[here] * (1.0, 1.0, 0.0), outlines, strict=True)]
        counts = [len(outline) for outline in outlines]
        self._data.SetLines(_cells(np.arange(sum(counts)).reshape(-1, 2)))
        self._fill(np.concatenate([np.zeros((0, 3)), *ends]), np.repeat(colors[here], counts, axis=0))


class _ThreeDMarks(_Marks):
    """A see-through ball around every point that was used, a cross of three bars where one was not."""

    def __init__(self, view: Any) -> None:
        actor = vtk.vtkActor()
        super().__init__(view, actor, vtk.vtkPolyDataMapper())
        actor.GetProperty().SetPointSize(POINT_SIZE)
        actor.GetProperty().SetLineWidth(LINE_WIDTH)
        actor.GetProperty().RenderPointsAsSpheresOn()
        actor.GetProperty().SetOpacity(OPACITY_3D)

    def draw(self, positions: np.ndarray, colors: np.ndarray, shapes: np.ndarray) -> None:
        """Draw points (n, 3) in world mm, with colors (n, 3) and shapes (n,)."""
        crossed = shapes == "cross"
        balls = np.arange(len(positions) - crossed.sum())
        ends = (positions[crossed][:, None] + BARS_MM).reshape(-1, 3)
        self._data.SetVerts(_cells(balls[:, None]))
        self._data.SetLines(_cells(len(balls) + np.arange(len(ends)).reshape(-1, 2)))
        self._fill(
            np.concatenate([positions[~crossed], ends]),
            np.concatenate([colors[~crossed], np.repeat(colors[crossed], len(BARS_MM), axis=0)]),
        )


def _cells(indexes: np.ndarray) -> Any:
    """Return cells (n, corners) of point indexes."""
    cells = vtk.vtkCellArray()
    offsets = np.arange(len(indexes) + 1) * indexes.shape[1]
    cells.SetData(numpy_to_vtkIdTypeArray(offsets, deep=True), numpy_to_vtkIdTypeArray(indexes.ravel(), deep=True))
    return cells


FOLLOW_MS = 120


class ResultDisplay(VTKObservationMixin):
    """Keeps *Show 3D*, outline, fill and opacity equal with what the scene shows; it ends with :meth:`close`."""

    def __init__(self, ui: Any, surfaces: ShownSurfaces, state: Callable[[], ModuleState]) -> None:
        VTKObservationMixin.__init__(self)
        self._ui = ui
        self._surfaces = surfaces
        self._state = state
        self._timer = idleTimer(self._refresh)
        ui.displayBox.addItem(_("Fill and outline"), (True, True))
        ui.displayBox.addItem(_("Outline"), (False, True))
        ui.displayBox.addItem(_("Fill"), (True, False))
        ui.show3DButton.connect("clicked(bool)", self._onShow3D)
        ui.displayBox.connect("activated(int)", self._onStyle)
        ui.opacitySlider.connect("valueChanged(int)", self._onOpacity)

    def follow(self) -> None:
        """Turn to the segmentation that is chosen now."""
        self.removeObservers()
        node = self._state().segmentationNode
        if node is not None:
            kinds = slicer.vtkSegmentation
            changes = (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.ContainedRepresentationNamesModified)
            for event in (*changes, node.DisplayModifiedEvent):
                self.addObserver(node, event, lambda caller, event: self._timer.start())
        self._refresh()

    def close(self) -> None:
        """Let go of the scene's nodes."""
        self._timer.stop()
        self.removeObservers()

    def _refresh(self) -> None:
        state, ui = self._state(), self._ui
        node, display = state.segmentationNode, self._display
        ui.show3DButton.enabled = node is not None and node.GetSegmentation().GetNumberOfSegments() > 0
        ui.show3DButton.checked = bool(ui.show3DButton.enabled and self._surfaces.isShown(node, state.segmentId))
        for widget in (ui.displayBox, ui.opacitySlider):
            widget.enabled = display is not None
        if display is not None:
            style = (bool(display.GetVisibility2DFill()), bool(display.GetVisibility2DOutline()))
            styles = [tuple(ui.displayBox.itemData(n)) for n in range(ui.displayBox.count)]
            ui.displayBox.currentIndex = styles.index(style) if style in styles else -1
            ui.opacitySlider.value = round(100 * display.GetOpacity())

    @property
    def _display(self) -> Any:
        node = self._state().segmentationNode
        return node.GetDisplayNode() if node is not None else None

    def _onShow3D(self, checked: bool) -> None:
        state = self._state()
        node = state.segmentationNode
        if node is None:
            return
        if checked:
            self._surfaces.show(node, state.segmentId)
        else:
            self._surfaces.hide(node)
        self._refresh()

    def _onStyle(self, index: int) -> None:
        display, style = self._display, self._ui.displayBox.itemData(index)
        if display is not None and style is not None:
            wasModifying = display.StartModify()
            display.SetVisibility2DFill(bool(style[0]))
            display.SetVisibility2DOutline(bool(style[1]))
            display.EndModify(wasModifying)

    def _onOpacity(self, percent: int) -> None:
        display = self._display
        if display is not None and round(100 * display.GetOpacity()) != percent:
            display.SetOpacity(percent / 100)


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
        node = viewNode(view.snapshot().stack) if view is not None else None
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
        node = viewNode(snapshot.stack)
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
