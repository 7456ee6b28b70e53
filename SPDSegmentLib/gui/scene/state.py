"""What the scene keeps: the module's settings, by Slicer's wrapper of its parameter node, and whose clicks are whose.

Also signals, timers and painters.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper

from .centerlines import clickName
from .editor_nodes import segmentIds
from .write_record import WriteRecord, identify, identityOf, loadRecord, nodeOf, safeName, saveRecord

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


_named: dict[tuple[str, str], tuple[Any, str]] = {}


def nameSegment(segmentationNode: Any, segmentId: str) -> None:
    """Give a segment an identity where it has none: the one that it had before undo led past its first run."""
    lost = lostIdentity(segmentationNode, segmentId)
    identify(segmentationNode, segmentId, lost)
    if lost:
        saveRecord(segmentationNode, segmentId, WriteRecord())
    seen = vtk.vtkWeakReference()
    seen.Set(segmentationNode.GetSegmentation().GetSegment(segmentId))
    _named[segmentationNode.GetID(), segmentId] = (seen, identityOf(segmentationNode, segmentId))


def lostIdentity(segmentationNode: Any, segmentId: str) -> str:
    """Return the identity that undo has taken from a segment, empty where it did not.

    The segment of the same ID that takes the place of a deleted one is another object.
    """
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    seen, identity = _named.get((segmentationNode.GetID(), segmentId), (None, ""))
    if segment is None or seen is None or seen.Get() is not segment:
        return ""
    return "" if identityOf(segmentationNode, segmentId) else identity


CLICKS_ROLE = "SPDSegment.Clicks."
"""Of a segmentation: the list that was made for a segment."""
SEGMENTATION_ROLE = "SPDSegment.Segmentation"
"""Of such a list: the segmentation for which it was made."""
OWNER_ATTRIBUTE = "SPDSegment.ClicksOwner."


def clicksOf(segmentationNode: Any, segmentId: str) -> list[Any]:
    """Return the nodes whose clicks belong to a segment: those chosen for its latest result, and the one made for it.

    Of a list that was made for the segment in another segmentation, of which this one is a clone, it gets a copy.
    """
    own = None
    if _ownsClicks(segmentationNode, segmentId):
        made = segmentationNode.GetNodeReference(CLICKS_ROLE + safeName(segmentId))
        own = _unshared(segmentationNode, segmentId, made)
    record = loadRecord(segmentationNode, segmentId)
    chosen = [slicer.mrmlScene.GetNodeByID(nodeId) for nodeId in _listsOf(record)]
    found = chosen if own in chosen else [own, *chosen]
    return [node for n, node in enumerate(found) if node is not None and node not in found[:n]]


def _listsOf(record: WriteRecord) -> list[str]:
    ids = record.lists or [nodeOf(fate.click_id) for fate in record.fates if fate.click_id]  # of an earlier version
    return list(dict.fromkeys(ids))


def isOfOthers(clicks: Any, segmentationId: str, segmentId: str) -> bool:
    """Whether the result of another segment of the scene came of a list, as where it was cleared and used again."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        others = [own for own in segmentIds(node) if (node.GetID(), own) != (segmentationId, segmentId)]
        if any(clicks.GetID() in _listsOf(loadRecord(node, own)) for own in others):
            return True
    return False


def ownClicks(segmentationNode: Any, segmentId: str) -> None:
    """Keep whose the list is that was made for a segment ID; one of a segment that had the ID before is let go."""
    if not _ownsClicks(segmentationNode, segmentId):
        segmentationNode.RemoveNodeReferenceIDs(CLICKS_ROLE + safeName(segmentId))
    clicks = segmentationNode.GetNodeReference(CLICKS_ROLE + safeName(segmentId))
    if clicks is not None and clicks.GetNodeReference(SEGMENTATION_ROLE) is None:
        _giveClicks(segmentationNode, segmentId, clicks)
    name, identity = OWNER_ATTRIBUTE + safeName(segmentId), identityOf(segmentationNode, segmentId)
    if identity:
        segmentationNode.SetAttribute(name, identity)
    else:
        segmentationNode.RemoveAttribute(name)


def _unshared(segmentationNode: Any, segmentId: str, clicks: Any) -> Any:
    """The list that was made for a segment, or a copy where another segmentation has it, too: a clone is another."""
    role = CLICKS_ROLE + safeName(segmentId)
    maker = clicks.GetNodeReference(SEGMENTATION_ROLE) if clicks is not None else None
    if maker in (None, segmentationNode) or maker.GetNodeReferenceID(role) != clicks.GetID():
        return clicks
    name = slicer.mrmlScene.GenerateUniqueName(clicks.GetName())
    copied = slicer.mrmlScene.AddNewNodeByClass(clicks.GetClassName(), name)
    copied.CopyContent(clicks)
    copied.CreateDefaultDisplayNodes()
    if clicks.GetDisplayNode() is not None:
        copied.GetDisplayNode().CopyContent(clicks.GetDisplayNode())
    points = range(clicks.GetNumberOfControlPoints())
    former, own = ([clickName(n.GetID(), n.GetNthControlPointID(p)) for p in points] for n in (clicks, copied))
    _giveClicks(segmentationNode, segmentId, copied)
    record = loadRecord(segmentationNode, segmentId).withNames(dict(zip(former, own, strict=True)))
    record.lists = tuple(copied.GetID() if name == clicks.GetID() else name for name in record.lists)
    saveRecord(segmentationNode, segmentId, record)
    return copied


def _giveClicks(segmentationNode: Any, segmentId: str, clicks: Any) -> None:
    segmentationNode.SetNodeReferenceID(CLICKS_ROLE + safeName(segmentId), clicks.GetID())
    clicks.SetNodeReferenceID(SEGMENTATION_ROLE, segmentationNode.GetID())


def _ownsClicks(segmentationNode: Any, segmentId: str) -> bool:
    owner = segmentationNode.GetAttribute(OWNER_ATTRIBUTE + safeName(segmentId))
    return not owner or owner in (identityOf(segmentationNode, segmentId), lostIdentity(segmentationNode, segmentId))


def makeClicks(segmentationNode: Any, segmentId: str) -> Any:
    """Return a new point list for the clicks of a segment; the scene keeps both together."""
    name = segmentationNode.GetSegmentation().GetSegment(segmentId).GetName() or segmentId
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLMarkupsFiducialNode", slicer.mrmlScene.GenerateUniqueName(_("{name} clicks").format(name=name))
    )
    if "%" in node.GetName():  # Slicer takes the name for a part of the format
        node.SetControlPointLabelFormat(node.GetName().replace("%", "%%") + "-%d")
    ownClicks(segmentationNode, segmentId)
    _giveClicks(segmentationNode, segmentId, node)
    return node


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


def callAtSceneClose(forget: Callable[[], None]) -> None:
    """Call a method whenever the scene starts to close, for as long as its object lives, which is not kept by that."""
    method, scene = weakref.WeakMethod(forget), slicer.mrmlScene

    def tell(caller: Any, event: str) -> None:
        if (living := method()) is not None:
            living()

    scene.AddObserver(scene.StartCloseEvent, tell)


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


@contextmanager
def painting(pixmap: Any) -> Iterator[Any]:
    """A painter on a pixmap; it ends also where drawing fails, as Qt ends the process with a pixmap under a painter."""
    painter = qt.QPainter()
    painter.begin(pixmap)
    try:
        yield painter
    finally:
        painter.end()


def lineHeight(widget: Any) -> int:
    """Return the height in pixels of a line of text as large as a widget's, which may be larger than usual."""
    return int(qt.QFontMetrics(widget.font).height())


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
