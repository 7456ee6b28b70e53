"""Long runs of the module on the test host, with a worker that needs no model.

    python Testing/Soak/module.py kill    [--count 200]        kills of the worker at random moments
    python Testing/Soak/module.py update  [--count 500]        memory over live updates in a row

The exit code is 1 where a limit of the project is not met.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "Testing" / "Python" / "test_gui_soak.py"
RUNS = {"kill": ("SPDSEGMENT_SOAK_KILLS", "200", "kills"), "update": ("SPDSEGMENT_SOAK_UPDATES", "500", "updates")}


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--count", default="")
    options = parser.parse_args()
    variable, usual, name = RUNS[options.what]
    os.environ[variable] = options.count or usual
    os.environ["SPDSEGMENT_REQUIRE_HOST"] = "1"
    sys.path.insert(0, str(ROOT))
    return int(pytest.main(["-q", "-s", str(TESTS), "-k", name]))


if __name__ == "__main__":
    sys.exit(main())
