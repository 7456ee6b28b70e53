"""The panel: hands widgets and settings to its sections and passes events between them."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.util import VTKObservationMixin

from .console import Console
from .inputs_section import InputsSection
from .run_section import RunSection
from .state import ModuleState


class ModulePanel(VTKObservationMixin):
    """Owns the sections of the panel; they end with :meth:`cleanup`."""

    def __init__(self, widget: Any, ui: Any, logic: Console) -> None:
        VTKObservationMixin.__init__(self)
        self.widget = widget
        self.ui = ui
        self.logic = logic
        self.state = ModuleState(logic.getParameterNode())  # type: ignore[attr-defined]
        self.inputs = InputsSection(ui, lambda: self.state, self._inputsChanged)
        self.run = RunSection(ui, logic, self.inputs, lambda: self.state)
        self.isClosing = False
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self._onSceneEnd)
        self.addObserver(scene, scene.EndImportEvent, self._onSceneEnd)
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodesChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodesChanged)
        self.inputs.fill()
        self.run.refresh()

    def enter(self) -> None:
        """Show what the scene has now."""
        self.inputs.fill()
        self.run.refresh()

    def exit(self) -> None:
        """Stop placing points."""
        self.ui.placeWidget.placeModeEnabled = False

    def cleanup(self) -> None:
        """Let go of the scene; what runs is cancelled."""
        self.isClosing = True
        self.run.close()
        self.removeObservers()

    def _inputsChanged(self) -> None:
        self.run.refresh()

    def _onSceneStartClose(self, caller: Any, event: str) -> None:
        self.isClosing = True
        self.run.forgetScene()

    def _onSceneEnd(self, caller: Any, event: str) -> None:
        self.isClosing = False
        self.state = ModuleState(self.logic.getParameterNode())  # type: ignore[attr-defined]
        self.inputs.fill()
        self.run.refresh()

    def _onNodesChanged(self, caller: Any, event: str) -> None:
        if not self.isClosing and not slicer.mrmlScene.IsBatchProcessing():
            self.run.refresh()
