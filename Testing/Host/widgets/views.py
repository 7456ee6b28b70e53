"""Behavior of slice and 3-D view widgets: they show off-screen pictures and pass mouse events on."""

from __future__ import annotations

from typing import Any

from ..runtime import qt, slicer, vtk
from .behavior import Behavior

_PRESSED = {1: "LeftButtonPressEvent", 2: "RightButtonPressEvent", 4: "MiddleButtonPressEvent"}
_RELEASED = {1: "LeftButtonReleaseEvent", 2: "RightButtonReleaseEvent", 4: "MiddleButtonReleaseEvent"}


class ctkVTKAbstractView(Behavior):
    """A widget that shows an off-screen view; `_attach` gives it the view.

    Nobody watches the screen: a picture that is due is drawn when somebody looks at it, moves the pointer over it or
    measures the time that drawing takes (`_draw_due`), and at the end of a test; not at every change in between.
    """

    _defaults_ = {"renderEnabled": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._view: Any = None
        self._picture: qt.QImage | None = None
        self._paused = 0
        self._frames = 0
        self._due = False
        self._watched = False
        self.setMouseTracking(True)
        self.setFocusPolicy(qt.Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(80, 80)
        self._timer = qt.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._draw_due)

    def _attach(self, view: Any) -> None:
        self._view = view
        view.managers.AddObserver(vtk.vtkCommand.UpdateEvent, lambda *_: self.scheduleRender())
        view.logic.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self.scheduleRender())
        self.scheduleRender()

    def scheduleRender(self) -> None:
        """Draw when somebody looks; when the event loop is idle while the view is watched."""
        self._due = True
        if self._watched and not self._timer.isActive():
            self._timer.start(0)

    def _watch(self, watched: bool) -> None:
        """Draw at once what is due and every change from now on, or only what somebody looks at."""
        self._watched = watched
        self._draw_due()

    def forceRender(self) -> None:
        """Draw now."""
        self._due = False
        self._view.render()
        pixels = self._view.pixels()
        height, width, _ = pixels.shape
        layout = qt.QImage.Format.Format_RGB888
        self._picture = qt.QImage(pixels.data, width, height, 3 * width, layout).copy()
        self._frames += 1
        self.update()

    def pauseRender(self) -> None:
        """Draw nothing until `resumeRender`."""
        self._paused += 1

    def resumeRender(self) -> None:
        """Draw again."""
        self._paused = max(0, self._paused - 1)
        self.scheduleRender()

    def isRenderPaused(self) -> bool:
        """Tell whether drawing is paused."""
        return self._paused > 0

    def renderWindow(self) -> Any:
        """Return the VTK render window."""
        return self._view.window

    def interactor(self) -> Any:
        """Return the VTK interactor."""
        return self._view.interactor

    def interactorStyle(self) -> Any:
        """Return the interactor style of MRML."""
        return self._view.style

    def _draw_due(self) -> None:
        if self._due and self.isVisible() and not self._paused:
            self.forceRender()

    def paintEvent(self, event: qt.QPaintEvent) -> None:
        """Show the last picture."""
        painter = qt.QPainter(self)
        if self._picture is not None:
            painter.drawImage(0, 0, self._picture)
        painter.end()

    def showEvent(self, event: qt.QShowEvent) -> None:
        """Draw what changed while the widget was hidden."""
        self.scheduleRender()

    def resizeEvent(self, event: qt.QResizeEvent) -> None:
        """Draw at the new size."""
        if self._view is not None:
            self._view.resize(max(1, self.width), max(1, self.height))
            self.scheduleRender()

    def _send(self, event: Any, *names: str) -> None:
        self._draw_due()  # pointer and picture belong together
        position = event.position()
        keys = event.modifiers()
        control = int(bool(keys & qt.Qt.KeyboardModifier.ControlModifier))
        shift = int(bool(keys & qt.Qt.KeyboardModifier.ShiftModifier))
        height = self._view.window.GetSize()[1]
        interactor = self._view.interactor
        interactor.SetEventInformation(int(position.x()), height - 1 - int(position.y()), control, shift)
        for name in names:
            interactor.InvokeEvent(name)

    def mouseMoveEvent(self, event: qt.QMouseEvent) -> None:
        """Pass a movement on."""
        self._send(event, "MouseMoveEvent")

    def mousePressEvent(self, event: qt.QMouseEvent) -> None:
        """Pass a press on; the position is known from a movement first."""
        self._send(event, "MouseMoveEvent", _PRESSED[int(event.button())])

    def mouseReleaseEvent(self, event: qt.QMouseEvent) -> None:
        """Pass a release on."""
        self._send(event, _RELEASED[int(event.button())])

    def wheelEvent(self, event: qt.QWheelEvent) -> None:
        """Pass a turn of the wheel on."""
        forward = event.angleDelta().y() > 0
        self._send(event, "MouseWheelForwardEvent" if forward else "MouseWheelBackwardEvent")

    def enterEvent(self, event: qt.QEvent) -> None:
        """The pointer came in."""
        self._view.interactor.InvokeEvent("EnterEvent")

    def leaveEvent(self, event: qt.QEvent) -> None:
        """The pointer went out."""
        self._view.interactor.InvokeEvent("LeaveEvent")


class qMRMLSliceView(Behavior):
    """The picture of one slice view."""

    def mrmlSliceNode(self) -> Any:
        """Return the slice node."""
        return self._view.node

    def sliceViewInteractorStyle(self) -> Any:
        """Return the interactor style."""
        return self._view.style

    def convertRASToXYZ(self, ras: list[float]) -> list[float]:
        """Convert patient mm to view coordinates."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._view.node.GetXYToRAS(), inverse)
        return list(inverse.MultiplyPoint((*ras, 1.0))[:3])

    def convertXYZToRAS(self, xyz: list[float]) -> list[float]:
        """Convert view coordinates to patient mm."""
        return list(self._view.node.GetXYToRAS().MultiplyPoint((*xyz, 1.0))[:3])

    def displayableManagerByClassName(self, name: str) -> Any:
        """Return a displayable manager of the view."""
        return self._view.managers.GetDisplayableManagerByClassName(name)


class qMRMLSliceWidget(Behavior):
    """A slice view with its controls."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self._slice_view = self._host_factory_.create("qMRMLSliceView")
        layout.addWidget(self._slice_view)

    def _attach(self, view: Any) -> None:
        self._view = view
        self._slice_view._attach(view)

    def sliceView(self) -> Any:
        """Return the view."""
        return self._slice_view

    def sliceLogic(self) -> Any:
        """Return the slice logic."""
        return self._view.logic

    def mrmlSliceNode(self) -> Any:
        """Return the slice node."""
        return self._view.node

    def mrmlSliceCompositeNode(self) -> Any:
        """Return the node that names the shown volumes."""
        return self._view.logic.GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        """Fit the slice to the background volume."""
        self._view.logic.FitSliceToBackground()

    def interactorStyle(self) -> Any:
        """Return the interactor style."""
        return self._view.style

    def _read_sliceViewName(self) -> str:
        return self._view.node.GetLayoutName()

    def _read_sliceOrientation(self) -> str:
        return self._view.node.GetOrientation()

    def setSliceOrientation(self, orientation: str) -> None:
        """Turn the slice."""
        self._view.node.SetOrientation(orientation)


class qMRMLThreeDView(Behavior):
    """The picture of one 3-D view."""

    def mrmlViewNode(self) -> Any:
        """Return the view node."""
        return self._view.node

    def cameraNode(self) -> Any:
        """Return the camera node of the view."""
        return slicer.modules.cameras.logic().GetViewActiveCameraNode(self._view.node)

    def resetFocalPoint(self) -> None:
        """Look at the middle of what is shown."""
        self._view.renderer.ResetCamera()
        self.scheduleRender()

    def resetCamera(self, *_options: bool) -> None:
        """Show everything."""
        self._view.renderer.ResetCamera()
        self.scheduleRender()


class qMRMLThreeDWidget(Behavior):
    """A 3-D view with its controls."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._threed_view = self._host_factory_.create("qMRMLThreeDView")
        layout.addWidget(self._threed_view)

    def _attach(self, view: Any) -> None:
        self._view = view
        self._threed_view._attach(view)

    def threeDView(self) -> Any:
        """Return the view."""
        return self._threed_view

    def mrmlViewNode(self) -> Any:
        """Return the view node."""
        return self._view.node

    def viewLogic(self) -> Any:
        """Return the view logic."""
        return self._view.logic
