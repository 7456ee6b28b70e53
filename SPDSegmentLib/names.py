"""Names of files as people, systems and libraries spell them."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from SPDSegmentLib.errors import BadInput, SPDError, well_formed

_SUFFIX = re.compile(r"(\.nii\.gz|\.seg\.nrrd|\.mrk\.json|\.[a-z0-9]{1,12})$")


def suffix_of(name: str) -> str:
    """File name extension in lower case, both parts of a double one; empty where it is none."""
    match = _SUFFIX.search(name.lower())
    return match[0] if match and match.start() > 0 else ""


def user_path(text: str | Path) -> Path:
    """A path that a person gave; ``~`` stands for the home folder unless something of that very name is there."""
    path = Path(text)
    return path if os.path.lexists(path) else Path(os.path.expanduser(path))


@contextlib.contextmanager
def plain_path(path: Path, contents: bool = False) -> Iterator[Path]:
    """A path to the same file or folder that libraries in C++ can open, through a temporary link where need be.

    Names that are no valid UTF-8 (old network shares, archives from elsewhere) end a process that hands them to ITK.

    Args:
        contents: of a folder, whether the names of its files must be plain as well.

    Raises:
        BadInput: this system cannot make the link.
    """
    listed = sorted(os.listdir(path)) if contents and path.is_dir() else []
    if all(map(_is_plain, [str(path), *listed])):
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spd-")))
            links = _link(Path(os.path.abspath(path)), listed, scratch)
        except OSError as error:
            raise BadInput(f"The name of {path} is not valid Unicode.", "Rename it.", repr(error)) from error
        try:
            yield next(iter(links))
        except SPDError as error:
            for link, place in reversed(links.items()):
                error.message = error.message.replace(str(link), well_formed(str(place)))
            raise


def _link(path: Path, listed: list[str], scratch: Path) -> dict[Path, Path]:
    """Make links in ``scratch``; the first one stands for ``path``, the next ones for the files in it."""
    if listed:
        inside = scratch / "folder"
        inside.mkdir()
        links = {inside: path}
        for number, name in enumerate(listed):
            link = inside / (name if _is_plain(name) else f"file-{number}{suffix_of(name)}")
            link.symlink_to(path / name)
            links[link] = path / name
        return links
    if _is_plain(path.name):
        (scratch / "folder").symlink_to(path.parent)
        return {scratch / "folder" / path.name: path}
    link = scratch / f"file{suffix_of(path.name)}"
    link.symlink_to(path)
    return {link: path}


def _is_plain(text: str) -> bool:
    return text == well_formed(text)
