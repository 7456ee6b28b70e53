"""``spdsegment evaluate``: measure bundles on labeled cases with simulated clicks."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from SPDSegmentLib.cli.paths import require_input
from SPDSegmentLib.cli.progress import show_training
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import check_folder
from SPDSegmentLib.locks import FolderLock

if TYPE_CHECKING:
    from SPDSegmentLib.evaluation.protocol import EvaluationRow
    from SPDSegmentLib.models.bundle import Bundle


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: Annotated[
        Path, typer.Argument(help="Configuration (.toml) whose [data] names the cases.", show_default=False)
    ],
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Model, or MODEL:METHOD; repeat to compare. The first is ours.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables.")] = Path("evaluation"),
    split: Annotated[str, typer.Option(help="validation or train.")] = "validation",
    severity: Annotated[str, typer.Option(help="Comma-separated noise severities.")] = "clean,mild,clinic,severe",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: consensus, local, raw, interpolated, sampled, saliency-only, shuffled. "
            "For models given without a method."
        ),
    ] = "consensus",
    seeds: Annotated[int, typer.Option(help="Click sets per target and severity.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="Seeds count from here.")] = 1000,
    limit: Annotated[int, typer.Option(help="At most this many cases, evenly picked; 0 for all.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the figures into the first model's description and card.")
    ] = False,
) -> None:
    """Measure models on labeled volumes: table, CSV, JSON and figure."""
    require_input(config, "configuration")
    check_folder(output, "output folder")
    if split not in ("validation", "train"):
        raise BadInput(f"Unknown split '{split}'.", "Choose validation or train.")
    from SPDSegmentLib.evaluation.cases import CaseFiles, load_targets
    from SPDSegmentLib.evaluation.protocol import EvaluationConfig
    from SPDSegmentLib.evaluation.report import check_reports, markdown_table, write_reports
    from SPDSegmentLib.evaluation.run import evaluate as run_evaluation
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import check_replaceable, find_bundle
    from SPDSegmentLib.training.config import read_training_config

    settings = read_training_config(config)
    data = settings.data
    folder = (config.parent / data.folder).resolve()
    cases = _pick(data.validation if split == "validation" else data.train, limit)
    if not cases:
        raise BadInput(f"{config} names no {split} case.", f"List some in [data] {split}.")
    jobs = _jobs(model, methods)
    bundles = {name: find_bundle(name) for name in dict.fromkeys(name for name, _ in jobs)}
    if update_card:
        check_replaceable(next(iter(bundles.values())).folder)
    labels = _labels(bundles)
    severities = tuple(severity.split(","))
    protocols = {
        name: EvaluationConfig(severities, seeds, tuple(method for job, method in jobs if job == name), first_seed)
        for name in bundles
    }
    files = CaseFiles(folder, data.image, data.label, data.targets, data.plane, data.patient_pattern)
    rows: list[EvaluationRow] = []
    with _output_folder(output), show_training(True) as bar:
        check_reports(output)
        targets = load_targets(files, cases, bar.say)
        cases = list(dict.fromkeys(target.case for target in targets))
        for name, bundle in bundles.items():
            protocol = protocols[name]
            predictor = Predictor.load(bundle, device)
            total = len(targets) * len(severities) * seeds * len(protocol.methods)
            for done, row in enumerate(run_evaluation(predictor, targets, protocol, labels[name]), start=1):
                rows.append(row)
                bar.advance(f"evaluating {labels[name]}", done, total, None, {"dsc": row.dsc or 0.0})
        command = shlex.join(["spdsegment", *sys.argv[1:]])
        write_reports(output, rows, _context(command, cases, bundles, seeds, first_seed))
    typer.echo(markdown_table(rows))
    typer.echo(f"\nWritten to {output}: rows.csv, summary.json, table.md, severity.png")
    if update_card:
        name, first = next(iter(bundles.items()))
        _update(first, [row for row in rows if row.bundle == labels[name]], cases, command)


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
    from SPDSegmentLib.evaluation.protocol import METHODS

    jobs = []
    for text in models:
        name, colon, method = text.rpartition(":")
        if colon and method in METHODS:
            jobs.append((name, method))
        else:
            jobs += [(text, m) for m in methods.split(",")]
    return jobs


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


def _update(bundle: Bundle, rows: list[EvaluationRow], cases: list[str], command: str) -> None:
    from SPDSegmentLib.evaluation.report import markdown_table, summarize
    from SPDSegmentLib.models.bundle import write_bundle
    from SPDSegmentLib.networks.checkpoint import load_state_dict
    from SPDSegmentLib.training.result import model_card

    metrics = {"cases": len(cases), "summary": summarize(rows), "table": markdown_table(rows), "command": command}
    info = dataclasses.replace(bundle.info, metrics=metrics)
    write_bundle(bundle.folder, info, load_state_dict(bundle.adapter_path), model_card(info))
