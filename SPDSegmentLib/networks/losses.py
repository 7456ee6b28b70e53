"""Losses of SPD: segmentation (Dice and focal) and Pairwise Slice Consistency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1.0


@dataclass(frozen=True)
class SegmentationLossConfig:
    """Weights of the segmentation loss; focal : dice is 20 : 1 in SAM, gamma is the paper's, alpha SAM's."""

    dice_weight: float = 1.0
    focal_weight: float = 20.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss per slice: (B, 1, H, W) logits and {0, 1} target to (B,)."""
    probability = logits.float().sigmoid().flatten(1)
    target = target.float().flatten(1)
    overlap = 2 * (probability * target).sum(1) + EPSILON
    return 1 - overlap / (probability.sum(1) + target.sum(1) + EPSILON)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss per slice (Lin et al. 2017): (B, 1, H, W) to (B,), mean over pixels."""
    logits, target = logits.float(), target.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    p_true = probability * target + (1 - probability) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - p_true) ** gamma * cross_entropy).flatten(1).mean(1)


def segmentation_loss(logits: Tensor, target: Tensor, config: SegmentationLossConfig) -> Tensor:
    """L_seg per slice, (B,): weighted sum of Dice and focal loss (paper, stage I)."""
    dice = dice_loss(logits, target)
    focal = focal_loss(logits, target, config.focal_gamma, config.focal_alpha)
    return config.dice_weight * dice + config.focal_weight * focal


def pairwise_slice_consistency(mask: Tensor, neighbor: Tensor) -> Tensor:
    """L_psc = 1 - 2 sum(M_t M_t+1) / (sum M_t + sum M_t+1) on soft masks (B, 1, H, W), per pair (B,)."""
    mask, neighbor = mask.flatten(1), neighbor.flatten(1)
    overlap = 2 * (mask * neighbor).sum(1) + EPSILON
    return 1 - overlap / (mask.sum(1) + neighbor.sum(1) + EPSILON)


def consistency_of_run(
    logits: Tensor, target: Tensor, direction: str = "next", stop_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """PSC of the slices of one run of neighboring slices.

    Args:
        logits, target: (T, 1, H, W) in slice order.
        direction: ``none``, ``previous``, ``next`` (paper) or ``both``.
        stop_gradient: treat the neighbor's mask as constant.

    Returns:
        Loss per slice (T,), zero where no pair counts, and the number of slices that have a pair. A pair is skipped at
        the run's edge and where either ground truth is empty. Without ``stop_gradient``, ``previous`` sums the same
        pairs as ``next``, and ``both`` counts each pair for either of its slices, which is up to twice the loss.
    """
    losses = logits.new_zeros(logits.shape[0], dtype=torch.float32)
    if direction == "none" or logits.shape[0] < 2:
        return losses, losses.sum()
    masks = logits.float().sigmoid()
    filled = target.flatten(1).any(1)
    valid = (filled[:-1] & filled[1:]).float()
    fixed = masks.detach() if stop_gradient else masks
    paired = torch.zeros_like(losses)
    if direction in ("next", "both"):
        pair = pairwise_slice_consistency(masks[:-1], fixed[1:]) * valid
        losses, paired = losses + F.pad(pair, (0, 1)), F.pad(valid, (0, 1))
    if direction in ("previous", "both"):
        pair = pairwise_slice_consistency(masks[1:], fixed[:-1]) * valid
        losses, paired = losses + F.pad(pair, (1, 0)), torch.maximum(paired, F.pad(valid, (1, 0)))
    return losses, paired.sum()


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of a soft mask with the ground truth per slice, (B,): what SAM's quality head learns to predict."""
    probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    intersection = (probability * target).sum(1)
    return (intersection + EPSILON) / (probability.sum(1) + target.sum(1) - intersection + EPSILON)
