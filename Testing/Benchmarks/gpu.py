"""How fast is it on this machine's GPU? ``make gpu``, at most four minutes; writes ``results/gpu-<card>.json``
and its table into ``docs/results.md``.

    .venv/bin/python Testing/Benchmarks/gpu.py [--bundle kidney-mr] [--device cuda] [--small] [--output FILE]

Measured are the encoder's share of the card's matrix peak and of its memory bandwidth, both measured in the same run;
training slices per second; and through the worker's own process, as the 3D Slicer module uses it: the first slice, cold
and warm, 200 slices of 512 x 512 from the first to the last, and one changed click. ``--small`` with ``--device cpu``
runs all of it on any machine, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from SPDSegmentLib.inference.engine import Engine, choose_precision
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from with_network import through_worker
from without_network import tube

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
MARKS = "<!-- what make gpu measured -->\n", "<!-- end of what make gpu measured -->\n"
MATRIX, COPY_BYTES = 8192, 1 << 30


class ByteCounter(TorchDispatchMode):
    """Counts the bytes that the operations within read and write, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add what it touches."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = [t for t in tree_leaves((args, kwargs or {}, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in touched)
        return result


def seconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median time on the clock after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def peaks(device: torch.device, small: bool) -> dict[str, float]:
    """Operations per second of a large product in the precision of use, and bytes per second of a copy."""
    side, count = (512, 1 << 22) if small else (MATRIX, COPY_BYTES)
    a = torch.randn(side, side, device=device, dtype=choose_precision("auto", device))
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    return {
        "matrix_flops": 2 * side**3 / seconds(lambda: a @ a, 10, device),
        "memory_bytes": 2 * count / seconds(lambda: target.copy_(source), 10, device),
    }


def measure_encoder(
    backbone: str, size: int, batch: int, device: torch.device, peak: dict[str, float]
) -> dict[str, Any]:
    """Slices per second of an encoder with random weights, and its shares of the peaks."""
    model = SPDModel(NetworkConfig(backbone, size, decoder="full"), adapters=False)
    engine = Engine(model, device, choose_precision("auto", device), batch)
    images = torch.rand(batch, 1, size, size, device=device)
    with FlopCounterMode(display=False) as flops:
        engine.encode(images)
    with ByteCounter() as touched:
        engine.encode(images)
    each = seconds(lambda: engine.encode(images), 10, device)
    return {
        "slices_per_s": batch / each,
        "share_of_matrix_peak": flops.get_total_flops() / each / peak["matrix_flops"],
        "share_of_bandwidth": touched.bytes / each / peak["memory_bytes"],
        "batch": batch,
        "precision": str(engine.precision).removeprefix("torch."),
    }


def measure_training(backbone: str, size: int, batch: int, device: torch.device) -> float:
    """Slices per second of a step of stage I: encoder with LoRA, saliency head, backward, AdamW."""
    model = SPDModel(NetworkConfig(backbone, size)).to(device)
    for parameter in model.stage1_parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.stage1_parameters(), 1e-4)
    images = torch.rand(batch, 1, size, size, device=device)
    masks = (images > 0.9).float()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model.saliency_logits(model.encode(images))
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return batch / seconds(step, 5, device)


def table(report: dict[str, Any]) -> str:
    """The report as lines of Markdown."""
    worker = report["worker"]
    rows = [
        (
            f"first slice, worker cold / warm, of {worker['slices']} slices of 512 x 512",
            "first_slice_cold_s",
            "first_slice_warm_s",
        ),
        (f"{worker['slices']} slices, worker cold / warm", "all_slices_cold_s", "all_slices_warm_s"),
        ("one changed click, median / 95th percentile", "changed_click_median_s", "changed_click_p95_s"),
    ]
    lines = [f"| {report['card']}, {report['date']} | |", "|---|---|"]
    lines += [f"| {name} | {worker[a]:.3f} s / {worker[b]:.3f} s |" for name, a, b in rows]
    for name, part in report["encoders"].items():
        lines.append(
            f"| encoder {name} | {part['slices_per_s']:.0f} slices/s, {part['share_of_matrix_peak']:.0%} of the matrix "
            f"peak, {part['share_of_bandwidth']:.0%} of the bandwidth |"
        )
    lines.append(
        f"| training, stage I, {report['training']['backbone']} | {report['training']['slices_per_s']:.0f} slices/s |"
    )
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    """Put a table between the marks of a page, in place of what stands there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"{page} has no place for the table: the lines {MARKS[0].strip()} and {MARKS[1].strip()}.")
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, write the report and print it as a table; returns it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="kidney-mr")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device can be used by the installed torch. Try: gpu.py --device cpu --small")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    peak = peaks(device, options.small)
    encoders = [("tiny_random", 64, 2)] if options.small else [("lite_medsam", 256, 32), ("sam_vit_b", 512, 32)]
    trained = encoders[0][:2]
    report: dict[str, Any] = {
        "card": card,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "matrix_peak_tflops": peak["matrix_flops"] / 1e12,
        "bandwidth_gb_per_s": peak["memory_bytes"] / 1e9,
        "worker": through_worker(
            options.bundle,
            options.device,
            *tube(8 if options.small else 200),
            3 if options.small else 40,
            "interpolated",
        ),
        "encoders": {
            f"{name} at {size}": measure_encoder(name, size, batch, device, peak) for name, size, batch in encoders
        },
        "training": {
            "backbone": trained[0],
            "slices_per_s": measure_training(*trained, 2 if options.small else 16, device),
        },
    }
    output = options.output or RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    put_into(options.page, table(report))
    return report


if __name__ == "__main__":
    main()
