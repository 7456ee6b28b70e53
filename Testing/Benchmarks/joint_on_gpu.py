"""Joint trainings of a benchmark on a machine that has a GPU and nothing else: pack here, train there, bundle here.

    export PYTHONPATH=Testing/Benchmarks
    python Testing/Benchmarks/joint_on_gpu.py pack Testing/Benchmarks/generalist.toml packed
    python Testing/Benchmarks/joint_on_gpu.py train packed trained --seconds 500 --parallel 6
    python Testing/Benchmarks/joint_on_gpu.py bundle Testing/Benchmarks/generalist.toml trained

``pack`` writes the plans of all joint rows of a benchmark, the volumes cropped around their structures, with simulated
clicks, and the backbone in half precision. ``train`` runs several trainings at once, in the order of the plans; every
batch is drawn on the device. Each leaves what it was measured to do on its tested patients, by the network alone, and its
adapter if the benchmark wants it. ``bundle`` puts the adapters where ``spdbench`` looks for trained models.
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

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from joint_pack import TEST_SEVERITIES, Plan, chosen, pack, read_plans, unpack
from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint import JointStageRunner, raw_tokens, supported_tokens
from SPDSegmentLib.training.joint_batches import JointSampler, Runs
from SPDSegmentLib.training.joint_cases import JointTarget, JointVolume
from SPDSegmentLib.training.joint_config import JointAugmentation, JointStage
from SPDSegmentLib.training.loop import Processes, schedule

UNCHANGED = JointAugmentation(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
LEFT_FOR_SAVING, REPORT_EVERY, RUNS_AT_ONCE = 8.0, 200, 32
WARM_UP, TIMED = 5, 20


class Training:
    """One plan on a device.

    Args:
        volumes, learned, tested: of :func:`joint_pack.unpack`.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Path,
        volumes: Sequence[JointVolume],
        learned: Sequence[JointTarget],
        tested: Sequence[JointTarget],
    ) -> None:
        self.plan, self.config, self.stage = plan, plan.config, plan.config.stage
        self.processes = Processes(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(self.config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.model = SPDModel(self.config.network, weights).to(self.processes.device)
        self._tested = chosen(volumes, [t if plan.is_tested_on(t, volumes) else None for t in tested])
        own = chosen(volumes, [plan.learns_from(target, volumes) for target in learned])
        runner = JointStageRunner(self.model, self._sampler(own, self.config.augmentation), self.config, self.processes, [])
        self._phase = runner.phase()
        for parameter in self._phase.all_parameters():
            parameter.requires_grad_(True)
        groups = [{"params": parameters, "lr": rate} for parameters, rate in self._phase.groups()]
        fused = self.processes.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(groups, weight_decay=self._phase.weight_decay, fused=fused)
        self.done = 0

    def _sampler(
        self, cases: tuple[list[JointVolume], list[JointTarget]], augmentation: JointAugmentation
    ) -> JointSampler:
        return JointSampler(*cases, self.config.network, self.stage, augmentation, self.processes.device)

    def step(self, steps: int) -> dict[str, Tensor]:
        """One of so many steps; returns the terms of its loss."""
        for group, (_, rate) in zip(self._optimizer.param_groups, self._phase.groups(), strict=True):
            group["lr"] = rate * schedule(self.done, steps, self._phase.warmup)
        self._optimizer.zero_grad(set_to_none=True)
        terms = self._phase.loss(self.done)
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(self._phase.all_parameters(), 1.0)
        self._optimizer.step()
        self.done += 1
        return terms

    def run(self, deadline: float) -> dict[str, Any]:
        """All steps, or as many as there is time for; what is to be known of them."""
        steps, losses, began = self.stage.steps, [], self.now()
        while self.done < steps and time.monotonic() < deadline:
            terms = self.step(steps)
            if self.done % REPORT_EVERY == 0 or self.done == steps:
                each = (self.now() - began) / self.done
                losses.append({"step": self.done} | {n: round(float(v.detach()), 4) for n, v in terms.items()})
                shown = " ".join(f"{name} {losses[-1][name]:.3f}" for name in terms)
                left = each * (steps - self.done)
                print(f"{self.plan.name} {self.done}/{steps} {left:.0f} s left, {shown}", flush=True)
        slices = self.done * self.stage.runs_per_step * self.stage.run_length
        return {
            "steps": self.done,
            "slices": slices,
            "slices_per_second": round(slices / max(self.now() - began, 1e-9), 1),
            "losses": losses,
        }

    def now(self) -> float:
        """The time at which all work on the device is done."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    @torch.no_grad()
    def measure(self) -> list[dict[str, Any]]:
        """DSC of the network alone on every structure of the tested patients, one set of clicks for each severity.

        ``saliency`` is pass one, ``mask`` what the decoder gives last, ``within`` the same without slices beyond the
        outermost clicks. Evidence, following and synthesized points of the product are not in it.
        """
        sampler = self._sampler(self._tested, UNCHANGED)
        runner = JointStageRunner(self.model, sampler, self.config, self.processes, [])
        places = [(t, s) for t in range(len(self._tested[1])) for s in range(len(TEST_SEVERITIES))]
        runs, chosen_sets, cell, counted, clicked = _every_slice(sampler, places, self.stage)
        counts = torch.zeros(len(places), 3, 3, dtype=torch.int64, device=self.processes.device)
        for start in range(0, len(cell), RUNS_AT_ONCE):
            part = slice(start, start + RUNS_AT_ONCE)
            some = Runs(runs.target[part], runs.first[part], runs.matrix[part], runs.offset[part], 0)
            found = self._counts(runner, some, chosen_sets[part], counted[part], clicked[part])
            counts.index_add_(0, torch.from_numpy(cell[part]).to(counts.device), found)
        inter, predicted, truth = counts.cpu().numpy().transpose(2, 0, 1)
        dsc = 2 * inter / np.maximum(predicted + truth, 1)
        rows = []
        for (index, severity), values in zip(places, dsc, strict=True):
            target = self._tested[1][index]
            folder, _, case = self._tested[0][target.volume].name.partition("/")
            about = {"folder": folder, "case": case, "structure": target.group.partition(":")[2]}
            names = {n: round(float(v), 4) for n, v in zip(("saliency", "mask", "within"), values, strict=True)}
            rows.append({**about, "severity": TEST_SEVERITIES[severity], **names})
        return rows

    def _counts(
        self, runner: JointStageRunner, runs: Runs, chosen_sets: np.ndarray, counted: np.ndarray, clicked: np.ndarray
    ) -> Tensor:
        """Pixels in common, predicted and true, (R, 3, 3): of saliency, mask, and mask within the clicks."""
        prompted = self.stage.objective == "prompted"
        images, truth = runner.sampler.images_and_masks(runs)
        tokens = runner.sampler.tokens(runs, chosen_sets)
        tokens = raw_tokens(tokens) if prompted else tokens
        with self.processes.autocast():
            embeddings = self.model.encode(images).float()
            embeddings = embeddings if prompted else runner.with_context(embeddings)
            saliency, _ = self.model.decode_clicks(embeddings, tokens)
            mask = saliency
            if self.config.network.second_pass and not prompted:
                supported = tokens.restricted(supported_tokens(saliency, tokens, self.config.prompts.threshold))
                mask, _ = self.model.decode_clicks(embeddings, supported, saliency)
        real, inside = (
            torch.from_numpy(which.ravel()).to(truth.device).view(-1, 1, 1, 1) for which in (counted, clicked)
        )
        told = tokens.valid.any(1).view(-1, 1, 1, 1) & real
        true = truth & real
        found = [(saliency > 0) & told, (mask > 0) & told, (mask > 0) & told & inside]
        sums = torch.stack([torch.stack([x.flatten(1).sum(1) for x in (f & true, f, true)], -1) for f in found], 1)
        return sums.unflatten(0, (-1, self.stage.run_length)).sum(1)


def _every_slice(
    sampler: JointSampler, places: Sequence[tuple[int, int]], stage: JointStage
) -> tuple[Runs, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All slices of targets with sets of clicks as runs; set and place of each run, (R,).

    Then which slices count (R, T), and which lie between the outermost clicks.
    """
    parts = []
    for place, (target, chosen_set) in enumerate(places):
        slices, xy, first, last = sampler.clicked_range(target, chosen_set)
        firsts = np.arange(first, last + 1, stage.run_length)
        which = np.full(len(firsts), target)
        matrix, offset = sampler.views(np.random.default_rng(0), which, np.repeat(np.median(xy, 0)[None], len(firsts), 0))
        each = firsts[:, None] + np.arange(stage.run_length)
        numbers = np.full((2, len(firsts)), [[chosen_set], [place]])
        clicked = (each >= slices.min()) & (each <= slices.max())
        parts.append((which, firsts, matrix, offset, *numbers, each <= last, clicked))
    which, firsts, matrix, offset, sets, place_of, counted, clicked = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Runs(which, firsts, matrix, offset, 0), sets, place_of, counted, clicked


def speed(plan: Plan, folder: Path, unpacked: tuple[Any, ...], runs: Sequence[int]) -> None:
    """Print slices per second, forward and backward, with nothing else on the device."""
    for count in runs:
        stage = dataclasses.replace(plan.config.stage, runs_per_step=count)
        training = Training(
            dataclasses.replace(plan, config=dataclasses.replace(plan.config, stage=stage)),
            folder / "base.safetensors",
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
        training = Training(plan, folder / "base.safetensors", *unpacked)
        record = training.run(deadline)
        if plan.keep:
            state = {name: tensor.half() for name, tensor in training.model.adapter_state().items()}
            save_file(state, output / f"{plan.name}.safetensors")
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        began = time.monotonic()
        record |= {"name": plan.name, "device": device, "objective": plan.config.stage.objective}
        record["rows"] = training.measure()
        (output / f"{plan.name}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(f"{plan.name}: {record['slices']} slices, measured in {time.monotonic() - began:.0f} s", flush=True)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def train(folder: Path, output: Path, seconds: float, parallel: int, factor: float, only: Sequence[str]) -> None:
    """Run the plans of a packed folder, so many at once, until the time is over."""
    deadline = time.monotonic() + seconds
    unpacked = unpack(folder)
    print(f"unpacked {len(unpacked[0])} volumes, {len(unpacked[1])} structures", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    waiting = [plan for plan in read_plans(folder) if not only or any(fnmatch.fnmatch(plan.name, pattern) for pattern in only)]
    context, running = multiprocessing.get_context("fork"), list[Any]()
    while (waiting and time.monotonic() < deadline - LEFT_FOR_SAVING) or running:
        while waiting and len(running) < parallel and time.monotonic() < deadline - LEFT_FOR_SAVING:
            plan = waiting.pop(0)
            stage = dataclasses.replace(plan.config.stage, steps=max(1, round(plan.config.stage.steps * factor)))
            plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, stage=stage))
            arguments = (plan, folder, output, deadline - LEFT_FOR_SAVING, unpacked)
            running.append(context.Process(target=_train_one, args=arguments))
            running[-1].start()
        time.sleep(0.1)
        running = [process for process in running if process.is_alive()]
    for plan in waiting:
        print(f"{plan.name}: no time was left", flush=True)


def _half(path: Path) -> dict[str, Tensor]:
    weights = load_state_dict(path)
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in weights.items()}


def pack_benchmark(path: Path, folder: Path, extra: Sequence[Path], levels: int) -> None:
    """Pack all joint rows of a benchmark, and joint configurations beside it."""
    from joint_rows import plans_of

    plans = plans_of(path, extra)
    pack(plans, path.parent / "Configs", folder, levels)
    save_file(_half(find_base_weights(plans[0].config.network.backbone)), folder / "base.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"{len(plans)} plans, {size:.1f} MiB in {folder}: {', '.join(plan.name for plan in plans)}")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("benchmark", type=Path)
    packing.add_argument("folder", type=Path)
    packing.add_argument("--also", type=Path, action="append", default=[], help="a joint configuration to train as well")
    packing.add_argument("--levels", type=int, default=64, help="gray levels that are kept (a power of two)")
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("output", type=Path)
    training.add_argument("--seconds", type=float, default=500)
    training.add_argument("--parallel", type=int, default=4)
    training.add_argument("--factor", type=float, default=1.0, help="on the steps of every plan")
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
        train(options.folder, options.output, options.seconds, options.parallel, options.factor, options.only)
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
