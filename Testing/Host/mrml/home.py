"""A folder that stands for Slicer's installation: PythonSlicer, and the color table of label volumes."""

from __future__ import annotations

import colorsys
import stat
import sys
from pathlib import Path

SHARE = "share/Slicer-5.12"
_LABELS = 256
_GOLDEN_RATIO = 0.618034


def make_slicer_home(home: Path) -> Path:
    """Make the folder: `bin/PythonSlicer` runs this Python, `GenericColors.txt` has a color for each label."""
    (home / "bin").mkdir(parents=True)
    launcher = home / "bin" / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    colors = home / SHARE / "ColorFiles"
    colors.mkdir(parents=True)
    (colors / "GenericColors.txt").write_text("\n".join(_color_lines()) + "\n", encoding="utf-8")
    return home


def _color_lines() -> list[str]:
    lines = ["0 background 0 0 0 0"]
    for label in range(1, _LABELS):
        rgb = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1.0, 0.6, 0.9)
        lines.append(f"{label} region_{label} " + " ".join(str(round(255 * value)) for value in rgb) + " 255")
    return lines
