"""Bundles on disk: a folder with ``model.json``, ``adapter.safetensors`` and ``README.md`` (the model card)."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing, SPDError, command_line
from SPDSegmentLib.files import check_folder, check_output, user_path, write_bytes, write_json, write_text
from SPDSegmentLib.models.base_weights import BASE_WEIGHTS, WEIGHTLESS_BACKBONES, base_weights_sha256, find_base_weights
from SPDSegmentLib.models.bundle_info import FORMAT_VERSION, BundleInfo, read_info
from SPDSegmentLib.models.storage import (
    check_finite,
    is_closed,
    read_tensor_shapes,
    sha256_of,
    shipped_models_folder,
    staging_folder,
    storage_error,
    user_models_folder,
)
from SPDSegmentLib.settings import shorten
from SPDSegmentLib.staging import remove_folder, replace_folder, sweep

if TYPE_CHECKING:
    import torch

    from SPDSegmentLib.geometry.intensity import IntensityConfig

INFO_NAME = "model.json"
ADAPTER_NAME = "adapter.safetensors"
CARD_NAME = "README.md"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle; ``adapter_path`` is its safetensors file."""

    info: BundleInfo
    folder: Path
    adapter_path: Path

    @property
    def card(self) -> str:
        """Text of the model card, empty where there is none."""
        try:
            return (self.folder / CARD_NAME).read_text(encoding="utf-8")
        except OSError:
            return ""

    def intensity(self) -> IntensityConfig:
        """How intensities of an image become those of the network.

        Raises:
            ModelCorrupt: ``model.json`` says what cannot be.
        """
        from SPDSegmentLib.geometry.intensity import IntensityConfig

        try:
            return IntensityConfig.from_dict(self.info.normalization)
        except BadInput as error:
            raise ModelCorrupt(f"{self.folder}: {error.message}", "Get a fresh copy of the bundle.") from error

    def check_settings(self) -> None:
        """Raise :class:`ModelCorrupt` where a setting was changed after the model was made."""
        try:
            self.info.check_settings()
        except ModelCorrupt as error:
            raise ModelCorrupt(
                f"{self.folder / INFO_NAME}: {error.message}",
                "Get a fresh copy of the bundle, or take it as it is by: "
                f"spdsegment models add --accept-unknown {command_line(self.folder)}",
                error.details,
            ) from error

    @property
    def shipped(self) -> bool:
        """Whether it came with the library."""
        return self.folder.parent == shipped_models_folder()


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle; its tensors are not loaded, and :meth:`Bundle.check_settings` is left to who uses it.

    Raises:
        ModelMissing: the folder holds no bundle.
        ModelCorrupt: a damaged or newer description, a wrong checksum, a truncated adapter, values that are not finite.
    """
    folder = user_path(folder).resolve()
    if is_closed(folder):
        raise ModelCorrupt(f"{folder} may not be entered.", "Change its permissions, or ask whose it is.")
    if not (folder / INFO_NAME).is_file():
        raise ModelMissing(f"{folder} holds no model bundle ({INFO_NAME} is missing).", "Choose a bundle's folder.")
    info = read_info(folder / INFO_NAME)
    adapter = folder / ADAPTER_NAME
    if not adapter.is_file():
        raise ModelCorrupt(f"{adapter} is missing.", "Get a fresh copy of the bundle.")
    read_tensor_shapes(adapter)
    state = adapter.stat()
    if (digest := _digest_of(adapter, state.st_size, state.st_mtime_ns)) != info.adapter_sha256:
        both = f"expected {info.adapter_sha256}\nactual   {digest}"
        raise ModelCorrupt(f"{adapter} has the wrong checksum.", "Get a fresh copy of the bundle.", both)
    return Bundle(info, folder, adapter)


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, _size: int, _changed_ns: int) -> str:
    """Checksum of a file of finite numbers; once in a process for each state: a window that lists must not wait."""
    check_finite(path)
    return sha256_of(path)


def write_bundle(folder: str | Path, info: BundleInfo, tensors: Mapping[str, torch.Tensor], card_text: str) -> Bundle:
    """Write a bundle beside its place, then move it there; an older bundle in its place is replaced.

    Args:
        folder: its last part is by custom ``info.name``.
        info: its checksums and ``format_version`` are filled in here.
        tensors: the adapter, written as safetensors.
        card_text: Markdown of the model card.

    Raises:
        BadInput: ``folder`` exists and is no bundle or is read-only, there is no permission or no space.
        ModelCorrupt: ``tensors`` have values that are not finite.
    """
    from safetensors.torch import save

    folder = user_path(folder).resolve()
    check_replaceable(folder)
    with staging_folder(folder.parent) as staging:
        new = staging / folder.name
        new.mkdir()
        packed = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        write_bytes(new / ADAPTER_NAME, packed, "model")
        _write_info(new, dataclasses.replace(info, adapter_sha256=sha256_of(new / ADAPTER_NAME)))
        write_text(new / CARD_NAME, card_text, "model card")
        _check_written(new, info.name)
        replace_folder(new, folder)
    return read_bundle(folder)


def _check_written(folder: Path, name: str) -> None:
    try:
        read_bundle(folder).intensity()
    except ModelCorrupt as error:
        raise ModelCorrupt(
            f"The model {name} was not written, because it could not be used: {error.message}",
            "If a training made it, lower its learning rate and train again.",
            error.details,
        ) from error


def _write_info(folder: Path, info: BundleInfo) -> None:
    """Write a description with the checksum of its settings."""
    info = dataclasses.replace(info, format_version=FORMAT_VERSION)
    write_json(folder / INFO_NAME, dataclasses.replace(info, settings_sha256=info.settings_digest()).to_dict())


def add_bundle(source: str | Path, accept_unknown: bool = False) -> Bundle:
    """Copy a bundle into the user's folder of models, in the place of one of the same name.

    Raises as :func:`read_bundle` and :func:`write_bundle`; :class:`BadInput` where another name's is in its place.

    Args:
        accept_unknown: take settings that were changed after the model was made, with a new checksum.
    """
    bundle = read_bundle(source)
    if not accept_unknown:
        bundle.check_settings()
    target = user_models_folder() / bundle.info.name
    if target.resolve() == bundle.folder:
        if accept_unknown:
            _write_info(bundle.folder, bundle.info)
        return read_bundle(bundle.folder)
    check_replaceable(target)
    if (other := _name_of(target / INFO_NAME, _files_of(target))) not in ("", target.name):
        why = f"The folder {target} holds another model of yours, {other}."
        raise BadInput(why, f"Rename that folder to {other}, then add this model again.")
    with staging_folder(target.parent) as staging:
        new = staging / target.name
        new.mkdir()
        for name in (INFO_NAME, ADAPTER_NAME, CARD_NAME):
            if (bundle.folder / name).is_file():
                write_bytes(new / name, (bundle.folder / name).read_bytes(), "model")
        if accept_unknown:
            _write_info(new, bundle.info)
        read_bundle(new)
        replace_folder(new, target)
    return read_bundle(target)


def check_removable(folder: Path) -> None:
    """Raise :class:`BadInput` for a bundle that is not in the user's folder."""
    if folder.resolve().parent == shipped_models_folder():
        why = f"The model {folder.name} comes with SPDSegment and cannot be removed."
        raise BadInput(why, "Leave it; a model of your own of the same name is used in its place.")
    if folder.resolve().parent != user_models_folder().resolve():
        raise BadInput(f"{folder} is not in the folder of your models.", "Delete that folder yourself if you want to.")


def remove_bundle(folder: str | Path) -> None:
    """Delete a bundle, sound or damaged, of the user's folder; raises as :func:`check_removable`."""
    folder = Path(folder).resolve()
    check_removable(folder)
    try:
        remove_folder(folder)
    except OSError as error:
        raise storage_error(error, folder) from error


def scan_bundles(extra_folders: Iterable[str | Path] = ()) -> tuple[list[Bundle], list[tuple[Path, SPDError]]]:
    """All bundles in the shipped, the user's and further folders, and those that cannot be used, with the reason.

    Of two bundles of one name the first counts, in the order: further folders, the user's, the shipped ones. Whatever a
    folder holds, it never hides another one's bundles.
    """
    return _scan(_roots(extra_folders))


def _roots(extra_folders: Iterable[str | Path]) -> list[Path]:
    """Folders of bundles, the first first; what a kill has left in the user's is swept away."""
    roots = [user_path(folder).resolve() for folder in extra_folders] + [user_models_folder().resolve()]
    sweep(user_models_folder())
    return [*roots, *filter(None, [shipped_models_folder()])]


def list_shipped_bundles() -> list[Bundle]:
    """The usable bundles that come with the library, whatever the user's folder holds."""
    return _scan(filter(None, [shipped_models_folder()]))[0]


def _scan(roots: Iterable[Path]) -> tuple[list[Bundle], list[tuple[Path, SPDError]]]:
    found: dict[str, Bundle] = {}
    broken: list[tuple[Path, SPDError]] = []
    for root in roots:
        for folder in _bundle_folders(root):
            try:
                bundle = read_bundle(folder)
                bundle.check_settings()
            except SPDError as error:
                broken.append((folder, error))
                continue
            except Exception as error:  # another one's folder must not end the whole list
                why = f"{type(error).__name__}: {error}"
                broken.append((folder, ModelCorrupt(f"{folder} cannot be read.", "Delete this folder.", why)))
                continue
            first = found.setdefault(bundle.info.name, bundle)
            if first is not bundle and not bundle.shipped:
                broken.append((folder, _same_name(first, folder)))
    return sorted(found.values(), key=lambda bundle: bundle.info.name), broken


def _same_name(first: Bundle, folder: Path) -> BadInput:
    return BadInput(
        f"{folder} has the same name as {first.folder}, which is used.",
        'Choose it by its folder, or give it another name in the field "name" of its model.json.',
    )


def bundle_state(name_or_path: str) -> tuple[object, ...]:
    """What differs once a bundle was replaced: place, sizes and times of its files; empty where none is here.

    It can be asked before every use: nothing is read but, once for each state, the names of bundles in the folders.
    """
    with contextlib.suppress(OSError, ValueError):
        path, roots = user_path(name_or_path), filter(None, (user_models_folder(), shipped_models_folder()))
        if _holds_info(path):
            return _files_of(path)
        states = {f: _files_of(f) for root in roots for f in _bundle_folders(root) if _holds_info(f)}
        return tuple(s for f, s in states.items() if name_or_path in (f.name, _name_of(f / INFO_NAME, s)))
    return ()


def _files_of(folder: Path) -> tuple[object, ...]:
    files = [file.stat() for name in (INFO_NAME, ADAPTER_NAME) if (file := folder / name).is_file()]
    return (str(folder.absolute()), *((file.st_size, file.st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=64)
def _name_of(description: Path, _state: tuple[object, ...]) -> str:
    """The name that a description gives, empty where it cannot be read."""
    with contextlib.suppress(SPDError):
        return read_info(description).name
    return ""


def origin_note(bundle: Bundle) -> str:
    """A sentence where a name alone would not tell which bundle is used, otherwise empty."""
    shipped = shipped_models_folder()
    if bundle.shipped or shipped is None or not any(f.name == bundle.info.name for f in _bundle_folders(shipped)):
        return ""
    return f"The model {bundle.info.name} is your own ({bundle.folder}), not the one of this name that is shipped."


def list_bundles(extra_folders: Iterable[str | Path] = ()) -> list[Bundle]:
    """The usable bundles of :func:`scan_bundles`."""
    return scan_bundles(extra_folders)[0]


def find_bundle(name_or_path: str | Path, extra_folders: Iterable[str | Path] = ()) -> Bundle:
    """A bundle by its folder or by its name.

    Raises:
        ModelMissing: none such; the known names are listed.
        ModelCorrupt: it is damaged.
    """
    path = user_path(name_or_path)
    if _holds_info(path):
        return read_bundle(path)
    wanted, scanned = str(name_or_path), [(root, *_scan([root])) for root in _roots(extra_folders)]
    bundles = {bundle.info.name: bundle for _, sound, _ in reversed(scanned) for bundle in sound}
    for root, sound, broken in scanned:
        for folder, error in broken:
            if folder.name == wanted and not isinstance(error, BadInput):
                # Also where a later one of this name is sound: which of the two was meant, nobody knows.
                own = root == user_models_folder().resolve() and wanted in bundles
                raise _with_way_out(error, wanted) if own else error
        for bundle in sound:
            if bundle.info.name == wanted:
                return bundle
    for _, bundle in sorted(bundles.items()):
        if bundle.folder.name == wanted:
            return bundle
    if os.path.isdir(path):
        raise ModelMissing(f"{path} holds no model bundle ({INFO_NAME} is missing).", "Choose a bundle's folder.")
    known = ", ".join(sorted(bundles)) or "none"
    small = {name.casefold(): name for name in bundles}
    near = difflib.get_close_matches(wanted.casefold(), small, n=1)
    meant = f"Did you mean {small[near[0]]}? " if near else ""
    unknown = f"There is no model '{shorten(wanted)}'."
    said = f"{wanted} is base weights, not a model." if wanted in BASE_WEIGHTS else unknown
    raise ModelMissing(said, f"{meant}Give a folder or one of these: {known}.")


def _with_way_out(error: SPDError, name: str) -> SPDError:
    remedy = f"{error.remedy} For the shipped model of this name remove this one by: spdsegment models remove {name}"
    return type(error)(error.message, remedy.strip(), error.details)


def describe_again(bundle: Bundle, **changes: Any) -> Bundle:
    """Change fields of a bundle's ``model.json``; its settings count as unchanged by anybody else."""
    _write_info(bundle.folder, dataclasses.replace(bundle.info, **changes))
    return read_bundle(bundle.folder)


def base_weights_for(bundle: Bundle) -> Path | None:
    """Verified base weights of a bundle, None for a backbone without any (initialized at random).

    Raises:
        ModelMissing: they are not on this machine.
        ModelCorrupt: damaged, or others than the bundle was trained on.
    """
    info = bundle.info
    if info.backbone in WEIGHTLESS_BACKBONES:
        return None
    path = find_base_weights(info.backbone)
    digest = base_weights_sha256(info.backbone)
    if digest != info.backbone_sha256:
        raise ModelCorrupt(
            f"The model {info.name} was trained on other weights of {info.backbone} than those on this machine.",
            "Add the file that it was trained on by: spdsegment models add "
            f"--as {info.backbone} --sha256 {info.backbone_sha256} FILE",
            details=f"on this machine: {digest} ({path})",
        )
    return path


def _bundle_folders(root: Path) -> list[Path]:
    try:
        children = sorted(root.iterdir())
    except OSError:
        return []
    return [c for c in children if not c.name.startswith(".") and (_holds_info(c) or is_closed(c))]


def _holds_info(folder: Path) -> bool:
    try:
        return (folder / INFO_NAME).is_file()
    except OSError:  # a folder that may not be entered, or a name that no disk takes
        return False


def check_replaceable(folder: Path) -> None:
    """Raise :class:`BadInput` where a bundle cannot be written: a file, another kind of folder, rights are missing."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INFO_NAME).is_file():
        raise BadInput(f"{folder} exists and is no model bundle.", "Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file.", "Choose another folder.")
    check_folder(folder.parent, "folder of the model")
    check_folder(folder, "folder of the model")
    for name in (INFO_NAME, ADAPTER_NAME, CARD_NAME):
        if (folder / name).exists():
            check_output(folder / name, "model's file")
