"""Typed dataclasses to frames and back; every field of a received message is checked against its annotation."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from .protocol import Buffer, ContentError, DecodedFrame, encode_frame

MAX_TEXT = 1 << 16
MAX_ITEMS = 1 << 20
MAX_INTEGER = 1 << 53

Message = TypeVar("Message")


@dataclass(frozen=True)
class ArrayOf:
    """What an array field must look like; used as ``Annotated[np.ndarray, ArrayOf("<f8", (None, 3))]``.

    Attributes:
        dtype: the one dtype, or None for any of the protocol.
        shape: one entry per dimension, None where any size goes; None for any shape.
    """

    dtype: str | None
    shape: tuple[int | None, ...] | None

    def check(self, name: str, value: np.ndarray) -> None:
        """Raise ContentError unless ``value`` fits."""
        if self.dtype is not None and value.dtype != np.dtype(self.dtype):
            raise ContentError(f"The array {name!r} is {value.dtype}, not {np.dtype(self.dtype)}.")
        if self.shape is not None and (
            len(self.shape) != value.ndim
            or any(want is not None and want != have for want, have in zip(self.shape, value.shape, strict=True))
        ):
            raise ContentError(f"The array {name!r} has the wrong shape {value.shape}.")
        if value.dtype.kind == "f" and self.dtype is not None and not np.isfinite(value).all():
            raise ContentError(f"The array {name!r} holds numbers that are not finite.")


def encode_message(message: Any, *, check_payload: bool = True) -> list[Buffer]:
    """Return the buffers of the frame that carries a message dataclass with a class variable ``kind``.

    Raises:
        ProtocolError: the message is larger than the protocol allows or holds something that is not JSON.
    """
    cls: type = type(message)
    header: dict[str, Any] = {"kind": message.kind}
    arrays: dict[str, np.ndarray] = {}
    for name, hint in _fields(cls).items():
        value = getattr(message, name)
        if isinstance(_array_rule(hint), ArrayOf):
            arrays[name] = value
        else:
            header[name] = _to_json(value)
    return encode_frame(header, arrays, check_payload=check_payload)


def decode_message(frame: DecodedFrame, kinds: Mapping[str, type[Message]]) -> Message:
    """Return the message that a frame carries.

    Args:
        frame: decoded frame.
        kinds: message classes by their ``kind``.

    Raises:
        ContentError: unknown kind, a missing or unknown field, or a value of the wrong type.
    """
    kind = frame.header.get("kind")
    cls = kinds.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ContentError(f"A message of the unknown kind {str(kind)[:40]!r} arrived.")
    given: dict[str, Any] = {**frame.header, **frame.arrays}
    del given["kind"]
    return typing.cast(Message, _build(cls, given, str(kind)))


def json_ready(value: Any) -> Any:
    """Return ``value`` as plain JSON: numpy scalars and arrays become numbers and lists, NaN and infinity None."""
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _required(cls: type) -> frozenset[str]:
    return frozenset(
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _array_rule(hint: Any) -> Any:
    return hint.__metadata__[0] if typing.get_origin(hint) is typing.Annotated else None


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _to_json(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return value


def _build(cls: type, given: Any, where: str) -> Any:
    hints = _fields(cls)
    if not isinstance(given, dict):
        raise ContentError(f"{where!r} is not an object.")
    if unknown := given.keys() - hints.keys():
        raise ContentError(f"The message {where!r} has the unknown field {min(unknown)[:40]!r}.")
    if missing := _required(cls) - given.keys():
        raise ContentError(f"The message {where!r} lacks the field {min(missing)!r}.")
    return cls(**{name: _check(value, hints[name], f"{where}.{name}") for name, value in given.items()})


def _check(value: Any, hint: Any, where: str) -> Any:
    rule = _array_rule(hint)
    if isinstance(rule, ArrayOf):
        if not isinstance(value, np.ndarray):
            raise ContentError(f"{where!r} is not an array.")
        rule.check(where, value)
        return value
    if isinstance(value, np.ndarray):
        raise ContentError(f"{where!r} must not be an array.")
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        return _check_union(value, typing.get_args(hint), where)
    if origin is tuple:
        return _check_tuple(value, typing.get_args(hint), where)
    if origin is dict:
        return _check_dict(value, typing.get_args(hint)[1], where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    return _check_scalar(value, hint, where)


def _check_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    if hint is int and type(value) is int and abs(value) <= MAX_INTEGER:
        return value
    if isinstance(hint, type) and issubclass(hint, StrEnum) and isinstance(value, str) and value in set(hint):
        return hint(value)
    if hint is str and isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    if (hint is bool and isinstance(value, bool)) or (hint is type(None) and value is None):
        return value
    raise ContentError(f"{where!r} is not a valid {getattr(hint, '__name__', hint)}.")


def _check_union(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    for hint in hints:
        try:
            return _check(value, hint, where)
        except ContentError:
            continue
    raise ContentError(f"{where!r} is of the wrong type.")


def _check_tuple(value: Any, hints: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ContentError(f"{where!r} is not a list.")
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(_check(item, hints[0], where) for item in value)
    if len(value) != len(hints):
        raise ContentError(f"{where!r} does not have {len(hints)} entries.")
    return tuple(_check(item, hint, where) for item, hint in zip(value, hints, strict=True))


def _check_dict(value: Any, hint: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise ContentError(f"{where!r} is not an object.")
    return {key: _check(item, hint, where) for key, item in value.items()}
