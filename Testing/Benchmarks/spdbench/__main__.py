"""``python -m spdbench``: the benchmark without the command line's packages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spdbench.command import BenchmarkOptions, list_cells, plan_of, run_benchmark
from spdbench.progress import ProgressLines
from SPDSegmentLib.errors import SPDError


def main() -> int:
    """Run the benchmark; returns the exit code of :mod:`SPDSegmentLib.errors`."""
    parser = argparse.ArgumentParser(prog="python -m spdbench", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--quick", action="store_true", help="the [quick] profile of the file")
    parser.add_argument("--only", action="append", default=[], metavar="DATA-SET/METHOD", help="repeatable; patterns")
    parser.add_argument("--output", type=Path, help="results folder")
    parser.add_argument("--work", type=Path, help="folder of trainings, runs/benchmark by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its default")
    parser.add_argument("--list", action="store_true", help="show all cells and stop")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--no-training", action="store_true", help="rows without a training say so")
    given = parser.parse_args()
    if given.threads < 0:
        parser.error(f"argument --threads: there are no {given.threads} threads; give 1 or more, or 0 for torch's own")
    options = BenchmarkOptions(
        given.config,
        given.quick,
        tuple(given.only),
        given.output,
        given.work,
        given.device,
        given.report_only,
        given.threads,
        not given.no_training,
        ProgressLines(lambda line: print(line, file=sys.stderr, flush=True)),
    )
    try:
        if given.list:
            print("\n".join(list_cells(plan_of(options))))
            return 0
        outcome = run_benchmark(options)
    except SPDError as error:
        print(error.sentence, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    print(outcome.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
