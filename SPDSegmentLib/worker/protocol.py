"""The worker protocol: frames of a fixed header, a JSON object and the raw bytes of arrays, and messages in them.

Layout, little-endian: magic ``SPDW``, version (u8), flags (u8), reserved (u16, 0), JSON length (u32), payload length
(u32), CRC-32 of the body (u32), CRC-32 of the header so far (u32); then the JSON text in UTF-8; then the payload. The
header's own checksum is why a damaged length is found at once instead of waiting for bytes that never come. The body
checksum covers the JSON text, and the payload too where ``FLAG_PAYLOAD_CHECKED`` is set. A message is a dataclass;
every field of a received one is checked against its annotation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import types
import typing
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import numpy as np

from SPDSegmentLib.settings import parse_json

MAGIC = b"SPDW"
PROTOCOL_VERSION = 5
FLAG_PAYLOAD_CHECKED = 1
MAX_JSON_BYTES = 16 << 20
MAX_PAYLOAD_BYTES = 64 << 20
MAX_ARRAYS = 16
MAX_DIMENSIONS = 4
MAX_TEXT = 1 << 16
MAX_ITEMS = 1 << 20
MAX_INTEGER = 1 << 53
DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"})

_HEADER = struct.Struct("<4sBBHIII")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECK.size

Buffer = bytes | bytearray | memoryview
Message = TypeVar("Message")


class ProtocolError(Exception):
    """The byte stream is not a sequence of frames; nothing after this point can be trusted."""


class FrameTooLarge(ProtocolError):
    """A message that is to be sent is larger than the protocol allows."""


class ContentError(Exception):
    """One frame is well delimited but its content cannot be used; the next frame is unaffected."""


@dataclass(frozen=True)
class RawFrame:
    """One delimited frame before its content is looked at."""

    json_text: bytes
    payload: memoryview


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """The content of a frame: a JSON object and named arrays."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def encode_frame(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, *, check_payload: bool = True
) -> list[Buffer]:
    """Return the buffers of one frame, in order; array bytes are referenced and not copied where they are contiguous.

    Args:
        header: JSON-ready object without the key ``arrays``; numbers must be finite.
        arrays: named arrays of a dtype in ``DTYPES`` (either byte order), at most four dimensions.
        check_payload: include the payload in the checksum (off for large volume chunks).

    Raises:
        ProtocolError: the frame would break a limit of the protocol, or the header is not JSON.
    """
    described: list[dict[str, Any]] = []
    parts: list[memoryview] = []
    for name, array in (arrays or {}).items():
        plain = _little_endian(array)
        described.append({"name": name, "dtype": plain.dtype.str, "shape": list(array.shape)})
        if plain.size:
            parts.append(plain.reshape(-1).view(np.uint8).data)
    try:
        text = json.dumps(
            {**header, "arrays": described} if described else dict(header), allow_nan=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"The header of a frame is not JSON: {error}") from error
    size = sum(part.nbytes for part in parts)
    if len(text) > MAX_JSON_BYTES or size > MAX_PAYLOAD_BYTES:
        raise FrameTooLarge(f"A frame of {len(text)} + {size} bytes is larger than the protocol allows.")
    check = zlib.crc32(text)
    if check_payload:
        for part in parts:
            check = zlib.crc32(part, check)
    flags = FLAG_PAYLOAD_CHECKED if check_payload else 0
    head = _HEADER.pack(MAGIC, PROTOCOL_VERSION, flags, 0, len(text), size, check)
    return [head + _CHECK.pack(zlib.crc32(head)) + text, *parts]


def decode_frame(raw: RawFrame) -> DecodedFrame:
    """Read JSON and arrays of a delimited frame; the arrays are read-only views of the payload.

    Raises:
        ContentError: not a JSON object, a number that is not finite, or arrays that do not fit the payload.
    """
    try:
        header = parse_json(raw.json_text)
    except ValueError as error:
        raise ContentError(f"The header of a frame {error}.") from error
    if not isinstance(header, dict):
        raise ContentError("The header of a frame is not a JSON object.")
    return DecodedFrame(header, _read_arrays(header.pop("arrays", []), raw.payload))


class FrameParser:
    """Cuts a byte stream into frames, whatever the sizes in which it arrives.

    Args:
        preamble_bytes: how much text may precede the first frame and is put aside (a shell's greeting over ssh).
    """

    def __init__(self, preamble_bytes: int = 0) -> None:
        self._preamble_left = preamble_bytes
        self._head = bytearray()
        self._body = bytearray()
        self._filled = 0
        self._json_bytes = 0
        self._check = 0
        self._checked = 0
        self._in_body = False
        self.failure: ProtocolError | None = None
        self.preamble = bytearray()

    @property
    def in_frame(self) -> bool:
        """Whether the stream stopped within a frame."""
        return self._in_body or bool(self._head)

    def feed(self, data: Buffer) -> list[RawFrame]:
        """Take the next bytes and return the frames that they complete.

        Bad magic, version, length or checksum sets ``failure``; the frames before it are still returned, and what
        follows is ignored.
        """
        frames: list[RawFrame] = []
        rest = memoryview(data)
        try:
            while self.failure is None and (rest.nbytes or (self._in_body and self._filled == len(self._body))):
                rest = self._take_body(rest, frames) if self._in_body else self._take_head(rest)
        except ProtocolError as error:
            self.failure = error
        return frames

    def _take_head(self, rest: memoryview) -> memoryview:
        count = min(HEADER_BYTES - len(self._head), rest.nbytes)
        self._head += rest[:count]
        if self._preamble_left > 0:
            self._skip_preamble()
        known = min(len(self._head), len(MAGIC))
        if self._head[:known] != MAGIC[:known]:
            self._fail("the stream does not start with a frame")
        if len(self._head) == HEADER_BYTES:
            self._open_body()
        return rest[count:]

    def _skip_preamble(self) -> None:
        start = next((i for i in range(len(self._head)) if MAGIC.startswith(self._head[i : i + len(MAGIC)])), None)
        count = len(self._head) if start is None else start
        self.preamble += self._head[:count]
        self._preamble_left -= count
        del self._head[:count]

    def _open_body(self) -> None:
        head = bytes(self._head[: _HEADER.size])
        _, version, flags, reserved, json_bytes, payload_bytes, check = _HEADER.unpack(head)
        if _CHECK.unpack(self._head[_HEADER.size :])[0] != zlib.crc32(head):
            self._fail("a frame header is damaged")
        if version != PROTOCOL_VERSION:
            self._fail(f"the other side speaks protocol version {version}, this side {PROTOCOL_VERSION}")
        if flags & ~FLAG_PAYLOAD_CHECKED or reserved:
            self._fail("a frame header has unknown flags")
        if json_bytes > MAX_JSON_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
            self._fail(f"a frame of {json_bytes} + {payload_bytes} bytes is larger than allowed")
        self._preamble_left = 0
        self._head.clear()
        self._body = bytearray(json_bytes + payload_bytes)
        self._filled = 0
        self._json_bytes = json_bytes
        self._check = check
        self._checked = len(self._body) if flags & FLAG_PAYLOAD_CHECKED else json_bytes
        self._in_body = True

    def _take_body(self, rest: memoryview, frames: list[RawFrame]) -> memoryview:
        count = min(len(self._body) - self._filled, rest.nbytes)
        self._body[self._filled : self._filled + count] = rest[:count]
        self._filled += count
        if self._filled == len(self._body):
            body = memoryview(self._body).toreadonly()
            if zlib.crc32(body[: self._checked]) != self._check:
                self._fail("the body of a frame is damaged")
            frames.append(RawFrame(bytes(body[: self._json_bytes]), body[self._json_bytes :]))
            self._in_body = False
            self._body = bytearray()
        return rest[count:]

    def _fail(self, why: str) -> NoReturn:
        raise ProtocolError(f"The connection to the background process is broken: {why}.")


def array_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return how many bytes an array takes.

    Raises:
        ContentError: a dtype that the protocol does not carry, or a shape that is not one.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ContentError(f"The array type {dtype!r} is not part of the protocol.")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS:
        raise ContentError("The shape of an array is not a list of at most four numbers.")
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ContentError(f"The shape {list(shape)!r} of an array is not valid.")
    return math.prod(shape) * np.dtype(dtype).itemsize


def _read_arrays(described: Any, payload: memoryview) -> dict[str, np.ndarray]:
    if not isinstance(described, list) or len(described) > MAX_ARRAYS:
        raise ContentError("The list of arrays of a frame is not valid.")
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for entry in described:
        if not isinstance(entry, dict) or set(entry) != {"name", "dtype", "shape"}:
            raise ContentError("The description of an array is not valid.")
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(name, str) or name in arrays:
            raise ContentError("The name of an array is missing or used twice.")
        size = array_bytes(dtype, shape)
        if offset + size > payload.nbytes:
            raise ContentError(f"The array {name!r} is longer than the payload of its frame.")
        arrays[name] = np.frombuffer(payload[offset : offset + size], dtype=dtype).reshape(shape)
        offset += size
    if offset != payload.nbytes:
        raise ContentError("The payload of a frame is longer than its arrays.")
    return arrays


def _little_endian(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.ndim > MAX_DIMENSIONS:
        raise ProtocolError(f"An array of {array.dtype} with {array.ndim} dimensions cannot be sent.")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if plain.dtype.str not in DTYPES:
        raise ProtocolError(f"An array of {array.dtype} cannot be sent.")
    return plain


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
        if typing.get_origin(hint) is typing.Annotated:
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
    origin = typing.get_origin(hint)
    if (origin is typing.Annotated) != isinstance(value, np.ndarray):
        raise ContentError(f"{where!r} is {'' if origin is typing.Annotated else 'not '}to be an array.")
    if origin is typing.Annotated:
        hint.__metadata__[0].check(where, value)
        return value
    if hint is Any:
        return value
    if origin is types.UnionType or origin is typing.Union:
        return _check_union(value, typing.get_args(hint), where)
    if origin is tuple:
        return _check_tuple(value, typing.get_args(hint), where)
    if origin is dict and isinstance(value, dict) and len(value) <= MAX_ITEMS:
        return {key: _check(item, typing.get_args(hint)[1], where) for key, item in value.items()}
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
