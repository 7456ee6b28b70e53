"""Stand-in of `slicer.parameterNodeWrapper`: typed parameters kept in a MRML scripted module node."""

from __future__ import annotations

from .serializers import Choice, Decimals, Default, Maximum, Minimum, SingleStep, WithinRange
from .wrapper import SlicerParameterNamePropertyName, isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Maximum",
    "Minimum",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]
