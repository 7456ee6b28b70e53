"""Keeps the protocol's two pipes to ourselves, whatever other code reads or prints."""

from __future__ import annotations

import contextlib
import os
import sys


def take_stdio() -> tuple[int, int]:
    """Move stdin and stdout to private descriptors, in binary mode.

    Afterwards descriptor 0 reads as empty and descriptor 1 is stderr, for Python and for native libraries alike. On
    Windows this also keeps libraries that look at their standard input while they load from waiting for our reader.

    Returns:
        The descriptors of requests (read) and of events (write).
    """
    requests, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (requests, events):
            msvcrt.setmode(descriptor, os.O_BINARY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return requests, events


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte.

    Raises:
        OSError: the other side is gone.
    """
    rest = memoryview(data)
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest[: 1 << 20]) :]
