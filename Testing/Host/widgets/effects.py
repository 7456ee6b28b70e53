"""Scripted effects of the Segment Editor, as Slicer loads, registers, copies and calls them.

Read from Slicer/Slicer, Modules/Loadable/Segmentations: ``EditorEffects/qSlicerSegmentEditorScriptedEffect.cxx``
(setPythonSource: the folder names the module, the file the class, with "Effect" at its end; a class that the module has
already is not loaded again; methods are looked up by name, and what they raise is printed and lost),
``EditorEffects/qSlicerSegmentEditorAbstractEffect.cxx`` (parameters are attributes ``<effect>.<name>`` of the editor's
node; by default place mode deselects the effect), ``EditorEffects/qSlicerSegmentEditorEffectFactory.cxx`` (a name is
registered once), ``Widgets/qMRMLSegmentEditorWidget.cxx`` (updateEffectList, updateEffectsSectionFromMRML).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import slot_errors
from ..runtime import qt, slicer
from .behavior import Behavior


class qSlicerSegmentEditorAbstractEffect(Behavior):
    """Parameters, options and the way to the editor."""

    _defaults_ = {"perSegment": True, "requireSegments": True, "showEffectCursorInSliceView": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._editor: Any = None
        self._node: Any = None
        self._is_active = False
        self._frame = qt.QFrame()
        self._form = qt.QFormLayout(self._frame)

    def parameterSetNode(self) -> Any:
        """Return the editor's node."""
        return self._node

    def setParameterSetNode(self, node: Any) -> None:
        """Use an editor's node."""
        self._node = node

    def optionsFrame(self) -> Any:
        """Return the frame of the options."""
        return self._frame

    def optionsLayout(self) -> Any:
        """Return the layout of the options."""
        return self._form

    def addOptionsWidget(self, added: Any) -> None:
        """Add a widget or a layout as a row."""
        self._form.addRow(added)

    def addLabeledOptionsWidget(self, label: str, added: Any) -> Any:
        """Add a widget or a layout with a label, which is returned."""
        text = qt.QLabel(label)
        self._form.addRow(text, added)
        return text

    def active(self) -> bool:
        """Whether it was activated and not deactivated since."""
        return self._is_active

    def activate(self) -> None:
        """Turn on."""
        self._is_active = True
        self._call("activate")

    def deactivate(self) -> None:
        """Turn off."""
        self._is_active = False
        self._call("deactivate")

    def parameterDefined(self, name: str) -> bool:
        """Whether a parameter was set."""
        return self._node is not None and self._node.GetAttribute(f"{self.name}.{name}") is not None

    def parameter(self, name: str) -> str:
        """Return a parameter; it must have a default."""
        if not self.parameterDefined(name):
            slot_errors.record(f"{self.name}.parameter", KeyError(name))
            return ""
        return str(self._node.GetAttribute(f"{self.name}.{name}"))

    def integerParameter(self, name: str) -> int:
        """Return a parameter as a number."""
        return int(self.parameter(name) or 0)

    def setParameter(self, name: str, value: Any) -> None:
        """Set a parameter and tell those that listen to the editor's node."""
        if self.parameterDefined(name) and self.parameter(name) == str(value):
            return
        self._node.SetAttribute(f"{self.name}.{name}", str(value))
        self._node.InvokeEvent(slicer.vtkMRMLSegmentEditorNode.EffectParameterModified)

    def setParameterDefault(self, name: str, value: Any) -> None:
        """Set a parameter that is not set yet."""
        if not self.parameterDefined(name):
            self.setParameter(name, value)

    def saveStateForUndo(self) -> None:
        """Ask the editor for an undo step."""
        self._editor.saveStateForUndo()

    def selectEffect(self, name: str) -> None:
        """Ask the editor for another effect."""
        self._editor.setActiveEffectByName(name)

    def _interaction_changed(self, interaction: Any) -> None:
        if self._has("interactionNodeModified"):
            self._call("interactionNodeModified", interaction)
        elif interaction.GetCurrentInteractionMode() != interaction.ViewTransform:
            self.selectEffect("")


class qSlicerSegmentEditorScriptedEffect(Behavior):
    """An effect whose methods are those of a Python object."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._source = ""
        self._python: Any = None

    def pythonSource(self) -> str:
        """Return the path of the Python file."""
        return self._source

    def setPythonSource(self, path: str) -> bool:
        """Load the Python file, unless its module has the class already, and make the object."""
        file = Path(path)
        module_name = file.parent.name
        class_name = file.stem if file.stem.endswith("Effect") else f"{file.stem}Effect"
        module = sys.modules.setdefault(module_name, ModuleType(module_name))
        if not hasattr(module, class_name):
            spec = importlib.util.spec_from_file_location(module_name, file)
            if spec is None or spec.loader is None:
                return False
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
        self._python = getattr(module, class_name)(self)
        self._source = path
        setattr(slicer, module_name, self._python)
        return True

    def self(self) -> Any:
        """Return the Python object."""
        return self._python

    def _has(self, name: str) -> bool:
        return hasattr(self._python, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        method = getattr(self._python, name, None)
        try:
            return method(*arguments) if method is not None else None
        except Exception as error:
            slot_errors.record(f"{self.name}.{name}", error)
            return None


_registered: list[Any] = []
_factories: list[Any] = []


class qSlicerSegmentEditorEffectFactory(Behavior):
    """The register of effects."""

    @staticmethod
    def instance() -> Any:
        """Return the only one."""
        if not _factories:
            _factories.append(slicer.qSlicerSegmentEditorEffectFactory())
        return _factories[0]

    def registerEffect(self, effect: Any) -> bool:
        """Add an effect, unless there is one of its name."""
        if not effect.name or any(known.name == effect.name for known in _registered):
            return False
        _registered.append(effect)
        self.effectRegistered.emit(effect.name)
        return True

    def registeredEffects(self) -> list[Any]:
        """Return the effects."""
        return list(_registered)


def registered_effects() -> list[Any]:
    """Return what modules have registered."""
    return list(_registered)


def forget_effects() -> None:
    """Let go of all effects, and of their Python modules, as a new start of Slicer would."""
    for effect in _registered:
        sys.modules.pop(Path(effect.pythonSource()).parent.name, None)
    _registered.clear()


class AbstractScriptedSegmentEditorEffect:
    """Base of scripted effects, in Slicer of the package ``SegmentEditorEffects``."""

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        """Add the effect to all editors that are made from now on."""
        slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect(self.scriptedEffect)

    def cleanup(self) -> None:
        """Let go of observers and connections."""
