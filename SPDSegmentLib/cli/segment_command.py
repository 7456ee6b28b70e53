"""``spdsegment segment``: one volume, one set of clicks, one mask, and the report and picture beside it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SPDSegmentLib.api import Segmentation
from SPDSegmentLib.api import segment as segment_case
from SPDSegmentLib.cli.terminal import (
    as_spd_error,
    printable,
    require_input,
    require_output,
    show_slices,
    takes,
)
from SPDSegmentLib.errors import MUST_LOOK, BadInput, Cancelled, SPDError, well_formed
from SPDSegmentLib.files import write_csv, write_json, write_png
from SPDSegmentLib.geometry.labelmap import SUFFIXES
from SPDSegmentLib.geometry.markups import LIST, ControlPoint, Markup, read_markups
from SPDSegmentLib.models.bundle import origin_note
from SPDSegmentLib.settings import check_device

if TYPE_CHECKING:
    from SPDSegmentLib.cli.preview import PreviewText
    from SPDSegmentLib.geometry.dicom_frames import Frame
    from SPDSegmentLib.inference.results import SegmentationProgress


Prompts = StrEnum("Prompts", ["consensus", "local", "raw", "interpolated", "sampled"])
"""Where the prompts of the decoder come from."""

Axis = StrEnum("Axis", ["auto", "i", "j", "k", "axial", "coronal", "sagittal"])
"""Axis to slice along."""

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")]


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """How a case is segmented; ``segment`` and ``batch`` take the same options."""

    model: Annotated[str, typer.Option("--model", "-m", help="Name of a model (see 'models list') or its folder.")]
    prompts: Annotated[Prompts, typer.Option(help="Which clicks prompt a slice.")] = Prompts.consensus
    saliency_only: Annotated[
        bool, typer.Option("--saliency-only", help="Take the thresholded saliency as the mask.")
    ] = False
    series: Annotated[
        str | None, typer.Option(help="Which series of a DICOM folder: UID or its end, number or description.")
    ] = None
    frame_number: Annotated[
        int | None,
        typer.Option("--frame", help="Which frame of a 4-D image, a sequence or a DICOM series, from 1.", min=1),
    ] = None
    insist: Annotated[
        str,
        typer.Option(help="Ids of clicks, or LIST:ID, separated by commas, that prompt whatever the model believes."),
    ] = ""
    ends: Annotated[str, typer.Option(help="Ids of clicks, as for --insist, at whose slices the structure ends.")] = ""
    axis: Annotated[Axis | None, typer.Option(help="Slicing axis; by default that of the model.")] = None
    device: DeviceOption = "auto"
    full_paths: Annotated[bool, typer.Option("--full-paths", help="Name files in the report with their folders.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class SegmentRequest(CaseOptions):
    """What ``spdsegment segment`` was asked for."""

    image: Annotated[
        Path, typer.Option("--image", "-i", help="Volume (NIfTI, NRRD, MetaImage), DICOM folder or multi-frame file.")
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="Mask: .nii.gz, .nii, .nrrd, .mha or .seg.nrrd.")]
    points: Annotated[
        Path | None,
        typer.Option("--points", "-p", help="Clicks: points, curves (.mrk.json, .fcsv), or a table (.csv)."),
    ] = None
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y,Z", help="A click in RAS mm, as Slicer shows it; may be repeated.")
    ] = None
    report: Annotated[Path | None, typer.Option(help="Report with the fate of every click (.json).")] = None
    preview: Annotated[Path | None, typer.Option(help="Picture of the result (.png).")] = None
    measure: Annotated[
        Path | None, typer.Option(help="Areas and diameters along the centerline (.csv), and a picture beside it.")
    ] = None
    dicom_seg: Annotated[
        Path | None, typer.Option("--dicom-seg", help="DICOM segmentation of the image's series (.dcm).")
    ] = None
    rtstruct: Annotated[Path | None, typer.Option(help="DICOM RT structure set of the image's series (.dcm).")] = None

    @property
    def positions(self) -> list[tuple[float, float, float]]:
        """Those of ``point`` in RAS mm; raises :class:`BadInput` where one is not three numbers."""
        return [position_of(text) for text in self.point or ()]

    @property
    def drawn(self) -> Path | None:
        """The picture beside the table of ``measure``; None where none is asked for or can be drawn."""
        if self.measure is None or importlib.util.find_spec("matplotlib") is None:
            return None
        return self.measure.with_suffix(".png")

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to write, by what they are called to people, in their order."""
        asked = {"Mask": self.output, "Report": self.report, "Picture": self.preview, "Measures": self.measure,
                 "Drawn": self.drawn, "SEG": self.dicom_seg, "RTSTRUCT": self.rtstruct}  # fmt: skip
        return {name: path for name, path in asked.items() if path is not None}

    def check(self) -> None:
        """Raise :class:`BadInput` for paths and settings that cannot work."""
        positions = self.positions
        require_input(self.image, "image")
        taken = [self.image]
        if self.points is not None:
            require_input(self.points, "points file")
            taken.append(self.points)
        elif not positions:
            raise BadInput("There are no clicks.", "Give --points FILE, or --point X,Y,Z for each click.")
        outputs = [("output", self.output, SUFFIXES), ("report", self.report, (".json",)),
                   ("preview", self.preview, (".png",)), ("table of measures", self.measure, (".csv",)),
                   ("picture of the measures", self.drawn, (".png",)), ("DICOM SEG file", self.dicom_seg, (".dcm",)),
                   ("RTSTRUCT file", self.rtstruct, (".dcm",))]  # fmt: skip
        for what, path, suffixes in outputs:
            if path is not None:
                require_output(path, what, suffixes, taken)
                taken.append(path)
        check_device(self.device)


@takes(SegmentRequest)
def segment(request: SegmentRequest) -> None:
    """Segment a structure from rough clicks along its centerline."""
    with show_slices() as on_progress:
        done = run_segmentation(request, on_progress, lambda note: typer.echo(printable(f"Note: {note}"), err=True))
    describe(request, done)
    done.raise_failures()
    if done.outcome.result.doubts or not done.outcome.mask.any():
        raise typer.Exit(MUST_LOOK)


@dataclass(frozen=True)
class Done:
    """What was segmented and written.

    Attributes:
        files: that were written, by what they are.
        replaced: those of them that took the place of others.
        failures: why further ones were not; :meth:`raise_failures` tells.
        notes: on files, in sentences.
    """

    outcome: Segmentation
    files: Mapping[str, Path]
    replaced: Collection[Path] = ()
    failures: Sequence[SPDError] = ()
    notes: Sequence[str] = ()

    def raise_failures(self) -> None:
        """Raise the first failure, saying all; the mask stays and is named."""
        if not self.failures:
            return
        first, mask = self.failures[0], self.files["Mask"]
        if isinstance(first, Cancelled):
            raise Cancelled(f"Cancelled; the mask is written to {mask}.")
        said = " ".join(dict.fromkeys(failure.message for failure in self.failures))
        details = "\n".join(failure.details for failure in self.failures)
        raise type(first)(f"The mask is written to {mask}, but: {said}", first.remedy, details)


def names_of(text: str) -> tuple[str, ...]:
    """Names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def position_of(text: str) -> tuple[float, float, float]:
    """A position that was written as X,Y,Z.

    Raises:
        BadInput: it is not three finite numbers.
    """
    try:
        x, y, z = (float(part) for part in text.split(","))
        if not all(map(math.isfinite, (x, y, z))):
            raise ValueError(text)
    except ValueError as error:
        raise BadInput(f"'{text}' is no position.", "Give a click as in --point 12.5,-30,104.", repr(error)) from error
    return x, y, z


def describe(request: SegmentRequest, done: Done) -> None:
    """Say what was made: the result on standard output, what to look at on standard error."""
    outcome, result = done.outcome, done.outcome.result
    segmented = sum(1 for part in result.slices if part.mask.any())
    typer.echo(
        f"{outcome.bundle.info.title}: {outcome.volume_ml:.1f} ml on {segmented} of {len(result.slices)} "
        f"{outcome.stack.plane} slices, {result.seconds:.1f} s on {result.device}"
    )
    for name, path in done.files.items():
        typer.echo(f"{name + ':':<10}{well_formed(str(path))}{' (replaced)' if path in done.replaced else ''}")
    if result.quality is not None:
        typer.echo(result.quality.sentence())
    if "Measures" in done.files:
        typer.echo(printable(f"Measured: {outcome.straightened.sentence()}"))
    said = [note for note in result.notes if note not in outcome.said_before]
    for note in filter(None, (origin_note(outcome.bundle), *said, *done.notes)):
        typer.echo(printable(f"Note: {note}"), err=True)
    if result.doubts:
        typer.echo("The mask is written, but look at it before you use it.", err=True)
    elif segmented == 0:
        typer.echo("Note: nothing was segmented; no click is supported by the image.", err=True)


_PASSED_ON = ("series", "frame_number", "axis", "prompts", "saliency_only", "device")


def run_segmentation(
    request: SegmentRequest,
    on_progress: Callable[[SegmentationProgress], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Done:
    """Segment one case and write the mask, then report and preview; what fails of these is among the failures.

    Args:
        on_note: told, before anything is computed, why the image may not be of the model's kind.

    Raises:
        SPDError: each kind, see :mod:`SPDSegmentLib.errors`; nothing is written then.
    """
    request.check()
    replaced = {path for path in request.outputs.values() if path.exists()}
    if request.preview is not None:
        from SPDSegmentLib.cli.preview import require_drawing

        require_drawing()
    if request.measure is not None and request.drawn is None:
        on_note("The table of measures comes without its picture, because the Python package 'matplotlib' is missing.")
    source: Sequence[Frame] = ()
    if request.dicom_seg is not None or request.rtstruct is not None:
        from SPDSegmentLib.geometry.dicom_objects import source_of

        source = source_of(request.image, request.series, request.dicom_seg is not None, request.frame_number)
    outcome = segment_case(
        request.image,
        _clicks_of(request),
        request.model,
        request.output,
        on_progress=on_progress,
        on_note=on_note,
        insist=names_of(request.insist),
        ends=names_of(request.ends),
        **{name: getattr(request, name) for name in _PASSED_ON},
    )
    return _write_beside(request, outcome, source, replaced)


def _clicks_of(request: SegmentRequest) -> Path | list[Markup]:
    """The points file, or where there are further positions the clicks of both."""
    if request.points is not None and not request.point:
        return request.points
    given = tuple(ControlPoint(f"point-{n}", "", place) for n, place in enumerate(request.positions, 1))
    return [*(read_markups(request.points) if request.points else ()), Markup("--point", LIST, given)]


def _write_beside(
    request: SegmentRequest, outcome: Segmentation, source: Sequence[Frame], replaced: Collection[Path]
) -> Done:
    """Write what goes with the mask: where that fails, the mask stays."""
    files, empty = {"Mask": request.output}, not outcome.mask.any()
    failures, notes = list[SPDError](), list[str]()
    if empty and request.output in replaced:
        notes.append(f"The mask is empty and has replaced the file {request.output}.")
    if empty and request.measure is not None:
        notes.append("The mask is empty, so there are no measures.")
    if empty and (request.dicom_seg is not None or request.rtstruct is not None):
        notes.append("The mask is empty, so there is no DICOM object.")
    dicom = functools.partial(_write_dicom, source)
    writers: dict[str, Callable[[Path, SegmentRequest, Segmentation], None]]
    writers = {"Report": _write_report, "Picture": _write_picture, "Measures": _write_measures,
               "Drawn": _write_straightened, "SEG": dicom, "RTSTRUCT": dicom}  # fmt: skip
    for name, path in request.outputs.items():
        if name == "Mask":
            continue
        if empty and name not in ("Report", "Picture"):
            notes += [f"The file {path} is of an earlier mask."] if path in replaced else []
            continue
        try:
            writers[name](path, request, outcome)
        except KeyboardInterrupt:
            failures.insert(0, Cancelled())
            break
        except Exception as error:
            failures.append(as_spd_error(error))
        else:
            files[name] = path
    return Done(outcome, files, replaced, failures, notes)


def _write_report(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    ids = {"insist": names_of(request.insist), "ends": names_of(request.ends)}
    asked = dataclasses.asdict(request) | {"point": request.positions} | ids
    write_json(path, outcome.report(request.full_paths, asked), "report")


def _write_picture(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    from SPDSegmentLib.cli.preview import write_preview

    shown = outcome.stack, outcome.result, _limits(outcome), _text(outcome), outcome.bundle.info.color
    write_png(path, lambda part: write_preview(part, *shown), "preview")


def _write_dicom(source: Sequence[Frame], path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    from SPDSegmentLib.geometry.dicom_objects import write_dicom_seg, write_rtstruct
    from SPDSegmentLib.models.bundle_info import drawn_structure
    from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY

    info, volume = outcome.bundle.info, outcome.stack.volume
    prompts = SALIENCY_ONLY if request.saliency_only else request.prompts
    structure = drawn_structure(info.structure, info.entry, info.color, info.name, outcome.mask, volume, prompts)
    write = write_dicom_seg if path == request.dicom_seg else write_rtstruct
    write(path, outcome.mask, volume, source, structure)


def _write_measures(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    from SPDSegmentLib.geometry.straighten import COLUMNS

    write_csv(path, [COLUMNS, *outcome.straightened.table()], "table of measures")


def _write_straightened(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    from SPDSegmentLib.cli.preview import write_straightened

    info, found = outcome.bundle.info, outcome.straightened
    write_png(path, lambda part: write_straightened(part, found, _limits(outcome), _text(outcome), info.color))


def _limits(outcome: Segmentation) -> tuple[float, float]:
    """Intensities that are shown black and white."""
    from SPDSegmentLib.geometry.intensity import IntensityConfig, intensity_range

    return intensity_range(outcome.stack.array, IntensityConfig.from_dict(outcome.bundle.info.normalization))


def _text(outcome: Segmentation) -> PreviewText:
    from SPDSegmentLib.cli.preview import PreviewText

    return PreviewText(outcome.bundle.info.title, outcome.bundle.info.name, outcome.volume_ml)
