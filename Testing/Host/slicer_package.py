"""Completes slicer-core's `slicer` package to what a module finds in the application."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .environment import real_slicer_python
from .pythonqt.dialogs import dialogs
from .runtime import qt, slicer
from .widgets.effects import AbstractScriptedSegmentEditorEffect
from .widgets.factory import WidgetFactory

_STANDINS = Path(__file__).with_name("standins")
_STANDIN_NAMES = ("ScriptedLoadableModule", "i18n", "packaging", "parameterNodeWrapper")
_STANDIN_MODULES = ("SampleData", "PyTorchUtils")
_SINCE_5_11 = ("executePythonModule",)
_WIDGET_PREFIXES = ("qMRML", "qSlicer", "ctk")


def complete_slicer_package(factory: WidgetFactory) -> None:
    """Add widgets, Python packages and the modules object; take away what Slicer does not have."""
    _remove_stray_names()
    _serve_widgets(factory)
    sys.meta_path.insert(0, _finder)
    slicer.modules = ModuleType("slicer.modules")
    sys.modules["slicer.modules"] = slicer.modules
    slicer.moduleNames = ModuleType("slicer.moduleNames")
    _replace_messages()


def _remove_stray_names() -> None:
    """slicer-core puts the functions of slicer.util into slicer, where the application has none."""
    for name in slicer.util.__all__:
        if name != "VTKObservationMixin" and hasattr(slicer, name):
            delattr(slicer, name)


def _serve_widgets(factory: WidgetFactory) -> None:
    class SlicerModule(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith(_WIDGET_PREFIXES) and factory.knows(name):
                return factory.build(name)
            raise AttributeError(f"module 'slicer' has no attribute '{name}'")

    class CtkModule(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("ctk") and factory.knows(name):
                return factory.build(name)
            raise AttributeError(f"module 'ctk' has no attribute '{name}'")

    slicer.__class__ = SlicerModule
    sys.modules["ctk"] = CtkModule("ctk")
    sys.modules["qSlicerSegmentationsEditorEffectsPythonQt"] = SlicerModule("qSlicerSegmentationsEditorEffectsPythonQt")
    effects = ModuleType("SegmentEditorEffects")
    vars(effects)["AbstractScriptedSegmentEditorEffect"] = AbstractScriptedSegmentEditorEffect
    sys.modules["SegmentEditorEffects"] = effects


class _StandinFinder(importlib.abc.MetaPathFinder):
    """Finds `slicer.<name>` in the folder named by SLICER_BASE_PYTHON, otherwise among the stand-ins."""

    def __init__(self) -> None:
        self.absent: set[str] = set()
        self.set_aside: dict[str, ModuleType] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self.absent:
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
        if fullname in _STANDIN_MODULES:
            return importlib.util.spec_from_file_location(fullname, _STANDINS / f"{fullname}.py")
        package, _, rest = fullname.partition(".")
        name = rest.split(".")[0]
        if package != "slicer" or name not in _STANDIN_NAMES:
            return None
        real = real_slicer_python()
        folder = real if real is not None and _exists(real / name) else _STANDINS
        target_path = folder / Path(*rest.split("."))
        if target_path.is_dir():
            return importlib.util.spec_from_file_location(
                fullname, target_path / "__init__.py", submodule_search_locations=[str(target_path)]
            )
        return importlib.util.spec_from_file_location(fullname, target_path.with_suffix(".py"))


_finder = _StandinFinder()
_since_5_11 = {name: getattr(slicer.util, name) for name in _SINCE_5_11}


def set_slicer_version(version: str) -> None:
    """Let `slicer` look as in a version: 5.10 has no slicer.packaging, its pip_install is in slicer.util."""
    old = tuple(int(part) for part in version.split(".")[:2]) < (5, 11)
    set_module_present("slicer.packaging", not old)
    for name, function in _since_5_11.items():
        if old:
            vars(slicer.util).pop(name, None)
        else:
            setattr(slicer.util, name, function)


def set_module_present(name: str, present: bool) -> None:
    """Let the import of a stand-in succeed or fail."""
    package, _, rest = name.rpartition(".")
    if present:
        _finder.absent.discard(name)
        if name in _finder.set_aside:
            sys.modules[name] = _finder.set_aside.pop(name)
            if package == "slicer":
                setattr(slicer, rest, sys.modules[name])
        return
    _finder.absent.add(name)
    if name in sys.modules:
        _finder.set_aside[name] = sys.modules.pop(name)
    if package == "slicer":
        vars(slicer).pop(rest, None)


def _exists(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def _replace_messages() -> None:
    """Record messages and questions of slicer.util where a person would see a window."""
    util: Any = slicer.util
    for kind, level in (("info", logging.INFO), ("warning", logging.WARNING), ("error", logging.ERROR)):
        setattr(util, f"{kind}Display", _display(kind, level))
    for name in ("confirmOkCancelDisplay", "confirmYesNoDisplay", "confirmRetryCloseDisplay"):
        setattr(util, name, _confirm)
    util.messageBox = _message_box
    packaging = _harmless_packaging()
    util.pip_install = packaging.pip_install
    util.pip_uninstall = packaging.pip_uninstall
    util.delayDisplay = _delay_display


def _harmless_packaging() -> ModuleType:
    """Return slicer.packaging; of Slicer's own, too, what would look for or install packages is the stand-in's."""
    packaging = load_standin("packaging")
    if not hasattr(packaging, "record"):
        from .standins import packaging as standin

        for name in ("record", "pip_check", "pip_ensure", "pip_install", "pip_uninstall"):
            setattr(packaging, name, getattr(standin, name))
    return packaging


def _display(kind: str, level: int) -> Any:
    def show(
        text: str, windowTitle: Any = None, parent: Any = None, standardButtons: Any = None, **options: Any
    ) -> None:
        logging.log(level, text)
        dialogs.show(kind, str(text), str(options.get("detailedText", "")))

    return show


def _confirm(text: str, windowTitle: Any = None, parent: Any = None, **options: Any) -> bool:
    return dialogs.confirm(str(text), str(options.get("detailedText", "")))


def _message_box(text: str, parent: Any = None, **options: Any) -> int:
    accepted = dialogs.confirm(str(text), str(options.get("detailedText", "")))
    return int(qt.QMessageBox.Ok if accepted else qt.QMessageBox.Cancel)


def _delay_display(message: str, autoCloseMsec: int = 1000, parent: Any = None, **_options: Any) -> None:
    logging.info(message)
    slicer.app.processEvents()


def load_standin(name: str) -> ModuleType:
    """Import one of Slicer's Python packages, real or stand-in."""
    return importlib.import_module(f"slicer.{name}")
