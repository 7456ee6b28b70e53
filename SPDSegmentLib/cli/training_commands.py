"""``spdsegment train``, which goes on with stopped runs, and ``spdsegment evaluate``, on labeled cases."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from SPDSegmentLib.cli.segment_command import names_of
from SPDSegmentLib.cli.terminal import (
    TrainingBar,
    printable,
    require_input,
    show_training,
    termination_interrupts,
)
from SPDSegmentLib.errors import BadInput, ModelCorrupt, SPDError, command_line, well_formed
from SPDSegmentLib.files import check_folder
from SPDSegmentLib.settings import check_choice, check_device
from SPDSegmentLib.staging import FolderLock

if TYPE_CHECKING:
    from torch import Tensor

    from SPDSegmentLib.evaluation.evaluator import EvaluationRow
    from SPDSegmentLib.models.bundle import Bundle
    from SPDSegmentLib.networks.spd import SPDModel
    from SPDSegmentLib.training.config import TrainingConfig
    from SPDSegmentLib.training.joint_config import JointConfig
    from SPDSegmentLib.training.loop import Processes
    from SPDSegmentLib.training.run import RunHooks

    Steps: TypeAlias = tuple[
        Callable[[RunHooks], list[str]], Callable[[Processes, RunHooks], SPDModel], Callable[[SPDModel], Bundle]
    ]

_WRITE_SHARE = 0.1
"""Share of the time that may go into the rows of unfinished evaluations."""
SPLITS = ("validation", "test", "train")


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

    from SPDSegmentLib.inference.acceleration import keep_to_own_cores
    from SPDSegmentLib.models.bundle import check_replaceable
    from SPDSegmentLib.training.config import TrainingConfig, read_training_config
    from SPDSegmentLib.training.joint_config import is_joint, read_joint_config
    from SPDSegmentLib.training.loop import join_processes
    from SPDSegmentLib.training.run import RunHooks

    joint = is_joint(config)
    settings = read_joint_config(config) if joint else read_training_config(config)
    keep_to_own_cores()
    if threads:
        torch.set_num_threads(threads)
    run_folder = run_folder or Path("runs") / settings.bundle.name
    if (place := str(run_folder.absolute())) != well_formed(place):
        raise BadInput(f"The name of the run folder {run_folder} is not valid Unicode.", "Choose another --run-folder.")
    check_folder(run_folder, "run folder")
    target = output or run_folder / "bundle"
    check_replaceable(target)
    if run_folder.resolve().is_relative_to(target.resolve()):
        why = f"The bundle {target} would take the place of the run folder {run_folder}."
        raise BadInput(why, "Give --output another folder; one within the run folder will do.")
    steps_of: Callable[..., Steps] = _joint_steps if joint else _plain_steps
    check, run, save = steps_of(settings, config, run_folder, target)
    processes = join_processes(device)
    stop = threading.Event()
    with show_training(processes.is_main) as bar, _interrupt_sets(stop, bar):
        hooks = RunHooks(bar.advance, stop.is_set, bar.say)
        for note in check(hooks) if processes.is_main else ():
            bar.say(note)
        model = run(processes, hooks)
    if processes.is_main:
        target.parent.mkdir(parents=True, exist_ok=True)
        save(model)
        typer.echo(f"Bundle: {target}")
        _draw_curves(run_folder)
        if isinstance(settings, TrainingConfig):
            split = "test" if settings.data.test else "validation" if settings.data.validation else "train"
            known = ", though on cases that it learned from" if split == "train" else ""
            option = "" if split == "validation" else f" --split {split}"  # what it measures by default
            typer.echo(f"Measure it{known}: spdsegment evaluate {command_line(config, '--model', target)}{option}")


def _plain_steps(settings: TrainingConfig, config: Path, run_folder: Path, target: Path) -> Steps:
    """What reads the validation cases of a training in two stages, what trains, and what writes the bundle.

    What could not be trained or written is refused here.
    """
    from SPDSegmentLib.training.cases import check_cases, require_files
    from SPDSegmentLib.training.result import bundle_info, save_bundle
    from SPDSegmentLib.training.run import train

    data = settings.data
    folder = (config.parent / data.folder).resolve()
    if not folder.is_dir():
        raise BadInput(f"The data folder {folder} does not exist.", f"Correct folder in [data] of {config}.")
    _require_description(config, lambda: bundle_info(settings, config.name))
    require_files(folder, [*data.train, *data.validation, *data.test], data)
    weights, start = _starting_point(settings, config)
    return (
        lambda hooks: check_cases(folder, data.validation, data, hooks.counting("checking validation")),
        lambda processes, hooks: train(settings, folder, run_folder, weights, processes, hooks, start),
        lambda model: save_bundle(model, settings, config.name, target, folder),
    )


def _joint_steps(settings: JointConfig, config: Path, run_folder: Path, target: Path) -> Steps:
    """Steps of the training of one click-conditioned model on several data sets, as :func:`_plain_steps`."""
    from SPDSegmentLib.training.joint import joint_bundle_info, save_joint_bundle, train_joint

    _require_description(config, lambda: joint_bundle_info(settings, config.name, config.parent))
    weights, start = _starting_point(settings, config)
    return (
        lambda hooks: [],
        lambda processes, hooks: train_joint(settings, config.parent, run_folder, weights, processes, hooks, start),
        lambda model: save_joint_bundle(model, settings, config.name, config.parent, target),
    )


def _require_description(config: Path, describe: Callable[[], object]) -> None:
    """What could not be written into a bundle is refused before the training and not after it."""
    try:
        describe()
    except ModelCorrupt as error:
        raise BadInput(f"No bundle can be made of {config}: {error.message}", "Correct it there.") from error


def _starting_point(
    settings: TrainingConfig | JointConfig, config: Path
) -> tuple[Path | None, dict[str, Tensor] | None]:
    """Base weights, and the adapter of the bundle that a training starts from: beside the file, or a known name."""
    from SPDSegmentLib.models.base_weights import find_base_weights
    from SPDSegmentLib.models.bundle import find_bundle
    from SPDSegmentLib.networks.backbones import load_adapter

    backbone, name = settings.network.backbone, settings.initialize_from
    weights = None if backbone == "tiny_random" else find_base_weights(backbone)
    if not name:
        return weights, None
    beside = config.parent / name
    return weights, load_adapter(find_bundle(beside if beside.exists() else name))


def _draw_curves(run_folder: Path) -> None:
    from SPDSegmentLib.training.run import plot_curves

    try:
        curves = plot_curves(run_folder)
    except (ImportError, OSError, BadInput) as error:
        typer.echo(f"Note: the curves in {run_folder} were not drawn: {str(error).rstrip('.')}.", err=True)
        return
    if curves is not None:
        typer.echo(f"Curves: {curves}")


@contextlib.contextmanager
def _interrupt_sets(event: threading.Event, bar: TrainingBar) -> Iterator[None]:
    """Within the block the first Ctrl+C asks to stop after the current step; the second one stops at once.

    A job's end, which Slurm announces half a minute before by SIGTERM, counts as Ctrl+C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        event.set()
        bar.say("Stopping after this step; press Ctrl+C again to stop at once.")
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def evaluate(
    config: Annotated[
        Path, typer.Argument(help="Configuration (.toml) whose [data] names the cases.", show_default=False)
    ],
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Model, or MODEL:METHOD; repeat to compare. The first is ours.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables.")] = Path("evaluation"),
    split: Annotated[str, typer.Option(help="validation, test or train.")] = "validation",
    severity: Annotated[str, typer.Option(help="Comma-separated noise severities.")] = "clean,mild,clinic,severe",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: consensus, local, raw, interpolated, sampled, saliency-only, shuffled. "
            "For models given without a method."
        ),
    ] = "consensus",
    seeds: Annotated[int, typer.Option(help="Click sets per target and severity.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="Seeds count from here.", min=0)] = 1000,
    limit: Annotated[int, typer.Option(help="At most this many cases, evenly picked; 0 for all.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the figures into the first model's description and card.")
    ] = False,
) -> None:
    """Measure models on labeled volumes: table, CSV, JSON and figure. What is stopped keeps the runs that are done."""
    require_input(config, "configuration")
    check_folder(output, "output folder")
    check_choice(split, SPLITS, "split")
    check_device(device)
    from SPDSegmentLib.evaluation.evaluator import EvaluationConfig, learned_from, load_targets, plane_of
    from SPDSegmentLib.evaluation.evaluator import evaluate as run_evaluation
    from SPDSegmentLib.evaluation.report import check_reports, markdown_table
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import check_replaceable, find_bundle
    from SPDSegmentLib.training.config import read_training_config

    settings = read_training_config(config)
    data = settings.data
    folder = (config.parent / data.folder).resolve()
    cases = _pick(getattr(data, split), limit)
    if not cases:
        others = [f"--split {name}" for name in SPLITS if getattr(data, name)]
        instead = f"Measure with {others[0]} instead, or list some" if others else "List some"
        raise BadInput(f"{config} names no {split} case.", f"{instead} in [data] {split}.")
    jobs = _jobs(model, methods)
    bundles = {name: find_bundle(name) for name in dict.fromkeys(name for name, _ in jobs)}
    if update_card:
        check_replaceable(next(iter(bundles.values())).folder)
    labels = _labels(bundles)
    plane = plane_of((bundle.info for bundle in bundles.values()), data.plane)
    severities = _listed(severity, "severity")
    protocols = {
        name: EvaluationConfig(severities, seeds, tuple(method for job, method in jobs if job == name), first_seed)
        for name in bundles
    }
    # what is wrong with one is said before the first of many cases
    predictors = {name: Predictor.load(bundle, device) for name, bundle in bundles.items()}
    rows: list[EvaluationRow] = []
    with _output_folder(output), show_training(True) as bar:
        check_reports(output)
        if plane != data.plane:
            bar.say(f"Note: the slices are {plane}, as the model takes them; the configuration says {data.plane}.")
        targets = load_targets(folder, dataclasses.replace(data, plane=plane), cases, bar.say)
        cases = list(dict.fromkeys(target.case for target in targets))
        known = {name: learned_from(bundle.info, cases, data.patient_pattern) for name, bundle in bundles.items()}
        for name, seen in known.items():
            if seen:
                said = f"{labels[name]} was trained on patients of {len(seen)} of the {len(cases)} cases, as {seen[0]}"
                bar.say(f"Note: {said}; its figures there say nothing about others, unless only the names agree.")
        command = command_line("spdsegment", *sys.argv[1:])
        with _kept(output, rows, _context(command, cases, bundles, seeds, first_seed)) as keep:
            for name, protocol in protocols.items():
                predictor = predictors.pop(name)
                total = len(targets) * len(protocol.draws) * len(protocol.methods)
                for done, row in enumerate(run_evaluation(predictor, targets, protocol, labels[name]), start=1):
                    rows.append(row)
                    keep()
                    bar.advance(f"evaluating {labels[name]}", done, total, None, {"dsc": row.dsc or 0.0})
    typer.echo(markdown_table(rows))
    typer.echo(f"\nWritten to {output}: rows.csv, summary.json, table.md, severity.png")
    if update_card:
        name, first = next(iter(bundles.items()))
        _update(first, [row for row in rows if row.bundle == labels[name]], cases, split, command, len(known[name]))


@contextlib.contextmanager
def _kept(output: Path, rows: list[EvaluationRow], context: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Write the tables of ``rows`` at the end of the block, also where it is stopped.

    Yields a function to call after each row: it writes ``rows.csv``, which a kill leaves, unless that was just now.
    """
    from SPDSegmentLib.evaluation.report import write_reports, write_rows

    due = 0.0

    def keep() -> None:
        nonlocal due
        begun = time.monotonic()
        if begun >= due:
            with contextlib.suppress(SPDError, OSError):  # the end says what remains
                write_rows(output, rows)
            due = begun + max(1.0, (time.monotonic() - begun) / _WRITE_SHARE)

    with termination_interrupts():
        try:
            yield keep
        except BaseException:
            if rows:
                with contextlib.suppress(Exception):
                    write_reports(output, rows, context | {"stopped": True})
                runs = f"{len(rows)} run{'s' if len(rows) > 1 else ''}"
                typer.echo(printable(f"Stopped after {runs}; the tables in {output} hold what is done."), err=True)
            raise
    write_reports(output, rows, context)


@contextlib.contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """The folder for the tables, kept from other evaluations; one that was made for nothing is removed."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(folder, "evaluation"):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _jobs(models: list[str], methods: str) -> list[tuple[str, str]]:
    """(model, method) pairs; ``NAME:METHOD`` names one, ``NAME`` takes all of ``--methods``."""
    from SPDSegmentLib.evaluation.evaluator import METHODS

    jobs = []
    for text in models:
        name, colon, method = text.rpartition(":")
        if colon and method in METHODS:
            jobs.append((name, method))
        else:
            jobs += [(text, m) for m in _listed(methods, "methods")]
    return list(dict.fromkeys(jobs))


def _listed(text: str, option: str) -> tuple[str, ...]:
    """What an option names, each once."""
    names = tuple(dict.fromkeys(names_of(text)))
    if not names:
        raise BadInput(f"--{option} names nothing.", "Leave it out, or name something; see evaluate --help.")
    return names


def _labels(bundles: dict[str, Bundle]) -> dict[str, str]:
    """What each model is called in the tables: its own name, or as it was given where two have the same name."""
    own = [bundle.info.name for bundle in bundles.values()]
    return {name: name if own.count(bundle.info.name) > 1 else bundle.info.name for name, bundle in bundles.items()}


def _pick(cases: tuple[str, ...], limit: int) -> list[str]:
    if limit == 0 or limit >= len(cases):
        return list(cases)
    return [cases[i * len(cases) // limit] for i in range(limit)]


def _context(command: str, cases: list[str], bundles: dict[str, Bundle], seeds: int, first_seed: int) -> dict[str, Any]:
    """What a reader needs to repeat the measurement."""
    import torch

    from SPDSegmentLib import __version__
    from SPDSegmentLib.prompts.noise import NOISE_VERSION

    return {
        "command": command,
        "library_version": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "noise_version": NOISE_VERSION,
        "seeds": list(range(first_seed, first_seed + seeds)),
        "cases": cases,
        "bundles": {name: bundle.info.adapter_sha256 for name, bundle in bundles.items()},
    }


def _update(
    bundle: Bundle, rows: list[EvaluationRow], cases: list[str], split: str, command: str, learned_from: int
) -> None:
    from SPDSegmentLib.evaluation.report import markdown_table, summarize
    from SPDSegmentLib.training.result import update_metrics

    metrics = {"cases": len(cases), "split": split, "summary": summarize(rows), "table": markdown_table(rows)}
    update_metrics(bundle, metrics | {"command": command} | ({"learned_from": learned_from} if learned_from else {}))
