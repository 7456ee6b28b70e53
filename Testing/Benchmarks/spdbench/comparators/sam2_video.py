"""SAM 2 (Ravi et al. 2024) and MedSAM2 (Ma et al. 2025) through the package ``sam2``: slices as the frames of a video.

Every clicked slice is a prompted frame; the masks propagate from there in both directions. The frames go into the
predictor from memory: it would read a folder of JPEG files, which loses gray values and writes a patient to disk.
Nothing is trained. The weights are the user's file, opened by ``sam2`` with ``weights_only``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spdbench.comparators.inputs import FeatureCache, NetworkClicks, window_of
from spdbench.comparators.protocol import OUTSIDE_LOGIT, InputSettings, NotRun, Untrained
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.engine import choose_device

SHAPES = ("points", "box")
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class Sam2Video(Untrained):
    """SAM 2 on slices as frames.

    Args:
        checkpoint: path of the weights; without one the row says that they are not available.
        config: of ``sam2``, that which belongs to the weights.
        overrides: of that configuration, in Hydra's notation.
        prompt: ``points`` (a slice's clicks) or ``box`` (around them, with the data set's margin).
    """

    name = "sam2-video"
    default_config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    default_overrides: tuple[str, ...] = ()
    default_prompt = "points"

    def __init__(
        self,
        inputs: InputSettings,
        checkpoint: str = "",
        config: str = "",
        overrides: Sequence[str] | None = None,
        prompt: str = "",
    ) -> None:
        self.inputs = inputs
        self.checkpoint = checkpoint
        self.config = config or self.default_config
        self.overrides = list(self.default_overrides if overrides is None else overrides)
        self.prompt = prompt or self.default_prompt
        if self.prompt not in SHAPES:
            raise BadInput(f"Unknown prompt '{self.prompt}'.", f"Choose one of {', '.join(SHAPES)}.")
        self.device = choose_device(inputs.device)
        self._predictor: Any = None
        self._frames = FeatureCache(inputs)

    def load(self, folder: Path) -> None:
        """Build the video predictor with the user's weights."""
        try:
            from sam2.build_sam import build_sam2_video_predictor
        except ImportError as error:
            raise NotRun("the package sam2 is not installed (pip install 'sam2>=1.1')") from error
        if not self.checkpoint or not Path(self.checkpoint).is_file():
            raise NotRun("weights not available")
        try:
            self._predictor = build_sam2_video_predictor(
                self.config, self.checkpoint, device=str(self.device), hydra_overrides_extra=self.overrides
            )
        except (RuntimeError, KeyError) as error:
            raise NotRun(f"the weights {Path(self.checkpoint).name} do not belong to {self.config}") from error
        self._predictor.fill_hole_area = 0  # needs an extension that is built for CUDA only
        self.inputs = dataclasses.replace(self.inputs, image_size=int(self._predictor.image_size))
        self._frames = FeatureCache(self.inputs)

    @torch.inference_mode()
    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; empty where no click lies in the field of view."""
        if self._predictor is None:
            raise RuntimeError("load() comes first")
        stack = target.stack
        mask = np.zeros(stack.shape, dtype=bool)
        window = window_of(stack, clicks, self.inputs)
        seen = NetworkClicks.in_window(clicks, window, stack)
        clicked = sorted({int(t) for t in seen.clicks.slice_index})
        if not clicked:
            return mask
        images = self._frames.get(stack, window, range(stack.n_slices), _colored)
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
        with precision, frames_from_memory(images):
            for t, logits in self._propagate(seen, clicked):
                mask[t] = window.restore(logits[None], OUTSIDE_LOGIT)[0] > 0
        return mask

    def _propagate(self, seen: NetworkClicks, clicked: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Slices and their mask logits (S, S), forward from the first prompted slice, then backward."""
        predictor = self._predictor
        state = predictor.init_state(video_path="")
        for t in clicked:
            if self.prompt == "box":
                prompt: dict[str, Any] = {"box": seen.box(t, self.inputs.box_margin_mm).astype(np.float32)}
            else:
                points = seen.points(t).astype(np.float32)
                prompt = {"points": points, "labels": np.ones(len(points), dtype=np.int32)}
            predictor.add_new_points_or_box(state, frame_idx=t, obj_id=1, **prompt)
        for reverse in (False, True):
            for t, _, logits in predictor.propagate_in_video(state, start_frame_idx=clicked[0], reverse=reverse):
                yield int(t), logits[0, 0].float().cpu().numpy()


class MedSam2Video(Sam2Video):
    """MedSAM2: SAM 2.1 tiny fine-tuned on medical volumes, 512 pixels, with boxes."""

    name = "medsam2-video"
    default_overrides = (
        "++model.image_size=512",
        "++model.memory_attention.layer.self_attention.feat_sizes=[32,32]",
        "++model.memory_attention.layer.cross_attention.feat_sizes=[32,32]",
    )
    default_prompt = "box"


@contextlib.contextmanager
def frames_from_memory(images: Tensor) -> Iterator[None]:
    """Within the context ``init_state`` takes these frames (T, 3, S, S); its progress bars are off."""
    from sam2 import sam2_video_predictor as module

    load, progress = module.load_video_frames, module.tqdm
    height, width = images.shape[-2:]
    module.load_video_frames = lambda **settings: (images.to(settings["compute_device"]), height, width)
    module.tqdm = lambda items, **settings: items
    try:
        yield
    finally:
        module.load_video_frames, module.tqdm = load, progress


def _colored(images: Tensor) -> Tensor:
    """Gray slices (B, 1, S, S) in [0, 1] as SAM 2 takes colors, (B, 3, S, S)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images.expand(-1, 3, -1, -1) - mean) / std
