"""Bundles that travel: one zip file with checksums, and the folder that a model hub expects.

A packed bundle is a zip archive of one folder: the bundle's files and ``SHA256SUMS``, one line a file. Nothing is taken
out of an archive before names and sizes of all members are known to be these, and nothing is kept that is not whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
import zipfile
import zlib
from pathlib import Path

from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.files import check_folder, megabytes, write_bytes, write_text, write_whole
from SPDSegmentLib.models.bundle import ADAPTER_NAME, CARD_NAME, INFO_NAME, Bundle, add_bundle
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.models.download import download_url
from SPDSegmentLib.models.storage import ByteProgress, check_free_space, sha256_of, staging_folder, user_models_folder

SUMS_NAME = "SHA256SUMS"
LARGEST_BYTES = {INFO_NAME: 16 << 20, CARD_NAME: 4 << 20, SUMS_NAME: 1 << 16, ADAPTER_NAME: 2 << 30}
"""What a member may hold at most; an archive that says or holds more is refused."""
_FRONT = re.compile(r"\A---\n.*?\n---\n\n?", re.DOTALL)
_OTHER_ARCHIVES = (".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z")
_AGAIN = "Get the file again from where it was made, with 'spdsegment models pack'."
_STORED = (1980, 1, 1, 0, 0, 0)
"""Time of all members, so that the same bundle always gives the same file."""


def pack_bundle(bundle: Bundle, target: str | Path) -> None:
    """Write a bundle as one file (``.zip``), or into a new folder as a model hub expects it, with no file in part.

    Raises:
        BadInput: the target cannot be written, is named as another archive, or is a folder that holds something.
    """
    target = Path(target)
    if target.suffix.lower() in _OTHER_ARCHIVES and not target.is_dir():
        raise BadInput(f"A model is packed as .zip, and {target} is named as another archive.", "Name it NAME.zip.")
    contents = {name: (bundle.folder / name).read_bytes() for name in (INFO_NAME, ADAPTER_NAME)}
    contents[CARD_NAME] = hub_card(bundle).encode()
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items()))
    contents[SUMS_NAME] = sums.encode()
    if target.suffix.lower() != ".zip":
        check_folder(target, "folder of the model")
        if target.exists() and any(target.iterdir()):
            raise BadInput(
                f"{target} is there already and not empty.", "Give a new folder, or a name ending with .zip."
            )
        with staging_folder(target) as staging:
            for name, data in contents.items():
                write_bytes(staging / name, data, "model")
            for name in contents:
                os.replace(staging / name, target / name)
        return

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(contents.items()):
                archive.writestr(zipfile.ZipInfo(f"{bundle.info.name}/{name}", _STORED), data, zipfile.ZIP_DEFLATED)

    write_whole(target, write, lambda part: _read(part) == contents, "packed model")


def hub_card(bundle: Bundle) -> str:
    """The model card with the front matter (YAML) by which a model hub lists it."""
    info: BundleInfo = bundle.info
    fields = {
        "library_name": "spdsegment",
        "pipeline_tag": "mask-generation",
        "license": "other",
        "license_name": info.license or "unknown",
        "base_model": info.backbone,
    }
    lines = ["---", *(f"{name}: {_yaml(value)}" for name, value in fields.items()), "tags:"]
    tags = ("medical", "image-segmentation", "3d-slicer", info.modality, info.structure)
    return "\n".join([*lines, *(f"- {_yaml(tag.lower())}" for tag in tags), "---", "", without_front(bundle.card)])


def without_front(card: str) -> str:
    """A model card without its front matter."""
    return _FRONT.sub("", card, count=1)


def _yaml(text: str) -> str:
    plain = " ".join(text.split())
    return (
        plain
        if re.fullmatch(r"[A-Za-z][\w.-]*", plain)
        else '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )


def is_address(source: str) -> bool:
    """Whether a source is to be downloaded."""
    return urllib.parse.urlsplit(source).scheme.lower() in ("https", "http", "ftp")


def add_packed(
    source: str | Path, accept_unknown: bool = False, sha256: str | None = None, progress: ByteProgress | None = None
) -> Bundle:
    """Add a bundle that was packed as one file, from a path or an https address.

    Args:
        sha256: checksum that the whole file must have.

    Raises:
        ModelMissing: it cannot be downloaded.
        ModelCorrupt: it is no packed bundle, damaged, or another one than ``sha256`` says.
        BadInput: as :func:`SPDSegmentLib.models.bundle.add_bundle`.
    """
    with staging_folder(user_models_folder()) as staging:
        file = Path(source)
        if is_address(str(source)):
            file = staging / "download.zip"
            download_url(str(source), file, None, progress)
        elif not file.is_file():
            raise BadInput(f"There is no packed model {file}.", "Check its path.")
        if sha256 is not None and sha256_of(file) != sha256.lower():
            raise ModelCorrupt(f"{source} does not have the checksum that was given.", _AGAIN)
        contents = _read(file, str(source))
        check_free_space(staging, sum(map(len, contents.values())))
        folder = staging / "unpacked"
        folder.mkdir()
        for name, data in contents.items():
            if name == CARD_NAME:
                write_text(folder / name, without_front(data.decode("utf-8", "replace")), "model")
            elif name != SUMS_NAME:
                write_bytes(folder / name, data, "model")
        return add_bundle(folder, accept_unknown)


def _read(path: Path, source: str = "") -> dict[str, bytes]:
    """All files of a packed bundle by name, compared with its checksums."""
    source = source or str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {}
            folders = set()
            for member in archive.infolist():
                if member.is_dir():
                    continue
                folder, _, name = member.filename.rpartition("/")
                largest = LARGEST_BYTES.get(name)
                if largest is None or "/" in folder or folder in (".", "..") or "\\" in folder or name in contents:
                    raise ModelCorrupt(f"{source} is no packed model: it holds {member.filename!r:.80}.", _AGAIN)
                with archive.open(member) as stream:
                    contents[name] = stream.read(largest + 1)
                if len(contents[name]) > largest:
                    raise ModelCorrupt(f"{name} in {source} is larger than {megabytes(largest)}.", _AGAIN)
                folders.add(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise ModelCorrupt(f"{source} is damaged, or no zip file.", _AGAIN, repr(error)) from error
    if len(folders) != 1 or not {INFO_NAME, ADAPTER_NAME, SUMS_NAME} <= contents.keys():
        raise ModelCorrupt(f"{source} is no packed model: it lacks files of one.", _AGAIN)
    told = dict(
        line.split("  ", 1)[::-1]
        for line in contents[SUMS_NAME].decode("utf-8", "replace").splitlines()
        if "  " in line
    )
    for name, data in contents.items():
        if name != SUMS_NAME and told.get(name) != hashlib.sha256(data).hexdigest():
            raise ModelCorrupt(f"{name} in {source} is not what its checksum says.", _AGAIN)
    return contents
