"""The module's one worker: how it is started, which volumes it knows, how it ends, which devices it may use."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.batch.cases import BatchModel
from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.files import megabytes
from SPDSegmentLib.worker.client import Callbacks, ModelChoice, Request, WorkerClient
from SPDSegmentLib.worker.messages import Answer, Device, Progress
from SPDSegmentLib.worker.requests import WorkerCommand, local_command, parse_command
from SPDSegmentLib.worker.transports import QProcessTransport, Transport

from ..scene.state import Signal
from ..scene.volumes import VolumeSnapshot

MAX_VOLUMES = 3
PYTHON_NAME = "PythonSlicer"


def pythonExecutable() -> str:
    """Return the interpreter for processes of ours: PythonSlicer, or the running one outside Slicer."""
    return shutil.which(PYTHON_NAME) or sys.executable


def defaultCommand() -> WorkerCommand:
    """Return the command for a worker on this machine."""
    return withEnvironment(local_command(pythonExecutable()))


def withEnvironment(command: WorkerCommand) -> WorkerCommand:
    """Return a command that starts as outside Slicer, unless it is Slicer's own Python.

    Slicer's libraries, which it puts on the search paths, break other programs: a Python of conda, or ``ssh``.
    """
    if PureWindowsPath(command.arguments[0]).stem.lower() == PYTHON_NAME.lower():
        return command
    return replace(command, environment=tuple(sorted(slicer.util.startupEnvironment().items())))


def volumeName(snapshot: VolumeSnapshot, owner: str = "") -> str:
    """Return the name by which the worker knows a volume, see :meth:`WorkerHost.openVolume`."""
    return f"{snapshot.volumeId}|{owner}"


OnAnswer = Callable[[Answer | SPDError], None]


def answerTo(callback: OnAnswer, onProgress: Callable[[Progress], None] | None = None) -> Callbacks:
    """Return callbacks that give the answer of a request, or its error, to one call."""

    def finish(request: Request) -> None:
        callback(request.error if request.error is not None else request.result())

    return Callbacks(on_progress=onProgress, on_finished=finish)


class WorkerHost:
    """Owns the client; the process starts with the first request.

    Args:
        makeTransport: returns a new transport for each worker.
    """

    def __init__(self, makeTransport: Callable[[], Transport]) -> None:
        self.onDied = Signal()
        self.isRemote = False
        self.client = WorkerClient(makeTransport, defaultCommand(), on_died=lambda error: self.onDied.emit(error))
        self._volumes: dict[str, tuple[str, str, Hashable]] = {}

    def setCommand(self, command: str | WorkerCommand) -> None:
        """Use another worker command, an empty text for the usual one; the running worker is closed."""
        chosen = parse_command(command) if isinstance(command, str) else command
        self.isRemote = chosen is not None
        self.client.set_command(withEnvironment(chosen) if chosen is not None else defaultCommand())

    def useModel(self, model: BatchModel, device: str) -> None:
        """Choose the model for the next request."""
        self.client.set_model(self.choiceOf(model, device))

    def choiceOf(self, model: BatchModel, device: str) -> ModelChoice:
        """Return what the worker is told of a model: a folder of this machine is nothing to one elsewhere."""
        isFolder = model.info is not None
        return ModelChoice(model.name if self.isRemote and isFolder else model.key, device)

    def openVolume(self, snapshot: VolumeSnapshot, owner: str = "") -> str:
        """Make a volume's state known and return its name; other states of the node, and old volumes, are forgotten.

        Those that a request waits for stay, and slices along another axis are no other state. Each owner (a segment)
        has a session of its own in the worker, so that the field of view and the slices of one structure never depend
        on work at another.
        """
        name = volumeName(snapshot, owner)
        if name not in self._volumes:
            volume = snapshot.volume
            self.client.open_volume(name, volume.array, volume.ijk_to_ras, snapshot.axis)
        state = snapshot.volumeId.removesuffix(f"|{snapshot.axis}")
        self._volumes[name] = (snapshot.nodeId, state, self._volumes.pop(name, ("", "", None))[2])
        stale = [
            known
            for known, (nodeId, other, _served) in self._volumes.items()
            if nodeId == snapshot.nodeId and other != state
        ]
        kept = [known for known in self._volumes if not (known in stale or self.client.needs_volume(known))]
        for old in [*stale, *kept[:-MAX_VOLUMES]]:
            del self._volumes[old]
            self.client.close_volume(old)
        return name

    def noteServed(self, name: str, session: Hashable) -> None:
        """A result of a session has arrived whole: a worker that is still in it knows what the next one differs from.

        Args:
            session: ``Request.session``.
        """
        if name in self._volumes:
            self._volumes[name] = (*self._volumes[name][:2], session)

    def hasServed(self, name: str, choice: ModelChoice | None = None) -> bool:
        """Whether the running worker, with a model (the present one), has given a whole result for a volume before."""
        connection, model = self.client.connection, choice or self.client.model
        if connection is None or model is None or name not in self._volumes:
            return False
        return self._volumes[name][2] == connection.session_of(name, model) is not None

    def forgetVolumes(self) -> None:
        """Let go of all volumes, as when the scene closes."""
        for name in self._volumes:
            self.client.close_volume(name)
        self._volumes.clear()

    def restart(self) -> None:
        """End the worker without waiting for it; the next request starts another, which sees what was installed."""
        self.close()
        self.client.reset()

    def close(self) -> None:
        """End the worker without waiting for it."""
        try:
            self.client.close(wait=False)
        except SPDError:
            return


def slicerTransport() -> QProcessTransport:
    """Return a transport that starts its process with Slicer's QProcess."""
    return QProcessTransport(qt.QProcess, qt.QTimer.singleShot)


NVIDIA_DRIVER = "/proc/driver/nvidia/version"


def hasNvidiaCard() -> bool:
    """Whether this computer has a card with NVIDIA's driver; found without torch."""
    return shutil.which("nvidia-smi") is not None or Path(NVIDIA_DRIVER).exists()


def deviceChoices(devices: Sequence[Device] | None) -> list[tuple[str, str]]:
    """Return (value, text) of the devices that can be chosen; None where the worker has not told them yet."""
    choices = [("auto", _("Automatic"))]
    cards = [device for device in devices or () if device.name.startswith("cuda")]
    if not cards:
        choices.append(("cuda", _("GPU") if devices is None else _("GPU (none found)")))
    for number, device in enumerate(cards):
        text = _("GPU: {title}").format(title=device.title)
        if device.free_bytes is not None:
            text += _(" ({size} free)").format(size=megabytes(device.free_bytes))
        choices.append(("cuda" if number == 0 else device.name, text))
    return [*choices, ("cpu", _("CPU"))]


def unusedCardWarning(device: str, chosen: str, torchVersion: Callable[[], str], isRemote: bool) -> str:
    """Return a warning where a run used the CPU beside an NVIDIA card that nobody chose to leave out, otherwise empty.

    Args:
        device: where the run took place, as the worker says.
        chosen: what the user chose.
        torchVersion: returns that of the torch that is installed; ``+cpu`` marks a build for the CPU.
        isRemote: the worker runs on another computer.
    """
    if isRemote or not device.startswith("cpu") or chosen == "cpu" or not hasNvidiaCard():
        return ""
    if torchVersion().endswith("+cpu"):
        return _(
            "The GPU stayed unused: the installed PyTorch is a build for the CPU. "
            "Reinstall it in the module PyTorch with a GPU backend."
        )
    return _("The GPU stayed unused: PyTorch does not see it. Update the graphics driver, or restart the computer.")
