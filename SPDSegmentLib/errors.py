"""The errors a user can cause or meet, each with one clear sentence.

Every error names what is wrong and where (``message``), what to do (``remedy``) and, for a bug report, technical
``details``. They cross the worker protocol by class name (:meth:`SPDError.to_wire`, :func:`error_from_wire`).
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from typing import Any, ClassVar

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Text that can be printed, encoded and parsed: bytes of a name that are no UTF-8 become ``\\xNN``."""
    return _SURROGATE.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


def command_line(*parts: object) -> str:
    """Words as a shell of this system takes them when they are pasted into it."""
    words = [str(part) for part in parts]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


MUST_LOOK = 6
"""Exit code of what was done, but must be looked at before it is used; no error."""


class SPDError(Exception):
    """Base of the family.

    Args:
        message: what is wrong, with which file, slice or setting; one sentence.
        remedy: what the user can do about it; one sentence or empty.
        details: text to copy into a report (a traceback, the last lines of a log); never shown unasked.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = well_formed(message)
        self.remedy = well_formed(remedy)
        self.details = well_formed(details)

    @property
    def sentence(self) -> str:
        """The text for the user: message and remedy."""
        return f"{self.message} {self.remedy}".strip()

    def __str__(self) -> str:
        return self.sentence

    def to_wire(self) -> dict[str, str]:
        """JSON-ready form; :func:`error_from_wire` restores it."""
        texts = {"message": self.message, "remedy": self.remedy, "details": self.details}
        return {"error": type(self).__name__, **texts}


class BadInput(SPDError):
    """A file, a click or a setting of the user's cannot be used."""

    exit_code = 2


class DeviceUnavailable(BadInput):
    """The device that was asked for is not there or cannot be used."""

    exit_code = 4


class GeometryUnsupported(SPDError):
    """The volume's or the points' geometry cannot be handled (non-linear transform, sheared axes)."""

    exit_code = 2


class DependencyMissing(SPDError):
    """A Python package that this step needs is not installed or cannot be imported."""

    exit_code = 3


class ModelMissing(SPDError):
    """A model bundle or its base weights are not on this machine."""

    exit_code = 3


class ModelCorrupt(SPDError):
    """A model bundle or base weights are damaged, of another format, or do not fit together."""

    exit_code = 2


class OutOfMemory(SPDError):
    """The device has not enough memory, even for one slice at a time."""

    exit_code = 4


class WorkerDied(SPDError):
    """The background process ended while it was needed."""

    exit_code = 5


class Cancelled(SPDError):
    """The user cancelled."""

    exit_code = 130

    def __init__(self, message: str = "Cancelled.", remedy: str = "", details: str = "") -> None:
        super().__init__(message, remedy, details)


REQUIREMENTS = {
    "torch": "torch>=2.6",
    "segment_anything": "segment-anything>=1.0",
    "peft": "peft>=0.11",
    "accelerate": "accelerate>=0.30",
    "matplotlib": "matplotlib>=3.8",
    "skimage": "scikit-image>=0.22",
    "dask": "dask[distributed]>=2024.1",
    "distributed": "dask[distributed]>=2024.1",
    "dask_jobqueue": "dask-jobqueue>=0.8",
    "pydicom": "pydicom>=3",
    "highdicom": "highdicom>=0.23",
    "nnunetv2": "nnunetv2>=2.8",
    "sam2": "sam2>=1.1",
    "monai": "monai>=1.4",
}
"""What pip is asked for, by the name that is imported; a test compares it with pyproject.toml."""

_NEEDED_TOGETHER = ("torch", "segment_anything", "peft")


def missing_package(name: str, why: str, details: str = "") -> DependencyMissing:
    """The error of a package that cannot be imported, with the command that installs it into this Python.

    Args:
        name: as it is imported.
        why: what the import said.
    """
    names = _NEEDED_TOGETHER if name in _NEEDED_TOGETHER else (name,)
    command = [sys.executable or "python", "-m", "pip", "install", *(REQUIREMENTS.get(n, n) for n in names)]
    return DependencyMissing(
        f"The Python package {name} is needed here and cannot be imported ({why}).",
        f"Run: {command_line(*command)}",
        details,
    )


def import_package(name: str) -> Any:
    """A package that not everybody has installed.

    Raises:
        DependencyMissing: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package(name, str(error), repr(error)) from error


def require_package(name: str) -> None:
    """Raise DependencyMissing where a package is not installed; it is not imported."""
    if importlib.util.find_spec(name) is None:
        raise missing_package(name, f"No module named '{name}'")


MORE_MEMORY = (
    "Close other programs or crop the volume; where memory is limited (ulimit -v, a container, a job), raise the limit."
)
"""The way out where the machine's memory is short."""
MORE_CARD_MEMORY = "Close other programs that use it, or choose the CPU."

_MEMORY_WORDS = (
    "out of memory", "outofmemory", "not enough memory", "insufficient memory", "can't allocate memory",
    "cannot allocate memory", "unable to allocate", "failed to allocate", "memory allocation", "memoryerror",
    "bad_alloc", "bad allocation", "alloc_failed", "could not create a primitive", "could not create a memory",
    "could not initialize a memory", "can't start new thread", "thread creation failed", "pthread_create failed",
    "failed to map segment", "cannot create shared object descriptor", "cannot apply additional memory protection",
    "paging file is too small",
)  # fmt: skip
_OTHER_WORDS = ("could not create a primitive descriptor", "cannot allocate memory in static tls block")


def tells_of_memory(text: str) -> bool:
    """Whether a message or a log says that memory ran out, in the words of torch, oneDNN, C++ or the system."""
    lower = text.lower()
    for word in _OTHER_WORDS:
        lower = lower.replace(word, "")
    return any(word in lower for word in _MEMORY_WORDS)


def is_out_of_memory(raised: BaseException) -> bool:
    """Whether an exception, or one that it came from, means that memory ran out; needs no torch."""
    seen: set[int] = set()
    error: BaseException | None = raised
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (MemoryError, OutOfMemory)) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if not isinstance(error, SPDError) and tells_of_memory(str(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def out_of_memory(raised: BaseException, details: str = "") -> OutOfMemory:
    """Return the sentence for an exception that :func:`is_out_of_memory`."""
    if isinstance(raised, OutOfMemory):
        return raised
    details = details or str(raised)
    if any(word in str(raised) for word in ("CUDA", "CUBLAS", "CUDNN", "MPS")):
        return OutOfMemory("The graphics card has not enough memory.", MORE_CARD_MEMORY, details)
    return OutOfMemory("There is not enough memory.", MORE_MEMORY, details)


def _family(cls: type[SPDError]) -> dict[str, type[SPDError]]:
    """A class and those that are made from it, by name."""
    return {cls.__name__: cls, **{name: kin for sub in cls.__subclasses__() for name, kin in _family(sub).items()}}


def error_from_wire(wire: dict[str, str]) -> SPDError:
    """Restore an error from :meth:`SPDError.to_wire`; an unknown name becomes a plain :class:`SPDError`."""
    cls = _family(SPDError).get(wire.get("error", ""), SPDError)
    return cls(wire.get("message", "Unknown error."), wire.get("remedy", ""), wire.get("details", ""))
