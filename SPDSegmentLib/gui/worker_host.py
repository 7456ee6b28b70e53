"""The module's one worker: how it is started, which volumes it knows, how it ends."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.worker.client import ClientConfig, ModelChoice, WorkerClient
from SPDSegmentLib.worker.commands import WorkerCommand, local_command, parse_command
from SPDSegmentLib.worker.transports import Transport

from .signal import Signal
from .volumes import VolumeSnapshot

MAX_VOLUMES = 2
PYTHON_NAME = "PythonSlicer"


def pythonExecutable() -> str:
    """Return the interpreter for processes of ours: PythonSlicer, or the running one outside Slicer."""
    return shutil.which(PYTHON_NAME) or sys.executable


def defaultCommand() -> WorkerCommand:
    """Return the command for a worker on this machine."""
    return local_command(pythonExecutable())


class WorkerHost:
    """Owns the client; the process starts with the first request.

    Args:
        makeTransport: returns a new transport for each worker.
        version: of the library, told to the worker.
    """

    def __init__(self, makeTransport: Callable[[], Transport], version: str = "") -> None:
        self.onDied = Signal()
        self.isRemote = False
        self.client = WorkerClient(
            makeTransport,
            defaultCommand(),
            ClientConfig(library_version=version),
            on_died=lambda error: self.onDied.emit(error),
        )
        self._volumes: list[str] = []

    def setCommand(self, command: str | WorkerCommand) -> None:
        """Use another worker command, an empty text for the usual one; the running worker is closed."""
        chosen = parse_command(command) if isinstance(command, str) else command
        self.isRemote = chosen is not None
        self.client.set_command(chosen or defaultCommand())

    def useModel(self, bundle: str, device: str) -> None:
        """Choose the model for the next request."""
        self.client.set_model(ModelChoice(bundle, device))

    def openVolume(self, snapshot: VolumeSnapshot) -> None:
        """Make a volume's state known; other states of the same node, and old volumes, are forgotten."""
        if snapshot.volumeId in self._volumes:
            self._volumes.remove(snapshot.volumeId)
        else:
            volume = snapshot.volume
            self.client.open_volume(snapshot.volumeId, volume.array, volume.ijk_to_ras, snapshot.axis)
        stale = [name for name in self._volumes if name.split("|")[0] == snapshot.nodeId]
        kept = [name for name in self._volumes if name not in stale]
        stale += kept[: max(0, len(kept) - MAX_VOLUMES + 1)]
        self._volumes = [name for name in self._volumes if name not in stale] + [snapshot.volumeId]
        for name in stale:
            self.client.close_volume(name)

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
