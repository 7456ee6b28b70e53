"""What can be chosen: images, point lists and open curves, models that fit; and what is chosen without being asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gui_helpers import MODULE, SHAPE, SPACING_MM, add_clicks, add_volume, load, segment, segmented, settle, state_of

pytest_plugins = ["Testing.Host.pytest_plugin"]


def listed(selector: Any) -> list[str]:
    """Names in a node selector."""
    return [selector.nodeFromIndex(n).GetName() for n in range(selector.nodeCount())]


def test_only_what_can_be_segmented_is_listed_and_chosen(host: Any) -> None:
    import slicer

    # given: other kinds of nodes come first
    for kind in ("LabelMapVolume", "VectorVolume", "DiffusionTensorVolume", "MarkupsClosedCurve", "MarkupsLine"):
        slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", kind)
    module = load(host)
    assert state_of(module).volumeNode is None and not state_of(module).centerlineNodes
    add_volume(host, name="CT")
    add_clicks((4, 6), name="clicks")
    add_clicks((4, 6), name="curve", kind="Curve")
    settle(host, module)
    assert listed(module.ui.volumeSelector) == ["CT"]
    assert listed(module.ui.centerlineSelector) == ["clicks", "curve"]
    assert [module.ui.branchesList.item(n).text() for n in range(module.ui.branchesList.count)] == ["curve"]
    assert state_of(module).volumeNode.GetName() == "CT"


def test_a_label_map_is_refused_in_one_sentence(host: Any) -> None:
    import slicer

    from SPDSegmentLib.errors import BadInput
    from SPDSegmentLib.gui.scene.volumes import takeSnapshot

    host.load_module(MODULE)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(node, np.zeros(SHAPE, np.uint8))
    with pytest.raises(BadInput, match="labels is a label map"):
        takeSnapshot(node)


def test_nodes_that_come_in_a_batch_are_taken(host: Any) -> None:
    import slicer

    module = load(host)
    scene = slicer.mrmlScene
    scene.StartState(scene.BatchProcessState)
    add_volume(host, name="late")
    add_clicks((4, 6), name="late clicks")
    scene.EndState(scene.BatchProcessState)
    settle(host, module)
    assert [node.GetName() for node in state_of(module).centerlineNodes] == ["late clicks"]
    assert module.ui.segmentButton.enabled


@pytest.mark.parametrize(("name", "model"), [("MRHead", ""), ("PET", ""), ("CTChest", ""), ("left_kidney", "Kidney")])
def test_no_model_is_guessed_without_a_word(host: Any, name: str, model: str) -> None:
    module = host.load_module(MODULE)
    add_volume(host, name=name)
    add_clicks((4, 6))
    settle(host, module)
    if model:
        assert model in module.ui.modelBox.currentText
        assert "was chosen by the names" in module.ui.statusLabel.text
    else:
        assert module.ui.modelBox.currentText == "Choose a model"
        assert "Choose the model" in module.ui.statusLabel.text and not module.ui.segmentButton.enabled


def test_a_model_that_is_gone_is_named_and_not_replaced(host: Any) -> None:
    add_volume(host)
    add_clicks((4, 6))
    module = load(host)
    state_of(module).model = "liver-ct"
    module.widget.panel.refresh()
    assert module.widget.panel.inputs.model is None
    assert "liver-ct" in module.ui.statusLabel.text and not module.ui.segmentButton.enabled
    module.ui.modelBox.currentIndex = module.ui.modelBox.findText("Fake")
    module.ui.modelBox.activated.emit(module.ui.modelBox.currentIndex)
    assert segment(host, module).state.value == "done"


def test_a_card_is_shown_as_text_that_loads_nothing(host: Any) -> None:
    import qt

    from SPDSegmentLib.gui.run.task import ModelEntry

    module = host.load_module(MODULE)
    card = "# Title\n\n**bold** <script>x</script> ![picture](//host/share/x.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    panel = module.widget.panel
    panel.inputs.extraModels = [ModelEntry("fake", "fake", "Kidney", title="Fake <b>", card=card)]
    panel.state.model = "fake"
    panel.refresh()
    module.ui.modelCardButton.click()
    browser = panel.inputs._card.findChild(qt.QTextBrowser)
    text = browser.toPlainText()
    assert "#" not in text and "**" not in text and "|" not in text
    assert "<script>x</script>" in text and "<img" not in browser.toHtml()


def test_an_image_that_does_not_begin_at_voxel_0_is_seen_where_it_lies(host: Any) -> None:
    import slicer

    from SPDSegmentLib.gui.scene.volumes import takeSnapshot

    # given: a volume as cutting filters leave it; every voxel stays where it was
    node = add_volume(host)
    values = slicer.util.arrayFromVolume(node).copy()
    image, first = node.GetImageData(), (2, 3, 1)
    extent = image.GetExtent()
    image.SetExtent(*(extent[n] + first[n // 2] for n in range(6)))
    node.SetOrigin(*(-n * mm for n, mm in zip(first, SPACING_MM, strict=True)))

    # when
    volume = takeSnapshot(node, "axial").volume
    module = load(host)
    add_clicks((4, 6))
    job = segment(host, module)

    # then
    index = (volume.ras_to_ijk @ np.array([20.0, 10.0, 15.0, 1.0]))[:3]
    assert np.allclose(index, (20, 10, 5)) and volume.array[5, 10, 20] == values[5, 10, 20]
    segmentation = state_of(module).segmentationNode
    center = [0.0] * 3
    segmentation.GetSegmentCenterRAS(state_of(module).segmentId, center)
    assert np.allclose(center, (24.0, 20.0, 15.0), atol=1.5)
    assert not segment(host, module).writer.record.owned and job.state.value == "done"


@pytest.mark.parametrize("end", ["forgetScene", "close", "exit"])
def test_no_effect_stays_active_when_scene_or_module_closes(host: Any, end: str) -> None:
    module = segmented(host, (4, 6))
    module.ui.correctSection.collapsed = False
    module.ui.editor.setActiveEffectByName("Paint")
    node = module.ui.editor.mrmlSegmentEditorNode()
    assert node.GetActiveEffectName() == "Paint"
    getattr(module.widget.panel.correct, end)()
    assert not node.GetActiveEffectName()


def test_a_job_of_the_console_leaves_the_editor_alone(host: Any) -> None:
    # given: the panel shows its result in the editor
    volume = add_volume(host)
    module = load(host)
    clicks = add_clicks((4, 6))
    segment(host, module)
    editor = module.ui.editor
    before = (editor.segmentationNode(), editor.currentSegmentID(), editor.sourceVolumeNode())

    # when: a script segments something else
    other = add_clicks((8, 10), name="other", at=(10.0, 10.0))
    model = module.widget.panel.inputs.extraModels[0]
    from SPDSegmentLib.gui.run.task import Task, VolumeView
    from SPDSegmentLib.gui.scene.target import makeTarget

    target = makeTarget(None, "", volume, "Other", (0.0, 1.0, 0.0), "")
    job = module.logic.segmenter.start(Task(VolumeView(volume, model), [other], target))
    host.wait_until(lambda: job.finished)
    settle(host, module)

    # then
    assert job.writer.changed and state_of(module).centerlineNodes == [clicks]
    assert (editor.segmentationNode(), editor.currentSegmentID(), editor.sourceVolumeNode()) == before


def test_a_logic_has_one_worker(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = host.load_module(MODULE)
    from SPDSegmentLib.gui.run import console

    made: list[Any] = []

    class Counted(console.WorkerHost):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(console, "WorkerHost", Counted)
    logic = type(module.logic)()
    assert made == [logic.workerHost] and logic.getParameterNode() is module.logic.getParameterNode()


def test_reload_reloads_the_library(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import slicer

    module = host.load_module(MODULE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "SPDSegmentLib"]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # and back after the test
    before = sys.modules["SPDSegmentLib.gui.panel.panel"]
    module.widget.onReload()
    again = slicer.modules.SPDSegmentWidget
    assert sys.modules["SPDSegmentLib.gui.panel.panel"] is not before
    assert type(again.panel) is sys.modules["SPDSegmentLib.gui.panel.panel"].ModulePanel
    assert type(again.panel) is not before.ModulePanel


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("/opt/conda/bin/python -m SPDSegmentLib.worker", False),
        ("ssh host spdsegment worker", False),
        ("/opt/Slicer/bin/PythonSlicer -m SPDSegmentLib.worker", True),
    ],
)
def test_programs_that_are_not_slicers_start_without_its_libraries(
    host: Any, monkeypatch: pytest.MonkeyPatch, command: str, own: bool
) -> None:
    import slicer

    module = host.load_module(MODULE)
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: {"PATH": "/usr/bin"})
    module.logic.workerHost.setCommand(command)
    environment = module.logic.workerHost.client.command.environment
    assert environment == (None if own else (("PATH", "/usr/bin"),))


def test_the_process_gets_the_environment_of_its_command(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import slicer

    from SPDSegmentLib.gui.run.worker_host import slicerTransport, withEnvironment
    from SPDSegmentLib.worker.requests import WorkerCommand
    from SPDSegmentLib.worker.transports import SubprocessTransport

    class Sink:
        data, ended = b"", False

        def on_output(self, data: bytes) -> None:
            self.data += data

        def on_log(self, data: bytes) -> None:
            pass

        def on_ended(self, code: int | None, reason: str) -> None:
            self.ended = True

    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/Slicer/lib")
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: {"MINE": "a=b c"})
    code = "import os; print(os.environ.get('LD_LIBRARY_PATH'), os.environ['MINE'])"
    for transport in (slicerTransport(), SubprocessTransport()):
        sink = Sink()
        transport.start(withEnvironment(WorkerCommand((sys.executable, "-c", code))), sink)
        host.wait_until(lambda t=transport, s=sink: (t.poll(0.01), s.ended)[1])
        assert sink.data.split(b"\n")[0].strip() == b"None a=b c"
