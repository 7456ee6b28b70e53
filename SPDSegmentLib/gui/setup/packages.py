"""Packages that have to be installed, and devices that can be used."""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import DependencyMissing
from SPDSegmentLib.files import megabytes, write_text
from SPDSegmentLib.worker.messages import Device

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


NVIDIA_DRIVER = "/proc/driver/nvidia/version"


def hasNvidiaCard() -> bool:
    """Whether this computer has a card with NVIDIA's driver; found without torch."""
    return shutil.which("nvidia-smi") is not None or Path(NVIDIA_DRIVER).exists()


def deviceChoices(devices: Sequence[Device] | None) -> list[tuple[str, str]]:
    """Return (value, text) of the devices that can be chosen; None where the worker has not told them yet."""
    choices = [("auto", _("Automatic"))]
    cards = [device for device in devices or () if device.name.startswith("cuda")]
    if not cards:
        choices.append(("cuda", _("GPU") if devices is None else _("GPU (none found)")))
    for number, device in enumerate(cards):
        text = _("GPU: {title}").format(title=device.title)
        if device.free_bytes is not None:
            text += _(" ({size} free)").format(size=megabytes(device.free_bytes))
        choices.append(("cuda" if number == 0 else device.name, text))
    return [*choices, ("cpu", _("CPU"))]


def unusedCardWarning(device: str, chosen: str, torchVersion: Callable[[], str], isRemote: bool) -> str:
    """Return a warning where a run used the CPU beside an NVIDIA card that nobody chose to leave out, otherwise empty.

    Args:
        device: where the run took place, as the worker says.
        chosen: what the user chose.
        torchVersion: returns that of the torch that is installed; ``+cpu`` marks a build for the CPU.
        isRemote: the worker runs on another computer.
    """
    if isRemote or not device.startswith("cpu") or chosen == "cpu" or not hasNvidiaCard():
        return ""
    if torchVersion().endswith("+cpu"):
        return _(
            "The GPU stayed unused: the installed PyTorch is a build for the CPU. "
            "Reinstall it in the module PyTorch with a GPU backend."
        )
    return _("The GPU stayed unused: PyTorch does not see it. Update the graphics driver, or restart the computer.")
