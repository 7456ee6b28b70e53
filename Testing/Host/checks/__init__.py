"""Static checks of .ui files and of Python code against Slicer's real widgets, version by version."""

from .attributes import check_widget_attributes
from .ui_file import check_ui_file

__all__ = ["check_ui_file", "check_widget_attributes"]
