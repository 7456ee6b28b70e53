"""``spdsegment train``: both stages from one configuration file; stopped runs go on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SPDSegmentLib.cli.paths import require_input
from SPDSegmentLib.cli.progress import TrainingBar, show_training
from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.files import check_folder

if TYPE_CHECKING:
    from torch import Tensor

    from SPDSegmentLib.training.config import TrainingConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (.toml).", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default runs/<name>/bundle.")] = None,
    run_folder: Annotated[Path | None, typer.Option(help="Checkpoints and curves; by default runs/<name>.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all.", min=0)] = 0,
) -> None:
    """Train a model. Run the same command again to go on with a stopped run.

    For several GPUs: accelerate launch -m SPDSegmentLib train CONFIG.toml
    """
    require_input(config, "training configuration")
    import torch

    from SPDSegmentLib.models.base_weights import find_base_weights
    from SPDSegmentLib.models.bundle import check_replaceable
    from SPDSegmentLib.training.cases import check_cases, require_files
    from SPDSegmentLib.training.config import read_training_config
    from SPDSegmentLib.training.distributed import join_processes
    from SPDSegmentLib.training.joint_config import is_joint
    from SPDSegmentLib.training.result import save_bundle
    from SPDSegmentLib.training.run import RunHooks
    from SPDSegmentLib.training.run import train as run_training

    if is_joint(config):
        _train_joint(config, output, run_folder, device, threads)
        return
    settings = read_training_config(config)
    data_folder = (config.parent / settings.data.folder).resolve()
    if not data_folder.is_dir():
        raise BadInput(f"The data folder {data_folder} does not exist.", f"Correct folder in [data] of {config}.")
    if threads:
        torch.set_num_threads(threads)
    run_folder = run_folder or Path("runs") / settings.bundle.name
    check_folder(run_folder, "run folder")
    target = output or run_folder / "bundle"
    check_replaceable(target)
    _check_description(settings, config)
    every = [*settings.data.train, *settings.data.validation]
    require_files(data_folder, every, settings.data)
    weights = None if settings.network.backbone == "tiny_random" else find_base_weights(settings.network.backbone)
    stage1_state = _adapter_of(settings.initialize_from, config.parent)
    processes = join_processes(device)
    stop = threading.Event()
    with show_training(processes.is_main) as bar, _interrupt_sets(stop, bar):
        hooks = RunHooks(bar.advance, stop.is_set, bar.say)
        if processes.is_main:
            notes = check_cases(
                data_folder,
                settings.data.validation,
                settings.data,
                lambda done, total: bar.advance("checking validation", done, total, None, {}),
            )
            for note in notes:
                bar.say(note)
        model = run_training(settings, data_folder, run_folder, weights, processes, hooks, stage1_state)
    if processes.is_main:
        target.parent.mkdir(parents=True, exist_ok=True)
        bundle = save_bundle(model, settings, config.name, target)
        typer.echo(f"Bundle: {bundle.folder}")
        _draw_curves(run_folder)
        typer.echo(f"Measure it: spdsegment evaluate {config} --model {bundle.folder}")


def _train_joint(config: Path, output: Path | None, run_folder: Path | None, device: str, threads: int) -> None:
    """Train one click-conditioned model on several data sets."""
    import torch

    from SPDSegmentLib.models.base_weights import find_base_weights
    from SPDSegmentLib.models.bundle import check_replaceable
    from SPDSegmentLib.training.distributed import join_processes
    from SPDSegmentLib.training.joint_config import read_joint_config
    from SPDSegmentLib.training.joint_run import joint_bundle_info, save_joint_bundle, train_joint
    from SPDSegmentLib.training.run import RunHooks

    settings = read_joint_config(config)
    if threads:
        torch.set_num_threads(threads)
    run_folder = run_folder or Path("runs") / settings.bundle.name
    check_folder(run_folder, "run folder")
    target = output or run_folder / "bundle"
    check_replaceable(target)
    try:
        joint_bundle_info(settings, config.name, config.parent)
    except ModelCorrupt as error:
        raise BadInput(f"No bundle can be made of {config}: {error.message}", "Correct it there.") from error
    weights = None if settings.network.backbone == "tiny_random" else find_base_weights(settings.network.backbone)
    start = _adapter_of(settings.initialize_from, config.parent)
    stop = threading.Event()
    processes = join_processes(device)
    with show_training(processes.is_main) as bar, _interrupt_sets(stop, bar):
        hooks = RunHooks(bar.advance, stop.is_set, bar.say)
        model = train_joint(settings, config.parent, run_folder, weights, processes, hooks, start)
    if processes.is_main:
        target.parent.mkdir(parents=True, exist_ok=True)
        bundle = save_joint_bundle(model, settings, config.name, config.parent, target)
        typer.echo(f"Bundle: {bundle.folder}")
        _draw_curves(run_folder)


def _draw_curves(run_folder: Path) -> None:
    from SPDSegmentLib.training.result import plot_curves

    try:
        curves = plot_curves(run_folder)
    except (ImportError, OSError, BadInput) as error:
        typer.echo(f"Note: the curves in {run_folder} were not drawn: {error}.", err=True)
        return
    if curves is not None:
        typer.echo(f"Curves: {curves}")


def _check_description(settings: TrainingConfig, config: Path) -> None:
    """What could not be written into a bundle is refused before the training and not after it."""
    from SPDSegmentLib.training.result import bundle_info

    if len(settings.bundle.color) != 3:
        raise BadInput(f"The color in [bundle] of {config} has not three parts.", "Give red, green and blue, 0 to 1.")
    try:
        bundle_info(settings, config.name, {})
    except ModelCorrupt as error:
        raise BadInput(f"No bundle can be made of {config}: {error.message}", "Correct it there.") from error


def _adapter_of(name: str, folder: Path) -> dict[str, Tensor] | None:
    """The adapter of the bundle that a configuration starts from: a folder beside the file, or a known name."""
    if not name:
        return None
    from SPDSegmentLib.models.bundle import find_bundle
    from SPDSegmentLib.networks.checkpoint import load_state_dict

    beside = folder / name
    bundle = find_bundle(beside if beside.exists() else name)
    return load_state_dict(bundle.adapter_path)


class _interrupt_sets:  # noqa: N801
    """Within the block the first Ctrl+C asks to stop after the current step; the second one stops at once."""

    def __init__(self, event: threading.Event, bar: TrainingBar) -> None:
        self.event = event
        self.bar = bar

    def __enter__(self) -> None:
        self.previous = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: object) -> None:
            self.event.set()
            self.bar.say("Stopping after this step; press Ctrl+C again to stop at once.")
            signal.signal(signal.SIGINT, self.previous)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handle)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.previous)
