"""A training configuration and data that a tiny random network learns within a minute."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from SPDSegmentLib.geometry.labelmap import write_labelmap
from SPDSegmentLib.geometry.volume import Volume

LONG = 100

CONFIG = """
fov_mm = 64.0
seed = 3
checkpoint_seconds = {checkpoint_seconds}
{extra}
[bundle]
name = "tiny"
title = "Tiny"
structure = "Blob"
modality = "MR"

[data]
folder = "data"
image = "{{case}}_image.nii.gz"
label = "{{case}}_label.nii.gz"
targets = [[1]]
plane = "axial"
train = ["a", "b"]

[intensity]
kind = "window"
low = 0.0
high = 100.0

[network]
backbone = "tiny_random"
image_size = 64
decoder = "full"
saliency_slice_context = true

[augmentation]
flip = 0.0
rotation_deg = 0.0
scale = 0.0
shift = 0.05
gamma = 0.0
bias_field = 0.0
noise = 0.0

[stage1]
steps = {stage1}
learning_rate = 1e-2
warmup = 5

[stage2]
steps = {stage2}
entries = 4
head_steps = {head}
learning_rate = 3e-3
warmup = 5
severities = [0.0, 1.0]
strategy = "{strategy}"
"""


def write_cases(folder: Path) -> None:
    """Two volumes of 14 slices with one bright ellipse that moves, and dim clutter."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(("a", "b")):
        rng = np.random.default_rng(n)
        image = rng.normal(15, 3, (14, 64, 64))
        label = np.zeros((14, 64, 64), dtype=np.uint8)
        rows, columns = np.mgrid[:64, :64]
        for t in range(2, 12):
            ellipse = ((rows - 30 - n * 3) / 15) ** 2 + ((columns - 26 - t) / 17) ** 2 <= 1
            image[t][ellipse] = rng.normal(80, 3, int(ellipse.sum()))
            label[t] = ellipse
        affine = np.diag([-1.0, -1.0, 4.0, 1.0])
        volume = Volume(image.clip(0, 100).astype(np.int16), affine, name)
        _write_image(folder / f"{name}_image.nii.gz", volume)
        write_labelmap(folder / f"{name}_label.nii.gz", label, volume)


def write_config(
    folder: Path, stage1: int, head: int, stage2: int, strategy: str = "consensus", extra: str = ""
) -> Path:
    """Write the configuration beside ``folder / "data"``; returns its path.

    A short run keeps a checkpoint of every step, a long one only of its ends.
    """
    seconds = 0.0 if stage1 + head + stage2 < LONG else 1000.0
    path = folder / f"tiny-{strategy}.toml"
    text = CONFIG.format(
        stage1=stage1, head=head, stage2=stage2, strategy=strategy, extra=extra, checkpoint_seconds=seconds
    )
    path.write_text(text, encoding="utf-8")
    return path


def _write_image(path: Path, volume: Volume) -> None:
    import SimpleITK as sitk

    from SPDSegmentLib.geometry.volume import set_geometry

    sitk.WriteImage(set_geometry(sitk.GetImageFromArray(volume.array), volume.ijk_to_ras), str(path))
