"""Surfaces of segments: made by the steps with which 3D Slicer makes them, as files and for the 3-D view.

In the view they are left as they are while voxels are written, and made again when all is quiet: Slicer's editor makes
them again at each write, which takes half a second on a large structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SPDSegmentLib.files import write_whole

from .editor_nodes import otherRepresentation, segmentIds
from .state import BackgroundCall, idleTimer

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


LABELMAP = "Binary labelmap"
SURFACE = "Closed surface"
QUIET_MS = 50
_OWN_METHODS = (("Conversion method", "1"), ("Joint smoothing", "1"))
"""Settings of Slicer's conversion with which only Slicer makes the surface."""

Key = tuple[str, str]


@contextmanager
def surfacesAside(segmentationNode: Any) -> Iterator[None]:
    """Let nothing be made of the voxels of a segmentation while they are written; views see the surfaces of before."""
    segmentation = segmentationNode.GetSegmentation()
    segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    taken = [
        (segment, name, segment.GetRepresentation(name))
        for segment in segments
        for name in derived(segmentationNode, segment)
    ]
    if not taken:
        yield
        return
    wasModifying = segmentationNode.StartModify()
    try:
        for segment, name, _ in taken:
            segment.RemoveRepresentation(name)
        yield
    finally:
        for segment, name, data in taken:
            segment.AddRepresentation(name, data)
        segmentationNode.EndModify(wasModifying)


def derived(segmentationNode: Any, segment: Any) -> list[str]:
    """Return the names of what was made of a segment's voxels, none where the segmentation is not stored as voxels."""
    names: list[str] = []
    segment.GetContainedRepresentationNames(names)
    isMade = LABELMAP in names and not otherRepresentation(segmentationNode)
    return [name for name in names if name != LABELMAP and isMade]


class ShownSurfaces:
    """Makes surfaces again beside the window; it ends with :meth:`close`.

    Args:
        isBusy: whether voxels are still being written.
    """

    def __init__(self, isBusy: Callable[[], bool]) -> None:
        self._isBusy = isBusy
        self._waiting: dict[Key, None] = {}
        self._background = BackgroundCall()
        self._timer = idleTimer(self._next, QUIET_MS)

    @property
    def isQuiet(self) -> bool:
        """Whether no surface waits or is being made."""
        return not self._waiting and not self._background.isRunning

    def show(self, segmentationNode: Any, segmentId: str) -> None:
        """Show a segmentation, and this segment of it, in 3-D; surfaces that are not there yet follow."""
        segmentation = segmentationNode.GetSegmentation()
        if segmentationNode.GetDisplayNode() is None:
            segmentationNode.CreateDefaultDisplayNodes()
        display = segmentationNode.GetDisplayNode()
        wasModifying = display.StartModify()
        display.SetPreferredDisplayRepresentationName3D(SURFACE)
        if segmentation.ContainsRepresentation(LABELMAP):
            display.SetPreferredDisplayRepresentationName2D(LABELMAP)
        display.SetVisibility(True)
        display.SetVisibility3D(True)
        if segmentation.GetSegment(segmentId) is not None:
            display.SetSegmentVisibility(segmentId, True)
            display.SetSegmentVisibility3D(segmentId, True)
        display.EndModify(wasModifying)
        if otherRepresentation(segmentationNode):
            segmentationNode.CreateClosedSurfaceRepresentation()
            return
        missing = [
            i for i in segmentIds(segmentationNode) if segmentation.GetSegment(i).GetRepresentation(SURFACE) is None
        ]
        for missingId in missing:
            segmentation.GetSegment(missingId).AddRepresentation(SURFACE, vtk.vtkPolyData())
        segmentation.InvokeEvent(slicer.vtkSegmentation.ContainedRepresentationNamesModified)
        self.updateLater(segmentationNode, missing)

    @staticmethod
    def hide(segmentationNode: Any) -> None:
        """Take the surfaces of a segmentation away; one that is stored as surfaces only disappears from the view."""
        if otherRepresentation(segmentationNode) == SURFACE:
            segmentationNode.GetDisplayNode().SetVisibility3D(False)
        else:
            segmentationNode.RemoveClosedSurfaceRepresentation()

    @staticmethod
    def isShown(segmentationNode: Any, segmentId: str) -> bool:
        """Whether a segment has a surface, or will have one, that 3-D views do not hide; empty for any segment."""
        segmentation, display = segmentationNode.GetSegmentation(), segmentationNode.GetDisplayNode()
        if display is None or not (display.GetVisibility() and display.GetVisibility3D()):
            return False
        if not segmentation.ContainsRepresentation(SURFACE):
            return False
        return segmentation.GetSegment(segmentId) is None or bool(
            display.GetSegmentVisibility(segmentId) and display.GetSegmentVisibility3D(segmentId)
        )

    def updateLater(self, segmentationNode: Any, segmentIds: Iterable[str]) -> None:
        """Make the surfaces of segments again, where the segmentation has any, as soon as nothing is written."""
        segmentation = segmentationNode.GetSegmentation()
        for segmentId in segmentIds:
            segment = segmentation.GetSegment(segmentId)
            if segment is not None and derived(segmentationNode, segment):
                self._waiting[segmentationNode.GetID(), segmentId] = None
        if self._waiting:
            self._timer.start()

    def updateNow(self, segmentationNode: Any, segmentIds: Iterable[str]) -> None:
        """Do the same at once, for callers without an event loop."""
        segments = [segmentationNode.GetSegmentation().GetSegment(segmentId) for segmentId in segmentIds]
        present = [segment for segment in segments if segment is not None]
        for name in {name for segment in present for name in derived(segmentationNode, segment)}:
            _convert(segmentationNode, name)

    def forgetScene(self) -> None:
        """Make nothing more of a closed scene."""
        self._waiting.clear()
        self._timer.stop()

    def close(self) -> None:
        """Stop for good."""
        self.forgetScene()
        self._background.close()

    def _next(self) -> None:
        if self._background.isRunning or not self._waiting:
            return
        if self._isBusy():
            self._timer.start()
            return
        key = next(iter(self._waiting))
        del self._waiting[key]
        node = slicer.mrmlScene.GetNodeByID(key[0])
        segment = node.GetSegmentation().GetSegment(key[1]) if node is not None else None
        if segment is not None:
            self._make(key, node, segment)
        if self._waiting:
            self._timer.start()

    def _make(self, key: Key, node: Any, segment: Any) -> None:
        segmentation = node.GetSegmentation()
        usesSlicer = any(segmentation.GetConversionParameter(name) == value for name, value in _OWN_METHODS)
        names = derived(node, segment)
        for name in names:
            if name != SURFACE or usesSlicer:
                _convert(node, name)
        if usesSlicer:
            self._waiting = {other: None for other in self._waiting if other[0] != key[0]}
        if usesSlicer or SURFACE not in names:
            return
        labelmap = segment.GetRepresentation(LABELMAP)
        state = labelmap.GetMTime()
        mask, start, matrix = _voxels(labelmap, segment.GetLabelValue())
        settings = surfaceSettings(segmentation)
        self._background.start(
            lambda: _surfaceOf(mask, start, matrix, settings), lambda surface, error: self._put(key, state, surface)
        )

    def _put(self, key: Key, state: int, surface: Any) -> None:
        """Show a surface that was made, unless the voxels are others by now."""
        node = slicer.mrmlScene.GetNodeByID(key[0])
        segment: Any = node.GetSegmentation().GetSegment(key[1]) if node is not None else None
        isShown = segment is not None and SURFACE in derived(node, segment)
        shown = segment.GetRepresentation(SURFACE) if isShown else None
        if shown is not None and segment.GetRepresentation(LABELMAP).GetMTime() != state:
            self._waiting[key] = None
        elif shown is not None and surface is not None:
            # Into the same object: an event of the segment would take away what can be redone.
            shown.ShallowCopy(surface)
            node.GetSegmentation().InvokeEvent(slicer.vtkSegmentation.RepresentationModified)
        elif shown is not None:
            _convert(node, SURFACE)
        if self._waiting:
            self._timer.start()


def _convert(node: Any, name: str) -> None:
    """Let Slicer make a representation of all segments again, at once."""
    node.GetSegmentation().CreateRepresentation(name, True)


def _voxels(labelmap: Any, value: int) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    """Return a copy of a segment's mask (k, j, i), its first I, J, K, and the matrix from IJK to the segmentation."""
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    scalars = labelmap.GetPointData().GetScalars()
    if labelmap.IsEmpty() or scalars is None:
        return np.zeros((0, 0, 0), dtype=bool), (0, 0, 0), slicer.util.arrayFromVTKMatrix(matrix)
    i0, i1, j0, j1, k0, k1 = labelmap.GetExtent()
    labels = vtk_to_numpy(scalars).reshape(k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
    return labels == value, (i0, j0, k0), slicer.util.arrayFromVTKMatrix(matrix)


def _surfaceOf(mask: np.ndarray, start: tuple[int, int, int], matrix: np.ndarray, settings: SurfaceSettings) -> Any:
    return closedSurface(mask, start, matrix, settings, normals=True) if mask.any() else vtk.vtkPolyData()
