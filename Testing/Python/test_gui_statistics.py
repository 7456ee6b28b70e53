"""The segment as numbers, and names that tell segments apart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import export_helpers
import numpy as np
import pytest
from export_helpers import SPACING, block, export
from gui_helpers import settle_export

pytest_plugins = ["Testing.Host.pytest_plugin"]

scene = export_helpers.scene


def test_statistics_are_a_table_and_a_file(host: Any, scene: Any, tmp_path: Path) -> None:
    import slicer

    volume_ml = 6 * 16 * 18 * np.prod(SPACING) / 1000
    for _ in range(2):
        scene.ui.statisticsButton.click()
        settle_export(host, scene)
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetNumberOfRows() == 1
    assert table.GetCellText(0, 0) == "Left kidney"
    assert float(table.GetCellText(0, 1)) == pytest.approx(volume_ml, rel=1e-3)
    assert float(table.GetCellText(0, 2)) == pytest.approx(18.0)
    assert f"{volume_ml:.2f} ml" in scene.ui.exportLabel.text
    rows = list(csv.reader(export(scene, "csv", tmp_path / "k").open(encoding="utf-8")))
    assert rows[0][2] == "Length from slice to slice (mm)", "*Along the centerline* measures another"
    assert rows[0][1] == "Volume (ml)" and float(rows[1][1]) == pytest.approx(volume_ml, rel=1e-3)

    scene.ui.statisticsButton.click()
    scene.widget.panel.state.volumeNode.SetSpacing(2.0, 2.0, 2.0)  # before the numbers are there
    settle_export(host, scene)
    assert "measure again" in scene.ui.exportLabel.text
    assert table.GetNumberOfRows() == 1 and float(table.GetCellText(0, 1)) == pytest.approx(volume_ml, rel=1e-3)


def test_segments_of_one_name_have_rows_of_their_own(host: Any, scene: Any) -> None:
    import slicer

    # given: another segment of the same name, and both are measured, one of them twice
    state = scene.widget.panel.state
    first, segmentation = state.segmentId, state.segmentationNode.GetSegmentation()
    second = segmentation.AddEmptySegment("", "Left kidney")
    slicer.util.updateSegmentBinaryLabelmapFromArray(block()[::-1], state.segmentationNode, second, state.volumeNode)
    for segment_id in (first, second, first):
        state.segmentId = segment_id
        scene.widget.panel.refresh()
        scene.ui.statisticsButton.click()
        settle_export(host, scene)

    # when: one gets another name and is measured again
    segmentation.GetSegment(second).SetName("Right kidney")
    state.segmentId = second
    scene.widget.panel.refresh()
    scene.ui.statisticsButton.click()
    settle_export(host, scene)

    # then
    table = slicer.util.getNodesByClass("vtkMRMLTableNode")[0].GetTable()
    assert [table.GetValue(row, 0).ToString() for row in range(table.GetNumberOfRows())] == [
        "Left kidney",
        "Right kidney",
    ]


def test_a_second_segment_gets_a_name_of_its_own(host: Any, scene: Any) -> None:
    from SPDSegmentLib.gui.scene.target import makeTarget

    state = scene.widget.panel.state
    names = []
    for _ in range(2):
        target = makeTarget(state.segmentationNode, "", state.volumeNode, "Left kidney", (1.0, 0.0, 0.0), "")
        names.append(target.node.GetSegmentation().GetSegment(target.segmentId).GetName())
    assert names == ["Left kidney 2", "Left kidney 3"]
