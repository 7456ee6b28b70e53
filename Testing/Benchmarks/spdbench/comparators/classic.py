"""What people do today: grow a region from the clicks, or let a random walker decide; nothing is learned.

Regions grow within the field of view and between the first and the last clicked slice. Every click is a seed,
wrong ones too: these methods have no means to tell.
"""

from __future__ import annotations

import numpy as np

from spdbench.comparators.inputs import NetworkClicks, pixels_in, window_of
from spdbench.comparators.protocol import InputSettings, Untrained
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import intensity_range, normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, place_window

CRITERIA = ("confidence", "threshold")
SMOOTHING_STEPS = 5
BOX_MARGINS = 3.0
TOLERANCE = 1e-6
STRUCTURE, SURROUNDINGS = 1, 2


class RegionGrowing(Untrained):
    """Region growing from all clicks on the smoothed volume, with SimpleITK.

    Args:
        criterion: ``confidence`` (ConfidenceConnected: mean and deviation around the seeds, estimated again twice) or
            ``threshold`` (ConnectedThreshold: median and robust deviation of the seeds' surroundings).
        multiplier: deviations from the center of the accepted intensities.
    """

    name = "region-growing"

    def __init__(self, inputs: InputSettings, criterion: str = "confidence", multiplier: float = 2.5) -> None:
        self.inputs = inputs
        if criterion not in CRITERIA:
            raise BadInput(f"Unknown criterion '{criterion}'.", f"Choose one of {', '.join(CRITERIA)}.")
        self.criterion = criterion
        self.multiplier = multiplier

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """See the base class."""
        import SimpleITK as sitk

        stack = target.stack
        clicked = slice(int(clicks.slice_index.min()), int(clicks.slice_index.max()) + 1)
        box = (clicked, *pixels_in(window_of(stack, clicks, self.inputs)))
        image = sitk.GetImageFromArray(np.ascontiguousarray(stack.array[box], dtype=np.float32))
        image.SetSpacing((stack.pixel_mm[1], stack.pixel_mm[0], stack.slice_mm))
        image = sitk.CurvatureFlow(image, timeStep=0.0625, numberOfIterations=SMOOTHING_STEPS)
        first = np.array([part.start for part in box])
        last = np.array([part.stop for part in box]) - 1
        voxels = (
            np.column_stack((clicks.slice_index, np.rint(clicks.xy[:, ::-1]).astype(int))).clip(first, last) - first
        )
        seeds = [tuple(int(i) for i in voxel[::-1]) for voxel in voxels]
        if self.criterion == "confidence":
            region = sitk.ConfidenceConnected(image, seeds, 2, self.multiplier, 1, 1)
        else:
            low, high = self._limits(sitk.GetArrayViewFromImage(image), voxels)
            region = sitk.ConnectedThreshold(image, seeds, low, high, 1)
        mask = np.zeros(stack.shape, dtype=bool)
        mask[box] = sitk.GetArrayViewFromImage(region) > 0
        return mask

    def _limits(self, array: np.ndarray, voxels: np.ndarray) -> tuple[float, float]:
        """Accepted intensities, from 3 x 3 pixels around each seed."""
        padded = np.pad(array, ((0, 0), (1, 1), (1, 1)), mode="edge")
        around = np.concatenate([padded[t, y : y + 3, x : x + 3].ravel() for t, y, x in voxels])
        center = float(np.median(around))
        deviation = max(1.4826 * float(np.median(np.abs(around - center))), 1e-3 * (float(np.ptp(array)) or 1.0))
        return center - self.multiplier * deviation, center + self.multiplier * deviation


class ThresholdGrowing(RegionGrowing):
    """Region growing between two intensities."""

    name = "threshold-growing"

    def __init__(self, inputs: InputSettings, multiplier: float = 2.5) -> None:
        super().__init__(inputs, "threshold", multiplier)


class RandomWalker(Untrained):
    """Random walker (Grady 2006, scikit-image) in a box around the clicks.

    Clicks and the centerline between them are marked as the structure, with a brush of a third of its usual radius; the
    box's border, and one slice before the first and after the last click, as its surroundings.

    Args:
        beta: how hard it is to cross an edge.
        size: pixels of the box's side at the most; a finer box is resampled to it.
    """

    name = "random-walker"

    def __init__(self, inputs: InputSettings, beta: float = 1000.0, size: int = 96) -> None:
        self.inputs = inputs
        self.beta = beta
        self.size = size

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """See the base class."""
        from skimage.segmentation import random_walker

        stack = target.stack
        window = self._window(stack, clicks)
        seen = NetworkClicks.in_window(clicks, window, stack)
        clicked = int(clicks.slice_index.min()), int(clicks.slice_index.max())
        first, last = max(0, clicked[0] - 1), min(stack.n_slices - 1, clicked[1] + 1)
        mask = np.zeros(stack.shape, dtype=bool)
        markers = self._markers(seen, range(first, last + 1), clicked)
        if not (markers == STRUCTURE).any():
            return mask
        limits = intensity_range(stack.array, self.inputs.intensity)
        images = window.resample(normalize(stack.array[first : last + 1], limits))
        ratio = (stack.slice_mm / seen.pixel_mm, 1.0, 1.0)
        probability = random_walker(
            images, markers, self.beta, "cg_j", tol=TOLERANCE, spacing=ratio, return_full_prob=True
        )[0]
        mask[first : last + 1] = window.restore(probability, 0.0) > 0.5
        return mask

    def _window(self, stack: SliceStack, clicks: Clicks) -> InputWindow:
        height, width = stack.array.shape[1:]
        low, high = clicks.xy.min(axis=0), clicks.xy.max(axis=0)
        side_mm = float(((high - low) * stack.pixel_mm[::-1]).max()) + 2 * BOX_MARGINS * self.inputs.box_margin_mm
        size = min(self.size, max(8, round(side_mm / min(stack.pixel_mm))))
        return place_window((height, width), stack.pixel_mm, size, side_mm, (low + high) / 2)

    def _markers(self, seen: NetworkClicks, slices: range, clicked: tuple[int, int]) -> np.ndarray:
        """(R, S, S) uint8: structure, surroundings, or 0 for what the walker decides."""
        rows, columns = np.mgrid[: seen.size, : seen.size]
        brush = max(0.5, self.inputs.box_margin_mm / 3 / seen.pixel_mm)
        markers = np.zeros((len(slices), seen.size, seen.size), dtype=np.uint8)
        markers[:, [0, -1]] = markers[:, :, [0, -1]] = SURROUNDINGS
        for k, t in enumerate(slices):
            if not clicked[0] <= t <= clicked[1]:
                markers[k] = SURROUNDINGS
            for column, row in np.rint(seen.points(t)):
                markers[k][np.hypot(columns - column, rows - row) <= brush] = STRUCTURE
        return markers
