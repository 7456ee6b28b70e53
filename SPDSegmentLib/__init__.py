"""Saliency-guided prompt distillation: volumetric segmentation from rough centerline clicks.

From Python: :func:`segment` for one case, :class:`InteractiveSegmenter` while clicks change, :func:`load_model` for
many cases. They are imported when they are first asked for, torch when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from SPDSegmentLib.api import LoadedModel, Segmentation, load_model, segment
    from SPDSegmentLib.interactive import InteractiveSegmenter

__version__ = "0.1.0"
__all__ = ["InteractiveSegmenter", "LoadedModel", "Segmentation", "load_model", "segment"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from SPDSegmentLib import api, interactive

        return getattr(interactive if name == "InteractiveSegmenter" else api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
