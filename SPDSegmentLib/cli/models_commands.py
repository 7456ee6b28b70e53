"""``spdsegment models``: what is on this machine, whether it is sound, and how it gets there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from SPDSegmentLib.cli.terminal import printable, require_input, show_bytes
from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError
from SPDSegmentLib.files import megabytes
from SPDSegmentLib.models import base_weights
from SPDSegmentLib.models.base_weights import (
    WeightsStatus,
    add_file,
    fetch_base_weights,
    remove_base_weights,
    verify_base_weights,
    weights_status,
)
from SPDSegmentLib.models.bundle import (
    Bundle,
    add_bundle,
    check_removable,
    find_bundle,
    origin_note,
    read_bundle,
    remove_bundle,
    scan_bundles,
)
from SPDSegmentLib.models.packed import add_packed, is_address, pack_bundle
from SPDSegmentLib.models.storage import user_models_folder, weights_folder

_NAME_HELP = "Name of a model or of base weights."
AcceptUnknown = Annotated[
    bool, typer.Option("--accept-unknown", help="Take a file whose SHA-256 nobody vouches for; it is recorded.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

models_app = typer.Typer(no_args_is_help=True, help="List, show, verify, fetch, add and remove models.")


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List models and base weights."""
    bundles, broken = scan_bundles()
    statuses = [weights_status(name) for name in base_weights.BASE_WEIGHTS]
    if as_json:
        value = {
            "models": [_bundle_values(bundle) for bundle in bundles],
            "damaged": [{"folder": str(folder), "problem": error.sentence} for folder, error in broken],
            "base_weights": [_weights_values(status) for status in statuses],
        }
        typer.echo(json.dumps(value, indent=2))
        return
    whole = Column("Model", overflow="fold")  # a name that is cut could not be typed
    table = Table(whole, "Structure", "Modality", "Slices", "Base weights", box=None, title_justify="left")
    for bundle in bundles:
        info = bundle.info
        table.add_row(*map(Text, (info.name, info.structure, info.modality, info.slicing_axis, info.backbone)))
    console = Console(highlight=False)
    console.print(table if bundles else "No models are installed.")
    for note in filter(None, map(origin_note, bundles)):
        console.print(printable(note), soft_wrap=True, markup=False)
    for folder, error in broken:
        text = f" {printable(folder.name)}: {printable(error.sentence)}"
        console.print(Text.assemble(("not used", "red"), text), soft_wrap=True)
    console.print()
    table = Table("Base weights", "Size", "License", "State", box=None)
    for status in statuses:
        size = megabytes(status.weights.size) if status.weights.size else "not known"
        table.add_row(status.weights.name, size, status.weights.license, _state(status))
    console.print(table)
    folders = f"\nYour models: {user_models_folder()}\nBase weights: {weights_folder()}"
    console.print(folders, soft_wrap=True, markup=False)


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help=_NAME_HELP)], as_json: AsJson = False) -> None:
    """Show everything that is known of a model or of base weights."""
    if name in base_weights.BASE_WEIGHTS:
        values = _weights_values(weights_status(name))
        typer.echo(json.dumps(values, indent=2) if as_json else _lines(values))
        return
    bundle = find_bundle(name)
    if as_json:
        typer.echo(json.dumps({"folder": str(bundle.folder), **bundle.info.to_dict()}, indent=2))
        return
    typer.echo(_lines(_bundle_values(bundle)))
    if note := origin_note(bundle):
        typer.echo(printable(note))
    typer.echo(f"\n{printable(bundle.card)}" if bundle.card else "")


@models_app.command("verify", short_help="Compare every byte with the checksums.")
def verify_models(
    names: Annotated[list[str] | None, typer.Argument(help=f"{_NAME_HELP} Without any: all that is here.")] = None,
) -> None:
    """Read every byte of models and base weights and compare the checksums."""
    failures: list[SPDError] = []
    for name in names or _installed():
        try:
            _verify(name)
        except SPDError as error:
            failures.append(error)
            typer.echo(printable(f"{name}: {error.sentence}"))
        else:
            typer.echo(f"{name}: good")
    if failures:
        raise typer.Exit(failures[0].exit_code)


@models_app.command("fetch", short_help="Download and check base weights.")
def fetch_models(
    names: Annotated[list[str], typer.Argument(help="Base weights, or models whose base weights are wanted.")],
    accept_unknown: AcceptUnknown = False,
) -> None:
    """Download and check base weights; does nothing where they are already here."""
    for name in dict.fromkeys(_weights_name(name) for name in names):
        if name in base_weights.WEIGHTLESS_BACKBONES:
            typer.echo(f"{name}: has no base weights to fetch")
            continue
        weights = base_weights.known_weights(name)
        if weights_status(name).state != "ready":
            what = f"{name} ({megabytes(weights.size)})" if weights.size else name
            typer.echo(f"Fetching {what} from {weights.source}", err=True)
        with show_bytes(name) as progress:
            path = fetch_base_weights(name, progress, accept_unknown=accept_unknown)
        typer.echo(f"{name}: {path}")


@models_app.command("add")
def add_model(
    source: Annotated[
        str,
        typer.Argument(help="A model's folder, its packed file (path or https address), or a file of base weights."),
    ],
    name: Annotated[str | None, typer.Option("--as", help="Which base weights the file is.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The checksum that the file must have.")] = None,
    accept_unknown: AcceptUnknown = False,
) -> None:
    """Copy a model or base weights of your own into SPDSegment's folder."""
    file = Path(source)
    if is_address(source) or file.suffix.lower() == ".zip" or file.is_dir():
        if name is not None:
            raise BadInput(f"--as is for a file of base weights, and {source} is a model.", "Leave --as out.")
        if sha256 is not None and file.is_dir():
            raise BadInput(
                f"--sha256 is the checksum of one file, and {source} is a folder.",
                "Leave --sha256 out: a model's folder holds its own checksums.",
            )
        earlier = [folder.resolve() for folder in user_models_folder().glob("*")]
        if file.is_dir():
            bundle = add_bundle(file, accept_unknown)
        else:
            with show_bytes("model") as progress:
                bundle = add_packed(source, accept_unknown, sha256, progress)
        typer.echo(f"{bundle.info.name}: {bundle.folder}")
        if bundle.folder in earlier and bundle.folder != file.resolve():
            typer.echo("It replaced the model of this name that you had.", err=True)
        if note := origin_note(bundle):
            typer.echo(note, err=True)
        return
    require_input(file, "file")
    if file.suffix.lower() == ".toml":
        raise BadInput(
            f"{source} is the configuration of a training, not a model.",
            "Train it by 'spdsegment train', then add the bundle's folder that this names.",
        )
    by_filename = {weights.filename: weights.name for weights in base_weights.BASE_WEIGHTS.values()}
    name = name or by_filename.get(file.name)
    if name is None:
        raise BadInput(
            f"The name of {source} does not tell which base weights it is.",
            f"Say it with --as and one of {', '.join(base_weights.BASE_WEIGHTS)}.",
        )
    wanted = {bundle.info.backbone_sha256 for bundle in scan_bundles()[0] if bundle.info.backbone == name}
    path = add_file(name, file, accept_unknown, sha256, wanted)
    typer.echo(f"{name}: {path}")


@models_app.command("pack")
def pack_model(
    name: Annotated[str, typer.Argument(help="A model's name or folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="NAME.zip by default; a new folder as a model hub expects it.")
    ] = None,
) -> None:
    """Write a model as one file that 'models add' takes, with checksums."""
    bundle = find_bundle(name)
    bundle.check_settings()
    target = output or Path(f"{bundle.info.name}.zip")
    pack_bundle(bundle, target)
    typer.echo(f"{bundle.info.name}: {target}")


@models_app.command("remove")
def remove_models(
    names: Annotated[list[str], typer.Argument(help=_NAME_HELP)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a model of yours is deleted.")] = False,
) -> None:
    """Delete base weights or models of your own from this machine."""
    for name in names:
        if name in base_weights.BASE_WEIGHTS:
            removed = remove_base_weights(name)
            typer.echo(f"{name}: removed" if removed else f"{name}: was not on this machine")
            continue
        folder = _own_bundle_folder(name)
        check_removable(folder)
        if not yes:
            _confirm(f"Delete {folder}?")
        remove_bundle(folder)
        typer.echo(f"{name}: removed")


def _confirm(question: str) -> None:
    """Ask for a yes; raises BadInput where nobody can answer, and ``typer.Abort`` for a no."""
    try:
        agreed = typer.confirm(question)
    except typer.Abort as error:
        typer.echo(err=True)
        if isinstance(error.__context__, KeyboardInterrupt):
            raise Cancelled() from None
        if sys.stdin.isatty():
            raise
        raise BadInput("There is no terminal to ask for a yes.", "Give --yes.") from None
    if not agreed:
        raise typer.Abort


def _own_bundle_folder(name: str) -> Path:
    """Folder of a model of the user's: of that name, or a damaged one in a folder of that name."""
    own = user_models_folder() / name
    if not own.is_dir():
        return find_bundle(name).folder
    try:
        bundle = read_bundle(own)
        bundle.check_settings()
    except SPDError:
        return own
    return own if bundle.info.name == name else find_bundle(name).folder


def _weights_name(name: str) -> str:
    if name in base_weights.BASE_WEIGHTS:
        return name
    try:
        return find_bundle(name).info.backbone
    except ModelMissing as error:
        known = ", ".join(base_weights.BASE_WEIGHTS)
        raise ModelMissing(f"There is no model and there are no base weights '{name}'.", f"Known: {known}.") from error


def _installed() -> list[str]:
    here = [name for name in base_weights.BASE_WEIGHTS if weights_status(name).state != "missing"]
    bundles, broken = scan_bundles()
    return [*here, *(bundle.info.name for bundle in bundles), *(str(folder) for folder, _ in broken)]


def _verify(name: str) -> None:
    if name in base_weights.BASE_WEIGHTS:
        with show_bytes(name) as progress:
            verify_base_weights(name, progress)
    elif Path(name).is_dir():
        read_bundle(name).check_settings()
    else:
        find_bundle(name).check_settings()


def _state(status: WeightsStatus) -> str:
    text = {"ready": "[green]ready[/green]", "missing": "not here", "damaged": "[red]damaged[/red]"}[status.state]
    return f"{text} (your own file)" if status.accepted_by_user else text


def _bundle_values(bundle: Bundle) -> dict[str, Any]:
    info = bundle.info
    return {
        "name": info.name,
        "title": info.title,
        "structure": info.structure,
        "modality": info.modality,
        "slices": info.slicing_axis,
        "base_weights": info.backbone,
        "input": f"{info.image_size} x {info.image_size} pixels"
        + (f" over {info.fov_mm:g} mm" if info.fov_mm else " over the whole slice"),
        "license_of_training_data": info.license,
        "library_version": info.library_version,
        "folder": str(bundle.folder),
        "origin": "shipped" if bundle.shipped else "yours",
    }


def _weights_values(status: WeightsStatus) -> dict[str, Any]:
    weights = status.weights
    return {
        "name": weights.name,
        "title": weights.title,
        "state": status.state,
        "problem": status.problem,
        "size": weights.size,
        "sha256": status.sha256,
        "your_own_file": status.accepted_by_user,
        "license": weights.license,
        "source": weights.source,
        "homepage": weights.homepage,
        "path": str(status.path),
    }


def _lines(values: dict[str, Any]) -> str:
    shown = {key.replace("_", " "): value for key, value in values.items() if value not in ("", None)}
    width = max(map(len, shown)) + 2
    return "\n".join(printable(f"{key + ':':<{width}}{value}") for key, value in shown.items())
