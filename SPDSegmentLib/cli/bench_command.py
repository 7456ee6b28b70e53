"""``spdsegment bench``: every method on every data set, from one file to a finished report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from SPDSegmentLib.cli.paths import require_input
from SPDSegmentLib.cli.progress import stderr_console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    config: Annotated[
        Path, typer.Argument(help="Benchmark (.toml): data sets, methods, noises, seeds.", show_default=False)
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="The file's profile named quick, a matter of minutes.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="DATA-SET/METHOD", help="Only these cells; patterns, repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results; by default results/<name> beside the file.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Trainings; by default runs/benchmark.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all.", min=0)] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="Show all cells and how far they are.")] = False,
    no_training: Annotated[bool, typer.Option("--no-training", help="Rows without a training say so.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Measure nothing, write the report anew.")] = False,
) -> None:
    """Run the benchmark. Stop it at any time; the same command goes on and skips what is done."""
    require_input(config, "benchmark")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from SPDSegmentLib.evaluation.benchmark.command import BenchmarkOptions, list_cells, plan_of, run_benchmark
    from SPDSegmentLib.evaluation.benchmark.progress import ProgressLines, time_text

    options = BenchmarkOptions(
        config, quick, tuple(only or ()), output, work, device, report_only, threads, not no_training
    )
    if list_only:
        typer.echo("\n".join(list_cells(plan_of(options))))
        return
    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at what is done", total=None, left="")

        def show(what: str, done: int, total: int, seconds_left: float | None) -> None:
            left = time_text(seconds_left).lstrip(", ")
            bar.update(task, description=what, completed=done, total=total, left=left)

        options.on_progress = show if console.is_terminal else ProgressLines(console.print)
        outcome = run_benchmark(options)
    typer.echo(outcome.text)
