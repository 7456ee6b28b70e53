"""Where models lie, where they are made, and whether their files are whole: checksums, space, safetensors headers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from SPDSegmentLib import staging
from SPDSegmentLib.errors import BadInput, Cancelled, ModelCorrupt
from SPDSegmentLib.files import megabytes, user_path, write_json
from SPDSegmentLib.settings import parse_json, shorten

if TYPE_CHECKING:
    from torch import Tensor

HOME_VARIABLE = "SPDSEGMENT_HOME"

_PACKAGE = Path(__file__).resolve().parent.parent
_FULL = {errno.ENOSPC, errno.EDQUOT}
ByteProgress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None where unknown)."""

CancelQuery = Callable[[], bool]
"""Asked between blocks; true stops the work with :class:`Cancelled`."""

BLOCK = 1 << 20
MEMORY_NAME = ".verified.json"
MAX_HEADER_BYTES = 8_000_000
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""Types of a bundle's tensors: their bits as numpy reads them, and those bits that are all set in NaN and infinity."""
_CHANGE = "I8"
_BASE_PARTS = ("mask_decoder.", "prompt_encoder.")
_SCALES = ".scale"
_LEAST_CHANGED = 4096
"""Values of a tensor below which it stays in half precision: tokens, biases and norms, which are few."""
_BLOCK_BYTES = 1 << 24


def home_folder() -> Path:
    """The user's folder of SPDSegment: ``$SPDSEGMENT_HOME``, or the usual place of the operating system."""
    chosen = os.environ.get(HOME_VARIABLE, "").strip()
    if chosen:
        return user_path(chosen).resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "SPDSegment"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "SPDSegment"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "spdsegment"


def weights_folder() -> Path:
    """Where base weights are kept; need not exist yet."""
    return home_folder() / "weights"


def user_models_folder() -> Path:
    """Where the user's own bundles are kept; need not exist yet."""
    return home_folder() / "models"


def resources_folder() -> Path | None:
    """The ``Resources`` folder, in a source tree and Slicer beside the package, in a wheel inside it."""
    for candidate in (_PACKAGE.parent / "Resources", _PACKAGE / "Resources"):
        if candidate.is_dir():
            return candidate
    return None


def shipped_models_folder() -> Path | None:
    """The bundles that come with the library, None where there are none."""
    resources = resources_folder()
    return resources / "Models" if resources and (resources / "Models").is_dir() else None


def is_closed(folder: Path) -> bool:
    """Whether a folder is there and may not be entered."""
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK)


def storage_error(error: OSError, folder: Path) -> BadInput:
    """The sentence for a folder that cannot be written to."""
    if error.errno in _FULL:
        return BadInput(f"The disk that holds {folder} is full.", "Free some space and try again.", details=repr(error))
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return BadInput(
            f"No permission to write to {folder}.",
            "Change its permissions, or set SPDSEGMENT_HOME to a folder of your own.",
            details=repr(error),
        )
    return BadInput(
        f"{folder} cannot be used: {error.strerror or error}.",
        "Set SPDSEGMENT_HOME to another folder.",
        details=repr(error),
    )


@contextlib.contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """A hidden folder in ``beside`` (made when missing) for a file that is not whole yet; removed at the end.

    Raises:
        BadInput: ``beside`` cannot be written to, or its disk is full, now or while the folder is in use.
    """
    try:
        with staging.staging_folder(beside) as folder:
            try:
                yield folder
            except BadInput as error:
                error.message = error.message.replace(str(folder), str(beside))
                raise
    except OSError as error:
        raise storage_error(error, beside) from error


def check_free_space(folder: Path, size: int | None) -> None:
    """Raise :class:`BadInput` where ``size`` bytes do not fit into an existing folder."""
    if size is None:
        return
    free = shutil.disk_usage(folder).free
    if free < size:
        raise BadInput(
            f"The disk that holds {folder} has {megabytes(free)} free; {megabytes(size)} are needed.",
            "Free some space, or set SPDSEGMENT_HOME to a folder on another disk.",
        )


def sha256_of(
    path: Path, progress: ByteProgress | None = None, cancel: CancelQuery | None = None, algorithm: str = "sha256"
) -> str:
    """Hexadecimal digest of a file, read in blocks."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm == "sha256")
    total, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            if cancel is not None and cancel():
                raise Cancelled()
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


class ChecksumMemory:
    """Remembers the digest of files by name, size and modification time, in a JSON file of their folder.

    Hashing the largest base weights (2.5 GB) takes seconds to a minute, at every start. A file whose size and
    modification time (nanoseconds) are those of its last full check is taken as unchanged. That finds truncation and
    replacement, not silent decay of the disk nor someone who sets the time back on purpose; ``models verify`` always
    hashes. A damaged or unwritable memory costs time, never a failure.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEMORY_NAME

    def digest(self, path: Path, progress: ByteProgress | None = None, cancel: CancelQuery | None = None) -> str:
        """SHA-256 of ``path``, remembered or computed; of a file that changes meanwhile nothing is remembered."""
        digest = self.recall(path)
        if digest is None:
            before = path.stat()
            digest = sha256_of(path, progress, cancel)
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                self.remember(path, digest)
        return digest

    def recall(self, path: Path) -> str | None:
        """SHA-256 of ``path`` if it is remembered and the file is unchanged, otherwise None."""
        stat = path.stat()
        known = self._read().get(path.name)
        if (
            isinstance(known, dict)
            and (known.get("size"), known.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
            and isinstance(known.get("sha256"), str)
        ):
            return str(known["sha256"])
        return None

    def remember(self, path: Path, digest: str) -> None:
        """Note that ``path``, as it is now, has this digest."""
        stat = path.stat()
        entries = self._read()
        entries[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
        self._write(entries)

    def forget(self, path: Path) -> None:
        """Drop what is known of ``path``."""
        entries = self._read()
        if entries.pop(path.name, None) is not None:
            self._write(entries)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _write(self, entries: dict[str, Any]) -> None:
        with contextlib.suppress(BadInput):
            write_json(self._path, entries)


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a whole safetensors file of half or single precision numbers and changes.

    Layout: 8 bytes little-endian header length, JSON header, tensor bytes without gaps (safetensors format).

    Raises:
        ModelCorrupt: truncated, extra bytes, not a safetensors file, another type of numbers.
    """
    return {name: shape for name, (shape, _, _) in _read_header(path).items()}


def check_finite(path: Path) -> None:
    """Raise :class:`ModelCorrupt` where a value of a file that :func:`read_tensor_shapes` took is NaN or infinite."""
    import numpy as np

    header = _read_header(path)
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for name, (shape, dtype, begin) in header.items():
            if dtype == _CHANGE:
                continue
            bits, exponent = _EXPONENTS[dtype]
            itemsize = np.dtype(bits).itemsize
            stream.seek(start + begin)
            left = prod(shape) * itemsize
            while left:
                block = np.frombuffer(stream.read(min(left, _BLOCK_BYTES)), bits)
                left -= block.nbytes
                if not len(block) or ((block & exponent) == exponent).any():
                    raise _damaged(path, f"the tensor '{shorten(name)}' holds values that are NaN or infinite")


def to_changes(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter as a bundle stores it: changes of the base weights as whole numbers, all else in half precision.

    Every large tensor of the decoder and the prompt encoder that the base weights have becomes ``NAME``, int8 from -127
    to 127, and ``NAME.scale``, one single precision number for each row (entry of the first dimension):
    NAME = base + scale * change.

    Args:
        tensors, base: by name, as in the file of the base weights; ``base`` is empty where there are none.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        start = base.get(name) if name.startswith(_BASE_PARTS) and tensor.numel() >= _LEAST_CHANGED else None
        if start is None or start.shape != tensor.shape or tensor.ndim < 2:
            stored[name] = tensor.half()
            continue
        same = tensor == start.to(tensor.dtype)  # also where half precision rounded what no step had changed
        change = (tensor.float() - start.float()).masked_fill(same, 0.0).flatten(1)
        scale = change.abs().amax(1) / 127
        stored[name] = (change / scale.clamp(min=1e-30)[:, None]).round().char().view(tensor.shape)
        stored[name + _SCALES] = scale
    return stored


def from_changes(stored: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter of what :func:`to_changes` or an older version stored, changes added in single precision.

    Raises:
        ModelCorrupt: a change of what the base weights do not have, or one that is not finite.
    """
    adapter = dict(stored)
    for name in changed_names(stored):
        scale, start = adapter.pop(name + _SCALES, None), base.get(name) if name.startswith(_BASE_PARTS) else None
        if scale is None or start is None or start.shape != stored[name].shape:
            raise _misfit(name, "is stored as a change of base weights that do not have it")
        change = stored[name].float().flatten(1) * scale[:, None]
        adapter[name] = start.float() + change.view(start.shape)
        if not adapter[name].isfinite().all():
            raise _misfit(name, "is not finite with its change")
    return adapter


def _misfit(name: str, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"The adapter's tensor '{shorten(name)}' {why}.", "Get a fresh copy of the bundle.")


def changed_names(stored: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are stored as changes of base weights."""
    return [name for name, tensor in stored.items() if str(tensor.dtype) == "torch.int8"]


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Shape, type and first byte of each tensor."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, "it is truncated or not a safetensors file")
            header: Any = parse_json(stream.read(length))
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise _damaged(path, f"its header {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not readable")
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[tuple[int, ...], str, int]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise _damaged(path, "its header is not readable")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
            raise _damaged(path, "its header is not readable")
        scales, wanted = header.get(name + _SCALES), {"dtype": "F32", "shape": shape[:1]}
        scaled = len(shape) > 1 and isinstance(scales, dict) and wanted.items() <= scales.items()
        if not isinstance(dtype, str) or not (dtype in _EXPONENTS or (dtype == _CHANGE and scaled)):
            raise _damaged(path, f"the tensor '{shorten(name)}' has the type {shorten(dtype)}, not F16, BF16 or F32")
        if offsets[1] - offsets[0] != prod(shape) * (1 if dtype == _CHANGE else int(_EXPONENTS[dtype][0][-1])):
            raise _damaged(path, "its tensors do not fit together")
        tensors[name] = (tuple(shape), dtype, offsets[0])
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise _damaged(path, "its tensors do not fit together")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"it has {size - 8 - length} bytes of tensors in place of {end}")
    return tensors


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _damaged(path: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path} is damaged: {why}.", "Get a fresh copy of the bundle.")
