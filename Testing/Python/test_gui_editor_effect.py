"""The Segment Editor effect SPD: clicks on the current segment, the module's worker, the editor's masking and undo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import MODEL, SPACING_MM, add_volume, filled_slices, load, settle, use_fake

pytest_plugins = ["Testing.Host.pytest_plugin"]


class Editor:
    """A Segment Editor of its own, as in Slicer's module, with two segments and the effect SPD chosen."""

    def __init__(self, host: Any, module: Any, volume: Any) -> None:
        import slicer

        self.host, self.module, self.volume = host, module, volume
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.node.SetOverwriteMode(self.node.OverwriteNone)
        self.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
        self.segmentation.CreateDefaultDisplayNodes()
        self.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for name in ("Kidney", "Other"):
            self.segmentation.GetSegmentation().AddEmptySegment(name, name)
        self.widget = slicer.qMRMLSegmentEditorWidget()
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.widget.setMRMLSegmentEditorNode(self.node)
        self.widget.setSegmentationNode(self.segmentation)
        self.widget.setSourceVolumeNode(volume)
        self.widget.setCurrentSegmentID("Kidney")
        self.choose()

    def choose(self) -> None:
        """Choose the effect SPD with the fake model."""
        self.widget.setActiveEffectByName("SPD")
        self.effect.scriptedEffect.setParameter("Model", MODEL)
        self.rest()

    @property
    def effect(self) -> Any:
        """The Python object of this editor's effect."""
        return self.widget.effectByName("SPD").self()

    def click(self, *slices: int) -> None:
        """Place clicks, with the mouse, on some axial slices."""
        self.effect.placeButton.click()
        for k in slices:
            self.host.slice_view("Red").click_ras((24.0, 20.0, SPACING_MM[2] * k))
        self.effect.placeButton.click()
        self.rest()

    def run(self) -> Any:
        """Press Segment and wait."""
        self.effect.segmentButton.click()
        job = self.effect.job
        self.rest()
        return job

    def start_behind(self, gate: Path, k: int = 3) -> Any:
        """Place a click and press Segment; return the job, which waits in its middle until ``gate`` is there."""
        use_fake(self.module, f"fake?gate={gate}")
        self.widget.setActiveEffectByName("")
        self.choose()
        self.click(k)
        self.effect.segmentButton.click()
        job = self.effect.job
        self.host.wait_until(lambda: job.writer.changed)
        return job

    def rest(self) -> None:
        """Let the application run until nothing waits and nothing runs."""
        effect = self.effect

        def isQuiet() -> bool:
            timers = (effect._clicksTimer, effect._segmentTimer, effect._refreshTimer)
            return not effect._isRunning and not any(timer.isActive() for timer in timers)

        for _ in range(2):
            self.host.process_events(30)
            self.host.wait_until(isQuiet, 120_000, "the effect to come to rest")

    def mask(self, segment: str = "Kidney") -> np.ndarray:
        """A segment on the volume's grid, (K, J, I) bool."""
        import slicer

        return slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentation, segment, self.volume) != 0

    def clicked(self) -> list[int]:
        """Slices of the clicks of the current segment."""
        return [
            round(node.GetNthControlPointPositionWorld(n)[2] / SPACING_MM[2])
            for node in self.effect.clickNodes
            for n in range(node.GetNumberOfDefinedControlPoints())
        ]


@pytest.fixture
def editor(host: Any) -> Iterator[Editor]:
    """The editor beside the loaded module; its effect lets go of everything at the end."""
    volume = add_volume(host)
    made = Editor(host, load(host), volume)
    yield made
    made.widget.setActiveEffectByName("")
    made.effect.cleanup()
    made.widget.deleteLater()


def test_the_effect_is_registered_once_and_every_editor_has_its_own(host: Any, editor: Editor) -> None:
    import slicer

    names = [effect.name for effect in slicer.qSlicerSegmentEditorEffectFactory.instance().registeredEffects()]
    assert names == ["SPD"] and "SPD" in editor.widget.availableEffectNames()
    second = slicer.qMRMLSegmentEditorWidget()
    assert second.effectByName("SPD").self() is not editor.effect
    assert "centerline" in editor.effect.helpText() and not editor.effect.icon().isNull()


def test_clicks_placed_with_the_mouse_become_the_current_segment(host: Any, editor: Editor) -> None:
    assert "Place clicks" in editor.effect.statusLabel.text and not editor.effect.segmentButton.enabled
    editor.click(3, 5)
    assert editor.clicked() == [3, 5] and editor.widget.activeEffect() is not None
    job = editor.run()
    assert job.error is None and filled_slices(editor.mask()) == list(range(1, 8))
    assert not editor.mask("Other").any()
    assert "slices updated" in editor.effect.statusLabel.text


@pytest.mark.alone
def test_a_run_leaves_the_window_answering(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.run()  # starts the worker's process
    with host.longest_block() as block:
        editor.effect.clickNodes[0].AddControlPointWorld(24.0, 20.0, SPACING_MM[2] * 8)
        editor.rest()
    assert filled_slices(editor.mask())[-1] == 10 and block.longest_cpu_ms < 50, block.longest_was


def test_it_is_the_worker_and_the_memory_of_the_module(host: Any, editor: Editor) -> None:
    editor.click(4)
    editor.run()
    process = editor.module.logic.workerHost.client.process_id
    panel = editor.module.widget.panel
    panel.state.segmentationNode, panel.state.segmentId = editor.segmentation, "Kidney"
    panel.state.centerlineNodes = editor.effect.clickNodes
    panel.refresh()
    task = panel.inputs.currentTask()
    assert task.target.record.model == MODEL and len(task.target.record.fates) == 1
    assert panel.logic is editor.effect.logic and process is not None
    assert not panel.logic.segmenter.hasOtherClicks(task, panel.clicks.snapshot())


def test_each_segment_has_clicks_of_its_own(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.widget.setCurrentSegmentID("Other")
    editor.rest()
    assert editor.clicked() == []
    editor.click(9)
    editor.run()
    assert filled_slices(editor.mask("Other")) == [7, 8, 9, 10, 11] and not editor.mask().any()
    editor.widget.setCurrentSegmentID("Kidney")
    editor.rest()
    assert editor.clicked() == [3]


def test_live_update_follows_a_click_and_the_editors_undo_brings_both_back(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.run()
    before = editor.mask()
    editor.click(8)
    assert filled_slices(editor.mask()) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    editor.widget.undo()
    editor.rest()
    assert np.array_equal(editor.mask(), before) and editor.clicked() == [3]
    editor.widget.undo()
    editor.rest()
    assert not editor.mask().any()
    editor.widget.redo()
    editor.rest()
    assert np.array_equal(editor.mask(), before)


def test_delete_last_click_and_clear(host: Any, editor: Editor) -> None:
    editor.click(3, 8)
    editor.run()
    editor.effect.deleteLastButton.click()
    editor.rest()
    assert editor.clicked() == [3] and filled_slices(editor.mask()) == [1, 2, 3, 4, 5]
    editor.effect.clearButton.click()
    editor.rest()
    assert editor.clicked() == [] and not editor.effect.segmentButton.enabled


def test_the_masking_of_this_editor_holds_not_that_of_the_panel(host: Any, editor: Editor) -> None:
    import slicer

    area = np.zeros(editor.mask().shape, np.uint8)
    area[:, :, :24] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(area, editor.segmentation, "Other", editor.volume)
    editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    editor.node.SetMaskSegmentID("Other")
    editor.click(4)
    editor.run()
    written = editor.mask()
    assert written[4, :, :24].any() and not written[:, :, 24:].any()
    assert "editable area (inside one segment) cuts" in editor.effect.statusLabel.text
    editor.effect.writeAnywayButton.click()
    editor.rest()
    assert editor.mask()[4, :, 24:].any()


def test_the_panel_that_is_not_shown_leaves_the_clicks_of_the_effect_alone(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.run()
    panel = editor.module.widget.panel
    panel.state.segmentationNode, panel.state.segmentId = editor.segmentation, "Kidney"
    panel.state.centerlineNodes = editor.effect.clickNodes
    panel.refresh()
    panel.exit()
    settle(host, editor.module)
    editor.widget.setActiveEffectByName("")
    editor.choose()
    started: list[Any] = []
    panel.run.onFinished.connect(started.append)
    editor.click(8)
    settle(host, editor.module)
    assert "slices updated" in editor.effect.statusLabel.text and not started
    editor.widget.undo()
    editor.rest()
    assert filled_slices(editor.mask()) == [1, 2, 3, 4, 5] and editor.clicked() == [3]
    panel.enter()
    settle(host, editor.module)
    assert not started


def test_hand_edited_slices_are_kept(host: Any, editor: Editor) -> None:
    import slicer

    editor.click(4)
    editor.run()
    edited = editor.mask()
    edited[4, 2:6, 2:6] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        edited.astype(np.uint8), editor.segmentation, "Kidney", editor.volume
    )
    editor.rest()
    editor.click(6)
    assert editor.mask()[4, 2:6, 2:6].all() and editor.mask()[8].any()
    assert "edited by you were kept" in editor.effect.statusLabel.text


def test_another_effect_ends_placing_and_observes_nothing(host: Any, editor: Editor) -> None:
    editor.effect.placeButton.click()
    assert editor.effect.placeWidget.placeModeEnabled
    editor.widget.setActiveEffectByName("Paint")
    host.process_events(30)
    assert not editor.effect.placeWidget.placeModeEnabled and not editor.effect.Observations
    assert editor.widget.activeEffect() is None


def test_a_problem_is_one_sentence_and_changes_nothing(host: Any, editor: Editor) -> None:
    from dataclasses import replace

    inputs = editor.module.widget.panel.inputs
    inputs.extraModels = [replace(inputs.extraModels[0], key="fake?missing=1")]
    editor.widget.setActiveEffectByName("")
    editor.choose()
    editor.click(4)
    editor.run()
    assert "not on this machine" in editor.effect.statusLabel.text and not editor.mask().any()


def test_a_start_that_fails_leaves_the_run_under_way_to_be_cancelled(host: Any, editor: Editor, tmp_path: Path) -> None:
    job = editor.start_behind(tmp_path / "gate", 4)
    editor.effect.clickNodes[0].SetNthControlPointSelected(0, False)
    host.process_events(400)
    assert editor.effect.job is job and not job.finished and editor.effect.segmentButton.text == "Cancel"
    editor.effect.segmentButton.click()
    editor.rest()
    assert job.finished and not editor.mask().any()


def test_a_first_click_of_one_segment_starts_nothing_while_another_is_computed(
    host: Any, editor: Editor, tmp_path: Path
) -> None:
    effect, gate = editor.effect, tmp_path / "gate"
    job = editor.start_behind(gate)
    editor.widget.setCurrentSegmentID("Other")
    host.process_events(300)
    assert effect.segmentButton.text == "Segment" and effect.statusLabel.text.startswith("Press Place clicks")
    effect.placeButton.click()
    host.slice_view("Red").click_ras((12.0, 30.0, 24.0))
    effect.placeButton.click()
    host.process_events(400)
    assert effect.job is job and effect.segmentButton.enabled
    gate.touch()
    editor.rest()
    assert not editor.mask("Other").any()
    editor.widget.setCurrentSegmentID("Kidney")
    editor.rest()
    assert "slices updated" in effect.statusLabel.text


def test_clicks_go_to_the_segment_that_is_chosen_while_they_are_placed(host: Any, editor: Editor) -> None:
    editor.effect.placeButton.click()
    host.slice_view("Red").click_ras((24.0, 20.0, 9.0))
    editor.widget.setCurrentSegmentID("Other")
    host.process_events(300)
    host.slice_view("Red").click_ras((12.0, 30.0, 24.0))
    editor.effect.placeButton.click()
    editor.rest()
    assert editor.clicked() == [8]
    editor.widget.setCurrentSegmentID("Kidney")
    editor.rest()
    assert editor.clicked() == [3]


def test_a_new_segment_with_a_used_id_has_clicks_of_its_own(editor: Editor) -> None:
    editor.click(3)
    editor.run()
    segmentation, clicks = editor.segmentation.GetSegmentation(), editor.effect.clickNodes
    segmentation.RemoveSegment("Kidney")
    segmentation.AddEmptySegment("Kidney", "Spleen")
    editor.widget.setCurrentSegmentID("Kidney")
    editor.rest()
    assert not editor.effect.clickNodes and not editor.effect.segmentButton.enabled
    editor.click(8)
    assert editor.clicked() == [8] and editor.effect.clickNodes != clicks
    editor.run()
    assert editor.clicked() == [8] and filled_slices(editor.mask())


def test_segment_starts_a_worker_again_that_had_given_up(host: Any, editor: Editor) -> None:
    client = editor.module.logic.workerHost.client
    editor.click(3)
    client.deaths = client.config.max_deaths
    assert client.gave_up
    assert editor.run().error is None and filled_slices(editor.mask())


def test_the_device_and_the_axis_of_the_module_hold(editor: Editor) -> None:
    state = editor.module.widget.panel.state
    state.device, state.axis = "cpu", "coronal"
    view = editor.effect.task.view
    assert (view.device, view.axis) == ("cpu", "coronal")


def test_a_source_volume_without_voxels_raises_nothing(host: Any, editor: Editor) -> None:
    import slicer

    editor.effect.scriptedEffect.setParameter("Model", "")
    editor.widget.setSourceVolumeNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty"))
    editor.rest()
    assert editor.effect.modelBox.count


def test_write_anyway_is_offered_for_the_segment_that_it_concerns(editor: Editor) -> None:
    editor.click(3)
    editor.node.SetSourceVolumeIntensityMask(True)
    editor.node.SetSourceVolumeIntensityMaskRange(1000, 2000)
    editor.run()
    assert not editor.effect.writeAnywayButton.isHidden()
    editor.widget.setCurrentSegmentID("Other")
    editor.rest()
    assert editor.effect.writeAnywayButton.isHidden()


def test_a_segmentation_stored_as_a_surface_is_named_with_a_remedy_outside_the_module(editor: Editor) -> None:
    editor.click(3)
    editor.run()
    segmentation = editor.segmentation.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    editor.effect.segmentButton.click()
    editor.rest()
    text = editor.effect.statusLabel.text
    assert "stored as closed surface" in text and "in the module Segmentations" in text
    segmentation.SetSourceRepresentationName("Binary labelmap")
    assert editor.run().error is None


def test_the_options_fit_a_narrow_panel(editor: Editor) -> None:
    frame = editor.effect.scriptedEffect.optionsFrame()
    assert frame.minimumSizeHint().width() <= 20 * frame.fontMetrics().height()
