"""Devices as the worker names them, as choices; and whether a graphics card stays unused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from slicer.i18n import tr as _

from SPDSegmentLib.files import megabytes
from SPDSegmentLib.worker.messages import Device

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
