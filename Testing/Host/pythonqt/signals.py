"""Connections by full signature, with PythonQt's rules for arguments and errors of slots."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from ..errors import UnknownSignal, slot_errors
from .qt_classes import qobject_classes

Slot = Callable[..., Any]

_normalized: Any = QtCore.QMetaObject.normalizedSignature  # Takes str; its type hint says bytes.
_static_connect: Any = QtCore.QObject.connect
_static_disconnect: Any = QtCore.QObject.disconnect
_connections: dict[int, dict[str, list[tuple[Slot, Slot]]]] = {}


def normalize(signature: str) -> str:
    """Return a signature as Qt's meta-object system writes it."""
    return bytes(_normalized(signature).data()).decode()


def resolve(source: QtCore.QObject, signature: str) -> str:
    """Return the signature under which PySide knows a signal; UnknownSignal if there is none.

    Signals of listed Slicer classes carry MRML objects: PySide knows these as Python objects.
    """
    if "(" not in signature:
        raise UnknownSignal(f"{type(source).__name__}: connect needs a full signature, not '{signature}'.")
    wanted = normalize(signature)
    listed: dict[str, str] = getattr(type(source), "_host_signals_", {})
    if wanted in listed:
        type(source)._host_factory_.note(type(source).__name__, wanted.split("(")[0])  # type: ignore[attr-defined]
        return listed[wanted]
    if source.metaObject().indexOfSignal(wanted) < 0:
        raise UnknownSignal(f"{type(source).__name__} has no signal '{signature}'.")
    return wanted


def connect(source: QtCore.QObject, signature: str, receiver: Any, slot: str | None = None) -> bool:
    """Connect a signal to a callable, or to a slot of an object named by its signature."""
    callback = receiver if slot is None else getattr(receiver, normalize(slot).split("(")[0])
    if not callable(callback):
        raise TypeError(f"{type(source).__name__}.connect('{signature}'): {receiver!r} cannot be called.")
    real = resolve(source, signature)
    adapter = _adapt(callback, f"slot of {type(source).__name__}.{signature}")
    _static_connect(source, QtCore.SIGNAL(real), adapter)
    _table_of(source).setdefault(real, []).append((callback, adapter))
    return True


def disconnect(source: QtCore.QObject, signature: str, receiver: Any = None, slot: str | None = None) -> bool:
    """Take a connection away; all connections of the signal where no receiver is named."""
    callback = receiver if slot is None else getattr(receiver, normalize(slot).split("(")[0])
    real = resolve(source, signature)
    pairs = _table_of(source).get(real, [])
    dropped = [pair for pair in pairs if callback is None or pair[0] == callback]
    for pair in dropped:
        pairs.remove(pair)
        _static_disconnect(source, QtCore.SIGNAL(real), pair[1])
    return bool(dropped)


def _table_of(source: QtCore.QObject) -> dict[str, list[tuple[Slot, Slot]]]:
    address = shiboken6.getCppPointer(source)[0]
    if address not in _connections:
        _connections[address] = {}
        _static_connect(source, QtCore.SIGNAL("destroyed()"), lambda: _connections.pop(address, None))
    return _connections[address]


def _adapt(callback: Slot, where: str) -> Slot:
    """Pass as many arguments as PythonQt does, and record what the slot raises."""
    accepted = _argument_count(callback)

    def deliver(*arguments: Any) -> None:
        try:
            callback(*(arguments if accepted is None else arguments[:accepted]))
        except Exception as error:
            slot_errors.record(where, error)

    return deliver


def _argument_count(callback: Slot) -> int | None:
    """Return how many arguments PythonQt hands to a plain function or method, None for all of them."""
    function = callback.__func__ if inspect.ismethod(callback) else callback
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - (1 if inspect.ismethod(callback) else 0)


class BoundSignal:
    """`object.signal`: the first declared overload, as PythonQt takes it."""

    def __init__(self, source: QtCore.QObject, signature: str, emitter: Any) -> None:
        self._source = source
        self._signature = signature
        self._emitter = emitter

    def connect(self, receiver: Slot) -> bool:
        """Connect a callable."""
        return connect(self._source, self._signature, receiver)

    def disconnect(self, receiver: Slot | None = None) -> bool:
        """Disconnect a callable, or all."""
        return disconnect(self._source, self._signature, receiver)

    def emit(self, *arguments: Any) -> None:
        """Send the signal."""
        self._emitter.emit(*arguments)

    __call__ = emit


class SignalAttribute:
    """Descriptor that stands in for PySide's signal in a class."""

    def __init__(self, name: str, signature: str | None, original: Any) -> None:
        self._name = name
        self._signature = signature
        self._original = original

    def __get__(self, instance: QtCore.QObject | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self._signature is None:
            self._signature = _first_signature(instance, self._name)
        return BoundSignal(instance, self._signature, self._original.__get__(instance, owner))


def _first_signature(instance: QtCore.QObject, name: str) -> str:
    meta_object = instance.metaObject()
    for index in range(meta_object.methodCount()):
        method = meta_object.method(index)
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal and method.name().data() == name.encode():
            return bytes(method.methodSignature().data()).decode()
    raise UnknownSignal(f"{type(instance).__name__} has no signal '{name}'.")


_single_shot: Any = QtCore.QTimer.singleShot


def _guarded_single_shot(milliseconds: int, *receiver: Any) -> None:
    """Call something later; an error in it is recorded, not raised where events are processed."""
    if len(receiver) == 1 and callable(receiver[0]):
        receiver = (_adapt(receiver[0], "QTimer.singleShot"),)
    _single_shot(milliseconds, *receiver)


def install_signals() -> None:
    """Make connect, disconnect, single shots and every signal attribute follow PythonQt."""
    timer: Any = QtCore.QTimer
    timer.singleShot = staticmethod(_guarded_single_shot)
    for cls in qobject_classes():
        for name, value in list(vars(cls).items()):
            if isinstance(value, QtCore.Signal):
                setattr(cls, name, SignalAttribute(name, None, value))
        _serve_connections(cls)


def _serve_connections(cls: Any) -> None:
    """Serve connect and disconnect; PySide hides both from ordinary replacement in the class."""
    plain = cls.__getattribute__
    if getattr(plain, "_host_", False):
        return

    def look_up(self: QtCore.QObject, name: str) -> Any:
        if name == "connect":
            return _Dispatch(self, connect, plain(self, name))
        if name == "disconnect":
            return _Dispatch(self, disconnect, plain(self, name))
        return plain(self, name)

    look_up._host_ = True  # type: ignore[attr-defined]
    cls.__getattribute__ = look_up


class _Dispatch:
    """PySide's own calls carry coded signatures (a digit first) and go to PySide."""

    def __init__(self, source: QtCore.QObject, ours: Slot, original: Slot) -> None:
        self._source = source
        self._ours = ours
        self._original = original

    def __call__(self, *arguments: Any) -> Any:
        first = arguments[0] if arguments else None
        if isinstance(first, str) and not first[:1].isdigit():
            return self._ours(self._source, *arguments)
        return self._original(*arguments)
