"""Starts the host and offers what tests do with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import environment
from .block_timer import BlockTimer, only_new_garbage
from .errors import SlotError, slot_errors
from .mrml.scene import SceneSetup, set_up_scene
from .pythonqt.dialogs import Dialogs, dialogs
from .pythonqt.uiloader import CheckedUiLoader
from .runtime import qt, slicer
from .slicer_package import complete_slicer_package, load_standin, set_module_present, set_slicer_version
from .view_driver import SliceViewDriver, ViewDriver
from .widget_api import load_own_list, load_slicer_table
from .widgets.effects import forget_effects
from .widgets.factory import IdleCall, WidgetFactory

SLICER_VERSION = "5.12.3"
WINDOW_SIZE = (1280, 900)
STEP_MS = 5
PATIENCE_SECONDS = 240.0


@dataclass(frozen=True)
class LoadedModule:
    """A scripted module: Python file, panel as Slicer sees it, and the Python objects."""

    name: str
    python: ModuleType
    panel: Any

    @property
    def widget(self) -> Any:
        """The module's Python widget; another one after a reload."""
        return self.panel.self()

    @property
    def ui(self) -> Any:
        """The widgets of the module's .ui file."""
        return self.widget.ui

    @property
    def logic(self) -> Any:
        """The module's logic."""
        return self.widget.logic


class Host:
    """The application without the application; there is one per process."""

    def __init__(self) -> None:
        table = environment.widget_api_file()
        self.factory = WidgetFactory(load_own_list(), load_slicer_table(table) if table is not None else None)
        CheckedUiLoader.registry = self.factory
        complete_slicer_package(self.factory)
        self.app = self.factory.build("qSlicerApplication")()
        slicer.app = self.app
        self._setup: SceneSetup = set_up_scene()
        self.app._start(self._setup)
        for name, logic in self._setup.module_logics.items():
            module = self.factory.create("qSlicerAbstractCoreModule")
            module._start(name, logic)
            setattr(slicer.modules, name.lower(), module)
        self._installs = load_standin("packaging").record
        self.window = self.factory.create("qSlicerMainWindow")
        self.window._add_views()
        self.window.resize(*WINDOW_SIZE)
        self._modules: dict[str, LoadedModule] = {}
        slot_errors.install()

    @property
    def scene(self) -> Any:
        """The MRML scene."""
        return slicer.mrmlScene

    @property
    def dialogs(self) -> Dialogs:
        """Messages shown so far, and the answers that a test prepares."""
        return dialogs

    @property
    def installs(self) -> Any:
        """Requests to install packages, and packages declared missing."""
        return self._installs

    @property
    def idle_calls(self) -> list[IdleCall]:
        """Calls of real methods that have no behavior here."""
        return self.factory.idle_calls

    def use_slicer_version(self, version: str) -> None:
        """Look like a version until the end of the test, such as "5.10.0"."""
        self.app._set_version(version)
        set_slicer_version(version)

    def remove_extension(self, name: str = "PyTorchUtils") -> None:
        """Let an extension be missing until the end of the test."""
        set_module_present(name, False)

    def take_slot_errors(self) -> list[SlotError]:
        """Return recorded errors and forget them."""
        return slot_errors.take()

    def load_module(self, path: Path | str, show: bool = True) -> LoadedModule:
        """Load a scripted module, make its panel and enter it."""
        path = Path(path)
        module = self.factory.build("qSlicerScriptedLoadableModule")()
        python = module._load(path)
        loaded = LoadedModule(path.stem, python, module.widgetRepresentation())
        self._modules[path.stem] = loaded
        self.app.startupCompleted.emit()
        if show:
            self.window.show()
        self.select_module(path.stem)
        return loaded

    def select_module(self, name: str) -> None:
        """Turn to a module: exit the present one, enter the other."""
        self.window.moduleSelector().selectModule(name)
        self.process_events()

    def reload_module(self, name: str) -> LoadedModule:
        """Do what Slicer's Reload button does."""
        python = slicer.util.reloadScriptedModule(name)
        loaded = LoadedModule(name, python, self._modules[name].panel)
        self._modules[name] = loaded
        self.process_events()
        return loaded

    def unload_modules(self) -> None:
        """Take modules out as at the end of the application: `cleanup` is called."""
        for name, loaded in list(self._modules.items()):
            if loaded.panel.isEntered:
                loaded.panel.exit()
            self.app.moduleManager().moduleAboutToBeUnloaded.emit(name)
            self.window._show_panel(None)
            self.window.moduleSelector()._selected = ""
            loaded.panel.deleteLater()
            vars(slicer.modules).pop("sampleDataSources", None)
            for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
                vars(slicer.modules).pop(attribute, None)
            del self._modules[name]
        qt.QCoreApplication.sendPostedEvents(None, qt.QEvent.Type.DeferredDelete)
        self.process_events()

    def quit(self) -> None:
        """Do what closing Slicer does, short of ending the process."""
        self.app.aboutToQuit.emit()
        self.unload_modules()

    def new_scene(self) -> None:
        """Close the scene, as the user would."""
        slicer.mrmlScene.Clear(0)
        interaction = slicer.mrmlScene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.process_events()

    def save_scene(self, path: Path | str) -> None:
        """Save the scene: a bundle (.mrb), a scene file (.mrml) or a folder."""
        if not slicer.util.saveScene(str(path), {}):
            raise OSError(f"The scene could not be saved to {path}.")

    def open_scene(self, path: Path | str) -> None:
        """Close the scene and open another."""
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(str(path), {"clear": True})
        self.process_events()

    def add_volume(
        self,
        array: np.ndarray,
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        ijk_to_ras: np.ndarray | None = None,
        name: str = "Volume",
        show: bool = True,
    ) -> Any:
        """Make a volume node of an array (K, J, I), with a display and shown in the slice views."""
        matrix = np.diag([*spacing_mm, 1.0]) if ijk_to_ras is None else np.asarray(ijk_to_ras, float)
        node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name)
        node.CreateDefaultDisplayNodes()
        if show:
            slicer.util.setSliceViewerLayers(background=node, fit=True)
        self.process_events()
        return node

    def slice_view(self, name: str = "Red") -> SliceViewDriver:
        """Return the mouse of a slice view: Red, Yellow or Green."""
        return SliceViewDriver(self.app.layoutManager().sliceWidget(name).sliceView())

    def threed_view(self) -> ViewDriver:
        """Return the mouse of the 3-D view."""
        return ViewDriver(self.app.layoutManager().threeDWidget(0).threeDView())

    def process_events(self, milliseconds: int = 0) -> None:
        """Let timers, processes and drawing go on, at least for a time.

        Time that a busy machine takes away does not count: timers that start each other have all fired in the end.
        """
        qt.QApplication.processEvents(qt.QEventLoop.ProcessEventsFlag.AllEvents, 20)
        for done in range(0, milliseconds, STEP_MS):
            self._run_event_loop(min(STEP_MS, milliseconds - done))

    @staticmethod
    def _run_event_loop(milliseconds: int) -> None:
        loop = qt.QEventLoop()
        qt.QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def wait_until(self, condition: Callable[[], Any], milliseconds: int = 60_000, what: str = "") -> Any:
        """Let the application run until a condition holds and return its value; TimeoutError otherwise.

        The time is stretched on a busy machine, see `environment.limit`, within `PATIENCE_SECONDS`.
        """
        seconds = milliseconds / 1000
        end = time.monotonic() + max(seconds, min(environment.limit(seconds), PATIENCE_SECONDS))
        late = False
        while not (value := condition()):
            if late:
                raise TimeoutError(f"Waited {milliseconds} ms for {what or condition}.")
            late = time.monotonic() > end  # then what has happened meanwhile counts
            self._run_event_loop(STEP_MS)
        return value

    def screenshot(self, path: Path | str, widget: Any = None) -> Path:
        """Write a picture of a widget, by default of the window with module panel and views."""
        target = widget if widget is not None else self.window
        if not target.isVisible():
            target.show()
        self.process_events(50)
        for view in self.app.layoutManager()._widgets():
            view.forceRender()
        self.process_events()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not target.grab().save(str(path)):
            raise OSError(f"The picture could not be written to {path}.")
        return Path(path)

    @contextmanager
    def longest_block(self) -> Iterator[BlockTimer]:
        """Measure the longest time for which the main thread did not serve the event loop, drawing included."""
        timer = BlockTimer()
        views = self.app.layoutManager()._widgets()
        for view in views:
            view._watch(True)
        with only_new_garbage():
            timer.start()
            try:
                yield timer
            finally:
                timer.stop()
                for view in views:
                    view._watch(False)

    def reset(self) -> None:
        """Give the next test an empty scene and no memory of the last, whose views are drawn once more."""
        for view in self.app.layoutManager()._widgets():
            view._draw_due()
        self.unload_modules()
        forget_effects()
        self.new_scene()
        self.app.settings().clear()
        dialogs.reset()
        self.installs.reset()
        self.factory.idle_calls.clear()
        self.factory.unlisted.clear()
        self.use_slicer_version(SLICER_VERSION)
        set_module_present("PyTorchUtils", True)
        self.app._testing = False


_host: Host | None = None


def start_host() -> Host:
    """Return the host of this process, started at the first call."""
    global _host
    if _host is None:
        _host = Host()
    return _host
