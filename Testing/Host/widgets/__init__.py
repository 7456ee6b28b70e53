"""Stand-ins of ctk, qMRML and qSlicer classes: members from the tables, behavior from this folder."""

from . import application, ctk_widgets, markups, modules, nodes, segment_editor, segments, views

__all__ = ["application", "ctk_widgets", "markups", "modules", "nodes", "segment_editor", "segments", "views"]
