"""Run the worker on stdin and stdout: ``python -m SPDSegmentLib.worker``; the log goes to stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from SPDSegmentLib.worker.stdio import take_stdio

if TYPE_CHECKING:
    from SPDSegmentLib.worker.engine import LoadPredictor


def serve_stdio(load: LoadPredictor | None = None) -> NoReturn:
    """Serve until stdin ends, then end the process without waiting for other threads or libraries.

    Args:
        load: loads a predictor; None for the real one.
    """
    requests, events = take_stdio()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from SPDSegmentLib.worker.engine import load_predictor
    from SPDSegmentLib.worker.server import Server

    code = Server(requests, events, load or load_predictor).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve_stdio()
