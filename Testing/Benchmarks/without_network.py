"""What a run takes beside the network: everything is timed but encoder and decoder, which are instant stand-ins.

``speed.py --network none`` calls it; as a script it measures the library that is on the path, whatever its version, so
that two of them can be compared in turns (``speed.py --network none --against COMMIT``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.inference.engine import Engine
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.distillation import PromptConfig

ROOT = Path(__file__).resolve().parents[2]
SIDE, CHANNELS, STRIDE = 256, 256, 4
FOV_MM = 360.0
IMAGE_CHANNELS = STRIDE * STRIDE
"""The first channels of a stand-in's embedding hold the slice itself."""


class InstantModel(SPDModel):
    """A network that answers at once: S and the masks are where the slice is bright.

    Embeddings have the size of LiteMedSAM's and lie in memory that was touched before, as a network's would.
    """

    def __init__(self, slots: int, saliency: str = "image") -> None:
        network = NetworkConfig("tiny_random", SIDE, saliency=saliency, saliency_slice_context=False)
        super().__init__(network, adapters=False)
        self._arena = torch.full((slots, CHANNELS, SIDE // STRIDE, SIDE // STRIDE), 0.25)
        self._next = 0

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings (B, C, S / 4, S / 4) that begin with the slices."""
        count = len(images)
        if self._next + count > len(self._arena):
            self._next = 0
        embeddings = self._arena[self._next : self._next + count]
        self._next += count
        embeddings[:, :IMAGE_CHANNELS] = images[:, :1].reshape(count, IMAGE_CHANNELS, *embeddings.shape[2:])
        return embeddings

    def saliency_logits(self, embeddings: Tensor, previous: Any = None, following: Any = None) -> Tensor:
        """High where the slice is bright, (B, 1, S, S)."""
        return self._bright(embeddings)

    def decode(
        self, embeddings: Tensor, points: Any, labels: Any, saliency_logits: Any = None, boxes: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of what is bright, and a quality of one."""
        return self._bright(embeddings), torch.ones(len(embeddings), device=embeddings.device)

    def with_context(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """Embeddings as they are."""
        return embeddings

    def decode_clicks(self, embeddings: Tensor, tokens: Any, saliency_logits: Any = None) -> tuple[Tensor, Tensor]:
        """The same of a conditioned model."""
        return self._bright(embeddings), torch.ones(len(embeddings), device=embeddings.device)

    @staticmethod
    def _bright(embeddings: Tensor) -> Tensor:
        return (embeddings[:, :IMAGE_CHANNELS].reshape(-1, 1, SIDE, SIDE).float() - 0.5).mul_(20.0)


class _Same(torch.nn.Module):
    """Stands in for the projections of the adjoining slices, where an earlier engine asks for them."""

    def with_context(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """Embeddings as they are."""
        return embeddings


def instant_predictor(slices: int, device: str, saliency: str = "image", batch_size: int = 0) -> Predictor:
    """A predictor whose network takes no time."""
    batch_size = batch_size or (32 if device.startswith("cuda") else 4)
    model = InstantModel(slices + batch_size, saliency)
    if saliency == "conditioned":
        model.conditioning = _Same()  # type: ignore[assignment]
    model._arena = model._arena.to(device)
    engine = Engine(model, torch.device(device), torch.float32, batch_size)
    return Predictor(engine, PromptConfig(), IntensityConfig("window", 0, 1000), FOV_MM, "axial")


def tube(slices: int, side: int = 512) -> tuple[SliceStack, Clicks]:
    """A bright tube that wanders through noisy slices, and a click on every fifth."""
    rng = np.random.default_rng(0)
    array = rng.integers(150, 250, (slices, side, side), dtype=np.int16)
    rows, columns = np.mgrid[:side, :side]
    t = np.arange(slices)
    x, y = side * (0.5 + 0.2 * np.sin(t / 25)), side * (0.5 + 0.15 * np.cos(t / 40))
    for plane, column, row in zip(array, x, y, strict=True):
        plane[(columns - column) ** 2 + (rows - row) ** 2 < (0.06 * side) ** 2] += 600
    volume = Volume(array, np.diag([-0.7, -0.7, 2.0, 1.0]))
    at = t[2::5]
    xy = np.column_stack((x[at], y[at])) + rng.normal(0, 2, (len(at), 2))
    return SliceStack(volume, "axial"), Clicks(at, xy, np.zeros(len(at), bool), tuple(map(str, at)))


def moved(clicks: Clicks, n: int, by: tuple[float, float] = (1.0, 1.0)) -> Clicks:
    """The clicks with one of them elsewhere."""
    xy = clicks.xy.copy()
    xy[n % len(xy)] += by
    return Clicks(clicks.slice_index, xy, clicks.outside, clicks.ids)


def reference() -> Callable[[], None]:
    """A fixed computation of the same kinds: passes over memory, products, components of 16 slices."""
    rng = np.random.default_rng(1)
    slices = rng.integers(0, 1000, (16, 512, 512), dtype=np.int16)
    weights = rng.random((512, 256), dtype=np.float32)

    def run() -> None:
        for plane in slices:
            scaled = (plane.astype(np.float32) * 1e-3).clip(0, 1)
            ndimage.label((scaled @ weights)[:256] > 128)

    return run


def measure(slices: int, repeats: int, device: str, saliency: str) -> dict[str, Any]:
    """Best seconds of a first result, of one changed click and of the reference, taken in turns."""
    stack, clicks = tube(slices)
    predictor, fixed = instant_predictor(slices, device, saliency), reference()
    first: list[float] = []
    change: list[float] = []
    references: list[float] = []
    checksum = 0
    for n in range(repeats + 1):
        session = predictor.open(stack)
        references.append(_seconds(fixed))
        first.append(_seconds(lambda: session.segment(clicks)))  # noqa: B023
        for _ in range(4):
            changed = moved(clicks, 7 * n, (3.0, 2.0) if len(change) % 2 else (-2.0, 3.0))
            change.append(_seconds(lambda: session.segment(changed)))  # noqa: B023
        checksum = int(session.segment(clicks).mask.sum())
        if hasattr(session, "close"):  # which earlier versions have not
            session.close()
    unit = min(references[1:])
    return {
        "slices": slices,
        "device": device,
        "saliency": saliency,
        "first_result_s": min(first[1:]),
        "changed_click_s": statistics.median(change[4:]),
        "reference_s": unit,
        "first_result_over_reference": min(first[1:]) / unit,
        "changed_click_over_reference": statistics.median(change[4:]) / unit,
        "mask_voxels": checksum,
    }


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds of a GPU's run on the clock; on a CPU the processor time, which other programs do not lengthen."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begun = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begun


def in_turns(script: Path, commit: str, options: list[str], rounds: int = 3) -> dict[str, list[dict[str, Any]]]:
    """What a script prints as JSON with an earlier commit's library and models (``before``) and this tree's (``now``).

    Each has processes of its own, by turns; ``{tree}`` in the options becomes ``before`` or ``now``.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts = ["SPDSegmentLib", "Resources"]
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *parts], check=True, capture_output=True)
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")
        found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
        for _ in range(rounds):
            for name, tree in (("before", folder), ("now", str(ROOT))):
                done = subprocess.run(
                    [sys.executable, str(script), *(option.format(tree=name) for option in options)],
                    env={**os.environ, "PYTHONPATH": tree},
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                )
                found[name].append(json.loads(done.stdout))
    return found


def compare(commit: str, options: list[str]) -> dict[str, Any]:
    """This tree and an earlier commit without their networks: seconds and their ratios."""
    found = in_turns(Path(__file__).resolve(), commit, options)
    best = {
        name: {key: min(r[key] for r in runs) for key in ("first_result_s", "changed_click_s")}
        for name, runs in found.items()
    }
    return {
        "commit": commit,
        **best,
        "mask_voxels": {name: runs[0]["mask_voxels"] for name, runs in found.items()},
        "first_result_ratio": best["now"]["first_result_s"] / best["before"]["first_result_s"],
        "changed_click_ratio": best["now"]["changed_click_s"] / best["before"]["changed_click_s"],
    }


def main() -> None:
    """Print the figures of the library on the path as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--saliency", default="image", choices=("image", "conditioned"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.slices, options.repeats, options.device, options.saliency)))


if __name__ == "__main__":
    main()
