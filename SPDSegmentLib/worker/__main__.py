"""Run the worker on stdin and stdout: ``python -m SPDSegmentLib.worker``; the log goes to stderr."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from SPDSegmentLib.worker.commands import EXIT_FAILURE
from SPDSegmentLib.worker.processes import end_with_parent
from SPDSegmentLib.worker.stdio import take_stdio

if TYPE_CHECKING:
    from SPDSegmentLib.worker.engine import LoadPredictor


def serve_stdio(load: LoadPredictor | None = None, volume_bytes: int | None = None) -> NoReturn:
    """Serve until stdin ends, then end the process without waiting for other threads or libraries.

    Args:
        load: loads a predictor; None for the real one.
        volume_bytes: bound on the memory of open volumes, see ``ServerConfig``.
    """
    end_with_parent()
    requests, events = take_stdio()
    faulthandler.enable(sys.stderr)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from SPDSegmentLib.worker.engine import load_predictor
    from SPDSegmentLib.worker.server import Server, ServerConfig

    try:
        code = Server(requests, events, load or load_predictor, ServerConfig(volume_bytes=volume_bytes)).run()
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
    megabytes = parser.parse_known_args()[0].volume_memory if load else parser.parse_args().volume_memory
    serve_stdio(load, volume_bytes=None if megabytes is None else megabytes << 20)


if __name__ == "__main__":
    main()
