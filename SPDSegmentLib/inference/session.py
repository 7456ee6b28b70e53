"""One volume under one model: a changed click costs only decoder calls on the slices it can reach.

Embeddings and saliency stay (:mod:`SPDSegmentLib.inference.features`). A slice is decoded again only if its prompts
changed; everything else stays as it is, bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow
from SPDSegmentLib.inference.device_slices import MasksOnTheWay
from SPDSegmentLib.inference.engine import ModelOnDevice, require_numbers
from SPDSegmentLib.inference.features import DECODED, SliceFeatures
from SPDSegmentLib.inference.results import (
    Call,
    OnProgress,
    OnSlice,
    SegmentationResult,
    SliceResult,
    doubts_of_places,
    fates_of_given,
    fates_of_points,
    note_beyond,
    note_ends,
    note_gain,
    note_learned,
    note_outside,
    note_unsupported,
)
from SPDSegmentLib.models.fit import NOTHING, better_model, calibration_for, doubts_of_image, doubts_of_result
from SPDSegmentLib.prompts.distillation import (
    SALIENCY_ONLY,
    Distillation,
    SlicePrompts,
    consensus_of_slices,
    local_validation,
)
from SPDSegmentLib.prompts.fates import PointFate, SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts, rests_on_distillation


class Session:
    """The slices of one volume as one model sees them.

    Args:
        predictor: the model.
        stack: the volume's slices.
        features: what another session of the same model has computed of this volume, to be shared with it.
    """

    def __init__(self, predictor: ModelOnDevice, stack: SliceStack, features: SliceFeatures | None = None) -> None:
        self.predictor = predictor
        self.stack = stack
        self._features = features or SliceFeatures(
            predictor.engine, stack, predictor.intensity, predictor.fov_mm, predictor.prompts.threshold
        )
        self.extent = range(stack.n_slices)  # slices that the structure may fill, by the ends marked in the last clicks
        self._maps: SaliencyMaps | None = None
        self._locked: dict[int, np.ndarray] = {}
        self._slices: dict[int, tuple[SlicePrompts, SliceResult]] = {}
        self._told: dict[int, bytes] = {}  # what the saliency was told when a slice was decoded
        self._outdated: set[int] = set()  # slices whose last mask was not empty and is void now
        self._window: InputWindow | None = None
        self._strategy = ""
        self._running = [Call()]
        self._nothing = np.zeros(stack.array.shape[1:], dtype=bool)
        self._image_doubts: tuple[object, list[str]] | None = None  # by what was seen
        self._on_the_way: list[tuple[list[SlicePrompts], MasksOnTheWay]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of what was computed of the volume."""
        return self._features.nbytes + sum(
            r.mask.nbytes for _, r in tuple(self._slices.values()) if r.mask is not self._nothing
        )

    @property
    def features(self) -> SliceFeatures:
        """What the frozen part of the model knows of the volume."""
        return self._features

    @property
    def decided(self) -> Mapping[int, tuple[SlicePrompts, SliceResult]]:
        """Prompts, in network pixels, and results of the slices that the last call decided."""
        return self._slices

    def close(self) -> None:
        """Let go of what was computed, on the device too."""
        self._slices.clear()
        self._on_the_way.clear()
        self._maps = None
        self._features.close()

    def segment(
        self,
        clicks: Clicks,
        *,
        prompts: str = "consensus",
        saliency_only: bool = False,
        first_slice: int | None = None,
        on_slice: OnSlice | None = None,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        locked: Mapping[int, np.ndarray] | None = None,
        anchor_xy: tuple[float, float] | None = None,
    ) -> SegmentationResult:
        """Segment the volume with these clicks.

        Args:
            clicks: in the stack's pixels; those outside the volume or past a marked end get a fate that says so.
            prompts: strategy, see :func:`SPDSegmentLib.prompts.strategies.distill_prompts`, or ``SALIENCY_ONLY``.
            saliency_only: return S_t > tau as the mask (a control); no decoding.
            first_slice: slices nearest to it come first, by default the middle of the clicks.
            on_slice: called with each new slice as soon as it is there.
            on_progress: called after each batch.
            cancelled: polled between batches.
            locked: slices that a person owns, (H, W) masks by slice; kept, and context for their neighbors.
            anchor_xy: ``center_xy`` of an earlier result, where a new session looks, too, at a size of its choice.

        Raises:
            BadInput: no click inside the volume.
            Cancelled: between two batches; what has been computed stays in the session.
            OutOfMemory: one slice alone does not fit.
        """
        call = Call(on_slice, on_progress, cancelled)
        self._on_the_way.clear()
        encoded_before = self._features.encoded
        self.extent = clicks.extent(self.stack.n_slices)
        given, clicks = clicks, clicks.up_to_ends(self.stack.n_slices)
        inside = clicks.within(self.extent)
        if len(inside) == 0:
            raise BadInput("No click lies inside the volume.", "Place points on the structure in this volume.")
        self._features.make_room()
        notes = self._place_window(clicks.xy[inside], anchor_xy) + note_gain(self._features.gain)
        notes += note_ends(given, self.extent, self.stack.n_slices)
        self._set_locked(locked or {})
        network_clicks, seen = self._features.network_clicks(clicks, inside)
        center = int(np.median(clicks.slice_index[inside])) if first_slice is None else first_slice
        fates: list[PointFate] = []
        saliency_only = saliency_only or prompts == SALIENCY_ONLY
        strategy = SALIENCY_ONLY if saliency_only else prompts
        if self._strategy != strategy:
            self._forget()
            self._strategy = strategy
        if saliency_only:
            self._listen(network_clicks)
            results = self._saliency_masks(call, center)
            recomputed = set(results)
        else:
            recomputed = self._decode_early(network_clicks, prompts, center, call)
            distillation = self._distill(network_clicks, prompts, call)
            recomputed |= self._decode(sorted(distillation.slices, key=lambda p: abs(p.slice_index - center)), call)
            self._collect(call)
            fates = fates_of_points(clicks, seen, distillation, self._features.window)
            notes += note_outside(fates) + note_unsupported(distillation, prompts)
            results = {t: result for t, (_, result) in self._slices.items()}
            notes += note_beyond(clicks.slice_index[inside], results.values())
        self.predictor.engine.compile_encoder()
        slices = [results.get(t) or self._blank(t, SliceStatus.EMPTY) for t in range(self.stack.n_slices)]
        doubts = doubts_of_places(clicks, seen, self._features.window, self.stack.pixel_mm[1])
        doubts += self._doubts(clicks, fates, slices, rests_on_distillation(strategy))
        notes += note_learned(learned := self.predictor.identity.get("learned"))
        return SegmentationResult(
            slices,
            fates_of_given(fates, given, self.extent),
            sorted(recomputed),
            self._features.encoded - encoded_before,
            call.seconds,
            str(self.predictor.engine.device),
            self.predictor.identity,
            notes + doubts,
            self._features.window.center_xy,
            doubts,
            calibration_for(self.predictor.info, strategy, bool(learned)),
        )

    def distill(self, clicks: Clicks, prompts: str = "consensus") -> list[SlicePrompts]:
        """The prompts that :meth:`segment` would decode, of every slice, with points in slice pixels; no decoding."""
        self.extent = clicks.extent(self.stack.n_slices)
        inside = clicks.within(self.extent)
        if len(inside):
            self._place_window(clicks.xy[inside])
        slices = self._distill(self._features.network_clicks(clicks, inside)[0], prompts, Call()).slices
        return [dataclasses.replace(p, points=self._features.window.to_slice(p.points)) for p in slices]

    def saliency(self, t: int, center_xy: tuple[float, float] | None = None) -> np.ndarray:
        """S_t in the slice's own pixels, (H, W) float32, 0 outside the view; raises as :meth:`SliceFeatures.ensure`.

        Args:
            center_xy: where to look before the first segmentation, which alone fixes the field of view.
        """
        self._features.look_at(center_xy)
        saliency = self._features.saliency(t, Call()).astype(np.float32)
        restored: np.ndarray = self._features.window.restore(saliency[None], 0.0)[0]
        return restored

    def _doubts(
        self, clicks: Clicks, fates: Sequence[PointFate], slices: Sequence[SliceResult], judged: bool
    ) -> list[str]:
        """Sentences on why image or result, where clicks were judged, are not of the kind that the model knows."""
        info, pixels = self.predictor.info, np.array([s.pixels for s in slices])
        nothing = [] if judged or pixels.any() else [NOTHING]
        if info is None:
            return nothing
        own = [f.fate for f in fates if f.is_own]
        within = clicks.slice_index[~clicks.outside]
        seen = (self._window, int(within.min()), int(within.max()))
        if self._image_doubts is None or self._image_doubts[0] != seen:
            self._image_doubts = seen, doubts_of_image(info, self.stack, clicks)
        of_image = self._image_doubts[1]
        of_result = doubts_of_result(info, self.stack, clicks, own, pixels) if judged else nothing
        if not of_image and not (judged and of_result):
            return nothing
        return [*of_image, *of_result, better_model(info, self.stack, clicks, unrecognized=not of_image)]

    def _place_window(self, xy: np.ndarray, anchor_xy: tuple[float, float] | None = None) -> list[str]:
        self._features.place_window(xy, anchor_xy)
        if self._window == self._features.window:
            return []
        first = self._window is None
        self._window = self._features.window
        self._maps = None
        self._forget()
        return [] if first else ["Most clicks left the field of view; it was moved and everything computed again."]

    def _forget(self) -> None:
        """Let every slice be decided again, and remember which of them the caller has a mask of."""
        self._outdated |= {t for t, (_, result) in self._slices.items() if result.pixels}
        self._slices.clear()

    def _set_locked(self, locked: Mapping[int, np.ndarray]) -> None:
        """Take over the person's slices; where they changed, saliency components are computed again."""
        same = locked.keys() == self._locked.keys() and all(np.array_equal(locked[t], self._locked[t]) for t in locked)
        if not same:
            self._locked = {t: np.asarray(mask, dtype=bool).copy() for t, mask in locked.items()}
            self._maps = None

    def _saliency_maps(self, call: Call) -> SaliencyMaps:
        running = self._running
        running[0] = call
        if self._maps is None:  # which does not know the session, so that both go when it is let go of
            self._maps = self._features.maps(self.predictor.prompts.threshold, self._locked, lambda: running[0])
        return self._maps

    def _listen(self, clicks: SliceClicks) -> None:
        """Tell the saliency the clicks; where it may change, its maps are looked at again."""
        changed = self._features.tell(clicks)
        if self._maps is not None:
            self._maps.forget(changed - self._locked.keys())

    def _distill(self, clicks: SliceClicks, strategy: str, call: Call) -> Distillation:
        self._listen(clicks)
        maps = self._saliency_maps(call)
        return distill_prompts(maps, clicks, self.predictor.prompts, strategy, frozenset(self._locked), self.extent)

    def _decode_early(self, clicks: SliceClicks, strategy: str, center: int, call: Call) -> set[int]:
        """Encode around the clicks, nearest to the view first, and decode supported slices as soon as they can be.

        No slice asks for a click that its own slice does not support: what only such clicks reach is not encoded.
        A GPU does not wait to know; its next batch is under way before one is waited for.
        """
        self._listen(clicks)
        config, last = self.predictor.prompts, self.stack.n_slices - 1
        ahead = self.predictor.engine.device.type == "cuda"
        n = max(config.n_neighbors, wide := int(config.evidence != "gate"))  # others look into the adjoining slices
        around, beside = ([range(max(0, s - k), min(last, s + k) + 1) for s in range(last + 1)] for k in (n, wide))
        clicked = {int(t) for t in clicks.slice_index}
        reached = {s for t in clicked for s in around[t] if s in self.extent or s in beside[t]}
        waiting = sorted(reached, key=lambda t: (abs(t - center), t))
        held, changed = set[int](), set[int]()

        def matters(t: int) -> bool:
            seen = self._features.known_slices() - held
            maps = self._saliency_maps(call)
            return any(
                abs(s - t) <= wide
                or (len(local_validation(maps, s, clicks, config.evidence)) if seen.issuperset(beside[s]) else ahead)
                for s in clicked.intersection(around[t])
            )

        size, started = self.predictor.engine.batch_size, False
        unseen = [t for t in waiting if t not in self._features.known_slices()]
        if not self._features.missing(needed := list(filter(matters, unseen))):  # all will be decoded in one go
            self._features.ensure(needed, call)
            return changed
        while batch := list(itertools.islice(filter(matters, unseen), size)):
            if not started:
                call.expect("encoding", len(self._features.missing(unseen)))
            self._features.ensure(batch, call)
            self._collect(call)
            unseen = [t for t in unseen if t not in batch]
            held = set(batch) if ahead and started and unseen else set()
            started = True
            if strategy != "consensus":
                continue
            seen = self._features.known_slices() - held
            known = [t for t in waiting if all(seen.issuperset(beside[s]) for s in clicked.intersection(around[t]))]
            ready = [t for t in known if t in seen or not matters(t)]
            waiting = [t for t in waiting if t not in ready]
            maps = self._saliency_maps(call)
            prompts, _ = consensus_of_slices(maps, self._free(ready), clicks, config)  # as the whole will find
            changed |= self._decode(prompts.values(), call)
        call.expect("encoding", -len(self._features.missing(unseen)) if started else 0)
        self._collect(call)
        return changed

    def _decode(self, prompts: Iterable[SlicePrompts], call: Call) -> set[int]:
        """Bring slices up to date with their prompts; returns those whose mask or state changed."""
        changed: set[int] = set()
        to_decode: list[SlicePrompts] = []
        for p in prompts:
            t = p.slice_index
            known = self._slices.get(t)
            was_locked = known is not None and known[1].status is SliceStatus.LOCKED
            if t in self._locked:
                if not (was_locked and known is not None and np.array_equal(known[1].mask, self._locked[t])):
                    changed.add(t)
                    self._keep(p, SliceResult(t, self._locked[t], 1.0, SliceStatus.LOCKED), call)
            elif known is None or was_locked or not p.same_as(known[0]) or self._heard_other(p):
                if len(p.points):
                    to_decode.append(p)
                    changed.add(t)
                else:
                    if known is not None or t in self._outdated:
                        changed.add(t)
                    self._keep(p, self._blank(t, p.status), call)
            else:  # the points are the same, the clicks that they are of may have other numbers
                self._slices[t] = (p, known[1])
        self._features.ensure([p.slice_index for p in to_decode], call)
        call.expect("decoding", len(to_decode))
        self.predictor.engine.with_smaller_batches(to_decode, lambda batch: self._decode_batch(batch, call), DECODED)
        self._collect(call, wait=False)
        return changed

    def _decode_batch(self, batch: Sequence[SlicePrompts], call: Call) -> None:
        call.check()
        self._on_the_way.append((list(batch), self._features.masks(batch, self.predictor.prompts.max_points, call)))

    def _collect(self, call: Call, wait: bool = True) -> None:
        """Keep the masks that have arrived from the device, or all."""
        while self._on_the_way and (wait or self._on_the_way[0][1].download.arrived):
            prompts, masks = self._on_the_way.pop(0)
            found, (quality,) = masks.arrays()
            require_numbers([p.slice_index for p in prompts], quality)
            for p, mask, iou in zip(prompts, found, quality.tolist(), strict=True):
                self._keep(p, SliceResult(p.slice_index, mask, iou if mask.any() else 0.0, p.status), call)
            call.advance("decoding", len(prompts))

    def _keep(self, prompts: SlicePrompts, result: SliceResult, call: Call) -> None:
        t = prompts.slice_index
        had_mask = t in self._outdated or (t in self._slices and bool(self._slices[t][1].pixels))
        self._outdated.discard(t)
        self._slices[t] = (prompts, result)
        self._told[t] = self._features.told(t)
        if had_mask or result.pixels or result.status is SliceStatus.SUPPORTED:
            call.on_slice(result)

    def _heard_other(self, p: SlicePrompts) -> bool:
        """Whether the saliency that goes into a mask was told other clicks than when the mask was made."""
        return bool(len(p.points)) and self._told[p.slice_index] != self._features.told(p.slice_index)

    def _blank(self, t: int, status: SliceStatus) -> SliceResult:
        return SliceResult(t, self._nothing, 0.0, status)

    def _saliency_masks(self, call: Call, center: int) -> dict[int, SliceResult]:
        """S_t > tau of every slice that no person owns; none past a marked end."""
        order = sorted(range(self.stack.n_slices), key=lambda t: (abs(t - center), t))
        call.expect("encoding", len(self._features.missing(self._free(order))))
        results: dict[int, SliceResult] = {}
        size = self.predictor.engine.batch_size
        for start in range(0, len(order), size):
            self._features.ensure(self._free(order[start : start + size]), call)
            for t in order[start : start + size]:
                results[t] = self._saliency_mask(t)
                self._outdated = self._outdated | {t} if results[t].pixels else self._outdated - {t}
                call.on_slice(results[t])
        return results

    def _free(self, slices: Iterable[int]) -> list[int]:
        """Those that no person owns and no marked end leaves out."""
        return [t for t in slices if t not in self._locked and t in self.extent]

    def _saliency_mask(self, t: int) -> SliceResult:
        """S_t > tau, whose quality nothing predicts, or what a person owns."""
        if t in self._locked:
            return SliceResult(t, self._locked[t], 1.0, SliceStatus.LOCKED)
        mask = self.saliency(t) > self.predictor.prompts.threshold if t in self.extent else self._nothing
        return SliceResult(t, mask, None, SliceStatus.SALIENCY) if mask.any() else self._blank(t, SliceStatus.EMPTY)
