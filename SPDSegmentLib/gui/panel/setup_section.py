"""What is installed and what is missing, one button to get it, models, devices, and the worker's command."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, DependencyMissing, ModelCorrupt, ModelMissing, SPDError
from SPDSegmentLib.files import megabytes
from SPDSegmentLib.models.base_weights import remove_base_weights
from SPDSegmentLib.models.bundle import add_bundle, remove_bundle
from SPDSegmentLib.worker.client import Callbacks, Request
from SPDSegmentLib.worker.messages import StatusReply

from ..run.console import Console
from ..run.job import JobState, SegmentationJob
from ..run.worker_host import deviceChoices, slicerTransport, unusedCardWarning
from ..scene.state import ModuleState, idleTimer
from ..setup import (
    Kind,
    ModelTool,
    SetupItem,
    ToolResult,
    installedVersion,
    installPackages,
    listItems,
    missingPackages,
    sizeText,
    sourceText,
)
from .controls import showDevice
from .run_section import RunSection, forSlicer

COMMAND_SETTING = "SPDSegment/WorkerCommand"
ROW_HEIGHT = 22


class SetupSection:
    """The section of the panel; nothing is installed, fetched or started unless a button of it is pressed.

    Args:
        ui: widgets of the panel.
        logic: for its worker.
        run: shows what is wrong.
        state: the settings in the scene.
        modelsChanged: called when there are other models than before.
    """

    def __init__(
        self,
        ui: Any,
        logic: Console,
        run: RunSection,
        state: Callable[[], ModuleState],
        modelsChanged: Callable[[], None],
    ) -> None:
        self.ui = ui
        self.confirm: Callable[[str], bool] = _confirm
        self.tool = ModelTool(slicerTransport)
        self.items: list[SetupItem] = []
        self._logic = logic
        self._run = run
        self._state = state
        self._modelsChanged = modelsChanged
        self._wasOffered = False
        self._offerTimer = idleTimer(self._offer)
        ui.setupTable.setHorizontalHeaderLabels([_("Part"), _("State")])
        ui.setupTable.horizontalHeader().setStretchLastSection(True)
        ui.setupTable.verticalHeader().setVisible(False)
        ui.setupTable.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        ui.setupTable.connect("itemSelectionChanged()", self._showActions)
        ui.setupSection.connect("contentsCollapsed(bool)", self._onCollapsed)
        ui.optionsSection.connect("contentsCollapsed(bool)", self._onOptionsCollapsed)
        ui.installButton.connect("clicked(bool)", lambda checked: self._guarded(self._install))
        ui.fetchButton.connect("clicked(bool)", lambda checked: self._guarded(self._fetch))
        ui.removeItemButton.connect("clicked(bool)", lambda checked: self._guarded(self._remove))
        ui.verifyButton.connect("clicked(bool)", lambda checked: self._guarded(self._check))
        ui.addBundleButton.connect("clicked(bool)", lambda checked: self._guarded(self._add))
        ui.setupCancelButton.connect("clicked(bool)", lambda checked: self.tool.cancel())
        ui.commandEdit.connect("editingFinished()", lambda: self._guarded(self._takeCommand))
        self.tool.onProgress.connect(self._onProgress)
        self.tool.onFinished.connect(self._onToolFinished)
        run.onFinished.connect(self._onJobFinished)
        saved = slicer.app.settings().value(COMMAND_SETTING) or ""
        ui.commandEdit.text = saved
        if saved:
            self._guarded(self._takeCommand)

    def fill(self) -> None:
        """Look at what is here and show it."""
        self.items = listItems()
        table = self.ui.setupTable
        table.setRowCount(len(self.items))
        for row, item in enumerate(self.items):
            title, state = qt.QTableWidgetItem(item.title), qt.QTableWidgetItem(item.state)
            state.setForeground(qt.QBrush(qt.QColor("#2f9e57" if item.isGood else "#d9412f")))
            for column, cell in enumerate((title, state)):
                cell.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
                cell.setToolTip(f"<qt>{html.escape(item.title if column == 0 else item.state)}</qt>")
                table.setItem(row, column, cell)
        table.resizeColumnToContents(0)
        self._showActions()

    def open(self, text: str) -> None:
        """Unfold the section with a text."""
        self.ui.setupSection.collapsed = False
        self.fill()
        self._say(text)

    def offerLater(self) -> None:
        """Unfold the section at the first visit, where something is missing; nothing is installed by that."""
        if not self._wasOffered:
            self._offerTimer.start()

    def _offer(self) -> None:
        self._wasOffered = True
        if self._logic.workerHost.isRemote or not any(not item.isGood for item in listItems() if _isNeeded(item)):
            return
        self.open(_("SPDSegment needs these parts first: press Install what is missing. Nothing was installed yet."))

    def close(self) -> None:
        """Stop what runs."""
        self._offerTimer.stop()
        self.tool.onProgress.disconnect(self._onProgress)
        self.tool.onFinished.disconnect(self._onToolFinished)
        self.tool.cancel()

    def _install(self) -> None:
        missing = missingPackages()
        weights = [item.key for item in listItems() if item.canFetch]
        lines = [_("{title} into 3D Slicer").format(title=state.title) for state in missing]
        if any(state.name == "torch" for state in missing):
            lines.append(_("(PyTorch is about 200 MB for the CPU and up to 3 GB for a GPU)"))
        lines += [_describeFetch(name) for name in weights]
        if not lines:
            self._say(_("Nothing is missing."))
            return
        if not self.confirm(_("This will be installed:") + "\n\n" + "\n".join(lines)):
            return
        if missing:
            self._say(_("Installing..."))
            with slicer.util.WaitCursor():
                try:
                    installPackages(missing)
                finally:
                    self._logic.workerHost.restart()
                    self.fill()
        if weights:
            self._startTool("fetch", *weights)
        else:
            self._say(_("Everything is installed; no restart is needed."))

    def _fetch(self) -> None:
        item = self._chosen()
        if item is not None and item.canFetch and self.confirm(_describeFetch(item.key)):
            self._startTool("fetch", item.key)

    def _remove(self) -> None:
        item = self._chosen()
        if item is None or not item.canRemove:
            return
        if not self.confirm(_("Delete {title} from this computer?").format(title=item.title)):
            return
        if item.kind is Kind.WEIGHTS:
            remove_base_weights(item.key)
        else:
            remove_bundle(item.key)
            self._modelsChanged()
        self._logic.workerHost.restart()
        self.fill()
        self._say(_("{title} was deleted.").format(title=item.title))

    def _check(self) -> None:
        self._startTool("check")
        self._askForDevices()

    def _askForDevices(self) -> None:
        self._logic.workerHost.client.status(probe=True, callbacks=Callbacks(on_finished=self._onDevices))

    def _add(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder of a model"))
        if not folder:
            return
        bundle = add_bundle(folder)
        self._modelsChanged()
        self.fill()
        self._say(_("{title} was added.").format(title=bundle.info.title))

    def _takeCommand(self) -> None:
        text = self.ui.commandEdit.text.strip()
        try:
            self._logic.workerHost.setCommand(text)
        except ValueError as error:  # quotes that do not match
            raise BadInput(_("This command cannot be read."), _("Check its quotes."), str(error)) from error
        slicer.app.settings().setValue(COMMAND_SETTING, text)
        self._say(_("Volumes that you segment are sent to the computer of this command.") if text else "")

    def _startTool(self, *arguments: str) -> None:
        self.tool.start(*arguments)
        self.ui.setupProgress.maximum = 0
        self._say(_("Checking...") if arguments[0] == "check" else _("Fetching..."))
        self._showActions()

    def _onProgress(self, name: str, done: int, total: int | None) -> None:
        known = bool(total) and done > 0
        self.ui.setupProgress.maximum = 1000 if known else 0
        self.ui.setupProgress.value = done * 1000 // total if known and total else 0
        if known:
            self._say(
                _("{name}: {done} of {total}").format(name=name, done=megabytes(done), total=megabytes(total or 0))
            )

    def _onToolFinished(self, result: ToolResult) -> None:
        self.fill()
        if result.problems:
            error = result.problems[0][1]
            self._say(_("Cancelled.") if isinstance(error, Cancelled) else "\n".join(_texts(result)))
        else:
            self._say(_("Good: {names}.").format(names=", ".join(result.good)))
            self._logic.workerHost.client.reset()

    def _onDevices(self, request: Request) -> None:
        if request.error is not None:
            if not isinstance(request.error, Cancelled):
                _showText(self.ui.deviceLabel, self._run.told(request.error).sentence)
            return
        if not isinstance(request.answer, StatusReply) or request.answer.devices is None:
            return
        devices = request.answer.devices
        self._fillDevices(deviceChoices(devices))
        texts = [
            f"{device.title} ({megabytes(device.free_bytes)} {_('free')})" if device.free_bytes else device.title
            for device in devices
        ]
        _showText(self.ui.deviceLabel, _("Devices: {names}.").format(names=", ".join(texts)))
        self._warn(devices[0].name if devices else "cpu")

    def _fillDevices(self, choices: list[tuple[str, str]]) -> None:
        box = self.ui.deviceBox
        box.clear()
        for value, text in choices:
            box.addItem(text, value)
        showDevice(box, self._state().device)

    def _onJobFinished(self, job: SegmentationJob) -> None:
        if job.state is JobState.DONE and job.answer is not None:
            self._warn(job.answer.device)
        elif isinstance(job.error, (DependencyMissing, ModelMissing, ModelCorrupt)):
            self._run.show(job.error)
            if not self._logic.workerHost.isRemote:
                self.open(_("Press the button below to get what is missing."))

    def _warn(self, device: str) -> None:
        host = self._logic.workerHost
        text = unusedCardWarning(device, self._state().device, lambda: installedVersion("torch"), host.isRemote)
        _showText(self.ui.deviceWarningLabel, text)

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed:
            self.fill()

    def _onOptionsCollapsed(self, collapsed: bool) -> None:
        """Name the devices where it costs nothing: a worker that has segmented has torch loaded already."""
        client = self._logic.workerHost.client
        if not collapsed and client.running and not client.busy and self._run.job is not None:
            self._askForDevices()

    def _showActions(self) -> None:
        running = self.tool.isRunning
        item = self._chosen()
        for widget in (self.ui.setupProgress, self.ui.setupCancelButton):
            widget.setVisible(running)
        for button in (self.ui.installButton, self.ui.verifyButton, self.ui.addBundleButton):
            button.enabled = not running
        self.ui.fetchButton.enabled = not running and item is not None and item.canFetch
        self.ui.removeItemButton.enabled = not running and item is not None and item.canRemove

    def _chosen(self) -> SetupItem | None:
        row = self.ui.setupTable.currentRow()
        return self.items[row] if 0 <= row < len(self.items) else None

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SPDError as error:
            self._say(forSlicer(error).sentence)

    def _say(self, text: str) -> None:
        _showText(self.ui.setupLabel, text)


def _isNeeded(item: SetupItem) -> bool:
    return item.kind is Kind.PACKAGE or item.canFetch


def _confirm(text: str) -> bool:
    return bool(slicer.util.confirmOkCancelDisplay(text, textFormat=qt.Qt.PlainText))


def _showText(label: Any, text: str) -> None:
    label.text = text
    label.setVisible(bool(text))


def _describeFetch(name: str) -> str:
    size = sizeText(name)
    return _("base weights {name} ({size}), {source}").format(
        name=name, size=size or _("size unknown"), source=sourceText(name)
    )


def _texts(result: ToolResult) -> list[str]:
    return [f"{name}: {forSlicer(error).sentence}" if name else error.sentence for name, error in result.problems]
