"""``spdsegment worker``: the background process on stdin and stdout, here or at the far end of ssh."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker", short_help="Serve segmentation requests on stdin and stdout.")(worker)


def worker() -> None:
    """Serve segmentation requests on stdin and stdout until stdin ends; Slicer and scripts start this by themselves."""
    from SPDSegmentLib.worker.__main__ import serve_stdio

    serve_stdio()
