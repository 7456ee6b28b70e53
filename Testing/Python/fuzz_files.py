"""Mutated images, DICOM series, points and bundles through the command line, within this process.

Whatever a file holds, the command ends with a known exit code and either one clear sentence and nothing written, or a
mask. A fault is anything else: an exception of no kind of ours, an unknown error, a result beside a failure, a hang.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from fuzz_mutations import mutate_bytes, mutate_dicom, mutate_json, mutate_nifti, mutate_text_header
from geometry_helpers import write_dicom_series
from models_helpers import tiny_info
from segment_case import SHAPE, write_clicks, write_image
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.errors import MUST_LOOK
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import write_bundle
from SPDSegmentLib.models.bundle_info import parse_info
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel

SLOWEST_SECONDS = 30.0
LONGEST_SENTENCE = 2000
KNOWN_CODES = (0, 2, 3, 4, MUST_LOOK)
Mutate = Callable[[random.Random, bytes], bytes]


@dataclass
class FuzzSummary:
    """Attributes: counts by target and exit code, the slowest case in seconds, and descriptions of faults."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0


class FileFuzz:
    """The good files, in a folder of their own, and what is run with changed ones.

    Args:
        folder: empty; everything is written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = folder / "good"
        self.tried = folder / "tried"
        self.out = folder / "out"
        for part in (self.good, self.out):
            part.mkdir(parents=True)
        array = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
        self.image = write_image(self.good / "image.nii", array)
        self.points = write_clicks(self.good / "clicks.mrk.json", self.image, (8, 9, 2), (9, 10, 4), (10, 11, 6))
        image = sitk.ReadImage(str(self.image))
        for name in ("image.nrrd", "image.mha", "image.hdr"):
            sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(self.good / name))
        positions = np.array([[0.0, 0.0, 3.0 * t] for t in range(4)])
        pixels = np.random.default_rng(1).integers(0, 500, (4, 24, 20))
        write_dicom_series(self.good / "series", "1.2.3", positions, pixels)
        self.dicom_points = write_clicks(
            self.good / "dicom.mrk.json", _single(self.good / "series"), (8, 9, 1), (9, 10, 2)
        )
        self.fcsv = self.good / "clicks.fcsv"
        self.fcsv.write_bytes(FCSV)
        torch.manual_seed(0)
        network: dict[str, Any] = {"lora_rank": 2, "decoder_lora_rank": 2}
        state = SPDModel(NetworkConfig(backbone="tiny_random", image_size=64, **network)).adapter_state()
        info = tiny_info(network=network, prompts={})
        self.bundle = write_bundle(self.good / "models" / "tiny-test", info, state, "# Card\n").folder
        self._load = Predictor.load
        self._loaded = Predictor.load(write_bundle(self.bundle, info, state, "# Card\n"), "cpu")
        self.targets: dict[str, Callable[[random.Random], None]] = {
            "nifti": lambda rng: self._image(rng, "image.nii", mutate_nifti),
            "nifti.gz": self._compressed,
            "pair": lambda rng: self._image(rng, "image.hdr", mutate_nifti),
            "nrrd": lambda rng: self._image(rng, "image.nrrd", lambda r, d: mutate_text_header(r, d, b"\n\n")),
            "metaimage": lambda rng: self._image(
                rng, "image.mha", lambda r, d: mutate_text_header(r, d, b"ElementDataFile = LOCAL\n")
            ),
            "dicom": self._series,
            "markups": lambda rng: self._points(rng, self.points, mutate_json),
            "fcsv": lambda rng: self._points(rng, self.fcsv, lambda r, d: mutate_text_header(r, d, b"\n\n")),
            "bundle": self._bundle,
        }
        self._command: list[str] = []

    def run(self, target: str, seed: int, summary: FuzzSummary) -> None:
        """Try one changed file; the same target and seed give the same one."""
        self.prepare(lambda fuzz: fuzz.targets[target](random.Random(f"{target} {seed}")))
        self.judge(target, f"{target} {seed}", summary)

    def prepare(self, write: Callable[[FileFuzz], None]) -> None:
        """Let ``write`` make the files that are tried next, and say with :meth:`use` which."""
        shutil.rmtree(self.tried, ignore_errors=True)
        self.tried.mkdir()
        write(self)

    def copy_bundle(self) -> Path:
        """A bundle to change."""
        return Path(shutil.copytree(self.bundle, self.tried / "tiny-test"))

    def copy_series(self) -> Path:
        """A DICOM series to change."""
        return Path(shutil.copytree(self.good / "series", self.tried / "series"))

    def judge(self, target: str, name: str, summary: FuzzSummary) -> None:
        """Run the command for the files that lie ready, and look at what it did."""
        for path in self.out.iterdir():
            path.unlink()
        output = self.out / "mask.nii.gz"
        own_model = str(self.bundle) in self._command
        Predictor.load = (lambda *_: self._loaded) if own_model else self._load  # type: ignore[method-assign]
        started = time.monotonic()
        try:
            result = CliRunner().invoke(build_app(), ["segment", *self._command, "--output", str(output)])
        finally:
            Predictor.load = self._load  # type: ignore[method-assign]
        seconds = time.monotonic() - started
        summary.slowest = max(summary.slowest, seconds)
        summary.outcomes[f"{target}: exit {result.exit_code}"] += 1
        fault = self._fault(result, output)
        if fault is None and seconds > SLOWEST_SECONDS:
            fault = f"{seconds:.0f} s"
        if fault is not None:
            summary.faults.append(f"{name}: {fault}\n{_trace(result.exception)}")

    def _fault(self, result: Any, output: Path) -> str | None:
        left = sorted(path.name for path in self.out.iterdir())
        if result.exit_code not in KNOWN_CODES:
            return f"exit {result.exit_code}: {result.stderr[-500:]}"
        if result.exit_code in (0, MUST_LOOK):
            return None if left == [output.name] else f"exit {result.exit_code} with {left}"
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        if left:
            return f"a failure left {left}"
        if len(errors) != 1 or "Traceback" in result.stderr or not re.search(r"[.\]']$", errors[0].strip()):
            return f"no clear sentence: {result.stderr[-500:]!r}"
        if len(errors[0]) > LONGEST_SENTENCE or not errors[0].isprintable():
            return f"no readable sentence: {errors[0][:300]!r}"
        return None

    def use(self, image: Path | None = None, points: Path | None = None, model: Path | None = None) -> None:
        """Choose what the command is given; by default the good files."""
        chosen = {"image": image or self.image, "points": points or self.points, "model": model or self.bundle}
        self._command = [word for name, path in chosen.items() for word in (f"--{name}", str(path))]

    def _image(self, rng: random.Random, name: str, mutate: Mutate) -> None:
        path = self.tried / name
        path.write_bytes(mutate(rng, (self.good / name).read_bytes()))
        if path.suffix == ".hdr":
            voxels = (self.good / "image.img").read_bytes()
            (self.tried / "image.img").write_bytes(mutate_bytes(rng, voxels) if rng.random() < 0.3 else voxels)
        self.use(image=path)

    def _compressed(self, rng: random.Random) -> None:
        path, content = self.tried / "image.nii.gz", self.image.read_bytes()
        if rng.random() < 0.5:
            path.write_bytes(gzip.compress(mutate_nifti(rng, content), 1))
        else:
            path.write_bytes(mutate_bytes(rng, gzip.compress(content, 1), head=20))
        self.use(image=path)

    def _series(self, rng: random.Random) -> None:
        folder = self.copy_series()
        files = sorted(folder.iterdir())
        for file in rng.sample(files, rng.choice((1, 1, len(files)))):
            file.write_bytes(mutate_dicom(rng, file.read_bytes()))
        if rng.random() < 0.1:
            rng.choice(files).unlink()
        if rng.random() < 0.1:
            (folder / "notes.txt").write_bytes(rng.randbytes(300))
        self.use(image=folder, points=self.dicom_points)

    def _points(self, rng: random.Random, good: Path, mutate: Mutate) -> None:
        path = self.tried / good.name
        path.write_bytes(mutate(rng, good.read_bytes()))
        self.use(points=path)

    def _bundle(self, rng: random.Random) -> None:
        folder = self.copy_bundle()
        info, adapter = folder / "model.json", folder / "adapter.safetensors"
        if rng.random() < 0.5:
            info.write_bytes(mutate_json(rng, info.read_bytes()))
        else:
            adapter.write_bytes(_mutate_adapter(rng, adapter.read_bytes()))
        if rng.random() < 0.8:
            sign(folder)
        self.use(model=folder)


FCSV = b"""# Markups fiducial file version = 4.11
# CoordinateSystem = LPS
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID

1,22,-6.5,38,0,0,0,1,1,1,0,F-1,,
2,24,-5,46,0,0,0,1,1,1,0,F-2,,
"""


def sign(folder: Path) -> None:
    """Make both checksums of a changed bundle right again, where it can be read: what is behind them is tried."""
    path = folder / "model.json"
    try:
        values = json.loads(path.read_bytes())
        values["adapter_sha256"] = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
        values["settings_sha256"] = parse_info(values).settings_digest()
    except Exception:  # whatever it is now, the product must find its own words for it
        return
    path.write_text(json.dumps(values))


def _mutate_adapter(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    choice = rng.random()
    if choice < 0.4:
        header = mutate_json(rng, header)
    elif choice < 0.7:
        values = np.frombuffer(body, "<f4").copy()
        for _ in range(rng.choice((1, 100))):
            values[rng.randrange(len(values))] = rng.choice((np.nan, np.inf, 3e38, -3e38, 1e20, 65504.0))
        body = values.tobytes()
    else:
        return mutate_bytes(rng, data, head=length + 8)
    return len(header).to_bytes(8, "little") + header + body


def _trace(error: BaseException | None) -> str:
    """Where the exception behind an exit came from."""
    while error is not None and type(error).__name__ in ("SystemExit", "Exit", "SPDError"):
        error = error.__cause__ or error.__context__
    return "".join(traceback.format_exception(error)[-5:]) if error is not None else ""


def _single(series: Path) -> Path:
    """The series as one file, for clicks on its grid."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    path = series.parent / "series.nii"
    sitk.WriteImage(reader.Execute(), str(path))
    return path
