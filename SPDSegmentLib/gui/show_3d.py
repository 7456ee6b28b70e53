"""The button *Show 3D*: the result as a surface in the 3-D view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.util import VTKObservationMixin

from .shown_surfaces import ShownSurfaces
from .state import ModuleState
from .timers import idleTimer


class Show3D(VTKObservationMixin):
    """Keeps the button equal with what the scene shows; it ends with :meth:`close`."""

    def __init__(self, button: Any, surfaces: ShownSurfaces, state: Callable[[], ModuleState]) -> None:
        VTKObservationMixin.__init__(self)
        self._button = button
        self._surfaces = surfaces
        self._state = state
        self._timer = idleTimer(self._refresh)
        button.connect("clicked(bool)", self._onClicked)

    def follow(self) -> None:
        """Turn to the segmentation that is chosen now."""
        self.removeObservers()
        node = self._state().segmentationNode
        if node is not None:
            kinds = slicer.vtkSegmentation
            for event in (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.ContainedRepresentationNamesModified):
                self.addObserver(node, event, self._onChanged)
            self.addObserver(node, slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, self._onChanged)
        self._refresh()

    def close(self) -> None:
        """Let go of the scene's nodes."""
        self._timer.stop()
        self.removeObservers()

    def _refresh(self) -> None:
        state = self._state()
        node = state.segmentationNode
        self._button.enabled = node is not None and node.GetSegmentation().GetNumberOfSegments() > 0
        self._button.checked = bool(self._button.enabled and self._surfaces.isShown(node, state.segmentId))

    def _onChanged(self, caller: Any, event: str) -> None:
        self._timer.start()

    def _onClicked(self, checked: bool) -> None:
        state = self._state()
        node = state.segmentationNode
        if node is None:
            return
        if checked:
            self._surfaces.show(node, state.segmentId)
        else:
            self._surfaces.hide(node)
        self._refresh()
