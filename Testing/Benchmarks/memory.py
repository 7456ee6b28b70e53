"""Peak resident memory of segmenting a 512 x 512 x 300 CT on the CPU, beyond torch's own.

.venv/bin/python Testing/Benchmarks/memory.py [--bundle esophagus-ct] [--slices 300] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch

from SPDSegmentLib.geometry.centerline import clicks_from_points
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import find_bundle


def resident_gb() -> float:
    """Peak resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def phantom(slices: int) -> Volume:
    """A body with a tube in it, in Hounsfield units."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512]
    body = ((rows - 256) / 180) ** 2 + ((columns - 256) / 230) ** 2 < 1
    tube = (rows - 300) ** 2 + (columns - 256) ** 2 < 12**2
    plane = np.where(tube, 40, np.where(body, 0, -1000)).astype(np.int16)
    array = np.broadcast_to(plane, (slices, 512, 512)).copy()
    array += rng.integers(-30, 30, array.shape, dtype=np.int16)
    return Volume(array, np.diag([-0.75, -0.75, 2.5, 1.0]), "phantom")


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="esophagus-ct")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--output", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    torch.nn.functional.gelu(torch.randn(256, 256) @ torch.randn(256, 256))
    torch_gb = resident_gb()
    volume = phantom(options.slices)
    stack = SliceStack(volume, "axial")
    session = Predictor.load(find_bundle(options.bundle), "cpu").open(stack)
    z = np.arange(0, options.slices, 3)
    points = stack.to_ras(z, np.tile([[256.0, 300.0]], (len(z), 1)))
    result = session.segment(clicks_from_points(points, stack), prompts="interpolated")
    report = {
        "volume_gb": volume.array.nbytes / 1e9,
        "slices_encoded": result.encoded,
        "seconds": round(result.seconds, 1),
        "torch_gb": round(torch_gb, 3),
        "peak_gb": round(resident_gb(), 3),
        "beyond_torch_gb": round(resident_gb() - torch_gb, 3),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
