"""Stand-in of the PyTorch extension: it records requests and never imports torch."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from slicer import packaging


class PyTorchUtilsLogic:
    """What the extension offers to other modules."""

    @staticmethod
    def torchInstalled() -> bool:
        """Tell whether torch is there."""
        if "torch" in packaging.record.missing:
            return False
        try:
            metadata.version("torch")
        except metadata.PackageNotFoundError:
            return False
        return True

    def installTorch(
        self,
        askConfirmation: bool = False,
        forceComputationBackend: str | None = None,
        torchVersionRequirement: str | None = None,
        torchvisionVersionRequirement: str | None = None,
    ) -> Any:
        """Record a request."""
        packaging.record.install("installTorch", ("torch" + (torchVersionRequirement or ""),))
