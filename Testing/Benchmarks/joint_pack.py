"""Data sets of joint trainings on their way to a machine that has a GPU and nothing else, and the plans of them.

Volumes are cropped around their structures, with simulated clicks, and kept once for all trainings; a plan says what of
them one training learns from, and whom it is tested on.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.prompts.click_path import click_path
from SPDSegmentLib.prompts.noise import simulate_clicks_from_path
from SPDSegmentLib.settings import build_settings
from SPDSegmentLib.training.joint_cases import WITH_SYNTHETIC, JointTarget, JointVolume, case_names, load_joint_cases
from SPDSegmentLib.training.joint_config import JointConfig, JointStage, SetConfig

MARGIN_SHARE, MARGIN_SLICES = 0.62, 12
TEST_SEVERITIES = ("clean", "clinic", "severe")
TEST_SEED = 1000
VOLUMES = ("folder", "image", "label", "series", "segments", "modality", "plane", "fov_mm")


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        name: of its files; config: everything it needs to know.
        learned: cases that it learns from, by the name of their set; tested: those that it is tested on.
        keep: whether its adapter is wanted, or only what it was measured to do.
    """

    name: str
    config: JointConfig
    learned: Mapping[str, Sequence[str]]
    tested: Mapping[str, Sequence[str]]
    keep: bool = True

    @classmethod
    def of(cls, name: str, config: JointConfig, root: Path, keep: bool = True) -> Plan:
        """The plan of a configuration; whom it excludes it is tested on."""
        places = {key: str((root / spec.folder).resolve()) for key, spec in config.sets.items()}
        sets = {key: dataclasses.replace(spec, folder=places[key]) for key, spec in config.sets.items()}
        config = dataclasses.replace(config, sets=sets)
        learned = {key: case_names(spec, Path(spec.folder)) for key, spec in sets.items()}
        tested = {key: list(spec.exclude) for key, spec in sets.items()}
        return cls(name, config, learned, tested, keep)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {**dataclasses.asdict(self), "learned": dict(self.learned), "tested": dict(self.tested)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """Of a file."""
        return cls(**{**content, "config": build_settings(JointConfig, content["config"], content["name"])})

    def learns_from(self, target: JointTarget, volumes: Sequence[JointVolume]) -> JointTarget | None:
        """A target with the plan's weight, ``None`` if the training does not know it."""
        key, case, synthetic = _parts(volumes[target.volume])
        spec = self.config.sets.get(key)
        if spec is None or case not in self.learned[key]:
            return None
        structure = target.group.partition(":")[2]
        known = spec.synthetic > 0 if synthetic else structure in spec.structures
        return dataclasses.replace(target, weight=spec.weight) if known else None

    def is_tested_on(self, target: JointTarget, volumes: Sequence[JointVolume]) -> bool:
        """Whether a target is of a patient whom the training does not know."""
        key, case, synthetic = _parts(volumes[target.volume])
        return not synthetic and case in self.tested.get(key, ())


def same_slices(stage: JointStage, runs: int, factor: float = 1.0) -> int:
    """Steps of so many runs that see as many slices as the stage's, times ``factor``."""
    return max(1, round(stage.steps * stage.runs_per_step * factor / runs))


def _parts(volume: JointVolume) -> tuple[str, str, bool]:
    """Set, case, and whether a synthetic structure is in it."""
    case, mark, _ = volume.name.partition("/")[2].partition(WITH_SYNTHETIC)
    return volume.of_set, case, bool(mark)


def union(plans: Sequence[Plan]) -> dict[str, SetConfig]:
    """Sets that hold all that any plan learns from or is tested on.

    Raises:
        SystemExit: volumes or clicks of one plan are not those of another.
    """
    sets: dict[str, SetConfig] = {}
    for plan in plans:
        own, first = _clicks(plan), _clicks(plans[0])
        if own != first:
            other = [name for name in own if own[name] != first[name]]
            raise SystemExit(
                f"{plan.name} has another {', '.join(other)} than {plans[0].name}, but plans of a folder learn from "
                "the same clicks: pack it into another folder, from a benchmark without the other rows."
            )
        for key, spec in plan.config.sets.items():
            so_far = sets.get(key, dataclasses.replace(spec, cases=(), structures={}, exclude=(), max_cases=0))
            sets[key] = dataclasses.replace(
                so_far,
                cases=tuple(sorted({*so_far.cases, *plan.learned[key], *plan.tested[key]})),
                structures={**spec.structures, **so_far.structures},
                synthetic=max(so_far.synthetic, spec.synthetic),
            )
    for plan in plans:
        for key, spec in plan.config.sets.items():
            _check_same(plan.name, key, spec, sets[key])
    return sets


def _clicks(plan: Plan) -> dict[str, object]:
    """What the simulated clicks depend on."""
    stage = plan.config.stage
    return {"click_sets": stage.click_sets, "severities": tuple(stage.severities), "seed": plan.config.seed}


def _check_same(plan: str, key: str, spec: SetConfig, packed: SetConfig) -> None:
    other = [name for name in VOLUMES if getattr(spec, name) != getattr(packed, name)]
    other += [name for name, values in spec.structures.items() if packed.structures[name] != values]
    other += ["synthetic"] if spec.synthetic not in (0, packed.synthetic) else []
    if other:
        raise SystemExit(
            f"[sets.{key}] of {plan} has another {', '.join(other)} than that of another plan: give the set a name of "
            "its own, or pack the plan into another folder, from a benchmark without the other rows."
        )


def pack(plans: Sequence[Plan], folder: Path, levels: int = 64) -> None:
    """Write the volumes, structures and clicks of all plans, with ``levels`` (a power of two) gray levels."""
    first = plans[0].config
    volumes, targets = load_joint_cases(union(plans), Path(), first.stage, first.seed)
    targets = [_with_test_clicks(target, volumes[target.volume]) for target in targets]
    volumes, targets = cropped(volumes, targets)
    folder.mkdir(parents=True, exist_ok=True)
    write_plans(plans, folder)
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


def write_plans(plans: Sequence[Plan], folder: Path) -> None:
    """Write the plans beside the volumes."""
    (folder / "plans.json").write_text(json.dumps([plan.to_json() for plan in plans], indent=1), encoding="utf-8")


def read_plans(folder: Path) -> list[Plan]:
    """What :func:`write_plans` wrote."""
    return [Plan.from_json(content) for content in json.loads((folder / "plans.json").read_text(encoding="utf-8"))]


def _with_test_clicks(target: JointTarget, volume: JointVolume) -> JointTarget:
    """One more set of clicks for each severity of the tests, behind those that are learned from."""
    mask = np.isin(volume.labels, target.values)
    path = click_path(mask, volume.pixel_mm, volume.slice_mm)
    drawn = [simulate_clicks_from_path(path, mask, severity, TEST_SEED) for severity in TEST_SEVERITIES]
    tests = [(d.slice_index.astype(np.int64), d.xy.astype(np.float64)) for d in drawn]
    return dataclasses.replace(target, clicks=[*target.clicks, *tests])


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


def unpack(folder: Path) -> tuple[list[JointVolume], list[JointTarget], list[JointTarget]]:
    """The volumes that :func:`pack` wrote, their targets with the clicks to learn from, and with those of the tests."""
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
    each, tests = len(sets) // len(about_targets), len(TEST_SEVERITIES)
    learned, tested = [], []
    for i, about in enumerate(about_targets):
        about["values"], own = tuple(about["values"]), sets[each * i : each * (i + 1)]
        learned.append(JointTarget(**about, clicks=own[:-tests]))
        tested.append(JointTarget(**about, clicks=own[-tests:]))
    return volumes, learned, tested


def chosen(
    volumes: Sequence[JointVolume], targets: Sequence[JointTarget | None]
) -> tuple[list[JointVolume], list[JointTarget]]:
    """The targets that are not ``None``, and the volumes that they lie in."""
    kept = [target for target in targets if target is not None]
    used = sorted({target.volume for target in kept})
    place = {volume: i for i, volume in enumerate(used)}
    return [volumes[i] for i in used], [dataclasses.replace(t, volume=place[t.volume]) for t in kept]
