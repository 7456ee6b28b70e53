"""Files that are whole or not there: the one way by which anything of SPDSegment reaches a disk, and their names.

A file is written beside its place under a hidden name, closed, synced, read back and renamed, so that the file it
replaces stays until the new one is known to be whole. Rights stay, symbolic links stay links, read-only files are
refused, and what killed runs have left is swept.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError, well_formed
from SPDSegmentLib.staging import hidden_name, sweep, sync, sync_folder

PROBE_BYTES = 1 << 16
_NO_RIGHT = ("there is no permission", "Change the permissions of the file and its folder, or choose another.")
_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space and try again."),
    errno.EDQUOT: ("your disk quota is used up", "Free some space and try again."),
    errno.EFBIG: ("it exceeds the limit on file sizes", "Raise the limit (ulimit -f), or use another disk."),
    errno.EROFS: ("the disk is read-only", "Choose another folder."),
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name."),
    errno.ELOOP: ("its symbolic links lead in a circle", "Remove the link, or choose another name."),
    errno.ENOENT: ("its folder does not exist", "Create the folder first."),
    errno.EIO: ("the disk failed", "Check the disk, or choose another one."),
}
_SUFFIX = re.compile(r"(\.nii\.gz|\.seg\.nrrd|\.mrk\.json|\.[a-z0-9]{1,12})$")


def write_whole(
    path: str | Path, write: Callable[[Path], object], check: Callable[[Path], object] | None = None, what: str = "file"
) -> None:
    """Write a file in one piece, or leave what is there as it is.

    Args:
        write: writes to the path that it is given: in the same folder, with the same file name extension, in a name
            that every library can open.
        check: reads that file back; it is whole unless this raises or returns False.
        what: word for messages.

    Raises:
        BadInput: there is no space, no right to it, or what is read back is not whole.
    """
    path = Path(path)
    try:
        target = _place_of(path, what)
        with plain_path(target.parent) as folder, _part(folder, target) as (staged, mode):
            try:
                write(staged)
                sync(staged)
                whole = _is_whole(staged, check)
            except Exception as error:
                if isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError":
                    _raise_cause(staged, path, what, error)
                raise
            if not whole:
                _raise_cause(staged, path, what, None)
            _take_rights(staged, target, mode)
            os.replace(staged, target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error, what) from error


def write_bytes(path: str | Path, content: bytes, what: str = "file") -> None:
    """Write bytes, see :func:`write_whole`."""
    write_whole(path, lambda part: part.write_bytes(content), lambda part: part.read_bytes() == content, what)


def write_text(path: str | Path, text: str, what: str = "file") -> None:
    """Write UTF-8, see :func:`write_whole`; what is no valid Unicode is written as an escape."""
    write_bytes(path, well_formed(text).encode(), what)


def write_json(path: str | Path, value: Any, what: str = "file", indent: int | None = 2) -> None:
    """Write strict JSON, see :func:`write_whole`; numbers that are not finite become null."""
    text = json.dumps(json_ready(value), indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", what)


def write_csv(path: str | Path, rows: Iterable[Sequence[object]], what: str = "file", marked: bool = False) -> None:
    """Write a table, its header first, see :func:`write_whole`; ``marked`` as UTF-8 for Excel where it is not ASCII."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    text = stream.getvalue()
    write_text(path, f"\ufeff{text}" if marked and not text.isascii() else text, what)


def write_png(path: str | Path, draw: Callable[[Path], object], what: str = "picture") -> None:
    """Let ``draw`` write a picture, see :func:`write_whole`; its last block must be there."""
    write_whole(path, draw, lambda part: part.read_bytes()[-8:-4] == b"IEND", what)


def check_output(path: str | Path, what: str = "file", needed_bytes: int = 0, taken: Iterable[Path] = ()) -> None:
    """Find out before the work whether a file can be written; leaves everything as it is.

    Args:
        needed_bytes: how large it becomes at the least.
        taken: inputs and other outputs, which it must not replace.

    Raises:
        BadInput: the folder is missing, the name is too long or taken by something else, rights or space are missing.
    """
    path = Path(path)
    try:
        target = _place_of(path, what)
        if any(_is_same(target, other) for other in taken):
            raise BadInput(f"The {what} {path} is also an input or another output.", "Give it another name.")
        with plain_path(target.parent) as folder, _part(folder, target) as (staged, _):
            check_space(staged.parent, needed_bytes, f"The {what} {path}")
    except OSError as error:
        raise write_error(path, error, what) from error


def check_folder(folder: str | Path, what: str = "folder") -> None:
    """Find out before the work whether a folder that may not exist yet can be made and written into.

    Raises:
        BadInput: a file has its name, the name is too long, rights or space are missing, its drive is not there.
    """
    folder = Path(folder)
    there = Path(os.path.abspath(folder))
    missing: list[str] = []
    while not os.path.lexists(there):
        if there.parent == there:
            raise BadInput(
                f"The {what} {folder} cannot be reached: there is no {there}.", "Connect that drive, or choose another."
            )
        missing.append(there.name)
        there = there.parent
    try:
        if not there.is_dir():
            raise BadInput(f"The {what} {folder} is a file, or lies in one ({there}).", "Give the name of a folder.")
        for name in missing:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(there / name)
        sweep(there)
        with hidden_name(there) as probe:
            probe.mkdir()
            probe.rmdir()
        check_space(there, 0, f"The {what} {folder}")
    except OSError as error:
        raise write_error(folder, error, what) from error


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise :class:`BadInput` where the disk of ``folder`` or the process's limit has no place for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise BadInput(
            f"{what} needs about {megabytes(needed_bytes)}, and the disk has {megabytes(free)} free.",
            _REASONS[errno.ENOSPC][1],
        )
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and limit < needed_bytes:
            raise BadInput(
                f"{what} needs about {megabytes(needed_bytes)}, and files are limited to {megabytes(limit)}.",
                _REASONS[errno.EFBIG][1],
            )


def write_error(path: str | Path, error: OSError, what: str = "file") -> BadInput:
    """The sentence for a file that cannot be written."""
    reason, remedy = _REASONS.get(
        error.errno or 0, (str(error.strerror or error).lower(), "Check the folder, or choose another one.")
    )
    return BadInput(f"The {what} {path} cannot be written: {reason}.", remedy, repr(error))


def megabytes(size: int) -> str:
    """A size for people, e.g. ``39.4 MB``."""
    if size < 100_000:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _place_of(path: Path, what: str) -> Path:
    """Where a file is really written to, once it is known that something may be written there."""
    target = _behind_links(path)
    if not target.parent.is_dir():
        raise BadInput(f"The {what} needs a folder: {target.parent} does not exist.", "Create it first.")
    _refuse_kept(path, target, what)
    sweep(target.parent)
    return target


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names are of one file, also where capital letters do not count."""
    both_there = path.exists() and other.exists()
    return path.samefile(other) if both_there else path.resolve() == other.resolve()


def _behind_links(path: Path) -> Path:
    """The file that a symbolic link leads to, or the path itself; raises OSError for names that no disk takes."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return path
    except ValueError as error:
        raise OSError(errno.EINVAL, "The name is not valid") from error
    if not stat.S_ISLNK(state.st_mode):
        return path
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
    return Path(os.path.realpath(path))


def _refuse_kept(path: Path, target: Path, what: str) -> None:
    """Refuse to replace what is no file, or a file that may not be written."""
    try:
        state = os.stat(target)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(state.st_mode):
        raise BadInput(f"The {what} {path} is a folder.", "Give a file name.")
    if not stat.S_ISREG(state.st_mode):
        raise BadInput(f"The {what} {path} is a device or a pipe.", "Give a file name.")
    if not state.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise BadInput(f"The {what} {path} is there already and read-only.", "Make it writable, or use another name.")
    folder = os.stat(target.parent)
    if folder.st_mode & stat.S_ISVTX and os.name == "posix" and os.geteuid() not in (0, state.st_uid, folder.st_uid):
        raise BadInput(f"The {what} {path} belongs to another user.", "Choose another name.")


@contextlib.contextmanager
def _part(folder: Path, target: Path) -> Iterator[tuple[Path, int]]:
    """Make an empty hidden file in ``folder``, as private as its target; yields it and the mode of new files."""
    try:
        private = not os.stat(target).st_mode & 0o077
    except FileNotFoundError:
        private = False
    with hidden_name(folder, suffix=suffix_of(target.name)) as part:
        try:
            handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666)
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.close(handle)
            yield part, mode
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _is_whole(staged: Path, check: Callable[[Path], object] | None) -> bool:
    try:
        return staged.is_file() and (check is None or check(staged) is not False)
    except (MemoryError, ImportError, Cancelled):
        raise
    except Exception:
        return False


def _raise_cause(staged: Path, path: Path, what: str, error: Exception | None) -> NoReturn:
    """Raise what the disk says when a little more is written, else that the file is not whole."""
    with staged.open("ab") as stream:
        stream.write(bytes(PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    reason = "what was read back is not whole" if error is None else "its writer failed"
    raise BadInput(
        f"The {what} {path} cannot be written: {reason}.",
        "Check the disk, or choose another folder.",
        repr(error) if error is not None else "",
    ) from error


def _take_rights(staged: Path, target: Path, mode: int) -> None:
    """Give a new file the rights, the group and the attributes of the one that it replaces."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        _set_mode(staged, mode)
        return
    kept = stat.S_IMODE(old.st_mode)
    if os.name == "posix":
        new, owner = os.stat(staged), old.st_uid if os.geteuid() == 0 else -1
        try:
            if new.st_gid != old.st_gid or owner not in (-1, new.st_uid):
                os.chown(staged, owner, old.st_gid)
        except OSError:  # another group must not get the rights of the old one
            kept &= ~0o070 | (kept & 0o007) << 3
    with contextlib.suppress(OSError):
        shutil.copystat(target, staged)
        os.utime(staged)
    _set_mode(staged, kept)


def _set_mode(path: Path, mode: int) -> None:
    """Set a file's mode; where a network share or another system's disk refuses, its own stays unless it opens more."""
    now = stat.S_IMODE(os.stat(path).st_mode)
    if now == mode:
        return
    try:
        os.chmod(path, mode)
    except OSError:
        if now & ~mode:
            raise


def json_ready(value: Any) -> Any:
    """A tree of values as JSON holds it: texts well formed, numbers of numpy plain, those that are not finite null."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {json_ready(str(key)): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if hasattr(value, "tolist"):
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else str(value)


def suffix_of(name: str) -> str:
    """File name extension in lower case, both parts of a double one; empty where it is none."""
    match = _SUFFIX.search(name.lower())
    return match[0] if match and match.start() > 0 else ""


def user_path(text: str | Path) -> Path:
    """A path that a person gave; ``~`` stands for the home folder unless something of that very name is there."""
    path = Path(text)
    return path if os.path.lexists(path) else Path(os.path.expanduser(path))


@contextlib.contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """A path to the same file or folder that libraries in C++ can open, through a temporary link where need be.

    Names that are no valid UTF-8 (old network shares, archives from elsewhere) end a process that hands them to ITK.

    Raises:
        BadInput: this system cannot make the link.
    """
    if _is_plain(str(path)):
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spd-")))
            place = Path(os.path.abspath(path))
            link = scratch / ("folder" if _is_plain(path.name) else f"file{suffix_of(path.name)}")
            link.symlink_to(place.parent if _is_plain(path.name) else place)
        except OSError as error:
            raise BadInput(f"The name of {path} is not valid Unicode.", "Rename it.", repr(error)) from error
        plain, known = (link / path.name, path.parent) if _is_plain(path.name) else (link, path)
        try:
            yield plain
        except SPDError as error:
            error.message = error.message.replace(str(link), well_formed(str(known)))
            raise


def _is_plain(text: str) -> bool:
    return text == well_formed(text)
