"""Settings that must be made before Qt and VTK are imported, and the search for optional inputs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIRED_PACKAGES = {"slicer_core": "slicer-core==5.13.31053.0", "PySide6": "PySide6-Essentials==6.8.3"}

_VARIABLES = {
    "QT_QPA_PLATFORM": "offscreen",
    "VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow",
    # Enumerations become integers, as PythonQt shows them.
    "PYSIDE6_OPTION_PYTHON_ENUM": "0x02",
    "QT_LOGGING_RULES": "qt.qpa.fonts.warning=false;qt.text.font.db.warning=false",
}


def missing_packages() -> list[str]:
    """Return the requirements of the host that are not installed."""
    return [
        requirement for module, requirement in REQUIRED_PACKAGES.items() if importlib.util.find_spec(module) is None
    ]


def prepare() -> None:
    """Select off-screen Qt and EGL rendering; must run before `PySide6` and `vtk` are imported."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())


def widget_api_file() -> Path | None:
    """Return the table of Slicer's real widgets, or None where this machine does not have it.

    The variable SPDSEGMENT_WIDGET_API names the file; the value `none` hides it, so that a test run can show
    that the project passes with the host's own list alone.
    """
    choice = os.environ.get("SPDSEGMENT_WIDGET_API")
    if choice:
        return None if choice == "none" else Path(choice)
    path = REPOSITORY.parent / "shared" / "slicer" / "slicer_widget_api.json"
    return path if path.is_file() else None


def limit(seconds: float) -> float:
    """A time limit, stretched on a machine that has more work than cores, in the last minute or just now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # the average of a minute is late to tell of a burst
        now = Path("/proc/loadavg").read_text(encoding="utf-8").split()[3]
        load = max(load, float(now.partition("/")[0]))
    return seconds * max(1.0, 2.0 * load / (os.cpu_count() or 1))


def real_slicer_python() -> Path | None:
    """Return the folder with Slicer's own Python packages named by SLICER_BASE_PYTHON, if it is set."""
    folder = os.environ.get("SLICER_BASE_PYTHON")
    return Path(folder) if folder else None
