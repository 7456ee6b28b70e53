"""The segment as a file, and its measures as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import Cancelled, SPDError

from .export_files import ExportFormat, ExportSource, exportFormats, exportSegment, makeSource
from .measurements import measureSource, sentence, writeTable
from .state import ModuleState

_FOLDER_SETTING = "SPDSegment/ExportFolder"

Confirm = Callable[[Path], bool]
AskPath = Callable[[ExportFormat, str], str]


class ExportSection:
    """Export and statistics of the segment that is chosen.

    Args:
        ui: widgets of the panel.
        state: the settings in the scene.
        askPath: returns where to write, empty for nowhere; its window asks before a file is replaced.
        confirm: asked before a file is replaced that the window did not show.
    """

    def __init__(
        self,
        ui: Any,
        state: Callable[[], ModuleState],
        askPath: AskPath | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        self.ui = ui
        self.formats = exportFormats()
        self.askPath = askPath or _askPath
        self.confirm = confirm or _confirmReplace
        self._state = state
        for format_ in self.formats:
            ui.exportFormatBox.addItem(format_.title, format_.key)
        ui.exportButton.connect("clicked(bool)", self._onExport)
        ui.statisticsButton.connect("clicked(bool)", self._onStatistics)

    def refresh(self) -> None:
        """Show what can be done now."""
        state = self._state()
        node = state.segmentationNode
        there = node is not None and node.GetSegmentation().GetSegment(state.segmentId) is not None
        for button in (self.ui.exportButton, self.ui.statisticsButton):
            button.enabled = there and state.volumeNode is not None
        if not there:
            self.ui.exportLabel.text = ""

    def _onExport(self, checked: bool) -> None:
        format_ = self.formats[self.ui.exportFormatBox.currentIndex]
        try:
            source = self._source()
            chosen = self.askPath(format_, source.name)
            if not chosen:
                return
            asked = str(format_.withSuffix(chosen)) == chosen
            with slicer.util.WaitCursor():
                path = exportSegment(source, format_, chosen, (lambda path: True) if asked else self.confirm)
        except Cancelled:
            return
        except SPDError as error:
            self.ui.exportLabel.text = error.sentence
            return
        slicer.app.settings().setValue(_FOLDER_SETTING, str(path.parent))
        self.ui.exportLabel.text = _("Written: {path}").format(path=path)

    def _onStatistics(self, checked: bool) -> None:
        try:
            source = self._source()
            row = measureSource(source)
            table = writeTable(row, source.target.node)
        except SPDError as error:
            self.ui.exportLabel.text = error.sentence
            return
        self.ui.exportLabel.text = _("{measures} Kept in the table {table}.").format(
            measures=sentence(row), table=table.GetName()
        )

    def _source(self) -> ExportSource:
        state = self._state()
        return makeSource(state.segmentationNode, state.segmentId, state.volumeNode)


def _askPath(format_: ExportFormat, name: str) -> str:
    folder = slicer.app.settings().value(_FOLDER_SETTING) or str(Path.home())
    safe = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name).strip() or "segment"
    return qt.QFileDialog.getSaveFileName(
        slicer.util.mainWindow(),
        _("Export segment"),
        str(Path(folder) / (safe + format_.suffix)),
        f"{format_.title} (*{format_.suffix})",
    )


def _confirmReplace(path: Path) -> bool:
    return bool(slicer.util.confirmOkCancelDisplay(_("{path} exists. Replace it?").format(path=path)))
