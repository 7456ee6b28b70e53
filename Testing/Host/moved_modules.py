"""Modules of the GUI under the names that they had before they moved into rooms (scene, run, setup, panel).

Tests that were written against version 0.1.0 import ``SPDSegmentLib.gui.volumes`` and the like; in the host they go on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

GUI = "SPDSegmentLib.gui"


class _Moved(ModuleType):
    """Every name that any module of the rooms has, the module of the same name first."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = self.__name__.rpartition(".")[2]
        for path in sorted(_rooms(), key=lambda path: path.stem != own):
            module = importlib.import_module(f"{GUI}.{path.parent.name}.{path.stem}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"no room of {GUI} has a {name}")


class _MovedFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == GUI and not name.startswith("_") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when they are asked for."""


def _rooms() -> list[Path]:
    folder = Path(importlib.import_module(GUI).__file__ or "").parent
    return sorted(path for path in folder.glob("*/*.py") if path.stem != "__init__")


def install() -> None:
    """Look there for modules of the GUI that are found nowhere else."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
