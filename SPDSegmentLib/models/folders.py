"""Where base weights and bundles lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from SPDSegmentLib.names import user_path

HOME_VARIABLE = "SPDSEGMENT_HOME"

_PACKAGE = Path(__file__).resolve().parent.parent


def home_folder() -> Path:
    """The user's folder of SPDSegment: ``$SPDSEGMENT_HOME``, or the usual place of the operating system."""
    chosen = os.environ.get(HOME_VARIABLE, "").strip()
    if chosen:
        return user_path(chosen).resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "SPDSegment"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "SPDSegment"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "spdsegment"


def weights_folder() -> Path:
    """Where base weights are kept; need not exist yet."""
    return home_folder() / "weights"


def user_models_folder() -> Path:
    """Where the user's own bundles are kept; need not exist yet."""
    return home_folder() / "models"


def resources_folder() -> Path | None:
    """The ``Resources`` folder, in a source tree and Slicer beside the package, in a wheel inside it."""
    for candidate in (_PACKAGE.parent / "Resources", _PACKAGE / "Resources"):
        if candidate.is_dir():
            return candidate
    return None


def shipped_models_folder() -> Path | None:
    """The bundles that come with the library, None where there are none."""
    resources = resources_folder()
    return resources / "Models" if resources and (resources / "Models").is_dir() else None
