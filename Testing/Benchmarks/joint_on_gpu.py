"""Joint trainings of a benchmark on a machine that has a GPU and nothing else: pack here, train there, bundle here.

    export PYTHONPATH=Testing/Benchmarks
    python Testing/Benchmarks/joint_on_gpu.py pack Testing/Benchmarks/generalist.toml packed
    python Testing/Benchmarks/joint_on_gpu.py train packed trained --seconds 500 --speed 10 40
    python Testing/Benchmarks/joint_on_gpu.py bundle Testing/Benchmarks/generalist.toml trained

``pack`` writes the plans of all joint rows of a benchmark, the volumes cropped around their structures, with simulated
clicks, and the backbone in half precision. ``train`` runs several trainings at once, in the order of the plans; every
batch is drawn on the device. Each leaves what it was measured to do on its tested patients, by the network alone, and,
if the benchmark wants it, its adapter. ``bundle`` puts the adapters where ``spdbench`` looks for trained models.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from joint_pack import Plan, pack, read_plans, unpack
from joint_trainer import Training
from SPDSegmentLib.files import write_json
from SPDSegmentLib.networks.backbones import load_state_dict

LEFT_FOR_SAVING = 8.0
WEIGHTS = "base.safetensors"
WARM_UP, TIMED = 8, 20


def speed(plan: Plan, folder: Path, unpacked: tuple[Any, ...], runs: Sequence[int]) -> None:
    """Print slices per second, forward and backward, with nothing else on the device."""
    for count in runs:
        stage = dataclasses.replace(plan.config.stage, runs_per_step=count)
        training = Training(
            dataclasses.replace(plan, config=dataclasses.replace(plan.config, stage=stage)),
            _weights(folder),
            *unpacked,
        )
        for _ in range(WARM_UP):
            training.step(1000)
        began = training.now()
        for _ in range(TIMED):
            training.step(1000)
        taken = training.now() - began
        slices = TIMED * count * stage.run_length
        record = {"slices_per_step": count * stage.run_length, "slices_per_second": round(slices / taken, 1)}
        print(json.dumps({"alone": plan.config.stage.objective, **record}), flush=True)


def _train_one(plan: Plan, folder: Path, output: Path, deadline: float, unpacked: tuple[Any, ...]) -> None:
    """In a process of its own."""
    torch.set_num_threads(2)
    try:
        training = Training(plan, _weights(folder), *unpacked)
        record = training.run(deadline)
        if plan.keep:
            state = {name: tensor.half() for name, tensor in training.model.adapter_state().items()}
            save_file(state, output / f"{plan.name}.safetensors")
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        record |= {"name": plan.name, "device": device, "objective": plan.config.stage.objective}
        write_json(output / f"{plan.name}.json", record, indent=None)
        began = time.monotonic()
        record["rows"] = training.measure()
        write_json(output / f"{plan.name}.json", record, indent=None)
        print(f"{plan.name}: {record['slices']} slices, measured in {time.monotonic() - began:.0f} s", flush=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def train(
    folder: Path, output: Path, seconds: float, parallel: int, factor: float, runs: int, only: Sequence[str]
) -> None:
    """Run the plans of a packed folder, so many at once, until the time is over.

    Args:
        factor: on the slices that each plan learns from; runs: of a step, 0 for those of the plan.
    """
    deadline = time.monotonic() + seconds
    unpacked = unpack(folder)
    print(f"unpacked {len(unpacked[0])} volumes, {len(unpacked[1])} structures", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    waiting = [
        plan for plan in read_plans(folder) if not only or any(fnmatch.fnmatch(plan.name, pattern) for pattern in only)
    ]
    context, running = multiprocessing.get_context("fork"), list[Any]()
    while (waiting and time.monotonic() < deadline - LEFT_FOR_SAVING) or running:
        while waiting and len(running) < parallel and time.monotonic() < deadline - LEFT_FOR_SAVING:
            plan = waiting.pop(0)
            stage = plan.config.stage
            each = runs or stage.runs_per_step
            steps = max(1, round(stage.steps * stage.runs_per_step * factor / each))
            stage = dataclasses.replace(stage, steps=steps, runs_per_step=each)
            plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, stage=stage))
            arguments = (plan, folder, output, deadline - LEFT_FOR_SAVING, unpacked)
            running.append(context.Process(target=_train_one, args=arguments))
            running[-1].start()
        time.sleep(0.1)
        running = [process for process in running if process.is_alive()]
    for plan in waiting:
        print(f"{plan.name}: no time was left", flush=True)


def _weights(folder: Path) -> Path | None:
    """The packed base weights, ``None`` for a backbone without any."""
    return folder / WEIGHTS if (folder / WEIGHTS).exists() else None


def _half(path: Path) -> dict[str, Tensor]:
    weights = load_state_dict(path)
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in weights.items()}


def pack_benchmark(path: Path, folder: Path, extra: Sequence[Path], levels: int) -> None:
    """Pack all joint rows of a benchmark, and joint configurations beside it."""
    from joint_rows import plans_of
    from spdbench.comparators.own_training import base_weights

    plans = plans_of(path, extra)
    pack(plans, folder, levels)
    weights = base_weights(plans[0].config.network.backbone)
    if weights is not None:
        save_file(_half(weights), folder / WEIGHTS)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"{len(plans)} plans, {size:.1f} MiB in {folder}: {', '.join(plan.name for plan in plans)}")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("benchmark", type=Path)
    packing.add_argument("folder", type=Path)
    packing.add_argument(
        "--also", type=Path, action="append", default=[], help="a joint configuration to train as well"
    )
    packing.add_argument("--levels", type=int, default=64, help="gray levels that are kept (a power of two)")
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("output", type=Path)
    training.add_argument("--seconds", type=float, default=500)
    training.add_argument("--parallel", type=int, default=1)
    training.add_argument("--factor", type=float, default=1.0, help="on the steps of every plan")
    training.add_argument(
        "--runs", type=int, default=0, help="runs of a step in place of the plans', for as many slices"
    )
    training.add_argument("--only", action="append", default=[])
    training.add_argument("--speed", type=int, nargs="*", default=[], help="first, runs per step to time alone")
    bundling = commands.add_parser("bundle")
    bundling.add_argument("benchmark", type=Path)
    bundling.add_argument("trained", type=Path)
    bundling.add_argument("--also", type=Path, action="append", default=[])
    bundling.add_argument("--work", type=Path, default=Path("runs") / "benchmark")
    options = parser.parse_args()
    if options.command == "pack":
        pack_benchmark(options.benchmark, options.folder, options.also, options.levels)
    elif options.command == "train":
        if options.speed:
            timing = multiprocessing.get_context("spawn").Process(
                target=_speed_alone, args=(options.folder, options.speed)
            )
            timing.start()
            timing.join()
        train(
            options.folder,
            options.output,
            options.seconds,
            options.parallel,
            options.factor,
            options.runs,
            options.only,
        )
    else:
        from joint_rows import bundle

        bundle(options.benchmark, options.also, options.trained, options.work)


def _speed_alone(folder: Path, runs: Sequence[int]) -> None:
    unpacked = unpack(folder)
    plans = {plan.config.stage.objective: plan for plan in reversed(read_plans(folder))}
    for plan in plans.values():
        speed(plan, folder, unpacked, runs)


if __name__ == "__main__":
    main()
