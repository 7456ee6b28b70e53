"""The segment as a file, and its measures as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError

from ..scene.dicom_export import dicomKinds, exportDicom
from ..scene.export_files import (
    ExportFormat,
    ExportSource,
    choosePath,
    exportFormats,
    fileStem,
    makeSource,
    measureSource,
    sentence,
    writeFile,
    writeTable,
)
from ..scene.state import BackgroundCall, ModuleState
from ..scene.write_record import loadRecord

_FOLDER_SETTING = "SPDSegment/ExportFolder"


class ExportSection:
    """Export and statistics of the segment that is chosen.

    Args:
        ui: widgets of the panel.
        state: the settings in the scene.
        isBusy: whether a run is writing into a segment, of which node and ID are given.

    Attributes:
        askPath: returns where to write, empty for nowhere; its window asks before a file is replaced.
        confirm: asked before a file is replaced that the window did not show.
    """

    def __init__(self, ui: Any, state: Callable[[], ModuleState], isBusy: Callable[[Any, str], bool]) -> None:
        self.ui = ui
        self.formats = exportFormats()
        self.dicomKinds = dicomKinds()
        self.askFolder: Callable[[], str] = _askFolder
        self.askPath: Callable[[ExportFormat, str], str] = _askPath
        self.confirm: Callable[[Path], bool] = confirmReplace
        self.askCut: Callable[[str], bool] = slicer.util.confirmYesNoDisplay
        self._state = state
        self._isBusy = isBusy
        self._background = BackgroundCall()
        for format_ in self.formats:
            ui.exportFormatBox.addItem(format_.title, format_.key)
        for kind in self.dicomKinds:
            ui.dicomKindBox.addItem(kind.title, kind.key)
        ui.exportButton.connect("clicked(bool)", self._onExport)
        ui.exportDicomButton.connect("clicked(bool)", self._onDicom)
        ui.statisticsButton.connect("clicked(bool)", self._onStatistics)

    def refresh(self) -> None:
        """Show what can be done now."""
        state = self._state()
        node = state.segmentationNode
        there = node is not None and node.GetSegmentation().GetSegment(state.segmentId) is not None
        isWhole = there and not self._isBusy(node, state.segmentId)
        for button in (self.ui.exportButton, self.ui.exportDicomButton, self.ui.statisticsButton):
            button.enabled = isWhole and state.volumeNode is not None and not self._background.isRunning
        if not there and not self._background.isRunning:
            self.ui.exportLabel.text = ""

    def close(self) -> None:
        """Let a file that is being written become whole."""
        self._background.close()

    def _onExport(self, checked: bool) -> None:
        format_ = self.formats[self.ui.exportFormatBox.currentIndex]
        try:
            source = self._source()
            question = source.question if format_.isLabelmap else ""
            isCut = bool(question and self.askCut(question))
            chosen = self.askPath(format_, source.name)
            if not chosen:
                return
            self._checkWhole()
            if not source.isCurrent():  # slices came while the window was open
                source = self._source()
            source = replace(source, isCut=isCut and source.reachesBeyond)
            asked = chosen.lower().endswith(format_.suffix)  # the window has asked for this very name
            path = choosePath(format_, chosen, (lambda path: True) if asked else self.confirm)
        except Cancelled:
            return
        except SPDError as error:
            self.ui.exportLabel.text = error.sentence
            return
        note = source.note if format_.isLabelmap else ""

        def onWritten(written: Path) -> str:
            slicer.app.settings().setValue(_FOLDER_SETTING, str(written.parent))
            return " ".join(text for text in (_("Written: {path}").format(path=written), note) if text)

        self._run(_("Writing {path}…").format(path=path), lambda: writeFile(source, format_, path), onWritten)

    def _onDicom(self, checked: bool) -> None:
        state, kind = self._state(), self.dicomKinds[self.ui.dicomKindBox.currentIndex]
        folder = self.askFolder()
        if not folder:
            return
        self.ui.exportLabel.text = ""
        try:
            self._checkWhole()
            with slicer.util.WaitCursor():
                node, segmentId = state.segmentationNode, state.segmentId
                record = loadRecord(node, segmentId)
                algorithm = f"{record.model} {record.learned}".strip()
                path = exportDicom(kind, node, segmentId, state.volumeNode, folder, algorithm, self.confirm)
        except Cancelled:
            return
        except Exception as error:
            self._showFailure(error)
            return
        slicer.app.settings().setValue(_FOLDER_SETTING, folder)
        self.ui.exportLabel.text = _("Written: {path}. Import it in the DICOM module to send it.").format(path=path)

    def _onStatistics(self, checked: bool) -> None:
        try:
            source = self._source()
        except SPDError as error:
            self.ui.exportLabel.text = error.sentence
            return

        def onMeasured(row: dict[str, Any]) -> str:
            if not source.isCurrent():
                return _("The segment or the volume changed while it was measured; measure again.")
            table = writeTable(row, source.target.node, source.target.segmentId)
            return _("{measures} Kept in the table {table}.").format(measures=sentence(row), table=table.GetName())

        self._run(_("Measuring…"), lambda: measureSource(source), onMeasured)

    def _run(self, message: str, call: Callable[[], Any], onDone: Callable[[Any], str]) -> None:
        """Run a call beside the window; ``onDone`` turns what it returned into the line below the buttons."""

        def end(result: Any, error: Exception | None) -> None:
            if error is not None:
                self._showFailure(error)
            else:
                self.ui.exportLabel.text = onDone(result)
            self.refresh()

        self.ui.exportLabel.text = message
        self._background.start(call, end)
        self.refresh()

    def _showFailure(self, error: Exception) -> None:
        if isinstance(error, SPDError):
            self.ui.exportLabel.text = error.sentence
            return
        self.ui.exportLabel.text = _("This failed: {reason}.").format(reason=error)
        logging.getLogger(__name__).error("export failed", exc_info=error)

    def _checkWhole(self) -> None:
        """Raise a problem while a run is writing: some slices are of the former result, others of the next one."""
        state = self._state()
        if state.segmentationNode is not None and self._isBusy(state.segmentationNode, state.segmentId):
            raise BadInput(_("This segment is being computed; export when it is done."))

    def _source(self) -> ExportSource:
        self._checkWhole()
        state = self._state()
        return makeSource(state.segmentationNode, state.segmentId, state.volumeNode)


def _askPath(format_: ExportFormat, name: str) -> str:
    folder = slicer.app.settings().value(_FOLDER_SETTING) or str(Path.home())
    return qt.QFileDialog.getSaveFileName(
        slicer.util.mainWindow(),
        _("Export segment"),
        str(Path(folder) / (fileStem(name, " -_") + format_.suffix)),
        f"{format_.title} (*{format_.suffix})",
    )


def _askFolder() -> str:
    folder = slicer.app.settings().value(_FOLDER_SETTING) or str(Path.home())
    return str(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Export to DICOM"), folder))


def confirmReplace(path: Path) -> bool:
    """Ask whether a file that exists may be replaced."""
    return bool(slicer.util.confirmOkCancelDisplay(_("{path} exists. Replace it?").format(path=path)))
