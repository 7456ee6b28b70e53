"""The module's settings in the scene, kept by Slicer's own wrapper of its parameter node; signals and timers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

_EARLIER_TEXTS = {"segmentId": "SegmentID", "model": "Model", "axis": "Axis", "device": "Device"}
_EARLIER_NODES = {"volumeNode": "Volume", "segmentationNode": "Segmentation"}
_EARLIER_CENTERLINES = "Centerline"
_EARLIER_LIVE_UPDATE = "LiveUpdate"
"""Names by which 0.1.0 stored the parameters."""


@parameterNodeWrapper
class ModuleState:
    """What the panel is set to; made by :func:`moduleState`.

    Attributes:
        volumeNode: the volume, or None.
        centerlines: see :attr:`centerlineNodes`.
        segmentationNode: the segmentation, or None for a new one.
        segmentId: the segment, empty for a new one.
        model: name of the model bundle.
        axis: slicing axis.
        device: as for ``inference.engine.choose_device``.
        liveUpdate: whether a changed click recomputes its neighborhood at once.
    """

    volumeNode: slicer.vtkMRMLVolumeNode
    centerlines: list[slicer.vtkMRMLMarkupsNode]
    segmentationNode: slicer.vtkMRMLSegmentationNode
    segmentId: str
    model: str
    axis: str = "auto"
    device: str = "auto"
    liveUpdate: bool = True

    @property
    def centerlineNodes(self) -> list[Any]:
        """The centerline, and its branches after it; without those that were deleted."""
        return [node for node in self.centerlines if node is not None]

    @centerlineNodes.setter
    def centerlineNodes(self, nodes: Sequence[Any]) -> None:
        if self.centerlineNodes != list(nodes):
            self.centerlines = list(nodes)


def moduleState(parameterNode: Any) -> ModuleState:
    """Return the settings that a parameter node holds, also of a scene that 0.1.0 has saved."""
    node, state = parameterNode, ModuleState(parameterNode)  # type: ignore[call-arg]
    for name, earlier in _EARLIER_TEXTS.items():
        if text := node.GetParameter(earlier):
            setattr(state, name, text)
    for name, earlier in _EARLIER_NODES.items():
        if (referenced := node.GetNodeReference(earlier)) is not None:
            setattr(state, name, referenced)
    count = node.GetNumberOfNodeReferences(_EARLIER_CENTERLINES)
    if count:
        state.centerlineNodes = [
            found for n in range(count) if (found := node.GetNthNodeReference(_EARLIER_CENTERLINES, n)) is not None
        ]
    if node.GetParameter(_EARLIER_LIVE_UPDATE) == "false":
        state.liveUpdate = False
    for earlier in (*_EARLIER_TEXTS.values(), _EARLIER_LIVE_UPDATE):
        node.UnsetParameter(earlier)
    for earlier in (*_EARLIER_NODES.values(), _EARLIER_CENTERLINES):
        node.RemoveNodeReferenceIDs(earlier)
    return state


class Signal:
    """Calls what is connected, in order; a receiver that disconnects meanwhile is not called."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` from now on."""
        self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` no more."""
        if receiver in self._receivers:
            self._receivers.remove(receiver)

    def emit(self, *arguments: Any) -> None:
        """Tell everybody."""
        for receiver in list(self._receivers):
            if receiver in self._receivers:
                receiver(*arguments)


def idleTimer(action: Callable[[], None], milliseconds: int = 0) -> Any:
    """Return a timer that calls ``action`` once, as soon as the event loop is free.

    Args:
        action: without arguments.
        milliseconds: to wait since the timer was started last.
    """
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", action)
    return timer


LOOK_MS = 10
LENT_SECONDS = 0.005


class BackgroundCall:
    """Runs a call that touches neither the scene nor a widget.

    In Slicer the main thread holds Python's lock while it waits for events, so that other threads stand still. Each
    look at the thread lends it the lock for some milliseconds; what it calls in VTK, ITK and numpy needs none.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: list[tuple[Any, Exception | None]] = []
        self._onDone: Callable[[Any, Exception | None], None] = lambda result, error: None
        self._timer = qt.QTimer()
        self._timer.setInterval(LOOK_MS)
        self._timer.connect("timeout()", self._look)

    @property
    def isRunning(self) -> bool:
        """Whether a call has not come back yet."""
        return self._thread is not None

    def start(self, call: Callable[[], Any], onDone: Callable[[Any, Exception | None], None]) -> None:
        """Run ``call``; then ``onDone(result, error)`` in the main thread. Only one call at a time."""
        if self.isRunning:
            raise RuntimeError("another call is running")
        self._onDone, self._outcome = onDone, []
        self._thread = threading.Thread(target=self._run, args=(call,), name="SPDSegment export")
        self._thread.start()
        self._timer.start()

    def close(self) -> None:
        """Let a running call come to its end; nobody is told any more."""
        self._onDone = lambda result, error: None
        self._timer.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome.append((call(), None))
        except Exception as error:
            self._outcome.append((None, error))

    def _look(self) -> None:
        if self._thread is None:
            return
        self._thread.join(LENT_SECONDS)
        if self._thread.is_alive():
            return
        self._thread = None
        self._timer.stop()
        self._onDone(*self._outcome[0])
