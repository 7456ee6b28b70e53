"""Cases on disk and batches with fake workers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from points_files import write_markups

from SPDSegmentLib.batch.cases import BatchModel
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseSegmenter
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.worker.client import WorkerClient
from SPDSegmentLib.worker.requests import WorkerCommand

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_predictor.py")))
MODEL = BatchModel("fake", "fake", "Blob", (1.0, 0.0, 0.0), digest="first")
Case = tuple[str, str, str]


def write_clicks(path: Path, slices: tuple[int, ...] = (3, 5), kind: str = "Fiducial", far: bool = False) -> None:
    """Clicks near the middle of the slices; with ``far`` one more, outside the volume."""
    points = [ControlPoint(str(k), "", (-16.0, -15.0, 3.0 * k)) for k in slices]
    if far:
        points.append(ControlPoint("far", "", (900.0, 0.0, 0.0)))
    write_markups(path, [Markup("clicks", kind, tuple(points))])


def write_image(path: Path, seed: int = 0) -> None:
    """A small volume."""
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(0, 200, (9, 30, 32)).astype(np.int16))
    image.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(image, str(path))


def write_series(folder: Path, number: int = 2) -> Path:
    """A CT series of nine slices in a folder, which may hold others."""
    folder.mkdir(exist_ok=True)
    write_image(folder.parent / "volume.nii.gz", number)
    image = sitk.ReadImage(str(folder.parent / "volume.nii.gz"))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.GetDepth()):
        part = image[:, :, k]
        position = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.826.0.1", "0020|0052": "1.2.826.0.2",
            "0020|000e": f"1.2.826.0.1.{number}",
            "0008|0018": f"1.2.826.0.1.{number}.{k + 1}", "0020|0013": str(k + 1), "0018|0050": "3",
            "0020|0032": "\\".join(str(value) for value in position), "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}-{k}.dcm"))
        writer.Execute(part)
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Three good cases."""
    (tmp_path / "data").mkdir()
    listed = []
    for seed, name in enumerate(("a", "b", "c")):
        image, points = tmp_path / "data" / f"{name}.nii.gz", tmp_path / "data" / f"{name}.mrk.json"
        write_image(image, seed)
        write_clicks(points)
        listed.append((name, str(image), str(points)))
    return listed


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a batch into ``out`` with fake workers; keyword arguments as of ``BatchRun``."""

    def call(cases: Any, bundle: str = "fake", digest: str = "first", **options: Any) -> dict[str, Any]:
        model = replace(MODEL, key=bundle, digest=digest)
        settings = options.pop("settings", BatchSettings())
        clients: list[WorkerClient] = []

        def make(stopped: Callable[[], bool]) -> CaseSegmenter:
            clients.append(WorkerClient(command=WorkerCommand(FAKE_WORKER)))
            return CaseSegmenter(clients[-1], model, settings, stopped)

        try:
            return BatchRun(make, options.pop("folder", tmp_path / "out"), model, settings, **options)(cases)
        finally:
            for client in clients:
                client.close()

    return call


def states(report: dict[str, Any]) -> dict[str, str]:
    """State of every case."""
    return {row["case"]: row["state"] for row in report["cases"]}


def times(folder: Path) -> dict[str, int]:
    """When every mask was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.seg.nrrd")}
