"""Joint trainings of a benchmark on a machine that has a GPU and nothing else: pack here, train there, bundle here.

    export PYTHONPATH=Testing/Benchmarks
    python Testing/Benchmarks/joint_on_gpu.py pack Testing/Benchmarks/generalist.toml packed
    python Testing/Benchmarks/joint_on_gpu.py speed packed 10 40
    python Testing/Benchmarks/joint_on_gpu.py train packed trained --seconds 500
    python Testing/Benchmarks/joint_on_gpu.py bundle Testing/Benchmarks/generalist.toml trained

``pack`` writes the plans of all joint rows of a benchmark, the volumes cropped around their structures, with simulated
clicks, and the backbone in half precision. ``train`` runs the trainings in the order of the plans, several at once if
wanted; every batch is drawn on the device. The same command goes on where the last one was stopped; that takes of its
files records.json and stopped-*.safetensors. Each training leaves what it was measured to do on its tested patients, by
the network alone, and, if the benchmark wants it, its adapter; where the time is over before the first, the adapter is
there to be measured by ``spdbench``. ``bundle`` puts the adapters where that looks for trained models; it takes several
folders, if there are several.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
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

from joint_files import STOPPED, Trained, half_base, stored
from joint_pack import Plan, pack, read_plans, same_slices, unpack
from joint_trainer import Training

LEFT_FOR_SAVING = 8.0
WEIGHTS = "base.safetensors"
WARM_UP, TIMED = 8, 20


def speed(folder: Path, runs: Sequence[int], seconds: float, only: Sequence[str]) -> None:
    """Print slices per second, forward and backward, of every objective, and what time all plans take with so many."""
    deadline = time.monotonic() + seconds
    plans, unpacked = _wanted(folder, only), unpack(folder)
    kinds = {plan.config.stage.objective: plan for plan in reversed(plans)}
    for count in runs:
        rates = {}
        for objective, plan in kinds.items():
            if time.monotonic() >= deadline:
                print(f"no time was left to time {objective} with {count} runs per step", flush=True)
                continue
            rates[objective] = _slices_per_second(_changed(plan, 1.0, count), folder, unpacked)
            about = {"alone": objective, "slices_per_step": count * plan.config.stage.run_length}
            print(json.dumps({**about, "slices_per_second": round(rates[objective], 1)}), flush=True)
        if len(rates) == len(kinds):
            needed = sum(_slices(plan) / rates[plan.config.stage.objective] for plan in plans)
            print(f"--runs {count}: {len(plans)} plans train for {needed:.0f} s, --factor changes that", flush=True)


def _slices_per_second(plan: Plan, folder: Path, unpacked: tuple[Any, ...]) -> float:
    """With nothing else on the device."""
    training = Training(plan, _weights(folder), *unpacked)
    for _ in range(WARM_UP):
        training.step(1000)
    began = training.now()
    for _ in range(TIMED):
        training.step(1000)
    stage = plan.config.stage
    return TIMED * stage.runs_per_step * stage.run_length / (training.now() - began)


def _slices(plan: Plan) -> int:
    """That a plan learns from."""
    stage = plan.config.stage
    return stage.steps * stage.runs_per_step * stage.run_length


def _changed(plan: Plan, factor: float, runs: int) -> Plan:
    """A plan with ``factor`` times its slices and so many runs per step, 0 for its own."""
    stage = plan.config.stage
    each = runs or stage.runs_per_step
    stage = dataclasses.replace(stage, steps=same_slices(stage, each, factor), runs_per_step=each)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, stage=stage))


def _wanted(folder: Path, only: Sequence[str]) -> list[Plan]:
    """Plans whose names match one of the patterns, all without any."""
    plans = read_plans(folder)
    for pattern in only:
        if not any(fnmatch.fnmatch(plan.name, pattern) for plan in plans):
            raise SystemExit(f"No plan is named {pattern}; there are {', '.join(plan.name for plan in plans)}.")
    return [plan for plan in plans if not only or any(fnmatch.fnmatch(plan.name, pattern) for pattern in only)]


def _train_one(
    plan: Plan, folder: Path, output: Trained, deadline: float, unpacked: tuple[Any, ...], writing: Any
) -> None:
    """In a process of its own; ``writing`` is the lock of the output."""
    try:
        training = Training(plan, _weights(folder), *unpacked)
        with writing:
            state, before = output.tensors(STOPPED, plan.name), output.records().get(plan.name, {})
        if state:
            training.restore(state)
            print(f"{plan.name} goes on after step {training.done}", flush=True)
        record = training.run(deadline, before if state else {})
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        record |= {"name": plan.name, "device": device, "objective": plan.config.stage.objective}
        record |= {"plan": _digest(plan), "keep": plan.keep, "finished": False}
        trained = record["steps"] == plan.config.stage.steps
        adapter = stored(training.model.adapter_state(), _weights(folder)) if trained and plan.keep else {}
        record["finished"] = bool(adapter)
        with writing:
            output.put(plan.name, record, adapter, {} if adapter else training.state())
        began = time.monotonic()
        rows = training.measure(deadline) if trained else None
        if rows is None:
            unmeasured = f"unmeasured, {'spdbench measures its adapter' if adapter else 'go on to measure it'}"
            why = f"stopped after {record['steps']} of {plan.config.stage.steps} steps" if not trained else unmeasured
            print(f"{plan.name}: {why}, no time was left", flush=True)
            return
        with writing:
            output.put(plan.name, record | {"rows": rows, "finished": True}, {}, {})
        print(f"{plan.name}: {record['slices']} slices, measured in {time.monotonic() - began:.0f} s", flush=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _digest(plan: Plan) -> str:
    """Of all that a plan says, so that another one is not gone on with."""
    return hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def train(folder: Path, output: Trained, deadline: float, parallel: int, plans: Sequence[Plan]) -> None:
    """Run plans of a packed folder, so many at once, until the time is over; what is finished is left as it is.

    Raises:
        SystemExit: a training failed, or what is in the output was trained otherwise.
    """
    records = output.records()
    for plan in plans:
        if records.get(plan.name, {"plan": _digest(plan)}).get("plan") != _digest(plan):
            raise SystemExit(
                f"{plan.name} was trained into {output.folder} with other settings: give the same --factor and --runs, "
                "or another folder."
            )
    waiting = [plan for plan in plans if not records.get(plan.name, {}).get("finished")]
    for plan in plans:
        if plan not in waiting:
            print(f"{plan.name}: finished before", flush=True)
    unpacked = unpack(folder)
    print(f"unpacked {len(unpacked[0])} volumes, {len(unpacked[1])} structures", flush=True)
    slices, left = sum(map(_slices, waiting)), max(deadline - time.monotonic(), 1.0)
    print(f"{len(waiting)} plans of {slices} slices: {slices / left:.0f} a second are needed", flush=True)
    context, running, failed = multiprocessing.get_context("fork"), dict[str, Any](), list[str]()
    writing = context.Lock()
    while (waiting and time.monotonic() < deadline - 2 * LEFT_FOR_SAVING) or running:
        while waiting and len(running) < parallel and time.monotonic() < deadline - 2 * LEFT_FOR_SAVING:
            plan = waiting.pop(0)
            arguments = (plan, folder, output, deadline - LEFT_FOR_SAVING, unpacked, writing)
            running[plan.name] = context.Process(target=_train_one, args=arguments)
            running[plan.name].start()
        time.sleep(0.1)
        ended = [name for name, process in running.items() if not process.is_alive()]
        failed += [name for name in ended if running.pop(name).exitcode != 0]
    for plan in waiting:
        print(f"{plan.name}: no time was left", flush=True)
    sizes = output.sizes()
    print(f"{output.folder}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB", flush=True)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}; what is said above is why. The same command tries again.")


def _weights(folder: Path) -> Path | None:
    """The packed base weights, ``None`` for a backbone without any."""
    return folder / WEIGHTS if (folder / WEIGHTS).exists() else None


def pack_benchmark(path: Path, folder: Path, extra: Sequence[Path], levels: int) -> None:
    """Pack all joint rows of a benchmark, and joint configurations beside it."""
    from joint_rows import plans_of
    from spdbench.comparators.own_training import base_weights

    plans = plans_of(path, extra)
    pack(plans, folder, levels)
    weights = base_weights(plans[0].config.network.backbone)
    if weights is not None:
        save_file(half_base(weights), folder / WEIGHTS)
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
    timing = commands.add_parser("speed")
    timing.add_argument("folder", type=Path)
    timing.add_argument("runs", type=int, nargs="+", help="runs per step to time alone")
    timing.add_argument("--seconds", type=float, default=120)
    timing.add_argument("--only", action="append", default=[])
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("output", type=Path)
    training.add_argument("--seconds", type=float, default=500, help="for everything, saving included")
    training.add_argument("--parallel", type=int, default=1)
    training.add_argument("--factor", type=float, default=1.0, help="on the steps of every plan")
    training.add_argument(
        "--runs", type=int, default=0, help="runs of a step in place of the plans', for as many slices"
    )
    training.add_argument("--only", action="append", default=[])
    bundling = commands.add_parser("bundle")
    bundling.add_argument("benchmark", type=Path)
    bundling.add_argument("trained", type=Path, nargs="+")
    bundling.add_argument("--also", type=Path, action="append", default=[])
    bundling.add_argument("--work", type=Path, default=Path("runs") / "benchmark")
    options = parser.parse_args()
    if options.command == "pack":
        pack_benchmark(options.benchmark, options.folder, options.also, options.levels)
    elif options.command == "speed":
        speed(options.folder, options.runs, options.seconds, options.only)
    elif options.command == "train":
        deadline = time.monotonic() + options.seconds
        plans = [_changed(plan, options.factor, options.runs) for plan in _wanted(options.folder, options.only)]
        train(options.folder, Trained(options.output), deadline, options.parallel, plans)
    else:
        from joint_rows import bundle

        bundle(options.benchmark, options.also, options.trained, options.work)


if __name__ == "__main__":
    main()
