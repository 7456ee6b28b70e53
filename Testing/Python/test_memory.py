"""Settings of the C library: they let memory be used again, and never override those of the environment."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import freed_memory

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
FAULTS = """
import resource, sys
import numpy as np
from SPDSegmentLib.geometry.limits import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(1 << 26, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """How often the system had to bring a page while the same 64 MB were taken and freed 20 times."""
    run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    assert faults("keep") < 0.1 * faults("leave")


def test_settings_of_the_environment_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.geometry.limits import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.geometry.limits import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()


def test_a_measurement_that_fails_leaves_the_figures_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "freed-memory.json"
    monkeypatch.setattr(sys, "argv", ["freed_memory.py", "--output", str(output)])

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, '{"seconds": 2.0, "peak_mb": 10.0}')

    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    freed_memory.main()
    written = output.read_text(encoding="utf-8")
    assert json.loads(written)["times_faster"] == 1.0
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        freed_memory.main()
    assert output.read_text(encoding="utf-8") == written


def test_the_makefile_empties_no_kept_figures_before_they_are_measured() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    assert "| tee" not in makefile
