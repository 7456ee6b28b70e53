"""Behavior of loaded modules, scripted and core, and of the main window."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..runtime import qt, slicer
from .behavior import Behavior


class qSlicerAbstractCoreModule(Behavior):
    """A core module: its name and its logic."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._logic: Any = None

    def _start(self, name: str, logic: Any) -> None:
        self._logic = logic
        values = self.__dict__.setdefault("_values_", {})
        values["name"] = values["title"] = name

    def logic(self) -> Any:
        """Return the module logic."""
        return self._logic

    def mrmlScene(self) -> Any:
        """Return the scene."""
        return slicer.mrmlScene


class qSlicerScriptedLoadableModule(Behavior):
    """A scripted module loaded from its file."""

    def _load(self, path: Path) -> ModuleType:
        name = path.stem
        values = self.__dict__.setdefault("_values_", {})
        values.update(name=name, path=str(path), categories=[], dependencies=[], contributors=[])
        self._panel: Any = None
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self._python_module = getattr(module, name)(self)
        setattr(slicer.modules, f"{name}Instance", self._python_module)
        setattr(slicer.modules, name.lower(), self)
        return module

    def widgetRepresentation(self) -> Any:
        """Return the panel, made at the first call."""
        if self._panel is None:
            self._panel = self._host_factory_.create("qSlicerScriptedLoadableModuleWidget")
            self._panel._start(self)
        return self._panel

    def createNewWidgetRepresentation(self) -> Any:
        """Return another panel."""
        panel = self._host_factory_.create("qSlicerScriptedLoadableModuleWidget")
        panel._start(self)
        return panel


class qSlicerScriptedLoadableModuleWidget(Behavior):
    """The panel of a scripted module and the Python object behind it."""

    def _start(self, module: Any) -> None:
        self._module = module
        self._python_widget: Any = None
        self._entered = False
        self.setLayout(qt.QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)
        self.reload()

    def reload(self) -> None:
        """Make the Python object again from the loaded code and set it up."""
        name = self._module.name
        self._python_widget = getattr(sys.modules[name], f"{name}Widget")(self)
        setattr(slicer.modules, f"{name}Widget", self._python_widget)
        self._python_widget.setup()

    def self(self) -> Any:
        """Return the Python object."""
        return self._python_widget

    def module(self) -> Any:
        """Return the module."""
        return self._module

    def enter(self) -> None:
        """The user turned to this module."""
        self._entered = True
        self._call("enter")

    def exit(self) -> None:
        """The user turned to another module."""
        self._entered = False
        self._call("exit")

    def _call(self, name: str) -> None:
        method = getattr(self._python_widget, name, None)
        if method is not None:
            method()

    def _read_moduleName(self) -> str:
        return self._module.name

    def _read_isEntered(self) -> bool:
        return self._entered


class qSlicerMainWindow(Behavior):
    """Module panel on the left, four views on the right, a status bar."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.objectName = "qSlicerMainWindow"
        self.windowTitle = "3D Slicer"
        self._scroll = qt.QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFixedWidth(460)
        self._selector = self._host_factory_.create("qSlicerModuleSelectorToolBar")
        central = qt.QWidget()
        self._row = qt.QHBoxLayout(central)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.addWidget(self._scroll)
        self.setCentralWidget(central)
        self.statusBar()

    def _add_views(self) -> None:
        grid = qt.QGridLayout()
        grid.setSpacing(2)
        manager = slicer.app.layoutManager()
        grid.addWidget(manager.sliceWidget("Red"), 0, 0)
        grid.addWidget(manager.threeDWidget(0), 0, 1)
        grid.addWidget(manager.sliceWidget("Green"), 1, 0)
        grid.addWidget(manager.sliceWidget("Yellow"), 1, 1)
        self._row.addLayout(grid, 1)

    def _show_panel(self, panel: Any) -> None:
        self._scroll.takeWidget()
        if panel is not None:
            self._scroll.setWidget(panel)
            panel.show()

    def moduleSelector(self) -> Any:
        """Return the tool bar that selects modules."""
        return self._selector


class qSlicerModuleSelectorToolBar(Behavior):
    """Selects the module whose panel is shown."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._selected = ""

    def selectModule(self, name: str) -> None:
        """Leave the present module and enter another; core modules have no panel here."""
        before = getattr(slicer.modules, self._selected.lower(), None) if self._selected else None
        if before is not None and hasattr(before, "widgetRepresentation"):
            before.widgetRepresentation().exit()
        self._selected = name
        module = getattr(slicer.modules, name.lower())
        panel = module.widgetRepresentation() if hasattr(module, "widgetRepresentation") else None
        slicer.util.mainWindow()._show_panel(panel)
        if panel is not None:
            panel.enter()
        self.moduleSelected.emit(name)

    def _read_selectedModule(self) -> str:
        return self._selected
