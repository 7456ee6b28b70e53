"""Sets up the scene, the application logic and the module logics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime import slicer, vtk
from .hierarchy import HierarchyKeeper
from .home import SHARE, make_slicer_home

MODULE_LOGICS = {
    "Units": "vtkSlicerUnitsLogic",
    "Colors": "vtkSlicerColorLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Data": "vtkSlicerDataModuleLogic",
}


@dataclass(frozen=True)
class SceneSetup:
    """A scene with the logics that observe it; `keep` holds what must outlive the function that made it."""

    scene: Any
    application_logic: Any
    module_logics: dict[str, Any]
    temporary_folder: Path
    slicer_home: Path
    keep: tuple[Any, ...]


def set_up_scene() -> SceneSetup:
    """Make the scene with its singletons, the logics of Slicer's core modules, and file access."""
    folder = Path(tempfile.mkdtemp(prefix="SlicerHost-"))
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    application_logic.SetMRMLScene(scene)
    application_logic.SetTemporaryPath(str(folder))
    home = make_slicer_home(folder / "Slicer")
    application_logic.SetHomeDirectory(str(home))
    application_logic.SetShareDirectory(SHARE)
    application_logic.GetColorLogic().SetMRMLScene(scene)
    application_logic.GetColorLogic().AddDefaultColorNodes()
    application_logic.SetSliceLogics(vtk.vtkCollection())
    application_logic.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.mrmlScene = scene
    logics = {name: _start_logic(name, application_logic, scene) for name in MODULE_LOGICS}
    kept = (*_start_data_io(scene, application_logic, folder), HierarchyKeeper(scene))
    return SceneSetup(scene, application_logic, logics, folder, home, kept)


def _start_logic(name: str, application_logic: Any, scene: Any) -> Any:
    logic = getattr(slicer, MODULE_LOGICS[name])()
    with _without_warnings(name == "Terminologies"):
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
    application_logic.SetModuleLogic(name, logic)
    return logic


@contextmanager
def _without_warnings(quiet: bool) -> Iterator[None]:
    """Silence complaints about dictionaries that come with the application only."""
    level = vtk.vtkObject.GetGlobalWarningDisplay()
    if quiet:
        vtk.vtkObject.SetGlobalWarningDisplay(0)
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(level)


def _start_data_io(scene: Any, application_logic: Any, folder: Path) -> tuple[Any, ...]:
    """Give the scene a cache folder and a data manager: bundles (.mrb) cannot be read or written without."""
    cache = folder / "RemoteIO"
    cache.mkdir()
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLApplicationLogic(application_logic)
    remote.SetMRMLScene(scene)
    remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLApplicationLogic(application_logic)
    manager.SetMRMLScene(scene)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    return (remote, manager)
