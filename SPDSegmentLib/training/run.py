"""One training run from configuration to bundle; stopped runs go on where they were.

A run's folder belongs to the configuration that started it, whose checkpoints alone it holds, and to the cases as they
were then.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import write_json, write_png
from SPDSegmentLib.models.base_weights import base_weights_sha256
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.staging import FolderLock
from SPDSegmentLib.training.bank import EmbeddingBank, build_bank, remove_entries
from SPDSegmentLib.training.cases import Case, load_case, load_cases
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.joint_config import JointConfig
from SPDSegmentLib.training.loop import Loop, LoopProgress, Processes
from SPDSegmentLib.training.result import Validation, make_validation
from SPDSegmentLib.training.stages import STAGE1, Stage2

Settings = TrainingConfig | JointConfig
CONFIG_NAME, CASES_NAME = "config.json", "cases.json"
CONTENT = "content"
"""Key of the digests of what a run starts from, beside the settings."""
_BEGUN = "how this run was started", "go on with this configuration (the checkpoints are compared with it)"
DIGEST = 16
SHOWN_DIFFERENCES = SHOWN_CHANGED = 3
_NO_MATTER = ("bundle.", "checkpoint_seconds")
"""Settings that change nothing of what is computed."""


@dataclass
class RunHooks:
    """What the caller wants to hear and say while training runs.

    Attributes:
        on_progress: (what is being done, done, total, seconds left or None, loss terms).
        cancelled: polled often; the state is kept before :class:`Cancelled` is raised.
        say: a sentence for the user.
    """

    on_progress: Callable[[str, int, int, float | None, dict[str, float]], None] = lambda *_: None
    cancelled: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda sentence: None

    def counting(self, what: str) -> Callable[[int, int], None]:
        """What to call with how many are done, and of how many."""
        return lambda done, total: self.on_progress(what, done, total, None, {})


def train(
    config: TrainingConfig,
    data_folder: Path,
    run_folder: Path,
    weights: Path | None,
    processes: Processes,
    hooks: RunHooks | None = None,
    stage1_state: dict[str, torch.Tensor] | None = None,
    embeddings: Path | None = None,
) -> SPDModel:
    """Train stage I, then stage II; the run's folder is locked meanwhile.

    Args:
        data_folder: where ``config.data`` finds its files.
        run_folder: checkpoints, curves and kept embeddings; made if missing.
        weights: base weights of the backbone, ``None`` for random ones.
        stage1_state: adapter tensors of a bundle whose stage I is taken over, or goes on with the objective ``both``.
        embeddings: folder of the kept embeddings, by default one in the run's folder; runs that differ in the decoder
            alone may share it. Those in the run's folder are deleted at the end.

    Returns:
        The trained model with its adapters unmerged.

    Raises:
        BadInput: the run folder belongs to another configuration or is in use, or a case cannot be used or is another
            one than when the run began.
        ModelCorrupt: a checkpoint cannot be continued.
        Cancelled: the user stopped; the same call goes on.
    """
    hooks = hooks or RunHooks()
    folders = [run_folder] if embeddings is None else [run_folder, embeddings]
    with opened_run(config, weights, folders, processes, hooks, stage1_state) as (loop, model):
        taken_over = stage1_state is not None and config.stage1.objective != "both"
        if stage1_state is not None:
            load_stage1(model, stage1_state, whole=not taken_over)
        cases = load_cases(
            data_folder, config.data.train, config.data, config.intensity, hooks.counting("reading cases")
        )
        check_unchanged(run_folder, {case.name: case.digest for case in cases}, processes)
        for case in cases:
            if case.note:
                hooks.say(case.note)
        if not taken_over:
            loop.run(STAGE1[config.stage1.objective](model, cases, config, processes).phase())
        if config.stage2.steps == 0 and config.stage2.head_steps == 0:
            return model
        head_steps = 0 if taken_over else config.stage2.head_steps
        own = run_folder / "embeddings"
        learned = loop.is_finished("stage2", config.stage2.steps) or not model.stage2_parameters()
        done = loop.is_finished("stage1_head", head_steps) and learned
        bank = (
            EmbeddingBank([]) if done else _bank(model, cases, config, embeddings or own, run_folder, processes, hooks)
        )
        stage2 = Stage2(model, bank, config, processes)
        if not taken_over:
            loop.run(stage2.head_phase())
        bank.compute_saliency(model, processes.device)
        if config.stage2.validate_every and config.data.validation and not done:
            stage2.validate = _validation(model, config, data_folder, run_folder, processes, hooks)
        loop.run(stage2.decoder_phase())
        processes.wait()
        if processes.is_main:
            remove_entries(own)
        return model


def _validation(
    model: SPDModel, config: TrainingConfig, data_folder: Path, run_folder: Path, processes: Processes, hooks: RunHooks
) -> Validation | None:
    cases = [load_case(data_folder, name, config.data, config.intensity) for name in config.data.validation]
    check_unchanged(run_folder, {case.name: case.digest for case in cases}, processes)
    folder, counting = run_folder / "embeddings" / "validation", hooks.counting("embedding validation")
    return make_validation(model, cases, config, folder, run_folder, processes, counting, hooks.cancelled, hooks.say)


def load_stage1(model: SPDModel, state: dict[str, torch.Tensor], whole: bool = False) -> None:
    """Take over the encoder's LoRA and the saliency head of another bundle, ``whole`` with its decoder.

    Raises:
        BadInput: when its network differs from this one.
    """
    own = model.adapter_state()
    wanted = {name for name in own if whole or name.startswith(("image_encoder.", "saliency_head."))}
    if not wanted <= set(state) or any(state[name].shape != own[name].shape for name in wanted):
        raise BadInput(
            "The bundle in initialize_from has another network than [network] describes.",
            "Use the same [network] settings as that bundle.",
        )
    model.load_state_dict({name: state[name].float() for name in wanted}, strict=False)


def _bank(
    model: SPDModel,
    cases: Sequence[Case],
    config: TrainingConfig,
    folder: Path,
    run_folder: Path,
    processes: Processes,
    hooks: RunHooks,
) -> EmbeddingBank:
    def announce(size: int) -> None:
        amount = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
        kept = "deleted at the end" if folder == run_folder / "embeddings" else "kept for other runs"
        hooks.say(f"The embeddings of {config.stage2.entries} views take {amount} in {folder}; they are {kept}.")

    def build() -> EmbeddingBank:
        return build_bank(
            model,
            cases,
            config,
            folder,
            processes.device,
            hooks.counting("computing embeddings"),
            hooks.cancelled,
            announce,
            may_compute=processes.is_main,
        )

    return processes.main_first(build)


@contextlib.contextmanager
def opened_run(
    config: Settings,
    weights: Path | None,
    folders: Sequence[Path],
    processes: Processes,
    hooks: RunHooks,
    start: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[Loop, SPDModel]]:
    """The loop of a run and its model as it begins; its folders, its own the first, are made and locked meanwhile.

    Args:
        start: adapter tensors of the bundle in ``initialize_from``; a run goes on only with those that it began with.
    """
    content = _content(config.network.backbone if weights is not None else "", start)
    with contextlib.ExitStack() as locks:
        if processes.is_main:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FolderLock(folder, "training"))
            claim(folders[0], config, content)
        processes.wait()

        def forward(progress: LoopProgress) -> None:
            hooks.on_progress(progress.phase, progress.step, progress.steps, progress.seconds_left, progress.losses)

        key = run_key(folders[0], config, content)
        loop = Loop(folders[0], config.checkpoint_seconds, forward, hooks.cancelled, processes, key)
        loop.check()
        torch.manual_seed(config.seed)
        yield loop, SPDModel(config.network, weights).to(processes.device)


def _content(backbone: str, start: Mapping[str, torch.Tensor] | None) -> dict[str, str]:
    """Digests of what a training starts from, by what it is; ``backbone`` is empty without base weights."""
    content = {"base_weights": base_weights_sha256(backbone)[:DIGEST]} if backbone else {}
    if start is None:
        return content
    digest = hashlib.sha256()
    for name, tensor in sorted(start.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content | {"initialize_from": digest.hexdigest()[:DIGEST]}


def claim(run_folder: Path, config: Settings, content: Mapping[str, str]) -> None:
    """Write the configuration into the run's folder, or check that it is the one that started the run.

    Args:
        content: digests of what it starts from; they are not compared where a run began without them.

    Raises:
        BadInput: the folder belongs to another configuration, or what is written there cannot be read.
    """
    path = run_folder / CONFIG_NAME
    if path.exists():
        _check_same(path, config, content)
        return
    values = _plain(config)
    values.pop("checkpoint_seconds")
    write_json(path, values | {CONTENT: dict(content)}, "configuration", indent=1)


def check_unchanged(run_folder: Path, cases: Mapping[str, str], processes: Processes) -> None:
    """Keep digests of cases, by name, in the run's folder, or check that they are those that something was learned of.

    Raises:
        BadInput: naming the cases that changed, or what is written there cannot be read.
    """
    path = run_folder / CASES_NAME
    there = _table(path, "which cases this run has seen", "take the cases as they are") if path.exists() else {}
    if any(run_folder.glob("*.ckpt")):
        changed = [name for name, digest in cases.items() if there.get(name, digest) != digest]
        if changed:
            names = ", ".join(changed[:SHOWN_CHANGED])
            more = f" and {len(changed) - SHOWN_CHANGED} more" if len(changed) > SHOWN_CHANGED else ""
            raise BadInput(
                f"{run_folder} holds what was learned before image, labels or clicks of {names}{more} changed.",
                f"Choose another run folder, or remove this one to train again; delete {path} to go on with both.",
            )
    if processes.is_main and there != {**there, **cases}:
        write_json(path, {**there, **cases}, "list of cases", indent=1)


def run_key(run_folder: Path, config: Settings, content: Mapping[str, str]) -> str:
    """A digest of all settings that change what is computed and differ from their defaults, then those of ``content``.

    A run that began without the latter has a beginning of it. Numbers are written as in the run's folder, which
    :func:`claim` has compared: 48 and 48.0 are one setting.
    """
    there = _settings(_table(run_folder / CONFIG_NAME, *_BEGUN))
    settings = {name: there.get(name, value) for name, value in _settings(_plain(config)).items()}
    defaults = _settings(_defaults(type(config)))
    telling = {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}
    key = hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:DIGEST]
    return "-".join([key, *(digest for _, digest in sorted(content.items()))])


def _table(path: Path, what: str, instead: str) -> dict[str, Any]:
    """A JSON object of a run's folder; ``what`` it says, and what deleting it means, are for the message.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError("no table")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}, which says {what}, is damaged.",
            f"Delete that file to {instead}, or choose another run folder.",
            repr(error),
        ) from error
    return there


def _check_same(path: Path, config: Settings, content: Mapping[str, str]) -> None:
    there = _table(path, *_BEGUN)
    defaults = _settings(_defaults(type(config)))
    before = defaults | _settings(there)
    now = defaults | _settings(_plain(config) | ({CONTENT: content} if CONTENT in there else {}))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if not differing:
        return
    shown = ", ".join(
        f"{name} {_text(before.get(name))} there and {_text(now.get(name))} here"
        for name in differing[:SHOWN_DIFFERENCES]
    )
    more = f", and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
    raise BadInput(
        f"{path.parent} holds a run with another configuration ({shown}{more}).",
        "Choose another run folder, or remove this one to start again.",
    )


def _plain(config: Settings) -> dict[str, Any]:
    """A configuration as JSON holds it."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that matter by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return {name: value for name, value in flat.items() if not name.startswith(_NO_MATTER)}


def _defaults(cls: type) -> dict[str, Any]:
    """Defaults of a tree of settings; those without one are left out."""
    values: dict[str, Any] = {}
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[field.name]):
            values[field.name] = _defaults(kinds[field.name])
        elif field.default is not dataclasses.MISSING:
            values[field.name] = json.loads(json.dumps(field.default))
    return values


def plot_curves(run_folder: Path) -> Path | None:
    """Draw every ``*.csv`` of a run that has steps and numbers into ``curves.png``; returns its path."""
    from matplotlib.figure import Figure

    curves = {path.stem: _read_curve(path) for path in sorted(run_folder.glob("*.csv"))}
    curves = {name: curve for name, curve in curves.items() if len(curve.get("step", [])) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(9, 3.2 * len(curves)), layout="constrained")
    for row, (name, curve) in zip(figure.subplots(len(curves), 2, squeeze=False), curves.items(), strict=True):
        for axes, keys in ((row[0], [k for k in curve if k not in ("step", "dsc")]), (row[1], ["dsc"])):
            for key in keys:
                axes.plot(curve["step"], _smooth(curve[key]), label=key)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        row[0].set_yscale("log")
    path = run_folder / "curves.png"
    write_png(path, lambda part: figure.savefig(part, dpi=110), "figure")
    return path


def _read_curve(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with contextlib.suppress(TypeError, ValueError):  # a table of somebody else's
        return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows and "step" in rows[0] else {}
    return {}


def _smooth(values: list[float], share: float = 0.03) -> list[float]:
    """Exponential moving average over about ``share`` of the curve."""
    keep = 1 - 1 / max(1.0, share * len(values))
    smoothed, current = [], values[0]
    for value in values:
        current = keep * current + (1 - keep) * value
        smoothed.append(max(current, 1e-6))
    return smoothed
