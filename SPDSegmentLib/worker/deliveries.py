"""What the caller has of each volume's slices, so that every answer brings it up to date.

A worker sends the slices that changed since its last answer. That is not all that the caller lacks: slices that came
too late for a cancelled request were dropped here, and a new session (another worker or model, a volume that was sent
again) does not know what the caller holds.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from .connection import Request
from .messages import Segment, Segmented, SliceReady


@dataclass
class VolumeDelivery:
    """Attributes:
    session: the session from which a slice came last, or None while there was none.
    behind: whether the caller holds slices of an earlier session, and no whole answer of this one.
    anchor_ras: of the last answer.
    missed: latest state of slices that were sent and not handed over.
    """

    session: Hashable = None
    behind: bool = False
    anchor_ras: tuple[float, float, float] | None = None
    missed: dict[int, SliceReady] = field(default_factory=dict)


class Deliveries:
    """One :class:`VolumeDelivery` for each volume of which something has arrived."""

    def __init__(self) -> None:
        self._volumes: dict[str, VolumeDelivery] = {}

    def complete(self, message: Segment, session: Hashable) -> Segment:
        """Return the request as it must be asked of ``session`` so that the caller gets all that it lacks."""
        known = self._volumes.get(message.volume_id)
        if known is None or (known.session == session and not known.behind):
            return message
        return replace(message, send_all=True, anchor_ras=message.anchor_ras or known.anchor_ras)

    def lose_session(self, volume_id: str) -> None:
        """The worker has forgotten the volume."""
        if volume_id in self._volumes:
            self._volumes[volume_id].behind = True

    def take(self, ready: SliceReady, session: Hashable) -> None:
        """A slice is handed over."""
        self._at(ready.volume_id, session).missed.pop(ready.slice_index, None)

    def miss(self, ready: SliceReady, session: Hashable) -> None:
        """A slice comes too late for its request."""
        self._at(ready.volume_id, session).missed[ready.slice_index] = ready

    def finish(self, request: Request, answer: Segmented, session: Hashable) -> Segmented:
        """Hand over what the caller still lacks, and return the answer with those slices among the recomputed."""
        known = self._at(answer.volume_id, session)
        known.anchor_ras, known.behind = answer.anchor_ras, False
        missed, known.missed = known.missed, {}
        for _, ready in sorted(missed.items()):
            request.take_slice(replace(ready, request_id=request.request_id))
        return replace(answer, recomputed=tuple(sorted({*answer.recomputed, *missed})))

    def forget(self, volume_id: str) -> None:
        """The volume is closed."""
        self._volumes.pop(volume_id, None)

    def _at(self, volume_id: str, session: Hashable) -> VolumeDelivery:
        known = self._volumes.setdefault(volume_id, VolumeDelivery())
        if known.session != session:
            known.behind = known.session is not None
            known.session, known.missed = session, {}
        return known
