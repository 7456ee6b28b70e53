"""``spdsegment batch``: many cases from a table, on one or several workers; it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from SPDSegmentLib.cli.segment_command import CaseOptions, names_of
from SPDSegmentLib.cli.terminal import (
    printable,
    require_input,
    show_training,
    takes,
    termination_interrupts,
)
from SPDSegmentLib.errors import MUST_LOOK, BadInput, require_package
from SPDSegmentLib.files import check_folder
from SPDSegmentLib.settings import check_device

if TYPE_CHECKING:
    from SPDSegmentLib.batch.segmenting import CaseSegmenter

_PART = re.compile(r"(\d+)/(\d+)")


MaskFormat = StrEnum(
    "MaskFormat", {"seg_nrrd": "seg.nrrd", "nii_gz": "nii.gz", "nii": "nii", "nrrd": "nrrd", "mha": "mha"}
)
"""File name extensions of masks."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest(CaseOptions):
    """What ``spdsegment batch`` was asked for."""

    cases: Annotated[
        Path, typer.Argument(help="Table (.csv) with the columns name, image, points.", show_default=False)
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.")]
    workers: Annotated[
        int, typer.Option(help="Cases at once, on all graphics cards in turn; with --slurm: jobs.", min=1, max=256)
    ] = 1
    scheduler: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Segment on the workers of this Dask scheduler.")
    ] = ""
    slurm: Annotated[bool, typer.Option("--slurm", help="Segment in Slurm jobs that are started for it.")] = False
    part: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N parts of the table.")] = "1/1"
    again: Annotated[bool, typer.Option("--again", help="Do finished cases again and replace every mask.")] = False
    mask_format: Annotated[MaskFormat, typer.Option("--format", help="Format of the masks.")] = MaskFormat.seg_nrrd
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="A DICOM segmentation of its series beside each mask.")
    ] = False
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", help="An RT structure set of its series beside each mask.")
    ] = False


@takes(BatchRequest)
def batch(request: BatchRequest) -> None:
    """Segment many cases. Run the same command again to go on: results made of the same image, clicks, model, version
    and settings are skipped.

    The paths in the table are relative to it; the columns series and frame choose among the series of a DICOM folder
    and the frames of a 4-D image, where they are empty or missing the options do. A case that fails is a line of
    report.csv and does not stop the others.

    With --scheduler or --slurm every worker needs this version, the model, and the files under the same names.
    """
    scheduler, slurm, workers = request.scheduler, request.slurm, request.workers
    require_input(request.cases, "table")
    check_folder(request.output, "output folder")
    check_device(request.device)
    numbers = _PART.fullmatch(request.part)
    if numbers is None:
        raise BadInput(f"'{request.part}' is no part.", "Give --part I/N, for example 2/8.")
    if scheduler and (slurm or workers > 1):
        raise BadInput("--scheduler goes with neither --slurm nor --workers.", "The cluster has its own workers.")
    if request.dicom_seg:
        require_package("highdicom")
    from SPDSegmentLib.batch.cases import batch_model
    from SPDSegmentLib.batch.run import BatchRun
    from SPDSegmentLib.batch.segmenting import BatchSettings, Cards, CaseSegmenter
    from SPDSegmentLib.models.bundle import base_weights_for, find_bundle
    from SPDSegmentLib.worker.client import WorkerClient

    bundle = find_bundle(request.model)
    base_weights_for(bundle)
    chosen = batch_model(bundle)
    settings = BatchSettings(
        axis=request.axis.value if request.axis else "",
        prompts=request.prompts.value,
        device=request.device,
        suffix=f".{request.mask_format.value}",
        saliency_only=request.saliency_only,
        insist=names_of(request.insist),
        ends=names_of(request.ends),
        series=request.series or "",
        frame=request.frame_number or 0,
        dicom=tuple(name for name in ("dicom_seg", "rtstruct") if getattr(request, name)),
        full_paths=request.full_paths,
    )
    if workers > 1 and not slurm:
        _share_cores(workers)
    cards = Cards(request.device) if workers > 1 else None
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as clients, show_training(True) as bar:

        def make_segmenter(stopped: Callable[[], bool]) -> CaseSegmenter:
            return CaseSegmenter(clients.enter_context(WorkerClient()), chosen, settings, stopped, bar.say, cards)

        def show(done: int, total: int, row: dict[str, Any]) -> None:
            rows.append(row)
            if row["error"]:
                bar.say(f"{row['case']}: {row['error']}")
            bar.advance("segmenting cases", done, total, None, {})

        dispatch = None
        if scheduler or slurm:
            from SPDSegmentLib.batch.cluster import ClusterDispatch, connect, slurm_jobs

            client = clients.enter_context(slurm_jobs(workers) if slurm else connect(scheduler))
            dispatch = ClusterDispatch(client, say=bar.say)
            given = Path(request.model).is_dir()  # a name is looked up on the worker
            chosen = replace(chosen, key=str(bundle.folder.resolve()) if given else bundle.info.name)
        run = BatchRun(
            make_segmenter,
            request.output,
            chosen,
            settings,
            resume=not request.again,
            workers=workers,
            part=(int(numbers[1]), int(numbers[2])),
            on_case=show,
            dispatch=dispatch,
        )
        with termination_interrupts():
            run(request.cases)
    _conclude(rows, request.output)


def _share_cores(workers: int) -> None:
    """Give every worker its share of the cores that this process may use, unless somebody has decided on that."""
    from SPDSegmentLib.geometry.limits import usable_cores

    share = max(1, usable_cores() // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))


def _conclude(rows: list[dict[str, Any]], output: Path) -> None:
    """Say what there is; raises BadInput where cases have no result."""
    look = sum(row["state"] == "look" for row in rows)
    done = sum(row["state"] == "done" for row in rows) + look
    typer.echo(f"{done} of {len(rows)} cases {'is' if done == 1 else 'are'} done.")
    typer.echo(printable(f"Report: {output / 'report.csv'}"))
    if look:
        whose = "It" if look == done == 1 else f"{look} of them"
        typer.echo(f"{whose} must be looked at (state look); the column notes says why.", err=True)
    kept = sum(row["state"] == "kept" for row in rows)
    if kept:
        typer.echo(
            f"{kept} of {len(rows)} masks {'is' if kept == 1 else 'are'} edited since or not of the batch, and left "
            "alone (state kept).",
            err=True,
        )
    left = len(rows) - done - kept
    if left:
        raise BadInput(
            f"{left} of {len(rows)} cases {'has' if left == 1 else 'have'} no result of this batch; "
            "the column error says why.",
            "Mend them and run the same command again; it does only what is missing.",
        )
    if look or kept:
        raise typer.Exit(MUST_LOOK)
