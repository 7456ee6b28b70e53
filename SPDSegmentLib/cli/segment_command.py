"""``spdsegment segment``: one volume, one set of clicks, one mask."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from SPDSegmentLib.api import Segmentation
from SPDSegmentLib.cli.failures import printable
from SPDSegmentLib.cli.progress import show_slices
from SPDSegmentLib.cli.segment_run import SegmentRequest, run_segmentation
from SPDSegmentLib.errors import MUST_LOOK, BadInput, well_formed
from SPDSegmentLib.models.bundle import origin_note


class Prompts(StrEnum):
    """Where the prompts of the decoder come from."""

    consensus = "consensus"
    local = "local"
    raw = "raw"
    interpolated = "interpolated"
    sampled = "sampled"


class Axis(StrEnum):
    """Axis to slice along."""

    auto = "auto"
    i = "i"
    j = "j"
    k = "k"
    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"


# What says how a case is segmented; `segment` and `batch` take the same.
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Name of a model (see 'models list') or its folder.")]
PromptsOption = Annotated[Prompts, typer.Option(help="Which clicks prompt a slice.")]
SaliencyOption = Annotated[bool, typer.Option("--saliency-only", help="Take the thresholded saliency as the mask.")]
SeriesOption = Annotated[str | None, typer.Option(help="Which series of a DICOM folder: its UID, or the end of it.")]
InsistOption = Annotated[
    str, typer.Option(help="Ids of clicks, separated by commas, that prompt whatever the model believes.")
]
AxisOption = Annotated[Axis | None, typer.Option(help="Slicing axis; by default that of the model.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")]
PathsOption = Annotated[bool, typer.Option("--full-paths", help="Name files in the report with their folders.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("segment")(segment)


def segment(
    image: Annotated[
        Path, typer.Option("--image", "-i", help="Volume (NIfTI, NRRD, MetaImage), DICOM folder or multi-frame file.")
    ],
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Mask: .nii.gz, .nii, .nrrd, .mha or .seg.nrrd.")],
    points: Annotated[
        Path | None,
        typer.Option("--points", "-p", help="Clicks: points, curves (.mrk.json, .fcsv), or a table (.csv)."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y,Z", help="A click in RAS mm, as Slicer shows it; may be repeated.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Report with the fate of every click (.json).")] = None,
    preview: Annotated[Path | None, typer.Option(help="Picture of the result (.png).")] = None,
    dicom_seg: Annotated[
        Path | None, typer.Option("--dicom-seg", help="DICOM segmentation of the image's series (.dcm).")
    ] = None,
    rtstruct: Annotated[Path | None, typer.Option(help="DICOM RT structure set of the image's series (.dcm).")] = None,
    prompts: PromptsOption = Prompts.consensus,
    saliency_only: SaliencyOption = False,
    series: SeriesOption = None,
    insist: InsistOption = "",
    axis: AxisOption = None,
    device: DeviceOption = "auto",
    full_paths: PathsOption = False,
) -> None:
    """Segment a structure from rough clicks along its centerline."""
    request = SegmentRequest(
        image=image,
        points=points,
        model=model,
        output=output,
        report=report,
        preview=preview,
        dicom_seg=dicom_seg,
        rtstruct=rtstruct,
        point=tuple(map(position_of, point or ())),
        prompts=prompts.value,
        saliency_only=saliency_only,
        insist=names_of(insist),
        axis=axis.value if axis else None,
        series=series,
        device=device,
        full_paths=full_paths,
    )
    with show_slices() as on_progress:
        outcome = run_segmentation(request, on_progress, lambda note: typer.echo(printable(f"Note: {note}"), err=True))
    describe(request, outcome)
    if outcome.result.doubts:
        raise typer.Exit(MUST_LOOK)


def names_of(text: str) -> tuple[str, ...]:
    """Names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def position_of(text: str) -> tuple[float, float, float]:
    """A position that was written as X,Y,Z.

    Raises:
        BadInput: it is not three numbers.
    """
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"'{text}' is no position.", "Give a click as in --point 12.5,-30,104.", repr(error)) from error
    return x, y, z


def describe(request: SegmentRequest, outcome: Segmentation) -> None:
    """Say what was made: the result on standard output, what to look at on standard error."""
    result = outcome.result
    segmented = sum(1 for part in result.slices if part.mask.any())
    typer.echo(
        f"{outcome.bundle.info.title}: {outcome.volume_ml:.1f} ml on {segmented} of {len(result.slices)} "
        f"{outcome.stack.plane} slices, {result.seconds:.1f} s on {result.device}"
    )
    made = {"Mask": request.output, "Report": request.report, "Picture": request.preview, "SEG": request.dicom_seg,
            "RTSTRUCT": request.rtstruct}  # fmt: skip
    for name, path in made.items():
        if path is not None:
            typer.echo(f"{name + ':':<9}{well_formed(str(path))}")
    said = [note for note in result.notes if note not in outcome.said_before]
    for note in filter(None, (origin_note(outcome.bundle), *said)):
        typer.echo(printable(f"Note: {note}"), err=True)
    if result.doubts:
        typer.echo("The mask is written, but look at it before you use it.", err=True)
    elif segmented == 0:
        typer.echo("Note: nothing was segmented; no click is supported by the image.", err=True)
