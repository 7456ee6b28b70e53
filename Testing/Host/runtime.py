"""Starts Qt and VTK in the right order; everything above the `pythonqt` package takes both from here."""

from __future__ import annotations

from .pythonqt.module import install_qt

install_qt()

import qt  # noqa: E402
import slicer  # noqa: E402
import slicer.util  # noqa: E402
import vtk  # noqa: E402

__all__ = ["qt", "slicer", "vtk"]
