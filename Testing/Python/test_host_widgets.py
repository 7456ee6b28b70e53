"""The host's ctk, qMRML and qSlicer widgets: members as in Slicer, behavior where a module needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from Testing.Host.errors import UiFileError, UnknownAttribute, UnknownSignal, UnknownWidget

pytest_plugins = ["Testing.Host.pytest_plugin"]

UI = '<ui version="4.0"><class>Form</class><widget class="QWidget" name="Form">{}</widget></ui>'


@pytest.fixture
def segmentation(host: Any) -> Any:
    """A segmentation with the segments `a` and `b`, of a volume of 4 x 6 x 8 voxels."""
    import slicer

    volume = host.add_volume(np.zeros((4, 6, 8), np.int16))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lesions")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in ("a", "b"):
        node.GetSegmentation().AddEmptySegment(name, name)
    return node


def load_ui(tmp_path: Any, content: str) -> Any:
    import slicer

    path = tmp_path / "form.ui"
    path.write_text(UI.format(content), encoding="utf-8")
    return slicer.util.loadUI(str(path))


def test_classes_that_slicer_lacks_do_not_exist(host: Any) -> None:
    import ctk
    import slicer

    for module, name in ((ctk, "ctkCollapsableButton"), (slicer, "qMRMLNodeCombobox")):
        with pytest.raises(AttributeError):
            getattr(module, name)
    with pytest.raises(UnknownWidget):
        host.factory.build("qMRMLNothing")


def test_members_that_slicer_lacks_do_not_exist(host: Any) -> None:
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    with pytest.raises(AttributeError):
        combo.currentNodeName()
    with pytest.raises(UnknownAttribute):
        combo.nodeType = "vtkMRMLModelNode"
    with pytest.raises(UnknownSignal):
        combo.connect("currentNodeChanged()", print)


def test_functions_of_slicer_util_are_not_in_slicer(host: Any) -> None:
    import slicer

    assert not hasattr(slicer, "arrayFromVolume")
    assert hasattr(slicer.util, "arrayFromVolume")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('<widget class="qMRMLNodeCombobox" name="w"/>', "qMRMLNodeCombobox"),
        (
            '<widget class="ctkSliderWidget" name="w"><property name="maximumm"><double>1</double></property></widget>',
            "maximumm",
        ),
    ],
)
def test_a_ui_file_with_an_unknown_class_or_property_fails(
    host: Any, tmp_path: Any, content: str, complaint: str
) -> None:
    with pytest.raises(UiFileError, match=complaint):
        load_ui(tmp_path, content)


def test_a_ui_file_sets_properties_of_slicers_widgets(host: Any, tmp_path: Any) -> None:
    content = (
        '<widget class="ctkPathLineEdit" name="path"><property name="filters">'
        "<set>ctkPathLineEdit::Dirs|ctkPathLineEdit::NoDot</set></property></widget>"
        '<widget class="qMRMLNodeComboBox" name="nodes"><property name="nodeTypes"><stringlist>'
        "<string>vtkMRMLModelNode</string></stringlist></property></widget>"
    )
    form = load_ui(tmp_path, content)
    assert form.path.filters == 1 | 8192
    assert form.nodes.nodeTypes == ["vtkMRMLModelNode"]


def test_a_collapsible_button_hides_what_it_holds(host: Any) -> None:
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(button)
    label = qt.QLabel("inside")
    layout.addWidget(label)
    told: list[bool] = []
    button.connect("contentsCollapsed(bool)", told.append)
    button.collapsed = True
    assert not label.isVisibleTo(button)
    button.click()
    assert label.isVisibleTo(button) and not button.collapsed
    assert told == [True, False]


def test_a_slider_keeps_its_value_between_its_limits(host: Any) -> None:
    import ctk

    slider = ctk.ctkSliderWidget()
    values: list[float] = []
    slider.connect("valueChanged(double)", values.append)
    slider.maximum = 10
    slider.value = 50
    slider.value = 10
    slider.maximum = 5
    assert (slider.value, values) == (5, [10, 5])


def test_a_node_selector_follows_the_scene(host: Any) -> None:
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLMarkupsFiducialNode"]
    combo.noneEnabled = True
    combo.setMRMLScene(host.scene)
    nodes: list[Any] = []
    combo.connect("currentNodeChanged(vtkMRMLNode*)", nodes.append)
    made = combo.addNode()
    host.scene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode")
    assert (combo.currentNode(), combo.nodeCount()) == (made, 1)
    host.scene.RemoveNode(made)
    assert nodes == [made, None]


def test_a_node_selector_shows_only_nodes_with_an_attribute(host: Any) -> None:
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLTextNode"]
    combo.addAttribute("vtkMRMLTextNode", "Role", "report")
    combo.setMRMLScene(host.scene)
    host.scene.AddNewNodeByClass("vtkMRMLTextNode")
    wanted = host.scene.AddNewNodeByClass("vtkMRMLTextNode")
    wanted.SetAttribute("Role", "report")
    combo.setMRMLScene(host.scene)
    assert [combo.nodeFromIndex(i) for i in range(combo.nodeCount())] == [wanted]


def test_a_scene_closed_under_a_selector_leaves_it_empty(host: Any) -> None:
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLTextNode"]
    combo.setMRMLScene(host.scene)
    combo.addNode()
    host.new_scene()
    assert combo.currentNode() is None


def test_the_table_of_segments_follows_the_segmentation(host: Any, segmentation: Any) -> None:
    import slicer

    table = slicer.qMRMLSegmentsTableView()
    table.setSegmentationNode(segmentation)
    table.setSelectedSegmentIDs(["b"])
    segmentation.GetSegmentation().RemoveSegment("a")
    assert (table.segmentCount, table.selectedSegmentIDs()) == (1, ["b"])


def test_the_segment_selector_tells_of_changes(host: Any, segmentation: Any) -> None:
    import slicer

    selector = slicer.qMRMLSegmentSelectorWidget()
    told: list[str] = []
    selector.connect("currentSegmentChanged(QString)", told.append)
    selector.setMRMLScene(host.scene)
    selector.setCurrentNode(segmentation)
    selector.setCurrentSegmentID("b")
    segmentation.GetSegmentation().RemoveSegment("b")
    assert told == ["a", "b", "a"]


def test_a_real_method_without_behavior_is_recorded(host: Any) -> None:
    import slicer

    slicer.qMRMLSegmentEditorWidget().rotateSliceViewsToSegmentation()
    assert [call.method for call in host.idle_calls] == ["rotateSliceViewsToSegmentation"]
