"""Memory and devices of this machine; psutil is used where it is there and never required."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from SPDSegmentLib.inference.memory import address_space_limit

from .messages import Device


def free_memory_bytes() -> int | None:
    """Return how much memory a program could still take, or None where the system does not say."""
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except Exception:
        pass
    if sys.platform == "win32":
        return _windows_free_memory()
    return _proc_value("/proc/meminfo", "MemAvailable:")


def total_memory_bytes() -> int | None:
    """Return how much memory this machine has, or this process may take, or None where the system does not say."""
    try:
        import psutil

        total: int | None = int(psutil.virtual_memory().total)
    except Exception:
        total = _proc_value("/proc/meminfo", "MemTotal:")
    limits = [value for value in (total, address_space_limit()) if value is not None]
    return min(limits, default=None)


def resident_memory_bytes() -> int | None:
    """Return the resident memory of this process, or None where the system does not say."""
    try:
        import psutil

        return int(psutil.Process(os.getpid()).memory_info().rss)
    except Exception:
        return _proc_value("/proc/self/status", "VmRSS:")


def list_devices() -> tuple[Device, ...]:
    """Return the devices the predictor can use, fastest first; imports torch.

    Raises:
        ImportError: torch is not installed or does not load.
    """
    import torch

    devices: list[Device] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = _cuda_memory(torch, index)
            devices.append(Device(f"cuda:{index}", str(torch.cuda.get_device_name(index)), free, total))
    devices.append(Device("cpu", f"CPU, {os.cpu_count() or 1} cores", free_memory_bytes(), None))
    return tuple(devices)


def _cuda_memory(torch: Any, index: int) -> tuple[int | None, int | None]:
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError:
        return None, None
    return int(free), int(total)


def _proc_value(file: str, key: str) -> int | None:
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _windows_free_memory() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
        ]

    status = MemoryStatus()
    status.length = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)
