"""The class decorator: attributes that read and write a MRML node, and their connection to widgets."""

from __future__ import annotations

import functools
import typing
import weakref
from typing import Any

import slicer
import vtk

from .connectors import GuiConnector, create_connector
from .serializers import Default, Serializer, create_serializer

SlicerParameterNamePropertyName = "SlicerParameterName"


class Parameter:
    """Name, type, default and storage of one parameter."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        self.annotation = annotation
        self.serializer: Serializer
        self.serializer, rest = create_serializer(annotation)
        annotated = next((item.value for item in rest if isinstance(item, Default)), self.serializer.default())
        self.default = annotated if default is _NOT_GIVEN else default

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else wrapper._read(self)

    def __set__(self, wrapper: Any, value: Any) -> None:
        wrapper._write(self, value)


_NOT_GIVEN = object()


class ParameterNode:
    """What the decorator adds to a class of parameters."""

    allParameters: typing.ClassVar[dict[str, Parameter]]
    _is_parameter_node_wrapper = True

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._prefix = prefix or ""
        self._cache: dict[str, Any] = {}
        self._writing: set[str] = set()
        self._guis: dict[int, dict[str, GuiConnector]] = {}
        self._next_tag = 0
        self._updating_gui = False
        for parameter in self.allParameters.values():
            if not parameter.serializer.contains(parameterNode, self._key(parameter)):
                parameter.serializer.write(parameterNode, self._key(parameter), parameter.default)
        self._refresh_cache()
        reference = weakref.ref(self)
        self._tag = parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: _refresh(reference))

    def __del__(self) -> None:
        node = self.__dict__.get("parameterNode")
        if node is not None and "_tag" in self.__dict__:
            node.RemoveObserver(self._tag)

    def _key(self, parameter: Parameter) -> str:
        return self._prefix + parameter.name

    def _read(self, parameter: Parameter) -> Any:
        if parameter.name in self._cache:
            return self._cache[parameter.name]
        return parameter.serializer.read(self.parameterNode, self._key(parameter))

    def _write(self, parameter: Parameter, value: Any) -> None:
        with slicer.util.NodeModify(self.parameterNode):
            parameter.serializer.write(self.parameterNode, self._key(parameter), value)
            if parameter.serializer.caches:
                self._cache[parameter.name] = parameter.serializer.read(self.parameterNode, self._key(parameter))

    def _refresh_cache(self) -> None:
        for parameter in self.allParameters.values():
            key = self._key(parameter)
            if not parameter.serializer.caches:
                continue
            if not parameter.serializer.contains(self.parameterNode, key):
                parameter.serializer.write(self.parameterNode, key, parameter.default)
            self._cache[parameter.name] = parameter.serializer.read(self.parameterNode, key)

    def default(self, paramName: str) -> Any:
        """Return the default of a parameter, wrapped as Slicer does."""
        return Default(self._parameter(paramName).default)

    def isCached(self, paramName: str) -> bool:
        """Tell whether reading a parameter does not go to the node."""
        return self._parameter(paramName).serializer.caches

    @classmethod
    def dataType(cls, paramName: str) -> Any:
        """Return the annotated type of a parameter."""
        return cls.allParameters[paramName].annotation

    def getValue(self, paramName: str) -> Any:
        """Return a value by name."""
        return self._read(self._parameter(paramName))

    def setValue(self, paramName: str, value: Any) -> None:
        """Set a value by name."""
        self._write(self._parameter(paramName), value)

    def _parameter(self, name: str) -> Parameter:
        if name not in self.allParameters:
            raise ValueError(f"There is no parameter '{name}'; there are {', '.join(self.allParameters)}.")
        return self.allParameters[name]

    def connectGui(self, gui: Any) -> None:
        """Connect all widgets that name a parameter; Slicer returns no tag here, so neither does this."""
        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = gui.findChildren("QWidget") if is_widget else tuple(vars(gui).values())
        named = {widget.property(SlicerParameterNamePropertyName): widget for widget in widgets}
        named.pop(None, None)
        self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Connect parameters to widgets, both ways; return the tag for `disconnectGui`."""
        connectors = {
            name: value
            if isinstance(value, GuiConnector)
            else create_connector(value, self._parameter(name).annotation)
            for name, value in mapping.items()
        }
        tag = self._next_tag
        self._next_tag += 1
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(functools.partial(self._follow_gui, name, connector))
        self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._update_gui())
        return tag

    def disconnectGui(self, guiTag: int | None) -> None:
        """Undo `connectParametersToGui`; a tag of None changes nothing."""
        for connector in self._guis.pop(guiTag, {}).values():  # type: ignore[arg-type]
            connector.onChanged(None)

    def _follow_gui(self, name: str, connector: GuiConnector) -> None:
        if not self._updating_gui:
            self.setValue(name, connector.read())

    def _update_gui(self) -> None:
        if self._updating_gui:
            return
        self._updating_gui = True
        try:
            for connectors in self._guis.values():
                for name, connector in connectors.items():
                    if connector.isAlive():
                        connector.write(self.getValue(name))
        finally:
            self._updating_gui = False

    def StartModify(self) -> Any:
        """Hold back events of the node."""
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified: Any) -> Any:
        """Let events of the node through again."""
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        """Observe the node."""
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        """Stop observing the node."""
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        """Send the node's ModifiedEvent."""
        self.parameterNode.Modified()


def _refresh(reference: weakref.ref[ParameterNode]) -> None:
    wrapper = reference()
    if wrapper is not None:
        wrapper._refresh_cache()


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Turn a class of annotated attributes into a wrapper of a MRML node; usable with and without brackets."""
    return _wrap if classtype is None else _wrap(classtype)


def _wrap(cls: type) -> type:
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in hints:
        if hasattr(ParameterNode, name):
            raise ValueError(f"'{name}' cannot be the name of a parameter.")
    parameters = {name: Parameter(name, hint, getattr(cls, name, _NOT_GIVEN)) for name, hint in hints.items()}
    members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__", *parameters)}
    return type(cls.__name__, (ParameterNode, *cls.__bases__), {**members, **parameters, "allParameters": parameters})


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    """Tell whether a class or object was made by the decorator."""
    return bool(getattr(classOrObj, "_is_parameter_node_wrapper", False))
