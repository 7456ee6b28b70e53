"""Batches of a joint training, built on the device in one go: no loop over runs, slices or tokens.

All volumes lie end to end in one buffer on the device; a batch is gathered from it by index arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from SPDSegmentLib.geometry.intensity import LOCAL_BACKGROUND
from SPDSegmentLib.inference.device_slices import histograms, local_range
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.prompts.click_tokens import click_tokens
from SPDSegmentLib.prompts.saliency_maps import SliceClicks
from SPDSegmentLib.training.joint_cases import NOWHERE, JointTarget, JointVolume
from SPDSegmentLib.training.joint_config import JointAugmentation, JointStage


@dataclass(frozen=True, eq=False)
class Runs:
    """R runs of T neighboring slices of one target each, in one random view.

    Attributes:
        target: (R,); first: (R,) slice index of the run's first slice.
        matrix: (R, 2, 2) slice pixels per network pixel for (column, row) vectors; offset: (R, 2) slice position of
            network pixel (0, 0).
        seed: of the intensity changes.
    """

    target: np.ndarray
    first: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray
    seed: int


class JointSampler:
    """Draws runs and clicks, and makes images and masks of them.

    Args:
        size: S, side of the network input; device: where the volumes lie and batches are built.
    """

    def __init__(
        self,
        volumes: Sequence[JointVolume],
        targets: Sequence[JointTarget],
        network: NetworkConfig,
        stage: JointStage,
        augmentation: JointAugmentation,
        device: torch.device,
    ) -> None:
        self.size = network.image_size
        self.network, self.stage, self.augmentation, self.device = network, stage, augmentation, device
        self._place_volumes(volumes)
        self._place_targets(volumes, targets)

    def _place_volumes(self, volumes: Sequence[JointVolume]) -> None:
        lengths = [v.images.size for v in volumes]
        self._images = torch.from_numpy(np.concatenate([v.images.ravel() for v in volumes])).to(self.device)
        self._labels = torch.from_numpy(np.concatenate([v.labels.ravel() for v in volumes])).to(self.device)
        self._base = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
        self._shape = np.array([v.images.shape for v in volumes], dtype=np.int64)
        self._is_ct = np.array([v.is_ct for v in volumes])

    def _place_targets(self, volumes: Sequence[JointVolume], targets: Sequence[JointTarget]) -> None:
        self._volume = np.array([t.volume for t in targets])
        self._span = np.array([(t.first, t.last) for t in targets])
        of = [volumes[t.volume] for t in targets]
        self._fov_mm = np.array([v.fov_mm for v in of])
        self._pixel_xy = np.array([(v.pixel_mm[1], v.pixel_mm[0]) for v in of])
        self._slice_mm = np.array([v.slice_mm for v in of])
        table = np.zeros((len(targets), 256), dtype=bool)
        for row, target in zip(table, targets, strict=True):
            row[list(target.values)] = True
        self._belongs = torch.from_numpy(table).to(self.device)
        sets, longest = len(targets[0].clicks), max(len(s) for t in targets for s, _ in t.clicks)
        self._click_slice = np.full((len(targets), sets, longest), NOWHERE, dtype=np.int64)
        self._click_xy = np.zeros((len(targets), sets, longest, 2))
        for i, target in enumerate(targets):
            for j, (slices, xy) in enumerate(target.clicks):
                self._click_slice[i, j, : len(slices)] = slices
                self._click_xy[i, j, : len(slices)] = xy
        groups, member, counts = np.unique([t.group for t in targets], return_inverse=True, return_counts=True)
        self.groups = [str(g) for g in groups]
        weight = np.array([t.weight for t in targets]) * np.sqrt(counts.clip(max=30))[member] / counts[member]
        self._chance = weight / weight.sum()

    def draw_runs(self, rng: np.random.Generator, count: int) -> tuple[Runs, np.ndarray]:
        """Runs, and for each the index of the set of clicks that it was placed by."""
        target = rng.choice(len(self._chance), count, p=self._chance)
        chosen = rng.integers(self._click_slice.shape[1], size=count)
        slices, xy = self._click_slice[target, chosen], self._click_xy[target, chosen]
        used = slices != NOWHERE
        center = _masked_median(xy, used)
        matrix, offset = self.views(rng, target, center)
        margin, length = self.stage.margin, self.stage.run_length
        n_slices = self._shape[self._volume[target], 0]
        low = np.minimum(self._span[target, 0], np.where(used, slices, 1 << 30).min(1)) - margin
        high = np.maximum(self._span[target, 1], np.where(used, slices, -1).max(1)) + margin
        low, high = low.clip(0), np.minimum(high, n_slices - 1)
        first = low + (rng.random(count) * np.maximum(high - length + 2 - low, 1)).astype(np.int64)
        first = np.minimum(first, n_slices - length).clip(0)
        return Runs(target, first, matrix, offset, int(rng.integers(2**31))), chosen

    def clicked_range(self, target: int, chosen: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Slice (N,) and place (N, 2) of a target's clicks of one set, and the first and last slice that are drawn."""
        used = self._click_slice[target, chosen] != NOWHERE
        slices, xy = self._click_slice[target, chosen, used], self._click_xy[target, chosen, used]
        first = max(min(self._span[target, 0], slices.min(initial=1 << 30)) - self.stage.margin, 0)
        last = max(self._span[target, 1], slices.max(initial=-1)) + self.stage.margin
        return slices, xy, int(first), int(min(last, self._shape[self._volume[target], 0] - 1))

    def views(self, rng: np.random.Generator, target: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Matrices (R, 2, 2) and offsets (R, 2) of random views of targets around their centers (R, 2)."""
        a, count = self.augmentation, len(target)
        angle = np.deg2rad(rng.uniform(-a.rotation_deg, a.rotation_deg, count))
        scale = np.exp(rng.uniform(np.log(a.scale_low), np.log(a.scale_high), count))
        mirror = np.where(rng.random(count) < a.flip, -1.0, 1.0)
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = np.stack((np.stack((cos * mirror, -sin), -1), np.stack((sin * mirror, cos), -1)), -2)
        fov, pixel = self._fov_mm[target], self._pixel_xy[target]
        matrix = rotation * (fov * scale / self.size)[:, None, None] / pixel[:, :, None]
        center = center + rng.uniform(-a.shift, a.shift, (count, 2)) * fov[:, None] / pixel
        return matrix, center - matrix @ np.full(2, (self.size - 1) / 2)

    def tokens(self, runs: Runs, chosen: np.ndarray) -> TokenBatch:
        """Tokens of all slices of all runs, (R T, K, ...), by the sets of clicks ``chosen`` (R,)."""
        count, length = len(runs.target), self.stage.run_length
        slices, xy = self._click_slice[runs.target, chosen], self._click_xy[runs.target, chosen]
        uv = np.einsum("rij,rnj->rni", np.linalg.inv(runs.matrix), xy - runs.offset[:, None])
        seen = (slices != NOWHERE) & ((uv >= 0) & (uv <= self.size - 1)).all(-1)
        run_of_click = np.broadcast_to(np.arange(count)[:, None], seen.shape)[seen]
        where = (runs.first[:, None] + np.arange(length)).ravel()
        run = np.repeat(np.arange(count), length)
        tokens = click_tokens(
            where,
            SliceClicks(slices[seen], uv[seen]),
            np.repeat(self._slice_mm[runs.target], length),
            self.network.neighbor_tokens,
            self.network.interpolated_token,
            (run, run_of_click),
        )
        return TokenBatch.of(tokens, self.device)

    def real(self, runs: Runs) -> Tensor:
        """Which slices of all runs (R T,) are in the volume; the others are its last one again."""
        there = runs.first[:, None] + np.arange(self.stage.run_length)
        return torch.from_numpy((there < self._shape[self._volume[runs.target], :1]).ravel()).to(self.device)

    def clicks_of(self, rng: np.random.Generator, runs: Runs) -> np.ndarray:
        """Other sets of clicks for runs that are kept: (R,)."""
        return rng.integers(self._click_slice.shape[1], size=len(runs.target))

    def digest(self, runs: Runs) -> str:
        """What the images and masks of runs are made of, in short."""
        digest = hashlib.blake2b(repr((self.augmentation, self.network, runs.seed)).encode(), digest_size=16)
        for array in (runs.matrix, runs.offset, runs.first, self._base, self._shape):
            digest.update(np.ascontiguousarray(array).tobytes())
        targets = torch.from_numpy(runs.target)
        volume = self._volume[runs.target]
        for start, shape in zip(self._base[volume], self._shape[volume], strict=True):
            part = slice(int(start), int(start + np.prod(shape)))
            digest.update(self._images[part].cpu().numpy().tobytes() + self._labels[part].cpu().numpy().tobytes())
        digest.update(self._belongs[targets].cpu().numpy().tobytes())
        return digest.hexdigest()

    def images_and_masks(self, runs: Runs) -> tuple[Tensor, Tensor]:
        """Network input (R T, 3, S, S) in [0, 1] and masks (R T, 1, S, S) bool, on the device."""
        volume = self._volume[runs.target]
        corners, weights = self._corners(runs, volume)
        gathered = self._images[corners].float().div_(255)
        images = (gathered * weights).sum(0)
        belongs = self._belongs[
            torch.from_numpy(runs.target).to(self.device).view(1, -1, 1, 1, 1), self._labels[corners].long()
        ]
        masks = (belongs * weights).sum(0) > 0.5
        images = self._change_intensities(images, runs, volume)
        local = local_channel(images) if self.network.local_normalization else images
        batch = torch.stack((images, local, images), 2).flatten(0, 1)
        return batch, masks.flatten(0, 1)[:, None]

    def _corners(self, runs: Runs, volume: np.ndarray) -> tuple[Tensor, Tensor]:
        """Buffer positions and weights of the four pixels around each network pixel, (4, R, T, S, S); 0 outside."""
        device, size, length = self.device, self.size, self.stage.run_length

        def to(values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype, non_blocking=True)

        pixel = torch.arange(size, dtype=torch.float32, device=device)
        matrix, offset = to(runs.matrix), to(runs.offset)
        axes = [
            matrix[:, d, 0, None, None] * pixel
            + matrix[:, d, 1, None, None] * pixel[:, None]
            + offset[:, d, None, None]
            for d in (0, 1)
        ]
        floor = [axis.floor() for axis in axes]
        part = [axis - low for axis, low in zip(axes, floor, strict=True)]
        shape = to(self._shape[volume], torch.int64)
        last = shape[:, 0, None] - 1
        slices = torch.minimum(to(runs.first, torch.int64)[:, None] + torch.arange(length, device=device), last)
        start = to(self._base[volume], torch.int64)[:, None] + slices * (shape[:, 1] * shape[:, 2])[:, None]
        height, width = shape[:, 1, None, None], shape[:, 2, None, None]
        positions, weights = [], []
        for down in (0, 1):
            for right in (0, 1):
                column, row = floor[0].long() + right, floor[1].long() + down
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                share = (part[0] if right else 1 - part[0]) * (part[1] if down else 1 - part[1])
                flat = torch.where(inside, row * width + column, 0)
                positions.append(start[:, :, None, None] + flat[:, None])
                weights.append((share * inside)[:, None].expand(-1, length, -1, -1))
        return torch.stack(positions), torch.stack(weights)

    def _change_intensities(self, images: Tensor, runs: Runs, volume: np.ndarray) -> Tensor:
        """(R, T, S, S) in [0, 1] to the same range; MR and CT change in their own ways."""
        a, count = self.augmentation, len(volume)
        rng = np.random.default_rng(runs.seed)
        is_ct = self._is_ct[volume]
        factor = np.where(
            is_ct, rng.uniform(1 - a.slope, 1 + a.slope, count), np.exp(rng.uniform(-a.darker, a.brighter, count))
        )
        level = np.where(is_ct, rng.uniform(-a.level, a.level, count), 0.0)
        field = rng.normal(0, a.bias_field, (count, 1, 4, 4)) * ~is_ct[:, None, None, None]
        exponent = np.exp(rng.uniform(-a.gamma, a.gamma, count))
        noise = rng.uniform(0, a.noise, count)
        inverted = rng.random(count) < a.inversion
        smooth = F.interpolate(
            torch.from_numpy(field.astype(np.float32)).to(self.device),
            (self.size,) * 2,
            mode="bicubic",
            align_corners=True,
        )

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(self.device).view(-1, 1, 1, 1)

        body = images > LOCAL_BACKGROUND
        images = (images * smooth.exp() * column(factor) + column(level) * body).clamp(0, 1)
        images = images.pow(column(exponent))
        generator = torch.Generator(self.device).manual_seed(runs.seed)
        grain = torch.randn(images.shape, generator=generator, device=self.device)
        images = (images + grain * column(noise) * body).clamp(0, 1)
        return torch.where(column(inverted.astype(float)) > 0, (1 - images) * body, images)


def local_channel(images: Tensor) -> Tensor:
    """(R, T, S, S) in [0, 1] scaled so that each run's 1st to 99th percentile of what is not air become 0 to 1."""
    low, high = local_range(histograms(images))
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    return ((images - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def _masked_median(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Median over the used ones of (R, N, 2) values, (R, 2)."""
    return np.nanmedian(np.where(used[..., None], values, np.nan), axis=1)
