"""One training run from configuration to bundle; stopped runs go on where they were."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.locks import FolderLock
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.bank import EmbeddingBank, build_bank
from SPDSegmentLib.training.cases import Case, load_cases
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.distributed import Processes
from SPDSegmentLib.training.loop import Loop, LoopProgress
from SPDSegmentLib.training.run_folder import claim, run_key
from SPDSegmentLib.training.sam_tuning import PromptedStage1
from SPDSegmentLib.training.stage1 import Stage1
from SPDSegmentLib.training.stage2 import Stage2


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


def train(
    config: TrainingConfig,
    data_folder: Path,
    run_folder: Path,
    weights: Path | None,
    processes: Processes,
    hooks: RunHooks | None = None,
    stage1_state: dict[str, torch.Tensor] | None = None,
    cases: Sequence[Case] | None = None,
    embeddings: Path | None = None,
) -> SPDModel:
    """Train stage I, then stage II; the run's folder is locked meanwhile.

    Args:
        data_folder: where ``config.data`` finds its files.
        run_folder: checkpoints, curves and kept embeddings; made if missing.
        weights: base weights of the backbone, ``None`` for random ones.
        stage1_state: adapter tensors of a bundle whose stage I is taken over.
        cases: already loaded training cases.
        embeddings: folder of the kept embeddings, by default one in the run's folder; runs that differ in the decoder
            alone may share it. Those in the run's folder are deleted at the end.

    Returns:
        The trained model with its adapters unmerged.

    Raises:
        BadInput: the run folder belongs to another configuration or is in use, or a case cannot be used.
        ModelCorrupt: a checkpoint cannot be continued.
        Cancelled: the user stopped; the same call goes on.
    """
    with contextlib.ExitStack() as locks:
        if processes.is_main:
            for folder in [run_folder] if embeddings is None else [run_folder, embeddings]:
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FolderLock(folder, "training"))
            claim(run_folder, config)
        processes.wait()
        return _train(
            config, data_folder, run_folder, weights, processes, hooks or RunHooks(), stage1_state, cases, embeddings
        )


def _train(
    config: TrainingConfig,
    data_folder: Path,
    run_folder: Path,
    weights: Path | None,
    processes: Processes,
    hooks: RunHooks,
    stage1_state: dict[str, torch.Tensor] | None,
    cases: Sequence[Case] | None,
    embeddings: Path | None,
) -> SPDModel:
    loop = Loop(
        run_folder, config.checkpoint_seconds, forward_progress(hooks), hooks.cancelled, processes, run_key(config)
    )
    loop.check()
    torch.manual_seed(config.seed)
    model = SPDModel(config.network, weights).to(processes.device)
    if stage1_state is not None:
        load_stage1(model, stage1_state)
    if cases is None:
        cases = load_cases(
            data_folder,
            config.data.train,
            config.data,
            config.intensity,
            lambda done, total: hooks.on_progress("reading cases", done, total, None, {}),
        )
        for case in cases:
            if case.note:
                hooks.say(case.note)
    if stage1_state is None:
        stage1 = PromptedStage1 if config.stage1.objective == "prompted" else Stage1
        loop.run(stage1(model, cases, config, processes).phase())
    if config.stage2.steps == 0 and config.stage2.head_steps == 0:
        return model
    head_steps = config.stage2.head_steps if stage1_state is None else 0
    own = run_folder / "embeddings"
    done = loop.is_finished("stage1_head", head_steps) and loop.is_finished("stage2", config.stage2.steps)
    bank = EmbeddingBank([]) if done else _bank(model, cases, config, embeddings or own, run_folder, processes, hooks)
    stage2 = Stage2(model, bank, config, processes)
    if stage1_state is None:
        loop.run(stage2.head_phase())
    bank.compute_saliency(model, processes.device)
    loop.run(stage2.decoder_phase())
    processes.wait()
    if processes.is_main and own.is_dir():
        shutil.rmtree(own, ignore_errors=True)
    return model


def load_stage1(model: SPDModel, state: dict[str, torch.Tensor]) -> None:
    """Take over the encoder's LoRA and the saliency head of another bundle.

    Raises:
        BadInput: when its network differs from this one.
    """
    own = model.adapter_state()
    wanted = {name for name in own if name.startswith(("image_encoder.", "saliency_head."))}
    if not wanted <= set(state) or any(state[name].shape != own[name].shape for name in wanted):
        raise BadInput(
            "The bundle in initialize_from has another encoder or saliency head than [network] describes.",
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
            lambda done, total: hooks.on_progress("computing embeddings", done, total, None, {}),
            hooks.cancelled,
            announce,
            may_compute=processes.is_main,
        )

    bank = build() if processes.is_main else None
    processes.wait()
    return bank or build()


def forward_progress(hooks: RunHooks) -> Callable[[LoopProgress], None]:
    """The loop's progress in the words of the hooks."""

    def forward(progress: LoopProgress) -> None:
        hooks.on_progress(progress.phase, progress.step, progress.steps, progress.seconds_left, progress.losses)

    return forward
