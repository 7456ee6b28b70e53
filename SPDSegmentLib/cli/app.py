"""The program ``spdsegment`` with all its commands; those that are small are here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from SPDSegmentLib import __version__
from SPDSegmentLib.cli.batch_command import batch
from SPDSegmentLib.cli.init_command import init
from SPDSegmentLib.cli.models_commands import models_app
from SPDSegmentLib.cli.segment_command import DeviceOption, SegmentRequest, describe, run_segmentation, segment
from SPDSegmentLib.cli.terminal import FailureReportingGroup, show_bytes, show_slices
from SPDSegmentLib.cli.training_commands import evaluate, train
from SPDSegmentLib.errors import MUST_LOOK, BadInput, ModelMissing
from SPDSegmentLib.files import check_folder
from SPDSegmentLib.models.base_weights import WEIGHTLESS_BACKBONES, fetch_base_weights
from SPDSegmentLib.models.bundle import Bundle, find_bundle, list_bundles, list_shipped_bundles
from SPDSegmentLib.models.storage import resources_folder

SAMPLE_FILES = IMAGE, LABEL, CLICKS, _ = ("image.nii.gz", "label.nii.gz", "clicks.mrk.json", "ATTRIBUTION.md")
"""Volume, reference (every value but 0 is the structure), noisy clicks and origin of a shipped case."""


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
        int | None, typer.Option(min=0, metavar="MB", help="Bound on the embeddings kept of one volume. Default: 1024.")
    ] = None,
) -> None:
    """Serve segmentation requests on stdin and stdout until stdin ends; Slicer and scripts start this by themselves."""
    from SPDSegmentLib.worker.__main__ import serve_stdio

    serve_stdio(None, volume_memory, cache_memory)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for mask, report and picture.")] = Path(
        "demo-output"
    ),
    sample: Annotated[str | None, typer.Option(help="Name of a sample; by default the first one.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model; by default that of the sample.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Segment the sample that comes with SPDSegment and compare the mask with its reference."""
    case = find_sample(sample)
    check_folder(output, "output folder")
    bundle = find_bundle(model) if model else model_of(case)
    if bundle.info.backbone not in WEIGHTLESS_BACKBONES:
        with show_bytes(bundle.info.backbone) as progress:
            fetch_base_weights(bundle.info.backbone, progress)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"The folder {output} cannot be made: {error.strerror}.", "Choose another one.") from error
    request = SegmentRequest(
        image=case / IMAGE,
        points=case / CLICKS,
        model=str(bundle.folder),
        output=output / f"{case.name}.nii.gz",
        report=output / f"{case.name}.json",
        preview=output / f"{case.name}.png",
        device=device,
    )
    with show_slices() as on_progress:
        done = run_segmentation(request, on_progress)
    describe(request, done)
    done.raise_failures()
    typer.echo(f"Dice against the shipped label: {dice_with(case / LABEL, done.outcome.mask):.3f}")
    if done.outcome.result.doubts or not done.outcome.mask.any():
        raise typer.Exit(MUST_LOOK)


def dice_with(label: Path, mask_kji: np.ndarray) -> float:
    """Volume Dice of a mask (K, J, I) with a label file on the same grid, every value but 0 being the structure.

    NaN where both are empty.
    """
    from SPDSegmentLib.evaluation.metrics import dice
    from SPDSegmentLib.geometry.labelmap import read_labelmap

    reference = read_labelmap(label).array > 0
    if reference.shape != mask_kji.shape:
        raise BadInput(f"{label} does not lie on the image's grid.")
    value = dice(mask_kji > 0, reference)
    return float("nan") if value is None else value


def list_samples() -> list[Path]:
    """Folders of the complete samples in ``Resources/SampleData``, by name."""
    resources = resources_folder()
    root = resources / "SampleData" if resources else None
    if root is None or not root.is_dir():
        return []
    folders = (folder for folder in sorted(root.iterdir()) if folder.is_dir())
    return [folder for folder in folders if all((folder / name).is_file() for name in SAMPLE_FILES)]


def find_sample(name: str | None) -> Path:
    """The folder of a sample by name, the first one for None; raises :class:`BadInput`."""
    samples = list_samples()
    if not samples:
        raise BadInput("No sample is installed.", "Get the source tree with its folder Resources/SampleData.")
    for sample in samples:
        if name in (None, sample.name):
            return sample
    raise BadInput(f"There is no sample '{name}'.", f"Known: {', '.join(sample.name for sample in samples)}.")


def model_of(sample: Path) -> Bundle:
    """The shipped model whose name the sample's name is or begins with, the longest; raises :class:`ModelMissing`.

    Only without a shipped one is a model of the user's taken.
    """
    bundles = [bundle for bundle in list_shipped_bundles() if sample.name.startswith(bundle.info.name)]
    fitting = bundles or [bundle for bundle in list_bundles() if sample.name.startswith(bundle.info.name)]
    if not fitting:
        raise ModelMissing(f"No model for the sample {sample.name} is installed.", "Name one with --model.")
    return max(fitting, key=lambda bundle: len(bundle.info.name))


def build_app() -> typer.Typer:
    """The application with all commands; each imports anything heavy only when it runs."""
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
    app.command("segment")(segment)
    app.command("batch", short_help="Segment many cases; goes on where it was stopped.")(batch)
    app.add_typer(models_app, name="models")
    app.command("init", short_help="Plan the training of a new structure from images and labels.")(init)
    app.command("train")(train)
    app.command("evaluate")(evaluate)
    app.command("demo", short_help="Segment the sample that comes along, with pictures.")(demo)
    app.command("worker", short_help="Serve segmentation requests on stdin and stdout.")(worker)
    return app


def main() -> None:
    """Entry point; leaves with the exit codes of :mod:`SPDSegmentLib.errors`, 0 when all went well."""
    build_app()(prog_name="spdsegment")
