"""``python -m SPDSegmentLib.models fetch NAME`` or ``check``: for a program that must not wait, such as 3D Slicer.

It needs the standard library only, prints one JSON object a line, and stops when its standard input is closed:
``{"progress": [done, total], "name": ...}`` meanwhile, ``{"problem": {...}, "name": ...}`` for each failure, as
:meth:`SPDSegmentLib.errors.SPDError.to_wire` gives it, and ``{"good": NAME}`` for each success.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.models import base_weights
from SPDSegmentLib.models.base_weights import fetch_base_weights, verify_base_weights
from SPDSegmentLib.models.bundle import scan_bundles

PROGRESS_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """Run one command and return 0, or the exit code of the last problem."""
    stopped = threading.Event()
    threading.Thread(target=_stop_at_end_of_input, args=(stopped,), daemon=True).start()
    command, names = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "fetch" and names:
        return max(_run(name, fetch_base_weights, stopped.is_set) for name in names)
    if command == "check" and not names:
        return _check(stopped.is_set)
    print("usage: python -m SPDSegmentLib.models fetch NAME... | check", file=sys.stderr)
    return 2


def _check(cancel: Callable[[], bool]) -> int:
    """Read every byte of the base weights that are here and of all bundles."""
    here = [name for name, weights in base_weights.BASE_WEIGHTS.items() if weights.path.is_file()]
    codes = [_run(name, verify_base_weights, cancel) for name in here]
    bundles, broken = scan_bundles()
    for bundle in bundles:
        _say(good=bundle.info.name)
    for folder, error in broken:
        _say(problem=error.to_wire(), name=folder.name)
        codes.append(error.exit_code)
    return max(codes, default=0)


def _run(name: str, work: Callable[..., object], cancel: Callable[[], bool]) -> int:
    last = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or done == total:
            last = now
            _say(progress=[done, total], name=name)

    try:
        work(name, progress, cancel)
    except SPDError as error:
        _say(problem=error.to_wire(), name=name)
        return error.exit_code
    _say(good=name)
    return 0


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _stop_at_end_of_input(stopped: threading.Event) -> None:
    # Unbuffered: a thread that holds the lock of sys.stdin would abort the interpreter's end.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    stopped.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
