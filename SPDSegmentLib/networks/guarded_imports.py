"""Import segment-anything and peft although the machine's torchvision may be broken.

A torchvision wheel built for another torch fails on import ("operator torchvision::nms does not exist").
segment-anything's ``__init__`` imports it for its predictor and mask generator; peft reaches it through transformers.
None of the code used here needs it. So of segment-anything only ``segment_anything.modeling`` is loaded, below a bare
parent package, and a torchvision that cannot be imported is hidden from peft, as if it were not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from types import ModuleType

from SPDSegmentLib.errors import missing_package


def import_segment_anything_modeling() -> ModuleType:
    """Return ``segment_anything.modeling`` (``ImageEncoderViT``, ``MaskDecoder``, ``PromptEncoder``, ...).

    Raises:
        DependencyMissing: when segment-anything is not installed.
    """
    if "segment_anything.modeling" in sys.modules:
        return sys.modules["segment_anything.modeling"]
    if "segment_anything" in sys.modules:
        return importlib.import_module("segment_anything.modeling")
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.submodule_search_locations is None:
        raise missing_package("segment_anything", "it is not installed")
    parent = types.ModuleType("segment_anything")
    parent.__path__ = list(spec.submodule_search_locations)
    parent.__spec__ = spec
    sys.modules["segment_anything"] = parent
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:
        # A later "import segment_anything" by somebody else gets the whole package, with its own __init__.
        del sys.modules["segment_anything"]


def import_peft() -> ModuleType:
    """Return ``peft``.

    Raises:
        DependencyMissing: when it is not installed or cannot be imported.
    """
    hide_broken_torchvision()
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise missing_package("peft", str(error)) from error


def hide_broken_torchvision() -> None:
    """Make an installed torchvision that fails on import look like one that is not installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
