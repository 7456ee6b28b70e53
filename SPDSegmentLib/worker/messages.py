"""What client and server say to each other: requests downwards, events upwards; no torch.

A request that wants an answer has a ``request_id``; one ``Answer`` has the same, after ``Progress`` and ``SliceReady``.
"""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from SPDSegmentLib.prompts.fates import PointFate, SliceStatus

from .payloads import ArrayOf, PackedMask, PointGroup, check_fates, check_packed, unpack_fates

NO_REQUEST = 0

FateNumbers = Annotated[np.ndarray, ArrayOf("<i4", (None, 5))]
Bits = Annotated[np.ndarray, ArrayOf("|u1", (None,))]
MaskTable = Annotated[np.ndarray, ArrayOf("<i8", (None, 7))]
Places = Annotated[np.ndarray, ArrayOf("<f8", (None, 3))]


@dataclass(frozen=True)
class Device:
    """A device that torch can use; free memory in bytes, None where unknown."""

    name: str
    title: str
    free_bytes: int | None


@dataclass(frozen=True, eq=False)
class Numbered:
    """A request that wants an answer, or what comes back for it."""

    kind: ClassVar[str]
    request_id: int


@dataclass(frozen=True, eq=False)
class OnVolume(Numbered):
    """Of one volume."""

    volume_id: str


@dataclass(frozen=True, eq=False)
class Prompted(OnVolume):
    """Clicks on a volume, and what a person drew in it.

    Attributes:
        points_ras: (N, 3) millimeters.
        point_ids: N control point ids.
        groups: the markups nodes of the points, in order; their counts add up to N.
        locked_table: (L, 7) and ``locked_bits``: slices edited by hand, see ``payloads.pack_masks``.
        prompts: prompting strategy of the predictor.
    """

    points_ras: Places
    point_ids: tuple[str, ...]
    groups: tuple[PointGroup, ...]
    locked_table: MaskTable
    locked_bits: Bits
    prompts: str = "consensus"


# ---- requests


@dataclass(frozen=True)
class Hello(Numbered):
    """First request of a connection; answered at once, even while the worker is busy.

    Attributes:
        process_id: the client's; a worker that it has started on the same machine ends with it.
    """

    kind: ClassVar[str] = "hello"
    process_id: int | None = None


@dataclass(frozen=True)
class LoadModel(Numbered):
    """Load a model bundle (a folder or a name) on a device; the one loaded before is given up."""

    kind: ClassVar[str] = "load_model"
    bundle: str
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class OpenVolume(OnVolume):
    """Announce a volume whose bytes follow in ``VolumeChunk``; answered when the last byte is there.

    ``shape`` is (K, J, I); ``ijk_to_ras`` is 4x4 in millimeters; ``axis`` as in ``geometry.slices.SliceStack``.
    """

    kind: ClassVar[str] = "open_volume"
    dtype: str
    shape: tuple[int, int, int]
    ijk_to_ras: Annotated[np.ndarray, ArrayOf("<f8", (4, 4))]
    axis: str = "auto"


@dataclass(frozen=True, eq=False)
class VolumeChunk:
    """Bytes of a volume in C order; chunks follow one another without a gap."""

    kind: ClassVar[str] = "volume_chunk"
    volume_id: str
    offset: int
    data: Bits


@dataclass(frozen=True, eq=False)
class Segment(Prompted):
    """Segment an open volume from clicks.

    Attributes:
        first_slice: slice index to begin with, nearest first.
        send_all: send every slice of the result, not only the recomputed ones.
        anchor_ras: ``Segmented.anchor_ras`` of the result that this one goes on from, in millimeters.
        learned: ``Learned.name`` of what was learned from corrections, empty for the model itself.
    """

    kind: ClassVar[str] = "segment"
    first_slice: int | None = None
    send_all: bool = False
    anchor_ras: tuple[float, float, float] | None = None
    learned: str = ""


@dataclass(frozen=True, eq=False)
class Learn(Prompted):
    """Learn from the slices that were edited by hand, and say what would change; nothing does.

    ``learned`` is as of the result that is there: what would change of its masks is what is said.
    """

    kind: ClassVar[str] = "learn"
    anchor_ras: tuple[float, float, float] | None = None
    learned: str = ""


@dataclass(frozen=True, eq=False)
class Suggest(OnVolume):
    """Ask where ``count`` more clicks would help the last result most.

    Attributes:
        points_ras: (N, 3) the clicks, and places where a person wants none, in millimeters.
        learned: as of that result.
    """

    kind: ClassVar[str] = "suggest"
    points_ras: Places
    count: int = 1
    learned: str = ""


@dataclass(frozen=True)
class Saliency(OnVolume):
    """Ask for the saliency map of one slice.

    Attributes:
        center_ras: where to look while no segmentation has fixed the field of view, in millimeters.
    """

    kind: ClassVar[str] = "saliency"
    slice_index: int
    center_ras: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class CloseVolume:
    """Forget a volume and what was computed for it; no answer."""

    kind: ClassVar[str] = "close_volume"
    volume_id: str


@dataclass(frozen=True)
class Cancel(Numbered):
    """Stop a request; it is answered with ``Failed`` by Cancelled unless its answer was already under way.

    With ``urgent`` the worker ends itself if it cannot stop within its grace time; otherwise it takes its time.
    """

    kind: ClassVar[str] = "cancel"
    urgent: bool = True


@dataclass(frozen=True)
class Status(Numbered):
    """Ask for an answer, at once; with ``probe`` for the devices too, in turn, which imports torch."""

    kind: ClassVar[str] = "status"
    probe: bool = False


# ---- events


@dataclass(frozen=True)
class HelloReply(Numbered):
    """The worker runs: which version of this library, as which process of its machine."""

    kind: ClassVar[str] = "hello_reply"
    library_version: str
    process_id: int


@dataclass(frozen=True)
class ModelLoaded(Numbered):
    """The model is on its device."""

    kind: ClassVar[str] = "model_loaded"


@dataclass(frozen=True)
class VolumeOpened(Numbered):
    """The volume is complete and can be used."""

    kind: ClassVar[str] = "volume_opened"


@dataclass(frozen=True)
class Progress(Numbered):
    """How far a request is; ``seconds_left`` is None while unknown."""

    kind: ClassVar[str] = "progress"
    stage: str
    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True, eq=False)
class SliceReady(OnVolume):
    """The result of one slice, as soon as it is known; ``quality`` is the predicted IoU or None."""

    kind: ClassVar[str] = "slice"
    slice_index: int
    shape: tuple[int, int]
    box: tuple[int, int, int, int]
    bits: Bits
    quality: float | None
    status: SliceStatus

    def __post_init__(self) -> None:
        check_packed(self.packed)

    @property
    def packed(self) -> PackedMask:
        """The mask in packed form."""
        return PackedMask(self.shape, self.box, self.bits)


@dataclass(frozen=True, eq=False)
class Segmented(OnVolume):
    """The end of a segmentation; every slice of ``recomputed`` was sent before it.

    ``anchor_ras`` is the middle of the field of view; given back with ``Segment`` it puts the next one there, whose
    size a model that chooses it from the first clicks chooses again in a new session.
    """

    kind: ClassVar[str] = "segmented"
    recomputed: tuple[int, ...]
    fate_numbers: FateNumbers
    fate_places: Places
    fate_texts: tuple[str, ...]
    seconds: float
    device: str
    report: dict[str, Any]
    anchor_ras: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_fates(self.fate_numbers, self.fate_places, self.fate_texts)

    @functools.cached_property
    def fates(self) -> tuple[PointFate, ...]:
        """The fate of every click, and the synthesized points."""
        return unpack_fates(self.fate_numbers, self.fate_places, self.fate_texts)


@dataclass(frozen=True, eq=False)
class SaliencyReady(OnVolume):
    """Saliency of one slice, (H, W) float32 in [0, 1]."""

    kind: ClassVar[str] = "saliency_ready"
    slice_index: int
    saliency: Annotated[np.ndarray, ArrayOf("<f4", (None, None))]


@dataclass(frozen=True, eq=False)
class Learned(OnVolume):
    """What the slices edited by hand taught.

    Attributes:
        name: with which ``Segment`` asks for it; empty where nothing was gained.
        slices: the slices learned from.
        before, after: mean Dice of those slices, each segmented without its own correction, by the model itself and by
            what was learned.
        voxels: how many would change.
        changed_table, changed_bits: the slices that would change as they would be, see ``payloads.pack_masks``.
        sentence: what was gained, in words.
    """

    kind: ClassVar[str] = "learned"
    name: str
    slices: tuple[int, ...]
    before: float
    after: float
    voxels: int
    changed_table: MaskTable
    changed_bits: Bits
    sentence: str


@dataclass(frozen=True, eq=False)
class Suggested(OnVolume):
    """Where clicks would help most, the best first.

    Attributes:
        slices: M slices; places_ras: (M, 3) millimeters.
        measures: (M, 3) share in dispute, 0 to 1, or -1 in an empty slice; distance to the nearest click in mm; score.
    """

    kind: ClassVar[str] = "suggested"
    slices: tuple[int, ...]
    places_ras: Places
    measures: Places


@dataclass(frozen=True)
class StatusReply(Numbered):
    """The worker is there; ``devices`` is None unless it was asked to probe."""

    kind: ClassVar[str] = "status_reply"
    devices: tuple[Device, ...] | None = None


@dataclass(frozen=True)
class VolumeNeeded(OnVolume):
    """The volume of a request was forgotten for the sake of others: send it again, and the request after it."""

    kind: ClassVar[str] = "volume_needed"


@dataclass(frozen=True)
class Alive:
    """Sign of life; for ``silent_seconds`` no other may come (libraries are loaded), 0: no longer than usual."""

    kind: ClassVar[str] = "alive"
    running: int | None
    silent_seconds: float = 0.0


@dataclass(frozen=True)
class Failed(Numbered):
    """A request failed (or, with ``NO_REQUEST``, something outside one); ``error`` names a class of ``errors``."""

    kind: ClassVar[str] = "failed"
    error: str
    message: str
    remedy: str = ""
    details: str = ""


VolumeRequest = Segment | Learn | Suggest | Saliency
Request = Hello | LoadModel | OpenVolume | VolumeChunk | VolumeRequest | CloseVolume | Cancel | Status
VolumeAnswer = Segmented | Learned | Suggested | SaliencyReady
Answer = HelloReply | ModelLoaded | VolumeOpened | VolumeAnswer | StatusReply | VolumeNeeded | Failed
Event = Answer | Progress | SliceReady | Alive

REQUESTS: dict[str, type[Request]] = {cls.kind: cls for cls in typing.get_args(Request)}
EVENTS: dict[str, type[Event]] = {cls.kind: cls for cls in typing.get_args(Event)}
