"""Learning from the slices that a person corrected, for one volume (ours): the saliency head follows them.

Everything in front of the head is frozen, and so is how it mixes adjoining slices: it learns from embeddings that are
kept, in seconds, and only at their pixels around the structure, with a few of the rest. On other slices it is held to
what it said before (after Li and Hoiem, Learning without Forgetting, 2016). Nothing is learned
silently: each corrected slice is first segmented by heads that never saw it, and only if those do better than the
model's own is anything learned at all. What is learned lives in a session beside the model's own and goes with it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam  # torch.optim.Adam imports the compiler first, which takes seconds

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.device_slices import upload
from SPDSegmentLib.inference.features import SliceFeatures
from SPDSegmentLib.inference.results import Call, SegmentationProgress, SegmentationResult
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.networks.adapters import SaliencyHead
from SPDSegmentLib.networks.config import SegmentationLossConfig
from SPDSegmentLib.networks.spd import segmentation_loss
from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY, SlicePrompts
from SPDSegmentLib.prompts.strategies import distill_prompts

if TYPE_CHECKING:
    from SPDSegmentLib.inference.engine import Engine

LEARNING_RATE = 5e-4
CHECKPOINTS = (20, 40)
"""Steps after which a head is judged; the better number is taken."""
BATCH, HELD_BATCH = 4, 2
HELD_WEIGHT, MOST_HELD = 10.0, 24
"""Weight of what the head said before on slices that nobody corrected, and how many of them are held to it."""
SALIENT, REST = 0.1, 3
"""What any slice shows above this is learned at, and of the rest each pixel in so many rows and columns."""
FOLDS = 3
FEWEST = 2
"""Corrected slices from which anything is learned."""
LEAST_GAIN = 0.01
"""By so much the mean Dice of slices that a head never saw must rise."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What corrected slices taught.

    Attributes:
        slices: the corrected slices, ascending.
        before, after: mean Dice of the corrected slices as segmented without their correction, by the model and by
            heads that learned from others of them only.
        name: of what was learned, the same for the same corrections; empty where nothing was gained.
        session: the volume under what was learned; None where nothing was gained.
        changed: masks (H, W) of the slices that would change, by slice.
        voxels: how many voxels would.
        again: whether something was in use that had been learned before, which ``changed`` is compared with.
    """

    slices: tuple[int, ...]
    before: float
    after: float
    name: str = ""
    session: Session | None = None
    changed: Mapping[int, np.ndarray] = field(default_factory=dict)
    voxels: int = 0
    again: bool = False

    @property
    def sentence(self) -> str:
        """What was gained, in words."""
        untaught = "by the model before it learned anything"
        if self.session is None:
            return (
                f"Nothing was gained from {len(self.slices)} corrected slices: those left out would not get better "
                f"(mean Dice {self.before:.3f} {untaught if self.again else 'before'}, {self.after:.3f} after). "
                "Nothing was changed."
            )
        return (
            f"Learned from {len(self.slices)} corrected slices: the mean Dice of those left out rises from "
            f"{self.before:.3f}{f' {untaught}' if self.again else ''} to {self.after:.3f}; "
            f"{len(self.changed)} slices and {self.voxels} voxels would change."
        )


def learn(
    session: Session,
    clicks: Clicks,
    corrected: Mapping[int, np.ndarray],
    prompts: str = "consensus",
    call: Call | None = None,
    anchor_xy: tuple[float, float] | None = None,
    in_use: Session | None = None,
) -> Lesson:
    """Learn from slices that a person corrected, and say what would change; the session stays as it is.

    Args:
        session: of the model itself, which is what learns.
        clicks, prompts, anchor_xy: as for :meth:`Session.segment`.
        corrected: masks (H, W) of the corrected slices, which also are the ``locked`` ones; those past a marked end,
            where nothing is segmented, teach nothing.
        in_use: that whose masks the person has, where that is one under what was learned before.

    Raises:
        BadInput: too few slices, or a model or a strategy that cannot learn so.
        Cancelled: between two steps; nothing is learned.
    """
    call = call or Call()
    if session.predictor.engine.model.config.conditioned:
        raise BadInput("This model cannot learn from corrections: its saliency listens to clicks.", "Place clicks.")
    if prompts == SALIENCY_ONLY:
        raise BadInput(
            "Nothing is learned from corrections of the thresholded saliency, which has no prompts.",
            "Segment with another strategy, such as prompts='consensus'.",
        )
    extent = clicks.extent(session.stack.n_slices)
    taught = {t: mask for t, mask in corrected.items() if t in extent}
    if len(taught) < FEWEST:
        within = "" if len(taught) == len(corrected) else " up to the marked end"
        raise BadInput(
            f"{len(taught)} corrected slices{within} are too few to learn from.",
            f"Correct at least {FEWEST} slices of this volume.",
        )
    options = {"prompts": prompts, "locked": corrected, "anchor_xy": anchor_xy, "cancelled": call.cancelled}
    before = session.segment(clicks, on_progress=call.on_progress, **options)  # type: ignore[arg-type]
    in_use = in_use or session
    again = in_use is not session
    if again:
        before = in_use.segment(clicks, **options)  # type: ignore[arg-type]
    slices = tuple(sorted(taught))
    lesson = _Lessons(session, clicks, taught, prompts, call)
    gains = lesson.left_out()
    best = int(np.argmax([after for _, after in gains]))
    own, (steps, after) = lesson.own_dice, gains[best]
    if after < own + LEAST_GAIN:
        return Lesson(slices, own, after, again=again)
    head = lesson.train(slices, (steps,))[steps]
    name = _name(head)
    adapted = adapted_session(session, head, {"name": name, "slices": len(slices)})
    result = adapted.segment(clicks, **options)  # type: ignore[arg-type]
    changed = _differing(before, result)
    voxels = sum(int((mask ^ before.slices[t].mask).sum()) for t, mask in changed.items())
    return Lesson(slices, own, after, name, adapted, changed, voxels, again)


def adapted_session(session: Session, head: SaliencyHead, learned: Mapping[str, object]) -> Session:
    """The same volume under another saliency head; embeddings are shared, results name what was ``learned``."""
    predictor = copy.copy(session.predictor)
    predictor.engine = _with_head(predictor.engine, head)
    predictor.identity = {**predictor.identity, "learned": dict(learned)}
    return type(session)(predictor, session.stack, session.features.adapted(predictor.engine))


class _Lessons:
    """Heads that learn from some of the corrected slices and are tried on the others."""

    def __init__(
        self, session: Session, clicks: Clicks, corrected: Mapping[int, np.ndarray], prompts: str, call: Call
    ) -> None:
        self._session = session
        self._call = call
        self._corrected = {t: np.asarray(mask, dtype=bool) for t, mask in corrected.items()}
        self._features = session.features
        self._engine = session.predictor.engine
        self._order = sorted(corrected)
        self._folds = [self._order[k :: min(FOLDS, len(self._order))] for k in range(min(FOLDS, len(self._order)))]
        self._done = 0
        free = [t for t in sorted(self._features.cached_slices()) if t not in corrected]
        held = free[:: max(1, -(-len(free) // MOST_HELD))]
        said = [self._features.saliency(t, call) for t in held]
        network = self._features.window.resample(np.stack([self._corrected[t] for t in self._order]).astype(np.float32))
        targets = np.concatenate((network > 0.5, *(map_[None] for map_ in said))).astype(np.float32)
        shown = [self._features.saliency(t, call)[None].astype(np.float32) for t in self._order]
        seen = np.concatenate((targets, *shown))
        device = self._engine.device
        self._head = copy.deepcopy(self._engine.model.saliency_head).float().requires_grad_(False)
        size = (self._engine.image_size // self._engine.model.stride,) * 2
        near = F.max_pool2d(F.adaptive_max_pool2d(upload(seen[:, None], device), size), 3, 1, 1).amax((0, 1)) > SALIENT
        near[::REST, ::REST] = True
        self._share = float(near.float().mean())
        inputs = self._inputs([*self._order, *held], near)
        fine = F.interpolate(upload(targets[:, None], device), (4 * size[0], 4 * size[1]), mode="area")
        blocks = fine.view(len(fine), size[0], 4, size[1], 4).permute(0, 2, 1, 3, 4)[:, :, near]
        aims = blocks.reshape(len(fine), 1, 4, -1)
        self._given = inputs[: len(self._order)], (aims[: len(self._order)] > 0.5).float()
        self._held = inputs[len(self._order) :], aims[len(self._order) :]
        self._prompts = {t: p for fold in self._folds for t, p in self._prompts_without(fold, clicks, prompts).items()}
        self.own_dice = float(np.mean(self._dice(self._features, self._order)))

    def _inputs(self, slices: Sequence[int], near: Tensor) -> Tensor:
        """What a head learns from, (B, C, 1, N): of slices, a batch after another, the N pixels that are near."""
        found: list[Tensor] = []

        def mix(batch: Sequence[int]) -> None:
            mixed = self._head.with_neighbors(*self._features.learning_inputs(batch, self._call))
            found.append(mixed[:, :, near])

        self._engine.with_smaller_batches(slices, mix)
        return torch.cat(found)[:, :, None]

    def left_out(self) -> list[tuple[int, float]]:
        """Number of steps, and mean Dice of the corrected slices by heads that did not see them."""
        found: dict[int, list[float]] = {steps: [] for steps in CHECKPOINTS}
        for fold in self._folds:
            rest = [t for t in self._order if t not in fold]
            for steps, head in self.train(rest, CHECKPOINTS).items():
                found[steps] += self._dice(self._features.adapted(_with_head(self._engine, head)), fold)
        return [(steps, float(np.mean(dice))) for steps, dice in found.items()]

    def train(self, slices: Sequence[int], checkpoints: Sequence[int]) -> dict[int, SaliencyHead]:
        """Heads after so many steps on the corrections of ``slices``; the same whenever it is called."""
        rows = np.array([self._order.index(t) for t in slices])
        head = copy.deepcopy(self._head)
        weights = [
            w.requires_grad_(True) for part in (head.up1, head.norm, head.up2, head.logit) for w in part.parameters()
        ]
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        steps_done = [torch.zeros(()) for _ in weights]
        rng = np.random.default_rng(len(rows))
        loss = SegmentationLossConfig()
        loss = dataclasses.replace(loss, focal_weight=loss.focal_weight * self._share)  # as if it were all pixels' mean
        heads = {}
        all_steps = (len(self._folds) + 1) * max(CHECKPOINTS)
        with torch.enable_grad():
            for step in range(1, max(checkpoints) + 1):
                self._call.check()
                chosen = torch.from_numpy(rows[rng.permutation(len(rows))[:BATCH]]).to(self._engine.device)
                inputs, targets = (part[chosen] for part in self._given)
                total = segmentation_loss(head.upscaled(inputs), targets, loss).mean()
                if len(self._held[0]):
                    chosen = torch.from_numpy(rng.permutation(len(self._held[0]))[:HELD_BATCH]).to(self._engine.device)
                    inputs, said = (part[chosen] for part in self._held)
                    forgotten = F.binary_cross_entropy_with_logits(head.upscaled(inputs), said)
                    total = total + HELD_WEIGHT * self._share * forgotten
                grads = list(torch.autograd.grad(total, weights))
                with torch.no_grad():
                    adam(
                        weights, grads, first, second, [], steps_done, amsgrad=False, beta1=0.9, beta2=0.999,
                        lr=LEARNING_RATE, weight_decay=0.0, eps=1e-8, maximize=False,
                    )  # fmt: skip
                self._done += 1
                self._call.on_progress(SegmentationProgress("learning", min(self._done, all_steps), all_steps))
                if step in checkpoints:
                    heads[step] = copy.deepcopy(head).requires_grad_(False)
        return heads

    def _prompts_without(self, fold: Sequence[int], clicks: Clicks, strategy: str) -> dict[int, SlicePrompts]:
        """The prompts that slices of a fold have where only the others were corrected."""
        others = {t: mask for t, mask in self._corrected.items() if t not in fold}
        extent = clicks.extent(self._session.stack.n_slices)
        maps = self._features.maps(self._session.predictor.prompts.threshold, others, lambda: self._call)
        seen, _ = self._features.network_clicks(clicks, clicks.within(extent))
        found = distill_prompts(maps, seen, self._session.predictor.prompts, strategy, frozenset(others), extent)
        return {t: found.slices[t] for t in fold}

    def _dice(self, features: SliceFeatures, slices: Sequence[int]) -> list[float]:
        """Dice of slices with the corrections: decoded, or by the saliency where nothing prompts them."""
        self._call.check()
        features.ensure(slices, self._call)
        prompted = [self._prompts[t] for t in slices if len(self._prompts[t].points)]
        masks: dict[int, np.ndarray] = {}

        def decode(batch: Sequence[SlicePrompts]) -> None:
            found, _ = features.masks(batch, self._session.predictor.prompts.max_points, self._call).arrays()
            masks.update((p.slice_index, mask) for p, mask in zip(batch, found, strict=True))

        self._engine.with_smaller_batches(prompted, decode, 2)
        for t in slices:
            if t not in masks:
                salient = features.saliency(t, self._call).astype(np.float32)[None]
                masks[t] = features.window.restore(salient, 0.0)[0] > self._session.predictor.prompts.threshold
        return [_dice_of(masks[t], self._corrected[t]) for t in slices]


def _dice_of(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks, 1 where both are empty."""
    size = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / size if size else 1.0


def _differing(before: SegmentationResult, after: SegmentationResult) -> dict[int, np.ndarray]:
    pairs = zip(before.slices, after.slices, strict=True)
    return {b.slice_index: b.mask for a, b in pairs if not np.array_equal(a.mask, b.mask)}


def _with_head(engine: Engine, head: SaliencyHead) -> Engine:
    """The engine with another saliency head; all other parts are shared."""
    other, model = copy.copy(engine), copy.copy(engine.model)
    model._modules = dict(model._modules)
    model.saliency_head = head
    other.model = model
    return other


def _name(head: SaliencyHead) -> str:
    """A name of the head's weights."""
    digest = hashlib.sha256()
    for tensor in head.state_dict().values():
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
