"""Small weights, wheels and bundles for the tests of the models layer."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from SPDSegmentLib.models import base_weights, bundle_info
from SPDSegmentLib.models.base_weights import BaseWeights
from SPDSegmentLib.models.bundle_info import BundleInfo

CONTENT = b"weights" * 50_000


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def url_weights(file: Path, content: bytes = CONTENT, **changes: Any) -> BaseWeights:
    """A manifest entry that is fetched from ``file`` on disk."""
    weights = BaseWeights(
        name="stub",
        title="Stub",
        filename="stub.pth",
        kind="url",
        source=file.as_uri(),
        license="Apache-2.0",
        homepage="https://example.org",
        size=len(content),
        sha256=sha256(content),
    )
    return dataclasses.replace(weights, **changes)


def use_manifest(monkeypatch: pytest.MonkeyPatch, *entries: BaseWeights) -> None:
    """Let the manifest hold these entries only."""
    table = {weights.name: weights for weights in entries}
    monkeypatch.setattr(base_weights, "BASE_WEIGHTS", table)
    monkeypatch.setattr(bundle_info, "BASE_WEIGHTS", table)


def write_stub_wheel(folder: Path, member: str, content: bytes) -> Path:
    """A minimal wheel ``stub_weights`` 1.0 with one data file."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "stub_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            "stub_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: stub-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "stub_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("stub_weights-1.0.dist-info/RECORD", "")
    return wheel


def only_local_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip look into one folder and nowhere else, whatever its configuration."""
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null" if Path("/dev/null").exists() else "nul",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)


def info_values(**changes: Any) -> dict[str, Any]:
    """The content of a good ``model.json`` of a randomly initialized model."""
    values: dict[str, Any] = {
        "format_version": 1,
        "name": "tiny-test",
        "title": "Tiny test model",
        "structure": "kidney",
        "modality": "MR",
        "slicing_axis": "axial",
        "normalization": {"kind": "percentile", "low": 0.5, "high": 99.5, "foreground": 0.0},
        "backbone": "tiny_random",
        "backbone_sha256": "",
        "image_size": 64,
        "fov_mm": 0.0,
        "network": {"backbone": "tiny_random", "image_size": 64},
        "prompts": {"threshold": 0.5},
        "library_version": "0.1.0",
        "training": {"dataset": "none"},
        "metrics": {},
        "color": [0.87, 0.56, 0.35],
        "adapter_sha256": "",
    }
    return values | changes


def tiny_info(**changes: Any) -> BundleInfo:
    """:func:`info_values` as an object."""
    return BundleInfo(**info_values(**changes))


def leftovers(home: Path) -> list[str]:
    """Files below ``home`` that are neither records nor whole weights."""
    records = {base_weights.ACCEPTED_NAME, ".verified.json"}
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and p.name not in records)
