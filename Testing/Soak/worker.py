"""Long runs of the worker's tests.

    python Testing/Soak/worker.py fuzz    [--count 10000]      mutated and random frames
    python Testing/Soak/worker.py kill    [--count 200]        kills at random moments
    python Testing/Soak/worker.py update  [--count 500]        memory over updates in a row
    python Testing/Soak/worker.py send                         a 512x512x300 volume of int16
    python Testing/Soak/worker.py volumes [--count 40]         memory over volumes of 2048x2048x8, real model

The exit code is 1 where a limit of the project is not met. The transports with QProcess need PySide6-Essentials.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

from worker_drivers import TRANSPORTS  # noqa: E402
from worker_fuzz import fuzz_client, fuzz_server  # noqa: E402
from worker_soak import kills, sending, updates, volumes  # noqa: E402

from SPDSegmentLib.worker.client import ModelChoice  # noqa: E402
from SPDSegmentLib.worker.handler import default_limit_bytes  # noqa: E402
from SPDSegmentLib.worker.requests import local_command  # noqa: E402

MAX_GROWTH = 0.05
MAX_SECONDS = 2.0
MAX_SENDING_SECONDS = 0.3
MAX_CACHE_SHARE = 1.3
"""What many volumes may add to the peak with one, of the bound of the cache: beside what is held, there are the volume
that arrives, the one that is computed, and up to 256 MB that the C library keeps."""


def fuzz(count: int, seed: int) -> bool:
    """Half of the frames go to servers, half to clients."""
    logging.disable()
    for name, run in (("server", fuzz_server), ("client", fuzz_client)):
        summary = run((count + 1) // 2, seed)
        print(f"{name}: {dict(summary.outcomes)}, {len(summary.faults)} faults")
        print(*summary.faults[:20], sep="\n")
        if summary.faults:
            return False
    return True


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "kill", "update", "send", "volumes"))
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", choices=TRANSPORTS, default="subprocess")
    options = parser.parse_args()
    if options.what == "fuzz":
        good = fuzz(options.count or 10_000, options.seed)
    elif options.what == "kill":
        killed = kills(options.transport, options.count or 200, options.seed)
        print(killed)
        good = killed.longest_seconds < MAX_SECONDS
    elif options.what == "update":
        growth = updates(options.transport, options.count or 500)
        print(growth, f"client {growth.client_share:+.2%}, worker {growth.worker_share:+.2%}")
        good = max(growth.client_share, growth.worker_share) < MAX_GROWTH
    elif options.what == "volumes":
        counts = sorted({1, 10, options.count or 40})
        peaks = volumes(counts, (8, 2048, 2048), ModelChoice("kidney-mr", "cpu"), local_command())
        print(*(f"{count} volumes: {peak / 1e6:.0f} MB" for count, peak in peaks.items()), sep=", ")
        good = peaks[counts[-1]] < peaks[1] + MAX_CACHE_SHARE * default_limit_bytes()
    else:
        cost = sending(options.transport)
        print(cost)
        good = cost.all_calls < MAX_SENDING_SECONDS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
