"""Behavior of the application object, its layout manager, IO manager, modules and main window."""

from __future__ import annotations

import tempfile
from typing import Any

from ..mrml.files import NodeFiles
from ..mrml.rendering import OffscreenSliceView, OffscreenThreeDView
from ..mrml.scene import SceneSetup
from ..runtime import qt, slicer
from .behavior import Behavior

SLICE_VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
_VIEW_SIZE = (400, 400)


class qSlicerCoreApplication(Behavior):
    """`slicer.app`, a QApplication too; `_start` connects it to the scene."""

    _beyond_table_ = ("testingEnabled",)  # Slicer's own slicer.util calls it; the table misses it.

    _defaults_ = {
        "majorVersion": 5,
        "minorVersion": 12,
        "mainApplicationName": "Slicer",
        "mainApplicationDisplayName": "3D Slicer",
        "platform": "linux-amd64",
        "os": "linux",
        "arch": "amd64",
        "repositoryRevision": "31053",
        "revision": "31053",
        "documentationBaseUrl": "https://slicer.readthedocs.io/en/latest/",
        "isInstalled": True,
    }

    def __init__(self, _parent: Any = None) -> None:
        qt.QApplication.__init__(self, ["Slicer"])
        self.applicationName = "Slicer"
        self.organizationName = "SlicerHost"
        self.applicationVersion = "5.12.3"

    def _start(self, setup: SceneSetup) -> None:
        self._setup = setup
        folder = setup.temporary_folder
        qt.QSettings.setDefaultFormat(qt.QSettings.Format.IniFormat)
        for scope in (qt.QSettings.Scope.UserScope, qt.QSettings.Scope.SystemScope):
            qt.QSettings.setPath(qt.QSettings.Format.IniFormat, scope, str(folder / "settings"))
        values = self.__dict__.setdefault("_values_", dict(self._defaults_))
        values["temporaryPath"] = str(folder)
        values["slicerHome"] = str(setup.slicer_home)
        values["defaultScenePath"] = tempfile.gettempdir()
        self._files = self._host_factory_.create("qSlicerIOManager")
        self._files._start(NodeFiles(setup.scene, setup.module_logics))
        self._modules = self._host_factory_.create("qSlicerModuleManager")
        self._layout = self._host_factory_.create("qSlicerLayoutManager")
        self._testing = False

    def _set_version(self, version: str) -> None:
        major, minor, _ = version.split(".")
        self._values_.update(majorVersion=int(major), minorVersion=int(minor))
        self.applicationVersion = version

    def mrmlScene(self) -> Any:
        """Return the scene."""
        return self._setup.scene

    def applicationLogic(self) -> Any:
        """Return the application logic."""
        return self._setup.application_logic

    def coreIOManager(self) -> Any:
        """Return the object that loads and saves."""
        return self._files

    def moduleManager(self) -> Any:
        """Return the module manager."""
        return self._modules

    def moduleLogic(self, name: str) -> Any:
        """Return the logic of a core module."""
        return self._setup.module_logics[name]

    def settings(self) -> qt.QSettings:
        """Return the settings of this run, kept in the temporary folder."""
        return qt.QSettings()

    userSettings = revisionUserSettings = settings

    def moduleDocumentationUrl(self, name: str) -> str:
        """Return the address of a module's documentation."""
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def pauseRender(self) -> None:
        """Draw nothing until `resumeRender`."""
        for view in self._layout._widgets():
            view.pauseRender()

    def resumeRender(self) -> None:
        """Draw again."""
        for view in self._layout._widgets():
            view.resumeRender()

    def testingEnabled(self) -> bool:
        """Tell whether Slicer runs its own tests: dialogs are then skipped."""
        return self._testing

    def restart(self) -> None:
        """Refuse: a test that restarts the application is wrong."""
        raise RuntimeError("The application was asked to restart.")

    def startupEnvironment(self) -> qt.QProcessEnvironment:
        """Return the environment of this process."""
        return qt.QProcessEnvironment.systemEnvironment()

    environment = startupEnvironment


class qSlicerApplication(Behavior):
    """What the application has with a main window."""

    def ioManager(self) -> Any:
        """Return the object that loads and saves."""
        return self._files

    def layoutManager(self) -> Any:
        """Return the layout manager."""
        return self._layout


class qSlicerCoreIOManager(Behavior):
    """`slicer.app.coreIOManager()`."""

    def _start(self, files: NodeFiles) -> None:
        self._files = files

    def fileType(self, path: str) -> str:
        """Return the type of a file by its name."""
        return self._files.file_type(path)

    def loadNodes(self, file_type: str, properties: Any, nodes: Any = None, messages: Any = None) -> bool:
        """Load a file."""
        done = self._files.load(file_type, properties, nodes, messages)
        if done:
            self.newFileLoaded.emit(properties)
        return done

    def saveNodes(self, file_type: str, properties: Any, messages: Any = None, _scene: Any = None) -> bool:
        """Save a node or the scene."""
        done = self._files.save(file_type, properties, messages)
        if done:
            self.fileSaved.emit(properties)
        return done

    def exportNodes(
        self, ids: Any, paths: Any, properties: Any = None, harden: bool = False, _messages: Any = None
    ) -> bool:
        """Write nodes without changing their storage."""
        return self._files.export(list(ids), list(paths), properties or {}, harden)

    def loadScene(self, path: str, clear: bool = True, _messages: Any = None) -> bool:
        """Open a scene file."""
        return self._files.load_scene(path, clear)

    def fileWriterFileType(self, node: Any, _format: str = "") -> str:
        """Return the type a node is written as."""
        return self._files.writer_type(node)

    def fileWriterExtensions(self, node: Any) -> list[str]:
        """Return the formats a node can be written in."""
        return self._files.writable_formats(node)

    def extractKnownExtension(self, path: str, _node: Any) -> str:
        """Return the extension, with both parts of `.nii.gz`."""
        return self._files.known_extension(path)

    def addDefaultStorageNodes(self) -> None:
        """Give every storable node its storage node."""
        for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
            if node.GetSaveWithScene() and node.GetStorageNode() is None:
                node.AddDefaultStorageNode()


class qMRMLLayoutManager(Behavior):
    """Three slice views and one 3-D view; they are made when first asked for."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slices: dict[str, Any] = {}
        self._threed: list[Any] = []

    def sliceViewNames(self) -> tuple[str, ...]:
        """Return the names of the slice views."""
        return tuple(self._slice_widgets())

    def sliceWidget(self, name: str) -> Any:
        """Return a slice widget, None if there is none of this name."""
        return self._slice_widgets().get(name)

    def mrmlSliceLogics(self) -> Any:
        """Return all slice logics."""
        self._slice_widgets()
        return slicer.app.applicationLogic().GetSliceLogics()

    def threeDWidget(self, index: int | str) -> Any:
        """Return the 3-D widget."""
        return self._threed_widgets()[index if isinstance(index, int) else 0]

    def resetSliceViews(self) -> None:
        """Fit all slices to their background."""
        for widget in self._slice_widgets().values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """Show everything in 3-D."""
        for widget in self._threed_widgets():
            widget.threeDView().resetCamera()

    def mrmlScene(self) -> Any:
        """Return the scene."""
        return slicer.mrmlScene

    def _read_threeDViewCount(self) -> int:
        return 1

    def _widgets(self) -> list[Any]:
        return [w.sliceView() for w in self._slices.values()] + [w.threeDView() for w in self._threed]

    def _slice_widgets(self) -> dict[str, Any]:
        if not self._slices:
            logic = slicer.app.applicationLogic()
            for name, orientation in SLICE_VIEWS.items():
                widget = self._host_factory_.create("qMRMLSliceWidget")
                widget._attach(OffscreenSliceView(slicer.mrmlScene, logic, name, orientation, _VIEW_SIZE))
                self._slices[name] = widget
        return self._slices

    def _threed_widgets(self) -> list[Any]:
        if not self._threed:
            widget = self._host_factory_.create("qMRMLThreeDWidget")
            widget._attach(OffscreenThreeDView(slicer.mrmlScene, slicer.app.applicationLogic(), "1", _VIEW_SIZE))
            self._threed.append(widget)
        return self._threed


class qSlicerModuleManager(Behavior):
    """Names of the loaded modules."""

    def modulesNames(self) -> list[str]:
        """Return the names of all modules."""
        return [module.name for module in vars(slicer.modules).values() if hasattr(module, "widgetRepresentation")]

    def module(self, name: str) -> Any:
        """Return a module, None if it is not loaded."""
        return getattr(slicer.modules, name.lower(), None)
