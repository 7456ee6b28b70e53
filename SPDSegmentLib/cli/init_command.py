"""``spdsegment init``: from a folder of images and labels to a training configuration, every file checked."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SPDSegmentLib.cli.segment_command import names_of
from SPDSegmentLib.cli.terminal import printable, show_training
from SPDSegmentLib.errors import BadInput, ModelCorrupt, SPDError, command_line
from SPDSegmentLib.files import check_output, megabytes, write_text

if TYPE_CHECKING:
    from SPDSegmentLib.training.config import DataConfig
    from SPDSegmentLib.training.planning import Plan

SHOWN = 4
_VALUES = re.compile(r"\d+(\+\d+)*")


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of images and labels.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Configuration (.toml); by default named as the model.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="V[+V]", help="Label values of one structure; repeat for several. By default each value."),
    ] = None,
    structure: Annotated[str, typer.Option(help="What it is, as in 'Kidney'.")] = "",
    name: Annotated[str, typer.Option(help="Name of the model; by default structure and modality.")] = "",
    image: Annotated[str, typer.Option(metavar="PATTERN", help="Names of images, as in '{case}_image.nii.gz'.")] = "",
    label: Annotated[str, typer.Option(metavar="PATTERN", help="Names of labels, as in '{case}_label.nii.gz'.")] = "",
    series: Annotated[
        str, typer.Option(help="Which series of DICOM folders: UID or its end, number or description.")
    ] = "",
    segment: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Segment or region of DICOM labels, as in 'GTV*'; repeat: values 1, 2, ..."),
    ] = None,
    validation: Annotated[str, typer.Option(help="Cases to validate with, separated by commas.")] = "",
    patient: Annotated[str, typer.Option(metavar="REGEX", help="Its first group names the patient of a case.")] = "",
    backbone: Annotated[str, typer.Option(help="Base weights, see 'models list'.")] = "lite_medsam",
    device: Annotated[str, typer.Option(help="To measure the expected time on: auto, cpu or cuda.")] = "auto",
    measure: Annotated[bool, typer.Option(help="Measure the expected time, with some real steps.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a configuration that is there.")] = False,
) -> None:
    """Find images and labels that belong together, check every file, and write a training configuration.

    Read are cases named as in p1_image.nii.gz and p1_label.nii.gz, the folders imagesTr and labelsTr of nnU-Net, and a
    folder a case; folders of DICOM series with SEG or RTSTRUCT files as labels too. What is odd is said; what cannot be
    used is left out of the configuration.
    """
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}.", "Give the folder of images and labels.")
    targets = list(dict.fromkeys(_values(text) for text in target or ()))
    _check_texts({"name": name, "structure": structure, "title": f"{structure}, MR" if structure else ""})
    if output is not None:
        _check_free(output, replace)
    from SPDSegmentLib.training.config import check_fit, check_pattern
    from SPDSegmentLib.training.planning import configuration_text, plan
    from SPDSegmentLib.training.survey import find_cases, survey

    if patient:
        check_pattern(patient, "--patient")
    found = find_cases(folder, image, label, series, segment or ())
    if patient:
        check_fit(patient, "--patient", found.cases)
    with show_training(True) as bar:
        bar.say(f"{len(found.cases)} cases, named {found.image} and {found.label}.")
        seen = survey(folder, found, lambda done, total: bar.advance("checking files", done, total, None, {}), targets)
    place = _seen_from((output or Path("x.toml")).resolve().parent, folder.resolve())
    made = plan(seen, place, targets, structure, name, backbone, names_of(validation), patient, _has_gpu(device))
    bundle = made.config.bundle
    _check_texts({"name": bundle.name, "structure": bundle.structure, "title": bundle.title})
    output = output or Path(f"{made.config.bundle.name}.toml")
    _check_free(output, replace)
    for note in made.notes:
        typer.echo(printable(f"Note: {note}"), err=True)
    expected = [_needs(made), *([_time(made, folder, device)] if measure else [])]
    train = f"spdsegment train {command_line(output)}"
    head = [
        f"Planned by: spdsegment init {command_line(folder)}",
        f"Train with: {train}",
        "What is commented out is at its default.",
        *expected,
    ]
    text = configuration_text(made, [printable(line) for line in head])
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(
            f"The configuration {output} cannot be written: a name in it is nothing that TOML can hold ({error}).",
            "Give files and folders names of usual letters.",
        ) from error
    write_text(output, text, "configuration")
    for line in (*_summary(made), *expected, f"Written: {output}. Go on with: {train}"):
        typer.echo(printable(line))


def _seen_from(place: Path, folder: Path) -> str:
    """A folder relative to a place; as it is where they lie on two drives of Windows."""
    try:
        return Path(os.path.relpath(folder, place)).as_posix()
    except ValueError:
        return folder.as_posix()


def _check_texts(given: dict[str, str]) -> None:
    """Refuse what no model can be called; what is empty was not given."""
    from SPDSegmentLib.models.bundle_info import check_text

    for field, text in given.items():
        if text:
            try:
                check_text(field, text)
            except ModelCorrupt as error:
                raise BadInput(
                    f"No model can be called so: {error.message}", "Correct --name or --structure."
                ) from error


def _values(text: str) -> tuple[int, ...]:
    if not _VALUES.fullmatch(text):
        raise BadInput(f"'{text}' is no list of label values.", "Give --target as in 2, or 1+2 for one of both.")
    return tuple(sorted(set(map(int, text.split("+")))))


def _check_free(output: Path, replace: bool) -> None:
    if output.suffix != ".toml":
        raise BadInput(f"The configuration {output} does not end with .toml.", "Name it so.")
    if output.exists() and not replace:
        raise BadInput(f"{output} is there already.", "Choose another name with --output, or give --replace.")
    check_output(output, "configuration")


def _summary(made: Plan) -> list[str]:
    """What was decided, a line each."""
    config, data = made.config, made.config.data
    view = f"{config.fov_mm:g} mm at {config.network.image_size} pixels"
    limits = f"{config.intensity.kind} {config.intensity.low:g} to {config.intensity.high:g}"
    return [
        f"Cases:     {len(data.train)} train, {len(data.validation)} validate, {len(data.test)} for the measurement",
        f"Patients:  {_patients(data)}",
        f"Slices:    {data.plane} ({made.reasons['data.plane']})",
        f"View:      {view} ({made.reasons['fov_mm']})",
        f"Intensity: {limits} ({made.reasons['intensity.kind']})",
        f"Steps:     {config.stage1.steps} of stage I, {config.stage2.steps} of stage II",
    ]


def _patients(data: DataConfig) -> str:
    """How many there are, and an example of cases that count as one."""
    from SPDSegmentLib.training.config import patient_of

    cases: dict[str, list[str]] = {}
    for case in sorted({*data.train, *data.validation, *data.test}):
        cases.setdefault(patient_of(case, data.patient_pattern), []).append(case)
    patient, most = max(cases.items(), key=lambda item: len(item[1]))
    if len(most) == 1:
        return f"{len(cases)}, each case is one, as in {patient} (--patient groups cases)"
    return f"{len(cases)}, as in {patient}: {', '.join(most[:SHOWN])}{', ...' if len(most) > SHOWN else ''}"


def _needs(made: Plan) -> str:
    return f"Needs about {megabytes(made.memory_bytes)} of memory and {megabytes(made.disk_bytes)} of disk meanwhile."


def _time(made: Plan, folder: Path, device: str) -> str:
    """The expected time, or why it is not known; a plan is a plan without it."""
    try:
        from SPDSegmentLib.training.cases import load_case
        from SPDSegmentLib.training.planning import measure_time

        config = made.config
        for case in config.data.train:
            loaded = load_case(folder, case, config.data, config.intensity)
            if loaded.targets:
                break
        seconds = measure_time(config, loaded, None, device)
    except (ImportError, SPDError) as error:
        return f"The expected time was not measured: {error}"
    parts = ((seconds.stage1, "stage I"), (seconds.embeddings, "embeddings"), (seconds.stage2, "stage II"))
    named = ", ".join(f"{name} {_duration(part)}" for part, name in parts)
    return f"Takes about {_duration(seconds.total)} on this machine ({named}), by some steps that were timed."


def _has_gpu(device: str) -> bool:
    if device == "cpu":
        return False
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
