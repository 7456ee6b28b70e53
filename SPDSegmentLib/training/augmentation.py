"""Random views of a run of slices: geometry and intensity; the clicks move with the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from SPDSegmentLib.training.config import AugmentationConfig


@dataclass(frozen=True, eq=False)
class AugmentedView:
    """An affine map from network pixels to slice pixels, and intensity changes.

    Attributes:
        matrix: (2, 2), slice pixels per network pixel, for (column, row) vectors.
        offset: (2,), slice position of network pixel (0, 0).
        gamma: exponent of the intensities.
        field: (4, 4) logarithm of a smooth multiplicative field.
        noise: standard deviation of added noise; noise_seed: where it comes from.
    """

    size: int
    matrix: np.ndarray
    offset: np.ndarray
    gamma: float = 1.0
    field: np.ndarray | None = None
    noise: float = 0.0
    noise_seed: int = 0

    def to_input(self, xy: np.ndarray) -> np.ndarray:
        """Slice pixels (N, 2) to network pixels."""
        return (np.asarray(xy, float) - self.offset) @ np.linalg.inv(self.matrix).T


def random_view(
    rng: np.random.Generator,
    config: AugmentationConfig,
    size: int,
    fov_mm: float,
    pixel_mm: tuple[float, float],
    center_xy: np.ndarray,
    dither: float = 0.0,
) -> AugmentedView:
    """Draw a view around ``center_xy`` (column, row in slice pixels).

    Args:
        fov_mm: the unscaled field of view.
        dither: standard deviation of the noise that every view has.
    """
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale = 1 + rng.uniform(-config.scale, config.scale)
    mirror = -1.0 if rng.random() < config.flip else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mm = rotation @ np.diag([mirror, 1.0]) * (fov_mm / size * scale)
    spacing = np.array([pixel_mm[1], pixel_mm[0]])
    matrix = mm / spacing[:, None]
    center = center_xy + rng.uniform(-config.shift, config.shift, 2) * fov_mm / spacing
    offset = center - matrix @ np.full(2, (size - 1) / 2)
    return AugmentedView(
        size,
        matrix,
        offset,
        float(np.exp(rng.uniform(-config.gamma, config.gamma))),
        rng.normal(0, config.bias_field, (4, 4)) if config.bias_field > 0 else None,
        noise_seed=int(rng.integers(2**31)),
        noise=dither + float(rng.uniform(0, config.noise)),
    )


def apply_view(slices: np.ndarray, view: AugmentedView, image: bool) -> Tensor:
    """Resample (R, H, W) slices to (R, 1, S, S) float32; zero outside. ``image`` also changes the intensities."""
    height, width = slices.shape[1:]
    pixels = torch.arange(view.size, dtype=torch.float32)
    rows, columns = torch.meshgrid(pixels, pixels, indexing="ij")
    matrix = torch.tensor(view.matrix, dtype=torch.float32)
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + float(view.offset[0])
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + float(view.offset[1])
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    source = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32))[None]
    resampled = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    if image:
        resampled = _change_intensities(resampled, view)
    return resampled[:, None]


def _change_intensities(images: Tensor, view: AugmentedView) -> Tensor:
    """(R, S, S) in [0, 1] to the same range."""
    if view.field is not None:
        log_field = torch.tensor(view.field, dtype=torch.float32)[None, None]
        smooth = F.interpolate(log_field, (view.size, view.size), mode="bicubic", align_corners=True)[0]
        images = images * smooth.exp()
    images = images.clamp(0, 1) ** view.gamma
    if view.noise > 0:
        generator = torch.Generator().manual_seed(view.noise_seed)
        images = images + torch.randn(images.shape, generator=generator) * view.noise * (images > 0)
    return images.clamp(0, 1)
