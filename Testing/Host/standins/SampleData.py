"""Stand-in of the module `SampleData`: sources are registered, and local files can be loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import slicer


@dataclass
class SampleDataSource:
    """One data set: what it is called, where it comes from and how it is loaded."""

    sampleName: str | None = None
    sampleDescription: str | None = None
    uris: Any = None
    fileNames: Any = None
    nodeNames: Any = None
    checksums: Any = None
    loadFiles: Any = None
    customDownloader: Any = None
    thumbnailFileName: str | None = None
    loadFileTypes: Any = None
    loadFileProperties: dict[str, Any] = field(default_factory=dict)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


class SampleDataLogic:
    """Register of sample data."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
        loadFileType: Any = None,
    ) -> None:
        """Add a data set to a category."""
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        source = SampleDataSource(
            sampleName,
            None,
            uris,
            fileNames,
            nodeNames,
            checksums,
            loadFiles,
            customDownloader,
            thumbnailFileName,
            loadFileTypes or loadFileType,
            dict(loadFileProperties or {}),
        )
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)

    @staticmethod
    def sampleDataSourcesByCategory(category: str) -> list[SampleDataSource]:
        """Return the data sets of a category."""
        return list(getattr(slicer.modules, "sampleDataSources", {}).get(category, []))

    def sourceForSampleName(self, sampleName: str) -> SampleDataSource | None:
        """Return a data set by its name."""
        for sources in getattr(slicer.modules, "sampleDataSources", {}).values():
            for source in sources:
                if source.sampleName == sampleName:
                    return source
        return None

    def downloadFromSource(self, source: SampleDataSource, maximumAttemptsCount: int = 3) -> list[Any]:
        """Load a data set whose addresses are files of this machine; nothing is fetched from elsewhere."""
        if source.customDownloader is not None:
            return _listed(source.customDownloader(source))
        names = _listed(source.nodeNames)
        return [self._load(uri, name) for uri, name in zip(_listed(source.uris), names, strict=True)]

    def downloadSamples(self, sampleName: str) -> list[Any]:
        """Load a data set by its name."""
        source = self.sourceForSampleName(sampleName)
        if source is None:
            raise ValueError(f"There is no sample '{sampleName}'.")
        return self.downloadFromSource(source)

    def downloadSample(self, sampleName: str) -> Any:
        """Load the first node of a data set."""
        return self.downloadSamples(sampleName)[0]

    def _load(self, uri: str, name: str) -> Any:
        address = urlparse(uri)
        if address.scheme != "file":
            raise RuntimeError(f"The host does not fetch {uri}.")
        node = slicer.util.loadNodeFromFile(unquote(address.path), None, {"name": name or Path(address.path).stem})
        node.SetName(name)
        return node


def downloadSample(sampleName: str) -> Any:
    """Load the first node of a data set."""
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName: str) -> list[Any]:
    """Load a data set by its name."""
    return SampleDataLogic().downloadSamples(sampleName)
