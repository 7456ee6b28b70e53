"""A joint training on a machine that has a GPU and nothing else: pack the data here, train there for a given time.

    python Testing/Benchmarks/joint_on_gpu.py pack Testing/Benchmarks/Configs/any-structure.toml packed
    python Testing/Benchmarks/joint_on_gpu.py train packed trained --seconds 500 [--start trained]
    python Testing/Benchmarks/joint_on_gpu.py bundle Testing/Benchmarks/Configs/any-structure.toml trained bundle

``pack`` writes the volumes cropped around their structures, with simulated clicks, and the backbone in half precision.
``train`` draws every batch on the device, takes as many steps as fit, and leaves ``adapter.safetensors`` and
``training.json`` with slices per second. ``bundle`` makes a bundle of it where the data sets are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint import JointStageRunner, save_joint_bundle
from SPDSegmentLib.training.joint_batches import JointSampler
from SPDSegmentLib.training.joint_cases import JointTarget, JointVolume, load_joint_cases
from SPDSegmentLib.training.joint_config import JointConfig, read_joint_config
from SPDSegmentLib.training.loop import Processes, schedule

MARGIN_SHARE, MARGIN_SLICES = 0.62, 12
WARM_UP_STEPS, TIMED_STEPS, LEFT_FOR_SAVING = 3, 10, 10.0


def pack(config_path: Path, folder: Path, levels: int) -> None:
    """Write everything that :func:`train` needs into a folder."""
    config = read_joint_config(config_path)
    volumes, targets = load_joint_cases(config.sets, config_path.parent, config.stage, config.seed)
    volumes, targets = cropped(volumes, targets)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config_path, folder / "config.toml")
    step = 256 // levels
    images = np.concatenate([v.images.ravel() for v in volumes]) // step * step
    labels = np.concatenate([v.labels.ravel() for v in volumes])
    # A window over everything: a volume with a synthetic structure is hardly more than its difference from the volume.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28}]
    for name, voxels in (("images", images), ("labels", labels)):
        (folder / f"{name}.xz").write_bytes(lzma.compress(voxels.tobytes(), lzma.FORMAT_XZ, filters=filters))
    clicks = [c for t in targets for c in t.clicks]
    np.savez_compressed(
        folder / "cases.npz",
        volumes=np.array(json.dumps([_without(v, "images", "labels") | {"shape": v.images.shape} for v in volumes])),
        targets=np.array(json.dumps([_without(t, "clicks") for t in targets])),
        lengths=np.array([len(slices) for slices, _ in clicks], dtype=np.int32),
        click_slice=np.concatenate([slices for slices, _ in clicks]).astype(np.int16),
        click_xy=np.concatenate([xy for _, xy in clicks]).astype(np.float32),
    )
    weights = load_state_dict(find_base_weights(config.network.backbone))
    save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, folder / "base.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{len(volumes)} volumes, {len(targets)} structures: {size:.1f} MiB in {folder}")


def _without(item: JointVolume | JointTarget, *names: str) -> dict[str, object]:
    return {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if f.name not in names}


def cropped(
    volumes: Sequence[JointVolume], targets: Sequence[JointTarget]
) -> tuple[list[JointVolume], list[JointTarget]]:
    """Volumes cut to their structures with room for the field of view; clicks outside are left out, others move."""
    corners, smaller = [], []
    for index, volume in enumerate(volumes):
        values = {value for t in targets if t.volume == index for value in t.values}
        place = np.argwhere(np.isin(volume.labels, list(values)))
        room = np.array([MARGIN_SLICES, *(MARGIN_SHARE * volume.fov_mm / np.array(volume.pixel_mm))]).astype(int)
        low = np.maximum(place.min(0) - room, 0) if len(place) else np.zeros(3, int)
        high = np.minimum(place.max(0) + room + 1, volume.images.shape) if len(place) else np.ones(3, int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        corners.append(low)
        smaller.append(dataclasses.replace(volume, images=volume.images[box], labels=volume.labels[box]))
    moved = []
    for target in targets:
        corner, shape = corners[target.volume], smaller[target.volume].images.shape
        clicks = []
        for slices, xy in target.clicks:
            kept = (slices >= corner[0]) & (slices < corner[0] + shape[0])
            clicks.append((slices[kept] - corner[0], xy[kept] - corner[[2, 1]]))
        first, last = int(target.first - corner[0]), int(target.last - corner[0])
        moved.append(dataclasses.replace(target, clicks=clicks, first=first, last=last))
    return smaller, moved


def unpack(folder: Path) -> tuple[JointConfig, list[JointVolume], list[JointTarget]]:
    """What :func:`pack` wrote."""
    config = read_joint_config(folder / "config.toml")
    images, labels = (
        np.frombuffer(lzma.decompress((folder / f"{name}.xz").read_bytes()), np.uint8) for name in ("images", "labels")
    )
    with np.load(folder / "cases.npz", allow_pickle=False) as data:
        xy = data["click_xy"].astype(np.float64)
        slices, lengths = data["click_slice"].astype(np.int64), data["lengths"]
        about_volumes, about_targets = json.loads(str(data["volumes"])), json.loads(str(data["targets"]))
    volumes, start = [], 0
    for about in about_volumes:
        shape = tuple(about.pop("shape"))
        stop = start + int(np.prod(shape))
        about["pixel_mm"] = tuple(about["pixel_mm"])
        volumes.append(
            JointVolume(images=images[start:stop].reshape(shape), labels=labels[start:stop].reshape(shape), **about)
        )
        start = stop
    ends = np.cumsum(lengths)
    sets = [(slices[end - n : end], xy[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    each = len(sets) // len(about_targets)
    targets = [
        JointTarget(**{**about, "values": tuple(about["values"])}, clicks=sets[each * i : each * (i + 1)])
        for i, about in enumerate(about_targets)
    ]
    return config, volumes, targets


def train(folder: Path, output: Path, seconds: float, start: Path | None, runs_per_step: int, objective: str) -> None:
    """Train for a time, from a packed folder; the encoder learns unless ``objective`` says otherwise."""
    began = time.monotonic()
    config, volumes, targets = unpack(folder)
    stage = dataclasses.replace(config.stage, objective=objective, entries=0, runs_per_step=runs_per_step)
    config = dataclasses.replace(config, stage=stage)
    processes = Processes(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = SPDModel(config.network, folder / "base.safetensors").to(processes.device)
    if start is not None:
        model.load_adapter_state(load_file(start / "adapter.safetensors"))
    sampler = JointSampler(volumes, targets, config.network, stage, config.augmentation, processes.device)
    phase = JointStageRunner(model, sampler, config, processes, []).phase()
    for parameter in phase.all_parameters():
        parameter.requires_grad_(True)
    groups = [{"params": parameters, "lr": rate} for parameters, rate in phase.groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=phase.weight_decay)
    done, steps, timed, losses = 0, 1 << 30, 0.0, []
    while done < steps:
        if done == WARM_UP_STEPS:
            timed = _now(processes)
        if done == WARM_UP_STEPS + TIMED_STEPS:
            each = (_now(processes) - timed) / TIMED_STEPS
            left = seconds - (time.monotonic() - began) - LEFT_FOR_SAVING
            steps = done + max(1, int(left / each))
            print(f"{steps} steps of {runs_per_step * stage.run_length} slices, {each:.3f} s each", flush=True)
        for group, (_, rate) in zip(optimizer.param_groups, phase.groups(), strict=True):
            factor = schedule(done, steps, phase.warmup) if steps < 1 << 30 else (done + 1) / phase.warmup
            group["lr"] = rate * min(factor, 1.0)
        optimizer.zero_grad(set_to_none=True)
        terms = phase.loss(done)
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(phase.all_parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % 100 == 0 or done == steps:
            losses.append({"step": done, **{name: round(float(value.detach()), 4) for name, value in terms.items()}})
            print(json.dumps(losses[-1]), flush=True)
    taken = _now(processes) - timed
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half() for name, tensor in model.adapter_state().items()}, output / "adapter.safetensors")
    slices = (done - WARM_UP_STEPS) * runs_per_step * stage.run_length
    record = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "steps": done,
        "slices": done * runs_per_step * stage.run_length,
        "slices_per_second": round(slices / taken, 1),
        "objective": objective,
        "losses": losses,
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{record['slices']} slices, {record['slices_per_second']} a second, forward and backward: {output}")


def _now(processes: Processes) -> float:
    """The time at which all work on the device is done."""
    if processes.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def bundle(config_path: Path, trained: Path, folder: Path) -> None:
    """Make a bundle of what was trained; ``config_path`` is the packed folder's own configuration beside the data."""
    config = read_joint_config(config_path)
    record = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    stage = dataclasses.replace(config.stage, steps=record["steps"], objective=record["objective"], entries=0)
    model = SPDModel(config.network, find_base_weights(config.network.backbone))
    model.load_adapter_state(load_file(trained / "adapter.safetensors"))
    made = save_joint_bundle(
        model, dataclasses.replace(config, stage=stage), config_path.name, config_path.parent, folder
    )
    print(f"Bundle: {made.folder}")


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("config", type=Path)
    packing.add_argument("folder", type=Path)
    packing.add_argument("--levels", type=int, default=64, help="gray levels that are kept (a power of two)")
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("output", type=Path)
    training.add_argument("--seconds", type=float, default=500)
    training.add_argument("--start", type=Path)
    training.add_argument("--runs-per-step", type=int, default=10)
    training.add_argument("--objective", default="joint")
    bundling = commands.add_parser("bundle")
    bundling.add_argument("config", type=Path)
    bundling.add_argument("trained", type=Path)
    bundling.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.config, options.folder, options.levels)
    elif options.command == "train":
        start, runs, objective = options.start, options.runs_per_step, options.objective
        train(options.folder, options.output, options.seconds, start, runs, objective)
    else:
        bundle(options.config, options.trained, options.folder)


if __name__ == "__main__":
    main()
