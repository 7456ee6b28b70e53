"""The surface of a mask, by the steps with which 3D Slicer makes closed surfaces; no node of the scene is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SPDSegmentLib.files import write_whole

LPS_HEADER = "3D Slicer output. SPACE=LPS"
"""By this line 3D Slicer and others know how the coordinates of a file are meant."""
READ_BACK_MM = 1e-3
READ_BACK_SHARE = 1e-5
"""How far a corner that is read back may be off: files in text hold six digits, binary ones seven."""


@dataclass(frozen=True)
class SurfaceSettings:
    """As the segmentation says; both from 0 (nothing) to 1.

    Attributes:
        smoothing: of the surface.
        decimation: share of the triangles that is dropped.
        normals: whether a view gets normals, for a smooth look.
    """

    smoothing: float = 0.5
    decimation: float = 0.0
    normals: bool = True


def surfaceSettings(segmentation: Any) -> SurfaceSettings:
    """Return the settings that Slicer would use for a segmentation."""
    defaults = SurfaceSettings()
    return SurfaceSettings(
        _number(segmentation.GetConversionParameter("Smoothing factor"), defaults.smoothing),
        _number(segmentation.GetConversionParameter("Decimation factor"), defaults.decimation),
        segmentation.GetConversionParameter("Compute surface normals") != "0",
    )


def closedSurface(
    mask: np.ndarray,
    start: tuple[int, int, int],
    ijkToWorld: np.ndarray,
    settings: SurfaceSettings,
    *,
    normals: bool = False,
) -> Any:
    """Return the surface of a mask as vtkPolyData in the world.

    Args:
        mask: (k, j, i) bool, a part of a volume.
        start: i, j and k of its first voxel.
        ijkToWorld: (4, 4), of the volume.
        settings: of the smoothing and the decimation.
        normals: with normals, where the segmentation wants them, for a view.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    image = vtk.vtkImageData()
    image.SetDimensions(*padded.shape[::-1])
    image.SetOrigin(*(float(first - 1) for first in start))
    image.GetPointData().SetScalars(numpy_to_vtk(padded.ravel(), deep=True))
    edges = vtk.vtkDiscreteFlyingEdges3D()
    edges.SetInputData(image)
    edges.GenerateValues(1, 1, 1)
    edges.ComputeGradientsOff()
    edges.ComputeNormalsOff()
    last: Any = edges
    if settings.decimation > 0:
        last = _after(last, vtk.vtkDecimatePro())
        last.SetTargetReduction(settings.decimation)
        last.PreserveTopologyOn()
        last.SetFeatureAngle(60.0)
    if settings.smoothing > 0:
        last = _after(last, vtk.vtkWindowedSincPolyDataFilter())
        last.SetNumberOfIterations(round(20 + 40 * settings.smoothing))
        last.SetPassBand(10.0 ** (-4.0 * settings.smoothing))
        last.BoundarySmoothingOff()
        last.FeatureEdgeSmoothingOff()
        last.NonManifoldSmoothingOn()
        last.NormalizeCoordinatesOn()
    last = _after(last, vtk.vtkTransformPolyDataFilter())
    transform = vtk.vtkTransform()
    transform.SetMatrix(slicer.util.vtkMatrixFromArray(ijkToWorld))
    last.SetTransform(transform)
    if np.linalg.det(ijkToWorld[:3, :3]) < 0:  # a mirrored grid turns the triangles inside out
        last = _after(last, vtk.vtkReverseSense())
    if normals and settings.normals:
        last = _after(last, vtk.vtkPolyDataNormals())
        last.ConsistencyOn()
        last.SplittingOff()
    last.Update()
    surface = last.GetOutput()
    surface.GetPointData().RemoveArray("ImageScalars")  # a view would color the surface by it
    return surface


def writeSurface(surface: Any, path: Path) -> None:
    """Write a surface that lies in RAS to a ``.stl`` or ``.obj`` file, in LPS as Slicer does.

    Raises:
        BadInput: as :func:`SPDSegmentLib.files.write_whole`; what is read back must be every triangle in its place.
    """
    flip = vtk.vtkTransform()
    flip.Scale(-1, -1, 1)
    inLps = vtk.vtkTransformPolyDataFilter()
    inLps.SetTransform(flip)
    inLps.SetInputData(surface)
    inLps.Update()
    isObj = path.suffix.lower() == ".obj"
    write = _writeObj if isObj else _writeStl
    corners = _corners(inLps.GetOutput())

    def isWhole(part: Path) -> bool:
        found = _corners(_read(part, vtk.vtkOBJReader() if isObj else vtk.vtkSTLReader()))
        return found.shape == corners.shape and np.allclose(found, corners, READ_BACK_SHARE, READ_BACK_MM)

    write_whole(path, lambda part: write(inLps.GetOutput(), part), isWhole, "surface")


def _writeStl(surface: Any, part: Path) -> None:
    writer = vtk.vtkSTLWriter()
    writer.SetHeader(LPS_HEADER)
    writer.SetFileTypeToBinary()
    _write(surface, part, writer)


def _writeObj(surface: Any, part: Path) -> None:
    _write(surface, part, vtk.vtkOBJWriter())
    part.write_bytes(f"# {LPS_HEADER}\n".encode() + part.read_bytes())


def _write(surface: Any, part: Path, writer: Any) -> None:
    writer.SetInputData(surface)
    writer.SetFileName(str(part))
    if not writer.Write() or not part.is_file():
        part.touch()  # VTK removes it where the disk is full, and what the disk says is asked next
        raise RuntimeError(f"VTK error {writer.GetErrorCode()}")


def _read(part: Path, reader: Any) -> Any:
    if isinstance(reader, vtk.vtkSTLReader):
        reader.MergingOff()
    reader.SetFileName(str(part))
    reader.Update()
    return reader.GetOutput()


def _corners(surface: Any) -> np.ndarray:
    """Corners of the triangles of a surface, (number, 3) in mm, one triangle after the other."""
    if not surface.GetNumberOfPolys():
        return np.zeros((0, 3))
    points = vtk_to_numpy(surface.GetPoints().GetData())
    return points[vtk_to_numpy(surface.GetPolys().GetConnectivityArray())]


def _after(before: Any, step: Any) -> Any:
    step.SetInputConnection(before.GetOutputPort())
    return step


def _number(text: str, default: float) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return default
