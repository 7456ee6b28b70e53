"""Joint training of a click-conditioned model, from configuration to bundle (docs/method.md).

Saliency and mask are two passes of one decoder. Pass one is prompted with all clicks near a slice and gives S_t; CPD
keeps the clicks that their slice's saliency and S_t support; pass two is prompted with those, or with a point of S_t,
and with S_t. Both learn the clicked target alone, on slices beyond its ends too. Stopped runs go on where they were.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.limits import keep_freed_memory
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.spd import SPDModel, hard_dice, pairwise_slice_consistency, segmentation_loss, soft_iou
from SPDSegmentLib.prompts.click_tokens import SLICES, TokenKind
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.training.bank import check_room, encoder_digest, is_made_of, remove_entries, write_tensors
from SPDSegmentLib.training.cases import digest_of
from SPDSegmentLib.training.joint_batches import JointSampler, Runs
from SPDSegmentLib.training.joint_cases import WITH_SYNTHETIC, JointVolume, case_names, load_joint_cases
from SPDSegmentLib.training.joint_config import JointConfig
from SPDSegmentLib.training.loop import Phase, Processes
from SPDSegmentLib.training.result import describe, write_model
from SPDSegmentLib.training.run import RunHooks, check_unchanged, opened_run

KEPT = "embeddings"
DEPTH = 8
"""Pixels to its border by which the deepest place of a salient region is chosen; what is deeper counts alike."""


@dataclasses.dataclass(frozen=True, eq=False)
class KeptRun:
    """One run whose embeddings are kept.

    Attributes:
        runs: the run alone; embeddings: (T, C, h, w) bfloat16; masks: (T, 1, S, S) bool.
    """

    runs: Runs
    embeddings: Tensor
    masks: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Slices of R runs and what is told of them.

    Attributes:
        target: (R T, 1, S, S) bool; tokens: of the slices.
        real: (R T,) bool; in a volume of fewer slices than a run, what comes after its last one is that one again.
        images: (R T, 3, S, S) in [0, 1]; ``None`` where ``embeddings`` (R T, C, h, w) are kept.
    """

    target: Tensor
    tokens: TokenBatch
    real: Tensor
    images: Tensor | None = None
    embeddings: Tensor | None = None


class JointStageRunner:
    """Draws batches and computes the losses of both passes.

    Args:
        kept: runs with embeddings; empty draws new images at every step.
    """

    def __init__(
        self, model: SPDModel, sampler: JointSampler, config: JointConfig, processes: Processes, kept: list[KeptRun]
    ) -> None:
        self.model, self.sampler, self.config, self.processes, self.kept = model, sampler, config, processes, kept
        self.stage = config.stage

    @property
    def name(self) -> str:
        """Of the phase."""
        return f"joint_{self.stage.objective}"

    def phase(self) -> Phase:
        """The training as a phase of the loop."""
        stage, prompted = self.stage, self.stage.objective == "prompted"
        left_out = {id(p) for p in self.model.conditioning.parameters()} if prompted else set()
        encoder = [] if stage.entries or stage.objective == "frozen_encoder" else self.model.encoder_lora_parameters()
        learning = [p for p in self.model.stage2_parameters() if id(p) not in left_out]
        rates = {"encoder": encoder, "encoder_learning_rate": stage.encoder_learning_rate}
        return Phase.of(self.name, learning, stage, self.loss, **rates)

    def loss(self, step: int) -> dict[str, Tensor]:
        """Named loss terms of a fresh batch; ``total`` is minimized."""
        return self.loss_of(self.batch(step), step)

    def batch(self, step: int) -> Batch:
        """What a step learns from."""
        rng = np.random.default_rng([self.config.seed, 20, step, self.processes.rank])
        batch = self._kept_batch(rng) if self.kept else self._new_batch(rng)
        prompted = self.stage.objective == "prompted"
        return dataclasses.replace(batch, tokens=raw_tokens(batch.tokens)) if prompted else batch

    def loss_of(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named loss terms of a batch; nothing here waits for the device."""
        target, tokens, embeddings = batch.target, batch.tokens, batch.embeddings
        if embeddings is None:
            embeddings = self._encode(batch.images, step)
        prompted, first_half = self.stage.objective == "prompted", 2 * step < self.stage.steps
        with self.processes.autocast():
            embeddings = embeddings if prompted else self.with_context(embeddings)
            logits, quality = self.model.decode_clicks(embeddings, tokens)
        counted = batch.real & tokens.valid.any(1) if prompted else batch.real
        segmentation = _mean(segmentation_loss(logits, target, self.stage.loss), counted)
        saliency_first = self.stage.objective == "saliency_first"
        second = self.config.network.second_pass and not prompted and not (saliency_first and first_half)
        none = torch.zeros_like(segmentation)
        if not second:
            later = {"segmentation": none, "psc": none} if saliency_first and self.config.network.second_pass else {}
            return self._sum({"saliency": segmentation, **later}, quality, logits, target, counted)
        terms = {"saliency": none if saliency_first else segmentation}
        consensus = consensus_tokens(logits, tokens, self.config.prompts, self.stage.run_length)
        with self.processes.autocast():
            masks, quality = self.model.decode_clicks(embeddings, consensus, logits.detach())
        terms["segmentation"] = _mean(segmentation_loss(masks, target, self.stage.loss), counted)
        terms["psc"] = self.stage.psc_weight * self._consistency(masks, target, batch.real)
        return self._sum(terms, quality, masks, target, counted)

    def _sum(
        self, terms: dict[str, Tensor], quality: Tensor, logits: Tensor, target: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            iou, used = soft_iou(logits, target), counted.bool().view(-1, 1, 1, 1)
            hard = hard_dice((logits > 0) & used, target & used)
        terms = terms | {"quality": self.stage.quality_weight * _mean((quality - iou) ** 2, counted)}
        return {"total": torch.stack(list(terms.values())).sum(), **terms, "dsc": hard}

    def _new_batch(self, rng: np.random.Generator) -> Batch:
        runs, chosen = self.sampler.draw_runs(rng, self.stage.runs_per_step)
        images, target = self.sampler.images_and_masks(runs)
        return Batch(target, self.sampler.tokens(runs, chosen), self.sampler.real(runs), images=images)

    def _encode(self, images: Tensor | None, step: int) -> Tensor:
        frozen = self.stage.objective == "frozen_encoder"
        frozen |= self.stage.objective == "saliency_first" and 2 * step >= self.stage.steps
        assert images is not None
        with torch.set_grad_enabled(not frozen), self.processes.autocast():
            return self.model.encode(images).float()

    def _kept_batch(self, rng: np.random.Generator) -> Batch:
        entries = [self.kept[int(k)] for k in rng.integers(len(self.kept), size=self.stage.runs_per_step)]
        runs = join_runs([entry.runs for entry in entries])
        embeddings = torch.cat([entry.embeddings for entry in entries]).to(self.processes.device).float()
        target = torch.cat([entry.masks for entry in entries]).to(self.processes.device)
        tokens = self.sampler.tokens(runs, self.sampler.clicks_of(rng, runs))
        return Batch(target, tokens, self.sampler.real(runs), embeddings=embeddings)

    def with_context(self, embeddings: Tensor) -> Tensor:
        """Each run's embeddings with their neighbors'; the runs' edges repeat."""
        runs = embeddings.unflatten(0, (-1, self.stage.run_length))
        previous = torch.cat((runs[:, :1], runs[:, :-1]), 1).flatten(0, 1)
        following = torch.cat((runs[:, 1:], runs[:, -1:]), 1).flatten(0, 1)
        return self.model.conditioning.with_context(embeddings, previous, following)

    def _consistency(self, logits: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """Mean PSC over pairs of neighbors in which neither ground truth is empty."""
        masks = logits.float().sigmoid().unflatten(0, (-1, self.stage.run_length))
        filled = (real & target.flatten(1).any(1)).unflatten(0, (-1, self.stage.run_length))
        valid = (filled[:, :-1] & filled[:, 1:]).flatten().float()
        if len(valid) == 0:
            return logits.new_zeros(())
        return _mean(pairwise_slice_consistency(masks[:, :-1].flatten(0, 1), masks[:, 1:].flatten(0, 1)), valid)


def consensus_tokens(logits: Tensor, tokens: TokenBatch, config: PromptConfig, run_length: int) -> TokenBatch:
    """What prompts pass two: CPD as published, and the point that a slice without a consensus gets (docs/method.md).

    Own clicks that S_t supports, and clicks at most n slices away that their own slice j supports as well, where j is
    in the run. A salient slice that is left without any gets the deepest place of its saliency as an interpolated
    point on the slice itself. Shapes depend on no value, and nothing waits for the device.

    Args:
        logits: of pass one, (R T, 1, S, S).
    """
    saliency = logits.detach()[:, 0].sigmoid()
    count, size = len(saliency), saliency.shape[-1]
    here = supported_tokens(logits, tokens, config.threshold)
    offset = (tokens.distance[..., 1] * SLICES).round().long()
    own, borrowed = tokens.kind == TokenKind.OWN, (tokens.kind == TokenKind.BEFORE) | (tokens.kind == TokenKind.AFTER)
    place = torch.arange(count, device=saliency.device)[:, None]
    there = place % run_length + offset
    outside = (there < 0) | (there >= run_length)
    at = (place + offset).clamp(0, count - 1) * size * size + _pixel(tokens.xy, size)
    validated = outside | (saliency.flatten()[at] > config.threshold)
    near = borrowed & (offset.abs() <= (config.n_neighbors if config.context_enrichment else 0))
    valid = (own & (here if config.local_validation else tokens.valid)) | (near & here & validated)

    salient = saliency > config.threshold
    region = salient.float()[:, None]
    depth = region
    for _ in range(DEPTH - 1):
        region = -F.max_pool2d(-region, 3, 1, 1)
        depth = depth + region
    deepest = ((depth[:, 0] + saliency) * salient).flatten(1).argmax(1)
    xy = torch.stack((deepest % size, deepest // size), -1).to(tokens.xy.dtype)
    alone = salient.flatten(1).any(1) & ~valid.any(1) & (config.unsupported == "synthesize")
    # the first place is that of the guess between or beyond the clicks, which CPD does not know
    return TokenBatch(
        torch.cat((xy[:, None], tokens.xy[:, 1:]), 1),
        torch.cat((torch.full_like(tokens.kind[:, :1], int(TokenKind.INTERPOLATED)), tokens.kind[:, 1:]), 1),
        torch.cat((torch.zeros_like(tokens.distance[:, :1]), tokens.distance[:, 1:]), 1),
        torch.cat((alone[:, None], valid[:, 1:]), 1),
    )


def supported_tokens(logits: Tensor, tokens: TokenBatch, threshold: float) -> Tensor:
    """Tokens (B, K) that the saliency of the slice that they are told to supports, S_t(p) > tau."""
    saliency = logits.detach()[:, 0].sigmoid()
    found = saliency.flatten(1).gather(1, _pixel(tokens.xy, saliency.shape[-1])) > threshold
    return found & tokens.valid


def _pixel(xy: Tensor, size: int) -> Tensor:
    """Places (B, K) of points (B, K, 2) in a flat slice of ``size`` columns and rows."""
    column, row = xy.round().long().clamp(0, size - 1).unbind(-1)
    return row * size + column


def raw_tokens(tokens: TokenBatch) -> TokenBatch:
    """SAM-Tuning's prompts: a slice's own clicks and the interpolated one, with nothing said of their kind."""
    plain = tokens.valid & ((tokens.kind == TokenKind.OWN) | (tokens.kind == TokenKind.INTERPOLATED))
    return TokenBatch(tokens.xy, torch.zeros_like(tokens.kind), torch.zeros_like(tokens.distance), plain)


def join_runs(runs: list[Runs]) -> Runs:
    """Several runs as one batch."""
    target, first, matrix, offset = (
        np.concatenate([getattr(run, name) for run in runs]) for name in ("target", "first", "matrix", "offset")
    )
    return Runs(target, first, matrix, offset, runs[0].seed)


def keep_runs(
    model: SPDModel,
    sampler: JointSampler,
    config: JointConfig,
    folder: Path,
    processes: Processes,
    hooks: RunHooks | None = None,
) -> list[KeptRun]:
    """Embeddings of ``stage.entries`` random runs, computed once; a stopped call goes on where it was.

    Raises:
        BadInput: there is no room for them.
        Cancelled: the user stopped.
    """
    from safetensors.torch import load_file

    hooks, kept, entries = hooks or RunHooks(), list[KeptRun](), config.stage.entries
    if not entries:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    cells = (config.network.image_size // model.stride) ** 2
    size = entries * config.stage.run_length * cells * model.prompt_encoder.embed_dim * 2  # type: ignore[operator]
    hooks.say(f"Embeddings are kept in {folder} until the training ends, about {size / 1e9:.1f} GB.")
    encoder, on_entry = encoder_digest(model), hooks.counting("computing embeddings")
    for k in range(entries):
        runs, _ = sampler.draw_runs(np.random.default_rng([config.seed, 21, k]), 1)
        path, key = folder / f"{k:05d}.safetensors", f"{encoder} {sampler.digest(runs)}"
        if not is_made_of(path, key):
            images, masks = sampler.images_and_masks(runs)
            with torch.no_grad(), processes.autocast():
                embeddings = model.encode(images).bfloat16().cpu().contiguous()
            write_tensors(path, {"embeddings": embeddings, "masks": masks.cpu()}, key)
            if k == 0:
                check_room(folder, path.stat().st_size * (entries - 1), "stage")
        tensors = load_file(path)
        kept.append(KeptRun(runs, tensors["embeddings"], tensors["masks"]))
        on_entry(k + 1, entries)
        if hooks.cancelled():
            raise Cancelled("Training was cancelled; its state is kept.", "Run the same command to go on.")
    return kept


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    weights = weights.float()
    return (values * weights).sum() / weights.sum().clamp(min=1)


def train_joint(
    config: JointConfig,
    root: Path,
    run_folder: Path,
    weights: Path | None,
    processes: Processes,
    hooks: RunHooks | None = None,
    start: dict[str, Tensor] | None = None,
) -> SPDModel:
    """Train a click-conditioned model on several data sets; the run's folder is locked meanwhile.

    Args:
        root: what the folders of the data sets are relative to.
        run_folder: checkpoints, curves and kept embeddings; made if missing.
        weights: base weights of the backbone, ``None`` for random ones.
        start: adapter tensors of a bundle that the training starts from; of one with an image saliency, whose encoder
            has learned in the paper's stage I, the saliency head is left out.

    Returns:
        The trained model with its adapters unmerged.

    Raises:
        BadInput: the run folder belongs to another configuration or is in use, or a case cannot be used or is another
            one than when the run began.
        ModelCorrupt: a checkpoint cannot be continued.
        Cancelled: the user stopped; the same call goes on.
    """
    hooks = hooks or RunHooks()
    with opened_run(config, weights, [run_folder], processes, hooks, start) as (loop, model):
        if processes.device.type == "cpu":
            keep_freed_memory()
        if start is not None:
            model.load_adapter_state(conditioned_start(model, start))
        counting = hooks.counting("reading cases")
        volumes, targets = load_joint_cases(config.sets, root, config.stage, config.seed, counting, hooks.say)
        check_unchanged(run_folder, _digests(volumes), processes)
        sampler = JointSampler(volumes, targets, config.network, config.stage, config.augmentation, processes.device)
        hooks.say(f"{len(volumes)} volumes, {len(targets)} structures of {len(sampler.groups)} kinds.")
        folder = run_folder / KEPT
        runner = JointStageRunner(model, sampler, config, processes, [])
        if not loop.is_finished(runner.name, config.stage.steps):
            runner.kept = processes.main_first(lambda: keep_runs(model, sampler, config, folder, processes, hooks))
        loop.run(runner.phase())
        processes.wait()
        if processes.is_main:
            remove_entries(folder)
    return model


def _digests(volumes: Sequence[JointVolume]) -> dict[str, str]:
    """Of what is learned from each case; a case of several sets has one for all."""
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    for v in volumes:
        if not v.name.endswith(WITH_SYNTHETIC):
            seen[v.name] += [v.images, v.labels, np.round([*v.pixel_mm, v.slice_mm], 6)]
    return {name: digest_of(*arrays) for name, arrays in seen.items()}


def conditioned_start(model: SPDModel, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapter tensors of either kind for a conditioned model: what an image model's prompts lack is the model's own."""
    if any(name.startswith("conditioning.") for name in start):
        return start
    prompts = ("conditioning.", "prompt_encoder.")
    own = {name: tensor for name, tensor in model.adapter_state().items() if name.startswith(prompts)}
    return own | {name: tensor for name, tensor in start.items() if not name.startswith("saliency_head.")}


def joint_bundle_info(config: JointConfig, config_name: str, root: Path) -> BundleInfo:
    """Describe the model of a finished joint training, as :func:`SPDSegmentLib.training.result.describe`.

    A plane, a field of view and a range of values that all sets share are the model's; else clicks and image decide.
    """
    cases = [f"{key}/{name}" for key, spec in config.sets.items() for name in case_names(spec, root / spec.folder)]
    training = {
        "patients": cases,
        "validation_patients": [],
        "strategy": "consensus",
        "steps": {f"of {config.stage.runs_per_step * config.stage.run_length} slices": config.stage.steps},
        "structures": sorted({structure for spec in config.sets.values() for structure in spec.structures}),
        "start": config.initialize_from,
    }
    usual: dict[str, Any] = {"plane": "auto", "intensity": IntensityConfig("auto"), "fov_mm": 0.0}
    for name in usual:
        found = {getattr(spec, name) for spec in config.sets.values()}
        usual[name] = found.pop() if len(found) == 1 else usual[name]
    return describe(config, config_name, **usual, training=training)


def save_joint_bundle(model: SPDModel, config: JointConfig, config_name: str, root: Path, folder: Path) -> Bundle:
    """Write the bundle of a finished joint training."""
    info = joint_bundle_info(config, config_name, root)
    return write_model(folder, model, info)
