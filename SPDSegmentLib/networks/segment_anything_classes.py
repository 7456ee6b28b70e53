"""Import segment-anything's building blocks without importing torchvision.

The package's own ``__init__`` imports torchvision for its predictor and mask generator. A torchvision wheel built for
another torch fails there ("operator torchvision::nms does not exist"), although none of the modelling code needs it.
Only ``segment_anything.modeling`` is loaded here, below a bare parent package, so a broken, missing or mismatching
torchvision does not matter.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from types import ModuleType

from SPDSegmentLib.errors import DependencyMissing


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
        raise DependencyMissing(
            "The Python package 'segment-anything' is not installed.", "Install it with: pip install segment-anything"
        )
    parent = types.ModuleType("segment_anything")
    parent.__path__ = list(spec.submodule_search_locations)
    parent.__spec__ = spec
    sys.modules["segment_anything"] = parent
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:
        # A later "import segment_anything" by somebody else gets the whole package, with its own __init__.
        del sys.modules["segment_anything"]
