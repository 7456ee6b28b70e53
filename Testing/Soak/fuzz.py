"""Mutated frames, bundles, NIfTI, NRRD, MetaImage, DICOM and points for a given time, all within one process.

    python Testing/Soak/fuzz.py [--seconds 600] [--seed 1] [--only TARGET] [--memory 6]

The outcomes are counted by exit code. The exit code is 1 where anything but a result or one clear sentence came. A case
that kills the process is named and the run goes on after it; ``--only TARGET --seed N --seconds 0`` repeats one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

FRAMES = 20
SHOWN_FAULTS = 40
STUCK_SECONDS = 180.0


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--memory", type=float, default=6, help="GB that the process may take, 0 for no limit")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        return fuzz(options)
    return supervise(options)


def supervise(options: argparse.Namespace) -> int:
    """Run the fuzz in a child, and another one after a case that killed it."""
    end, seed = time.monotonic() + options.seconds, options.seed
    outcomes, faults = Counter[str](), []
    while True:
        left = max(0.0, end - time.monotonic())
        with tempfile.TemporaryDirectory(prefix="spd-fuzz-") as name:
            folder = Path(name)
            code = _run_child(options, folder, seed, left)
            found = _read(folder / "summary.json")
            last = _read(folder / "last.json")
        outcomes.update(found.get("outcomes", {}))
        faults += found.get("faults", [])
        if code == 0:
            break
        faults.append(f"{last.get('case', 'the start')}: the process ended with {code}")
        seed = int(last.get("seed", seed)) + 1
        if time.monotonic() >= end or not last:
            break
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:<40}{count:>8}")
    print(f"{sum(outcomes.values())} cases, {len(faults)} faults, up to {found.get('slowest', 0):.1f} s a case")
    print(*faults[:SHOWN_FAULTS], sep="\n")
    return 1 if faults else 0


def fuzz(options: argparse.Namespace) -> int:
    """One process's part: all targets in turn until the time is over."""
    _limit_memory(options.memory)
    logging.disable()
    from fuzz_corpus import CORPUS
    from fuzz_files import FileFuzz, FuzzSummary
    from worker_fuzz import fuzz_client, fuzz_server

    os.environ["SPDSEGMENT_HOME"] = str(options.folder / "home")
    files, summary = FileFuzz(options.folder / "files"), FuzzSummary()
    end = time.monotonic() + options.seconds
    names = [options.only] if options.only else [*files.targets, "frames"]

    def note(seed: int, case: str) -> None:
        _write(options.folder / "last.json", {"seed": seed, "case": case})

    if not options.only:
        for name, (target, prepare) in CORPUS.items():
            note(options.seed - 1, f"corpus {name}")
            files.prepare(prepare)
            files.judge(target, f"corpus {name}", summary)
    for seed in itertools.count(options.seed):
        for target in names:
            note(seed, f"{target} {seed}")
            if target == "frames":
                for kind, run in (("server", fuzz_server), ("client", fuzz_client)):
                    frames = run(FRAMES, seed)
                    summary.outcomes.update({f"{kind}: {what}": count for what, count in frames.outcomes.items()})
                    summary.faults += [f"{kind} {seed}: {fault}" for fault in frames.faults]
            else:
                files.run(target, seed, summary)
        _write(options.folder / "summary.json", vars(summary))
        if time.monotonic() >= end:
            return 0
    return 0


def _run_child(options: argparse.Namespace, folder: Path, seed: int, seconds: float) -> int:
    command = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder), "--seed", str(seed)]
    command += ["--seconds", str(seconds), "--only", options.only, "--memory", str(options.memory)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while True:
        try:
            return child.wait(5)
        except subprocess.TimeoutExpired:
            last = folder / "last.json"
            if last.is_file() and time.time() - last.stat().st_mtime > STUCK_SECONDS:
                child.kill()


def _limit_memory(gigabytes: float) -> None:
    if gigabytes and sys.platform != "win32":
        import resource

        size = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(values))
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
