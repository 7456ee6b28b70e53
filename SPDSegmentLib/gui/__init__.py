"""Panels and MRML work of the 3D Slicer module; the only folder that imports slicer, qt, ctk and vtk."""
