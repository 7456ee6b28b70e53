"""Comparators by name; each module is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from spdbench.comparators.protocol import Comparator, InputSettings, NotRun
from SPDSegmentLib.errors import BadInput

# name -> "module:class"; modules are relative to this package, classes take (inputs: InputSettings, **settings).
COMPARATORS: dict[str, str] = {
    "medsam-box": "sam_rows:MedSamBox",
    "medsam-box-zero-shot": "sam_rows:MedSamBoxZeroShot",
    "medsam2-video": "sam2_video:MedSam2Video",
    "msa": "sam_rows:MedicalSamAdapter",
    "nnunet": "nnunet:NnUNetWithoutClicks",
    "nnunet-clicks": "nnunet:NnUNet",
    "random-walker": "classic:RandomWalker",
    "region-growing": "classic:RegionGrowing",
    "sam-refiner": "sam_refiner:SamRefiner",
    "sam2-video": "sam2_video:Sam2Video",
    "threshold-growing": "classic:ThresholdGrowing",
    "transunet": "transunet:TransUNetWithoutClicks",
    "transunet-clicks": "transunet:TransUNet",
    "unet": "unet:UNet",
    "unet-clicks": "unet:UNetWithClicks",
}


def make_comparator(name: str, inputs: InputSettings | None = None, **settings: Any) -> Comparator:
    """A comparator that is not yet trained or loaded.

    Raises:
        BadInput: unknown name or setting.
        NotRun: a package that it needs is not installed.
    """
    if name not in COMPARATORS:
        raise BadInput(f"Unknown comparator '{name}'.", f"Known: {', '.join(sorted(COMPARATORS)) or 'none'}.")
    module_name, _, class_name = COMPARATORS[name].partition(":")
    try:
        module = importlib.import_module(f"{__package__}.{module_name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("SPDSegmentLib"):
            raise
        raise NotRun(f"the package {error.name} is not installed") from error
    try:
        comparator: Comparator = getattr(module, class_name)(inputs or InputSettings(), **settings)
    except TypeError as error:
        raise BadInput(f"The settings {sorted(settings)} do not fit the comparator '{name}': {error}.") from error
    return comparator
