"""Synthetic structures in real volumes, so that a model learns "what was clicked" instead of a list of organs (ours).

Tubes run along random smooth, sometimes branching paths, bright or dark, textured and blurred; regions are unions of
supervoxels whose intensities stay as they are.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

REGION_SHARE = 0.3
RADIUS_MM = (2.0, 14.0)
BRANCH_CHANCE = 0.35
MAX_BRANCHES = 3
STEP_MM = 1.5


def synthetic_structure(
    images: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """A tube or a region in a volume.

    Args:
        images: (T, H, W) uint8; pixel_mm: (row, column); slice_mm: distance of slices.

    Returns:
        The changed images and the structure's mask (T, H, W) bool, ``None`` where nothing fits.
    """
    spacing = np.array([slice_mm, *pixel_mm])
    made = (region if rng.random() < REGION_SHARE else tube)(images, spacing, rng)
    return made if made is not None and made[1].any(axis=(1, 2)).sum() >= 4 else None


def tube(images: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A tube along a random path, blended into the volume at its blurred border."""
    inside = np.argwhere(images[:: max(1, len(images) // 40), ::4, ::4] > 12)
    if len(inside) == 0:
        return None
    scale = np.array([max(1, len(images) // 40), 4, 4])
    start = inside[rng.integers(len(inside))] * scale * spacing
    extent = np.array(images.shape) * spacing
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_MM))))
    lines = [_path(start, extent, rng, min(rng.uniform(60, 220), 3 * float(extent.max())))]
    while len(lines) <= MAX_BRANCHES and rng.random() < BRANCH_CHANCE:
        trunk = lines[rng.integers(len(lines))]
        lines.append(_path(trunk[rng.integers(len(trunk))], extent, rng, rng.uniform(25, 90)))
    points = np.concatenate(lines)
    radii = np.concatenate([radius * (0.75 if i else 1.0) * _wobble(len(line), rng) for i, line in enumerate(lines)])
    low = np.maximum(((points.min(0) - 2 * radius) / spacing).astype(int), 0)
    high = np.minimum(((points.max(0) + 2 * radius) / spacing).astype(int) + 2, images.shape)
    if np.any(high - low < 1):
        return None
    grid = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
    distance, nearest = KDTree(points).query(grid.reshape(-1, 3) * spacing, distance_upper_bound=2 * radius + 4)
    reached = np.append(radii, 1.0)[nearest]
    depth = (reached - np.where(np.isfinite(distance), distance, 1e3)).reshape(grid.shape[:3])
    blur = rng.uniform(0.3, 1.5)
    share = 1 / (1 + np.exp(-np.clip(depth / blur, -30, 30)))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    around = images[box].astype(np.float32)
    middle = float(np.median(around[depth > 0])) if (depth > 0).any() else 0.0
    contrast = rng.uniform(25, 110) * (1 if rng.random() < 0.6 else -1)
    level = np.clip(middle + contrast, 8, 250)
    if abs(level - middle) < 20:
        level = middle - contrast
    texture = ndimage.gaussian_filter(rng.normal(size=depth.shape), rng.uniform(0.6, 2.0))
    filling = level + texture / max(float(texture.std()), 1e-6) * rng.uniform(0, 12)
    if rng.random() < 0.25:  # a wall of another brightness, as bowel and vessels have
        wall = np.exp(-((depth / max(0.15 * radius, 0.8)) ** 2))
        filling = filling + wall * rng.uniform(-60, 60)
    changed = images.copy()
    changed[box] = np.rint(np.clip(around * (1 - share) + filling * share, 0, 255)).astype(np.uint8)
    mask = np.zeros(images.shape, dtype=bool)
    mask[box] = depth > 0
    return changed, mask


def region(images: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A union of neighboring supervoxels of the volume as it is."""
    from skimage.segmentation import slic

    half = np.maximum((rng.uniform(20, 45) / spacing).astype(int), 3)
    inside = np.argwhere(images[:, ::4, ::4] > 25)
    if len(inside) == 0:
        return None
    center = inside[rng.integers(len(inside))] * np.array([1, 4, 4])
    low, high = np.maximum(center - half, 0), np.minimum(center + half, images.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = ndimage.gaussian_filter(images[box].astype(np.float32) / 255, 1.0 / spacing.clip(1.0))
    labels = slic(part, n_segments=24, compactness=0.03, spacing=spacing, channel_axis=None, start_label=1)
    mask = np.zeros(images.shape, dtype=bool)
    at = tuple((center - low).clip(0, np.array(part.shape) - 1))
    own = labels == labels[at]
    similar = [v for v in np.unique(labels[ndimage.binary_dilation(own)]) if v != labels[at]]
    level = float(part[own].mean())
    joined = [v for v in similar if abs(float(part[labels == v].mean()) - level) < 0.06]
    region_mask = own | np.isin(labels, joined)
    region_mask = ndimage.binary_opening(ndimage.binary_fill_holes(region_mask), iterations=1)
    components, count = ndimage.label(region_mask)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    mask[box] = components == largest
    return images, mask


def _path(start: np.ndarray, extent: np.ndarray, rng: np.random.Generator, length_mm: float) -> np.ndarray:
    """(N, 3) points in mm along a smooth random walk that turns back at the volume's borders."""
    direction = rng.normal(size=3) * np.array([rng.choice([0.6, 1.5, 3.0]), 1.0, 1.0])
    direction /= np.linalg.norm(direction)
    turn = rng.normal(size=3) * rng.uniform(0.0, 0.03)
    points, at = [], start.astype(float)
    for _ in range(max(4, int(length_mm / STEP_MM))):
        points.append(at)
        turn = 0.97 * turn + rng.normal(size=3) * 0.008
        direction = direction + turn
        direction /= np.linalg.norm(direction)
        at = at + direction * STEP_MM
        outside = (at < 0) | (at > extent)
        direction = np.where(outside, -direction, direction)
        at = np.clip(at, 0, extent)
    return np.array(points)


def _wobble(n: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) smooth factors around 1 by which a tube's radius changes along its path."""
    noise = ndimage.gaussian_filter1d(rng.normal(size=n), 8, mode="nearest")
    return np.exp(rng.uniform(0.0, 0.25) * noise / max(float(np.abs(noise).max()), 1e-6))
