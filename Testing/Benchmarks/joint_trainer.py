"""One joint training on a GPU: batches drawn on the device, a step as one launch, and a test on patients kept out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from joint_pack import TEST_SEVERITIES, Plan, chosen
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint import Batch, JointStageRunner, consensus_tokens, raw_tokens
from SPDSegmentLib.training.joint_batches import JointSampler, Runs
from SPDSegmentLib.training.joint_cases import JointTarget, JointVolume
from SPDSegmentLib.training.joint_config import JointAugmentation, JointStage
from SPDSegmentLib.training.loop import Processes, schedule

UNCHANGED = JointAugmentation(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
REPORT_EVERY, RUNS_AT_ONCE, EAGER = 200, 32, 4
MEANS = ("exp_avg", "exp_avg_sq")


class Graph:
    """Forward and backward pass of a batch as one launch.

    A step is some thousand small kernels. Launched one by one an H100 did 263 slices a second in one process and 251 in
    six at once, whose contexts take turns (results/gpu-joint.json): the launches were the limit, and not the card.

    Args:
        backward: computes the terms of the loss and the gradients of ``parameters``, and never waits for the device.
        batch: what it is captured with; others must have its shapes.
    """

    def __init__(
        self, backward: Callable[[Batch], dict[str, Tensor]], batch: Batch, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._inputs = [tensor.clone() for tensor in _tensors(batch)]
        still = _with_tensors(batch, self._inputs)
        self._parameters = list(parameters)
        torch.cuda.empty_cache()  # memory of a step, which the other stream cannot use
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._forget()
                backward(still)
        torch.cuda.current_stream().wait_stream(side)
        self._forget()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._terms = backward(still)
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss of a batch; the parameters have its gradients afterward."""
        for still, tensor in zip(self._inputs, _tensors(batch), strict=True):
            still.copy_(tensor, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._terms


def captured(
    backward: Callable[[Batch], dict[str, Tensor]], batch: Batch, parameters: Sequence[nn.Parameter]
) -> Graph | None:
    """A graph that gives the loss and the gradients that ``backward`` gives; ``None``, and why, where there is none."""
    for parameter in parameters:
        parameter.grad = None
    problem = ""
    try:
        expected = backward(batch)["total"].item()
        wanted = [None if p.grad is None else p.grad.clone() for p in parameters]
        graph = Graph(backward, batch, parameters)
        found = graph.replay(batch)["total"].item()
    except RuntimeError as error:  # which holds the step's tensors
        problem = f"no graph of the step, every kernel is launched by itself: {error}"
    if problem:
        print(problem[:200], flush=True)
        torch.cuda.empty_cache()
        return None
    size = sum(float(w.norm()) for w in wanted if w is not None)
    pairs = zip(parameters, wanted, strict=True)
    apart = sum(float((p.grad - w).norm()) for p, w in pairs if p.grad is not None and w is not None)
    alike = abs(found - expected) <= 0.01 * abs(expected) and apart <= 0.05 * size
    print(f"graph of the step: loss {found:.4f} for {expected:.4f}, gradients {apart / size:.1%} apart", flush=True)
    return graph if alike else None


def _tensors(batch: Batch) -> list[Tensor]:
    assert batch.images is not None
    return [batch.target, batch.real, batch.images, *batch.tokens.parts]


def _with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    target, real, images, *tokens = tensors
    return dataclasses.replace(batch, target=target, real=real, images=images, tokens=TokenBatch(*tokens))


class Training:
    """One plan on a device.

    Args:
        volumes, learned, tested: of :func:`joint_pack.unpack`.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Path | None,
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
        sampler = self._sampler(own, self.config.augmentation)
        self._runner = JointStageRunner(self.model, sampler, self.config, self.processes, [])
        self._phase = self._runner.phase()
        for parameter in self._phase.all_parameters():
            parameter.requires_grad_(True)
        groups = [{"params": parameters, "lr": rate} for parameters, rate in self._phase.groups()]
        fused = self.processes.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(groups, weight_decay=self._phase.weight_decay, fused=fused)
        self.done = self._first = 0
        self._graph: Graph | None = None

    def _sampler(
        self, cases: tuple[list[JointVolume], list[JointTarget]], augmentation: JointAugmentation
    ) -> JointSampler:
        return JointSampler(*cases, self.config.network, self.stage, augmentation, self.processes.device)

    def step(self, steps: int) -> dict[str, Tensor]:
        """One of so many steps; returns the terms of its loss."""
        batch = self._runner.batch(self.done)
        one_launch = self.processes.device.type == "cuda" and self.stage.objective != "saliency_first"
        if one_launch and self.done - self._first == EAGER:
            self._graph = captured(self._backward, batch, self._phase.all_parameters())
        for group, (_, rate) in zip(self._optimizer.param_groups, self._phase.groups(), strict=True):
            group["lr"] = rate * schedule(self.done, steps, self._phase.warmup)
        if self._graph is not None:
            terms = self._graph.replay(batch)
        else:
            self._optimizer.zero_grad(set_to_none=True)
            terms = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self._phase.all_parameters(), 1.0)
        self._optimizer.step()
        self.done += 1
        return terms

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        terms = self._runner.loss_of(batch, self.done)
        terms["total"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` goes on from: adapter and means of the optimizer, in 16 bits."""
        kept = {f"adapter/{name}": tensor.half() for name, tensor in self.model.adapter_state().items()}
        for index, means in self._optimizer.state_dict()["state"].items():
            kept |= {f"{name}/{index}": means[name].bfloat16().cpu() for name in MEANS}
        return kept | {"done": torch.tensor(self.done)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        mark = "adapter/"
        self.model.load_adapter_state({k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)})
        self.done = self._first = int(state["done"])
        known = [i for i in range(len(self._phase.all_parameters())) if f"{MEANS[0]}/{i}" in state]
        means = {i: {name: state[f"{name}/{i}"] for name in MEANS} for i in known}
        each = {i: {"step": torch.tensor(float(self.done)), **means[i]} for i in known}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": each})

    def run(self, deadline: float, before: Mapping[str, Any]) -> dict[str, Any]:
        """All steps, or as many as there is time for; what is to be known of them and of those ``before``.

        Raises:
            BadInput: the loss is no number any more.
        """
        steps, losses, began = self.stage.steps, list(before.get("losses", [])), self.now()
        while self.done < steps and time.monotonic() < deadline:
            terms = self.step(steps)
            if self.done % REPORT_EVERY == 0 or self.done == steps:
                each = (self.now() - began) / (self.done - self._first)
                losses.append({"step": self.done} | {n: round(float(v.detach()), 4) for n, v in terms.items()})
                shown = " ".join(f"{name} {losses[-1][name]:.3f}" for name in terms)
                left = each * (steps - self.done)
                print(f"{self.plan.name} {self.done}/{steps} {left:.0f} s left, {shown}", flush=True)
                if not math.isfinite(losses[-1]["total"]):
                    raise BadInput(
                        f"{self.plan.name} became unstable: by step {self.done} its loss is not a finite number.",
                        "Lower learning_rate in [stage].",
                    )
        slices = self.done * self.stage.runs_per_step * self.stage.run_length
        seconds = before.get("seconds", 0.0) + self.now() - began
        return {
            "steps": self.done,
            "runs_per_step": self.stage.runs_per_step,
            "slices": slices,
            "seconds": round(seconds, 1),
            "slices_per_second": round(slices / max(seconds, 1e-9), 1),
            "losses": losses,
        }

    def now(self) -> float:
        """The time at which all work on the device is done."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    @torch.no_grad()
    def measure(self, deadline: float) -> list[dict[str, Any]] | None:
        """DSC of the network alone on every structure of the tested patients, one set of clicks for each severity.

        ``None`` where there was no time for all of them.

        ``saliency`` is pass one, ``mask`` what the decoder gives last, ``within`` the same without slices beyond the
        outermost clicks. Evidence, following and synthesized points of the product are not in it.
        """
        if not self._tested[1]:
            return []
        sampler = self._sampler(self._tested, UNCHANGED)
        runner = JointStageRunner(self.model, sampler, self.config, self.processes, [])
        places = [(t, s) for t in range(len(self._tested[1])) for s in range(len(TEST_SEVERITIES))]
        runs, chosen_sets, cell, counted, clicked = _every_slice(sampler, places, self.stage)
        counts = torch.zeros(len(places), 3, 3, dtype=torch.int64, device=self.processes.device)
        for start in range(0, len(cell), RUNS_AT_ONCE):
            if self.now() >= deadline:
                return None
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
                consensus = consensus_tokens(saliency, tokens, self.config.prompts, self.stage.run_length)
                mask, _ = self.model.decode_clicks(embeddings, consensus, saliency)
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
        matrix, offset = sampler.views(
            np.random.default_rng(0), which, np.repeat(np.median(xy, 0)[None], len(firsts), 0)
        )
        each = firsts[:, None] + np.arange(stage.run_length)
        numbers = np.full((2, len(firsts)), [[chosen_set], [place]])
        clicked = (each >= slices.min()) & (each <= slices.max())
        parts.append((which, firsts, matrix, offset, *numbers, each <= last, clicked))
    which, firsts, matrix, offset, sets, place_of, counted, clicked = (
        np.concatenate(p) for p in zip(*parts, strict=True)
    )
    return Runs(which, firsts, matrix, offset, 0), sets, place_of, counted, clicked
