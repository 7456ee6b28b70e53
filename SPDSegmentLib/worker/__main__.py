"""Run the worker on stdin and stdout: ``python -m SPDSegmentLib.worker``; the log goes to stderr."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from SPDSegmentLib.worker.health import EXIT_FAILURE

if TYPE_CHECKING:
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.worker.handler import LoadPredictor

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Let the system end this process together with the one that started it; does something on Linux only.

    Needed where another process holds the pipe that would otherwise tell of the end. The system means the parent's
    thread: who starts a worker does it from a thread that lives as long as the worker.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def take_stdio() -> tuple[int, int]:
    """Move stdin and stdout to private descriptors, in binary mode.

    Afterward descriptor 0 reads as empty and descriptor 1 is stderr, for Python and for native libraries alike. On
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


def load_predictor(bundle: str, device: str, precision: str, cache_bytes: int | None = None) -> Predictor:
    """Load a bundle, by folder or name; imports torch.

    Args:
        cache_bytes: embeddings of a volume that are kept between calls, ``None`` for the usual bound.

    Raises:
        SPDError: the bundle, its base weights, the device or torch is not there.
    """
    from SPDSegmentLib.geometry.limits import check_room_for_torch

    check_room_for_torch()
    from SPDSegmentLib.inference.engine import CACHE_BYTES
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import find_bundle

    kept = CACHE_BYTES if cache_bytes is None else cache_bytes
    return Predictor.load(find_bundle(bundle), device=device, precision=precision, cache_bytes=kept)


def serve_stdio(
    load: LoadPredictor | None = None, volume_memory: int | None = None, cache_memory: int | None = None
) -> NoReturn:
    """Serve until stdin ends, then end the process without waiting for other threads or libraries.

    Args:
        load: loads a predictor; None for the real one.
        volume_memory: bound on the memory of open volumes in MB, see ``ServerConfig``.
        cache_memory: bound on the embeddings that are kept of one volume, in MB.
    """
    end_with_parent()
    requests, events = take_stdio()
    faulthandler.enable(sys.stderr)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from SPDSegmentLib.worker.server import Server, ServerConfig

    volume_bytes, cache_bytes = (None if n is None else n << 20 for n in (volume_memory, cache_memory))
    try:
        load = load or functools.partial(load_predictor, cache_bytes=cache_bytes)
        code = Server(requests, events, load, ServerConfig(volume_bytes=volume_bytes)).run()
    except BaseException:
        logging.getLogger("spdsegment.worker").exception("the worker cannot go on")
        code = EXIT_FAILURE
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(load: LoadPredictor | None = None) -> NoReturn:
    """Serve with the settings of the command line; ``load`` as in :func:`serve_stdio`."""
    parser = argparse.ArgumentParser(prog="python -m SPDSegmentLib.worker", description=__doc__)
    parser.add_argument("--volume-memory", type=int, metavar="MB", help="bound on the memory of open volumes")
    parser.add_argument("--cache-memory", type=int, metavar="MB", help="bound on the embeddings kept of one volume")
    options = parser.parse_known_args()[0] if load else parser.parse_args()
    serve_stdio(load, options.volume_memory, options.cache_memory)


if __name__ == "__main__":
    main()
