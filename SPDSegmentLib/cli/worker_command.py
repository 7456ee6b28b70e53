"""``spdsegment worker``: the background process on stdin and stdout, here or at the far end of ssh."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker", short_help="Serve segmentation requests on stdin and stdout.")(worker)


def worker(
    volume_memory: Annotated[
        int | None,
        typer.Option(min=0, metavar="MB", help="Bound on the memory of volumes. Default: a quarter, at most 2048."),
    ] = None,
) -> None:
    """Serve segmentation requests on stdin and stdout until stdin ends; Slicer and scripts start this by themselves."""
    from SPDSegmentLib.worker.__main__ import serve_stdio

    serve_stdio(volume_bytes=None if volume_memory is None else volume_memory << 20)
