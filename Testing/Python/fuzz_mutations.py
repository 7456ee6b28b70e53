"""Random and known bad changes of files: bytes, JSON, text headers, NIfTI fields, DICOM elements."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**53 + 1, 10**400, 1e308, 1e-320, -0.5, 1e30, "", "0", "RAS", "x" * 5000,
    "\u0000\ud7ff", "[red]x[/red]", "../../x", [], {}, [[[[]]]], [1, 2, 3], [-1, -1, -1], [1e300, 0, 0], [1e5] * 3,
    ["1", "2", "3"], [None] * 3, {"a": {}}, "auto", "nan",
]  # fmt: skip
ODD_WORDS = (
    "-1", "0", "1", "2", "3", "1e308", "-1e308", "1e-308", "nan", "inf", "-inf", "99999999999", "2147483648", "4000000",
    "65535", "", "a", "none", "x" * 3000, "(1,0,0)", "(nan,nan,nan)", "double", "uchar", "raw", "gzip", "True",
)  # fmt: skip
ODD_INTEGERS = (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 255, 256, 511, 512, 1024, 2048, 32767)
ODD_FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-9, 1e-3, 1e3, 1e9, 1e30, -1e30, 3.4e38, float("nan"), float("inf"),
    float("-inf"), 352.0, 351.0, 344.0, 1e10,
)  # fmt: skip
NIFTI_FIELDS = (
    [("<i", 0), ("<b", 39), ("<b", 123), ("<h", 70), ("<h", 72), ("<h", 252), ("<h", 254)]
    + [("<h", 40 + 2 * n) for n in range(8)]
    + [("<f", 76 + 4 * n) for n in range(12)]
    + [("<f", 256 + 4 * n) for n in range(18)]
)
"""Kind and place of what a NIfTI header says of size, type, scale and position."""
LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UN", b"UT", b"UC", b"UR")


def mutate_bytes(rng: random.Random, data: bytes, head: int = 400) -> bytes:
    """Flip, cut, insert, repeat and overwrite; half of the time within the first ``head`` bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not content:
            break
        at = rng.randrange(min(len(content), head) if rng.random() < 0.5 else len(content))
        choice = rng.random()
        if choice < 0.4:
            content[at] ^= 1 << rng.randrange(8)
        elif choice < 0.55:
            del content[at:]
        elif choice < 0.65:
            del content[at : at + rng.randrange(1, 9)]
        elif choice < 0.75:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif choice < 0.9:
            width = rng.choice((1, 2, 4, 8))
            content[at : at + width] = rng.choice((b"\0", b"\xff", b"\x7f")) * width
        else:
            content += content[at:]
    return bytes(content)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Change values anywhere, drop, add and repeat names, nest deeply, or fall back on bytes."""
    choice = rng.random()
    if choice < 0.12:
        return mutate_bytes(rng, data)
    value: Any = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = _pick(rng, value)
        if holder is None:
            break
        if isinstance(holder, dict) and rng.random() < 0.15:
            del holder[key]
        elif isinstance(holder, list) and rng.random() < 0.2:
            holder.extend(copy.deepcopy(holder[key : key + 1]) * rng.choice((1, 2, 50)))
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[rng.choice(("extra", "name", "position", "\u0000"))] = copy.deepcopy(rng.choice(ODD_VALUES))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    text = json.dumps(value)
    if choice < 0.2:
        name = rng.choice(("NaN", "Infinity", "1e999", "9" * 5000, "[" * 50_000, '{"a":1,"a":2}'))
        places = [at for at, character in enumerate(text) if character == ":"]
        if places:
            at = rng.choice(places) + 1
            text = f"{text[:at]} {name}{text[at + 2 :]}"
    if choice > 0.95:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\n\n")) + text.encode()
    return text.encode("utf-16") if choice > 0.94 else text.encode()


def _pick(rng: random.Random, value: Any) -> tuple[Any, Any]:
    holder, key = None, None
    current = value
    while isinstance(current, (dict, list)) and current and (holder is None or rng.random() < 0.8):
        holder, key = current, rng.choice(sorted(current)) if isinstance(current, dict) else rng.randrange(len(current))
        current = holder[key]
    return holder, key


def mutate_text_header(rng: random.Random, data: bytes, end: bytes) -> bytes:
    """Change words of the lines before ``end`` (NRRD, MetaImage), drop or repeat lines, or fall back on bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    head, _, body = data.partition(end)
    lines = head.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        choice = rng.random()
        if choice < 0.1:
            del lines[at]
        elif choice < 0.2:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS).encode()
            lines[at] = b" ".join(words)
        if not lines:
            lines = [b""]
    return b"\n".join(lines) + end + body


def mutate_nifti(rng: random.Random, data: bytes) -> bytes:
    """Set fields of the header to odd values, or fall back on bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, at = rng.choice(NIFTI_FIELDS)
        value = rng.choice(ODD_FLOATS) if kind == "<f" else rng.choice(ODD_INTEGERS)
        if kind == "<b":
            value = int(value) % 128
        if at + struct.calcsize(kind) <= len(content):
            struct.pack_into(kind, content, at, value)
    return bytes(content)


def dicom_elements(data: bytes) -> list[tuple[int, int, int]]:
    """(begin, begin of the value, end) of the elements of an explicit little-endian file, as far as one can walk."""
    found, at = [], 132
    while at + 8 <= len(data):
        if data[at + 4 : at + 6] in LONG_VR:
            start, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            start, length = at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        if start + length > len(data):
            break
        found.append((at, start, start + length))
        at = start + length
    return found


def mutate_dicom(rng: random.Random, data: bytes) -> bytes:
    """Give elements other values, remove or repeat them, or fall back on bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data, head=1000)
    for _ in range(rng.choice((1, 1, 2))):
        elements = dicom_elements(data)
        if not elements:
            break
        begin, start, end = rng.choice(elements)
        choice = rng.random()
        if choice < 0.15:
            data = data[:begin] + data[end:]
        elif choice < 0.2:
            data = data[:end] + data[begin:end] + data[end:]
        elif start - begin == 8:
            value = _dicom_value(rng, data[begin + 4 : begin + 6], data[start:end])
            data = data[: begin + 6] + struct.pack("<H", len(value)) + value + data[end:]
        else:
            data = data[:start] + mutate_bytes(rng, data[start:end]) + data[end:]
    return data


def _dicom_value(rng: random.Random, kind: bytes, value: bytes) -> bytes:
    if kind in (b"US", b"SS"):
        return struct.pack("<H", rng.choice(ODD_INTEGERS) & 0xFFFF)
    words = value.decode("latin-1").split("\\")
    words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)[:1000]
    text = "\\".join(words).encode("latin-1")
    return text + b" " * (len(text) % 2)
