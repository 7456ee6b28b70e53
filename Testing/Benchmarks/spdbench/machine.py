"""On what and with which versions a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "scikit-image", "peft", "segment-anything", "nnunetv2", "sam2")


def describe_machine(device: str, repository: Path) -> dict[str, Any]:
    """Processor, accelerator, versions, and the commit of the code."""
    import torch

    from SPDSegmentLib import __version__
    from SPDSegmentLib.inference.engine import choose_device, choose_precision
    from SPDSegmentLib.prompts.noise import NOISE_VERSION

    chosen = choose_device(device)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu",
        "precision": str(choose_precision("auto", chosen)).removeprefix("torch."),
        "python": sys.version.split()[0],
        "library_version": __version__,
        "noise_version": NOISE_VERSION,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit_of(repository),
    }


def short_name(machine: dict[str, Any]) -> str:
    """One line: what a row was measured on."""
    what = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    return f"{what}, {machine['precision']}, torch {machine['versions'].get('torch', '?')}"


def commit_of(repository: Path) -> str:
    """The commit of the working tree, ``+changes`` where the library differs from it; empty outside git."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return ""
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "SPDSegmentLib") else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
