"""The program ``spdsegment``: general options, the list of its commands, and the worker."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from SPDSegmentLib import __version__
from SPDSegmentLib.cli.terminal import FailureReportingGroup

COMMAND_MODULES = (
    "SPDSegmentLib.cli.segment_command",
    "SPDSegmentLib.cli.batch_command",
    "SPDSegmentLib.cli.models_commands",
    "SPDSegmentLib.cli.init_command",
    "SPDSegmentLib.cli.training_commands",
    "SPDSegmentLib.cli.demo_command",
)
"""Modules with a function ``register(app: typer.Typer)``. They import anything heavy only inside their commands."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spdsegment {__version__}")
        raise typer.Exit()


def _general_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="SPDSEGMENT_DEBUG", help="Show details of errors.")] = False,
) -> None:
    """Segment structures in CT and MR volumes from rough clicks along their centerline. For research use."""


def worker(
    volume_memory: Annotated[
        int | None,
        typer.Option(min=0, metavar="MB", help="Bound on the memory of volumes. Default: a quarter, at most 2048."),
    ] = None,
    cache_memory: Annotated[
        int | None,
        typer.Option(min=0, metavar="MB", help="Bound on the embeddings kept of one volume. Default: 1024."),
    ] = None,
) -> None:
    """Serve segmentation requests on stdin and stdout until stdin ends; Slicer and scripts start this by themselves."""
    from SPDSegmentLib.worker.__main__ import serve_stdio

    serve_stdio(None, volume_memory, cache_memory)


def build_app() -> typer.Typer:
    """The application with all commands."""
    app = typer.Typer(
        name="spdsegment",
        cls=FailureReportingGroup,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # Rich takes words in square brackets for markup and shows nothing of them
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_general_options)
    for module in COMMAND_MODULES:
        importlib.import_module(module).register(app)
    app.command("worker", short_help="Serve segmentation requests on stdin and stdout.")(worker)
    return app


def main() -> None:
    """Entry point; leaves with the exit codes of :mod:`SPDSegmentLib.errors`, 0 when all went well."""
    build_app()(prog_name="spdsegment")
