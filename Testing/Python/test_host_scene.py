"""Parameters, scenes and files in the host: what a module keeps in the scene comes back with it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

pytest_plugins = ["Testing.Host.pytest_plugin"]

DEMO = Path(__file__).resolve().parents[1] / "Host" / "Modules" / "HostDemo" / "HostDemo.py"


class Axis(enum.Enum):
    """An enumeration for a parameter."""

    AUTO = "auto"
    AXIAL = "axial"


@pytest.fixture
def parameters(host: Any) -> Any:
    """A class of parameters and its values in a node of the scene."""
    import slicer
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        pass

    hints = {
        "volume": slicer.vtkMRMLScalarVolumeNode,
        "centerlines": list[slicer.vtkMRMLMarkupsNode],
        "threshold": Annotated[float, WithinRange(0, 10)],
        "count": int,
        "live": bool,
        "model": str,
        "axis": Axis,
    }
    defaults = {"threshold": 5.0, "live": True}
    cls = parameterNodeWrapper(type("Parameters", (), {"__annotations__": hints, **defaults}))
    return cls(host.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "Parameters"))


def test_parameters_start_with_their_defaults(parameters: Any) -> None:
    values = (parameters.threshold, parameters.live, parameters.count, parameters.model, parameters.axis)
    assert values == (5.0, True, 0, "", Axis.AUTO)
    assert parameters.volume is None
    assert parameters.centerlines == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("threshold", 11.0), ("threshold", "5"), ("count", 1.5), ("live", 1), ("model", None), ("volume", "id")],
)
def test_a_wrong_value_is_refused_and_changes_nothing(parameters: Any, name: str, wrong: Any) -> None:
    before = parameters.getValue(name)
    with pytest.raises((TypeError, ValueError)):
        setattr(parameters, name, wrong)
    assert parameters.getValue(name) == before


def test_a_parameter_names_a_node_and_forgets_it_when_it_goes(host: Any, parameters: Any) -> None:
    volume = host.add_volume(np.zeros((2, 3, 4), np.int16))
    parameters.volume = volume
    assert parameters.volume is volume
    host.scene.RemoveNode(volume)
    parameters.Modified()
    assert parameters.volume is None


def test_parameters_are_stored_in_the_node(host: Any, parameters: Any) -> None:
    curve = host.scene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode")
    parameters.axis = Axis.AXIAL
    parameters.centerlines = [curve]
    again = type(parameters)(parameters.parameterNode)
    assert (again.axis, again.centerlines) == (Axis.AXIAL, [curve])


def test_parameters_and_widgets_follow_each_other(host: Any, parameters: Any) -> None:
    import ctk
    import qt

    check, combo, slider = qt.QCheckBox(), qt.QComboBox(), ctk.ctkSliderWidget()
    tag = parameters.connectParametersToGui({"live": check, "axis": combo, "threshold": slider})
    assert (check.checked, combo.count, slider.maximum, slider.value) == (True, 2, 10, 5)
    check.click()
    combo.currentIndex = 1
    parameters.threshold = 7.5
    assert (parameters.live, parameters.axis, slider.value) == (False, Axis.AXIAL, 7.5)
    parameters.disconnectGui(tag)
    check.click()
    assert not parameters.live


def test_a_pair_of_types_that_slicer_does_not_connect_is_refused(host: Any, parameters: Any) -> None:
    import ctk
    import qt

    for name, widget in (("axis", ctk.ctkComboBox()), ("count", ctk.ctkSliderWidget()), ("count", qt.QSlider())):
        with pytest.raises(RuntimeError):
            parameters.connectParametersToGui({name: widget})


@pytest.mark.parametrize("name", ["scene.mrb", "scene"])
def test_a_saved_scene_comes_back_with_parameters_points_and_segments(host: Any, tmp_path: Path, name: str) -> None:
    import slicer

    array = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    volume = host.add_volume(array, ijk_to_ras=np.diag([-1.0, -1.0, 2.5, 1.0]), name="CT")
    module = host.load_module(DEMO)
    module.ui.thresholdSlider.value = 100
    points = module.ui.pointsSelector.addNode()
    points.AddControlPoint(1, 2, 3)
    module.widget.parameters.segmentation = module.logic.threshold(volume, 100)
    host.save_scene(tmp_path / name)
    opened = tmp_path / name
    if opened.is_dir():
        opened = next(opened.rglob("*.mrml"))

    host.new_scene()
    assert module.widget.parameters.inputVolume is None
    host.open_scene(opened)

    again = module.logic.getParameterNode()
    assert again.threshold == 100
    assert (again.inputVolume.GetName(), again.points.GetNumberOfControlPoints()) == ("CT", 1)
    assert np.array_equal(slicer.util.arrayFromVolume(again.inputVolume), array)
    segment = again.segmentation.GetSegmentation().GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(again.segmentation, segment, again.inputVolume)
    assert np.array_equal(mask > 0, array > 100)


@pytest.mark.parametrize("name", ["v.nrrd", "v.nii.gz", "v.mha"])
def test_volumes_are_written_and_read(host: Any, tmp_path: Path, name: str) -> None:
    import slicer

    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    node = host.add_volume(array, spacing_mm=(0.5, 1, 2))
    assert slicer.util.saveNode(node, str(tmp_path / name), {})
    loaded = slicer.util.loadVolume(str(tmp_path / name), {"show": False})
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), array)
    assert loaded.GetSpacing() == pytest.approx((0.5, 1, 2))


def test_a_missing_file_is_an_error(host: Any, tmp_path: Path) -> None:
    import slicer

    with pytest.raises(RuntimeError, match="not found"):
        slicer.util.loadVolume(str(tmp_path / "nothing.nrrd"), {})


def test_segmentations_and_surfaces_are_exported(host: Any, tmp_path: Path) -> None:
    import slicer

    volume = host.add_volume(np.pad(np.full((4, 4, 4), 200, np.int16), 2))
    logic = host.load_module(DEMO).logic
    node = logic.threshold(volume, 100)
    assert slicer.util.exportNode(node, str(tmp_path / "s.seg.nrrd"), {})
    surface = slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
        str(tmp_path), node, None, "STL", True, 1.0, False
    )
    assert surface
    assert {path.suffix for path in tmp_path.iterdir()} == {".nrrd", ".stl"}


def test_each_test_starts_with_an_empty_scene(host: Any) -> None:
    import slicer

    assert slicer.util.getNodesByClass("vtkMRMLVolumeNode") == []
    host.add_volume(np.zeros((2, 2, 2), np.int16))
    host.app.settings().setValue("SPDSegment/Device", "cpu")
    host.reset()
    assert slicer.util.getNodesByClass("vtkMRMLVolumeNode") == []
    assert not host.app.settings().contains("SPDSegment/Device")
