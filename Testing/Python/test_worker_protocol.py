"""Frames: what goes in comes out, and what is damaged is found at once."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SPDSegmentLib.worker import protocol as p


def _frame(header: dict, arrays: dict | None = None, **options: bool) -> bytes:
    return b"".join(p.encode_frame(header, arrays, **options))


def _custom(text: bytes, payload: bytes = b"", *, version: int = p.PROTOCOL_VERSION, flags: int = 1) -> bytes:
    body = zlib.crc32(text + payload if flags & 1 else text)
    head = struct.pack("<4sBBHIII", p.MAGIC, version, flags, 0, len(text), len(payload), body)
    return head + struct.pack("<I", zlib.crc32(head)) + text + payload


def _read(data: bytes) -> list[p.DecodedFrame]:
    parser = p.FrameParser()
    frames = [p.decode_frame(raw) for raw in parser.feed(data)]
    assert parser.failure is None
    return frames


@pytest.mark.parametrize("dtype", sorted(p.DTYPES))
@pytest.mark.parametrize("checked", [True, False])
def test_arrays_of_every_type_arrive_as_they_were_sent(dtype: str, checked: bool) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (frame,) = _read(_frame({"kind": "x", "n": 1}, {"a": array}, check_payload=checked))
    assert frame.header == {"kind": "x", "n": 1}
    assert frame.arrays["a"].dtype.str == dtype
    np.testing.assert_array_equal(frame.arrays["a"], array)


def test_arrays_in_other_layouts_arrive_with_the_same_values() -> None:
    base = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    sent = {"big": base, "flipped": base[::-1, :, ::2], "fortran": np.asfortranarray(base), "empty": base[:0]}
    (frame,) = _read(_frame({}, sent))
    for name, array in sent.items():
        np.testing.assert_array_equal(frame.arrays[name], array)
        assert frame.arrays[name].shape == array.shape


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), max_size=40), st.integers(1, 4))
def test_frames_survive_any_cut_of_the_stream(cuts: list[int], count: int) -> None:
    stream = b"".join(_frame({"n": n}, {"a": np.arange(n * 7)}) for n in range(count))
    parser, frames, start = p.FrameParser(), [], 0
    for cut in [*cuts, len(stream)]:
        frames += parser.feed(stream[start : start + cut])
        start += cut
    assert [p.decode_frame(raw).header["n"] for raw in frames] == list(range(count))
    assert not parser.in_frame


def test_every_damaged_byte_of_a_header_is_found_without_waiting_for_more() -> None:
    good = _frame({"kind": "x"}, {"a": np.arange(1000)})
    for position in range(p.HEADER_BYTES):
        for flip in (0x01, 0x80):
            bad = bytearray(good[: p.HEADER_BYTES])
            bad[position] ^= flip
            parser = p.FrameParser()
            assert parser.feed(bad) == []
            assert parser.failure is not None, f"byte {position}"


def test_damaged_body_is_found() -> None:
    good = _frame({"kind": "x"}, {"a": np.arange(10)})
    for position in range(p.HEADER_BYTES, len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        parser = p.FrameParser()
        assert parser.feed(bad) == []
        assert "damaged" in str(parser.failure)


def test_frames_before_a_bad_one_are_kept_and_nothing_after_it_is_read() -> None:
    parser = p.FrameParser()
    frames = parser.feed(_frame({"n": 1}) + b"garbage" + _frame({"n": 2}))
    assert [p.decode_frame(raw).header for raw in frames] == [{"n": 1}]
    assert parser.failure is not None
    assert parser.feed(_frame({"n": 3})) == []


def test_another_version_is_named() -> None:
    parser = p.FrameParser()
    parser.feed(_custom(b"{}", version=9))
    assert "version 9" in str(parser.failure)


@pytest.mark.parametrize(
    ("json_bytes", "payload_bytes"),
    [(p.MAX_JSON_BYTES + 1, 0), (0, p.MAX_PAYLOAD_BYTES + 1), (2**32 - 1, 2**32 - 1)],
)
def test_a_frame_above_the_limits_is_refused_before_its_memory_is_taken(json_bytes: int, payload_bytes: int) -> None:
    head = struct.pack("<4sBBHIII", p.MAGIC, p.PROTOCOL_VERSION, 1, 0, json_bytes, payload_bytes, 0)
    parser = p.FrameParser()
    parser.feed(head + struct.pack("<I", zlib.crc32(head)))
    assert "larger" in str(parser.failure)


def test_too_large_a_frame_cannot_be_made() -> None:
    with pytest.raises(p.ProtocolError, match="larger"):
        p.encode_frame({}, {"a": np.zeros(p.MAX_PAYLOAD_BYTES + 1, np.uint8)})
    with pytest.raises(p.ProtocolError, match="larger"):
        p.encode_frame({"text": "x" * p.MAX_JSON_BYTES})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_a_header_that_is_not_json_cannot_be_made(value: object) -> None:
    with pytest.raises(p.ProtocolError):
        p.encode_frame({"value": value})


@pytest.mark.parametrize("dtype", [object, "U3", "datetime64[s]", "complex64", np.longdouble])
def test_arrays_of_other_types_cannot_be_sent(dtype: object) -> None:
    with pytest.raises(p.ProtocolError, match="cannot be sent"):
        p.encode_frame({}, {"a": np.zeros(2, dtype=dtype)})  # type: ignore[call-overload]


BAD_TEXTS = {
    "empty": b"",
    "not json": b"{",
    "not an object": b"[1]",
    "not utf-8": b'{"a":"\xff\xfe"}',
    "nan": b'{"a":NaN}',
    "infinity by overflow": b'{"a":1e999}',
    "too deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "too many digits": b'{"a":' + b"9" * 10_000 + b"}",
    "arrays is no list": b'{"arrays":3}',
    "array without a type": b'{"arrays":[{"name":"a","shape":[1]}]}',
    "array of objects": b'{"arrays":[{"name":"a","dtype":"|O8","shape":[1]}]}',
    "negative shape": b'{"arrays":[{"name":"a","dtype":"|u1","shape":[-1]}]}',
    "boolean shape": b'{"arrays":[{"name":"a","dtype":"|u1","shape":[true]}]}',
    "array longer than payload": b'{"arrays":[{"name":"a","dtype":"<f8","shape":[1]}]}',
    "overflowing shape": b'{"arrays":[{"name":"a","dtype":"<f8","shape":[999999999,999999999,999999999]}]}',
    "five dimensions": b'{"arrays":[{"name":"a","dtype":"|u1","shape":[1,1,1,1,1]}]}',
    "payload without array": b"{}",
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_content_is_refused_and_the_next_frame_still_arrives(name: str) -> None:
    parser = p.FrameParser()
    first, second = parser.feed(_custom(BAD_TEXTS[name], b"\0") + _frame({"n": 2}))
    with pytest.raises(p.ContentError):
        p.decode_frame(first)
    assert p.decode_frame(second).header == {"n": 2}


def test_a_greeting_before_the_first_frame_is_put_aside() -> None:
    parser = p.FrameParser(preamble_bytes=4096)
    frames = []
    for byte in b"Welcome to SPDhost\nSPSPD" + _frame({"n": 1}):
        frames += parser.feed(bytes([byte]))
    assert [p.decode_frame(raw).header for raw in frames] == [{"n": 1}]
    assert bytes(parser.preamble) == b"Welcome to SPDhost\nSPSPD"


def test_a_greeting_without_end_is_an_error() -> None:
    parser = p.FrameParser(preamble_bytes=100)
    parser.feed(b"x" * 200)
    assert parser.failure is not None


def test_text_between_frames_is_an_error_even_where_a_greeting_is_allowed() -> None:
    parser = p.FrameParser(preamble_bytes=4096)
    parser.feed(_frame({"n": 1}) + b"late text")
    assert parser.failure is not None


def test_arrays_of_a_frame_are_views_that_cannot_be_written() -> None:
    (frame,) = _read(_frame({}, {"a": np.zeros(4)}))
    assert not frame.arrays["a"].flags.writeable


def test_json_text_is_compact_utf8() -> None:
    parser = p.FrameParser()
    (raw,) = parser.feed(_frame({"name": "Ærø"}))
    assert json.loads(raw.json_text) == {"name": "Ærø"}
