"""What a file would need is compared with what there is before anything large is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_helpers import multi_frame, series

from SPDSegmentLib.errors import BadInput, OutOfMemory
from SPDSegmentLib.geometry import dicom, limits
from SPDSegmentLib.geometry.markups import read_markups
from SPDSegmentLib.geometry.volume import read_volume
from SPDSegmentLib.geometry.window import place_window

sitk = pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_an_image_larger_than_free_memory_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"large{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(100**3, dtype=np.int16).reshape(100, 100, 100)), str(path))
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 3_900_000)
    with pytest.raises(OutOfMemory, match=r"100 x 100 x 100 voxels.* 4.0 MB of memory; 3.9 MB are free") as caught:
        read_volume(path)
    assert str(path) in caught.value.message
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 4_000_000)
    assert read_volume(path).array.size == 100**3


def test_a_file_of_millions_of_points_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "many.mrk.json"
    path.write_bytes(b'{"markups":[{"controlPoints":[' + b'{"position":[1,2,3]},' * 1_300_000)
    with pytest.raises(BadInput, match=r"holds 1,300,000 points; at most 1,000,000") as caught:
        read_markups(path)
    assert str(path) in caught.value.message


def test_free_memory_is_known_and_respects_the_limit_of_the_process() -> None:
    free = limits.free_memory_bytes()
    assert free is None or free > 0


@pytest.mark.parametrize("psutil", [True, False])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v works on Linux")
def test_a_limit_on_the_address_space_bounds_what_is_free(psutil: bool) -> None:
    code = (
        "import resource, sys\n"
        f"sys.modules.update({{}} if {psutil} else {{'psutil': None}})\n"
        "from SPDSegmentLib.geometry import limits\n"
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, resource.RLIM_INFINITY))\n"
        "print(limits.free_memory_bytes() >> 20, limits.total_memory_bytes() >> 20, limits.address_space_left() >> 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free, total, left = map(int, done.stdout.split())
    assert 0 < free <= left < total == 900


@pytest.mark.parametrize("whole_file", [False, True])
def test_a_dicom_series_larger_than_free_memory_is_refused_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_file: bool
) -> None:
    # 6 slices of 10 x 8: the slices and the volume that they become, 2 bytes a voxel each
    path = multi_frame(tmp_path / "all.dcm") if whole_file else series(tmp_path / "ct")
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 1919)
    monkeypatch.setattr(dicom, "read_pixels", lambda frames: pytest.fail("pixels were read"))
    kind = "file" if whole_file else "series in"
    with pytest.raises(OutOfMemory, match=rf"The DICOM {kind} .*10 x 8 x 6 voxels") as caught:
        read_volume(path)
    assert str(path) in caught.value.message and "Crop or resample" in caught.value.remedy
    monkeypatch.undo()
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 1920)
    assert read_volume(path).array.shape == (6, 8, 10)


@pytest.mark.parametrize("fov_mm", [0.0, 40.0, 400.0])
@pytest.mark.parametrize("shape", [(60, 47), (7, 900), (513, 64)])
def test_banded_weights_give_what_dense_ones_give(shape: tuple[int, int], fov_mm: float) -> None:
    """The dense products are those of version 0.1.0."""
    slices = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    maps = np.random.default_rng(1).normal(size=(3, 32, 32)).astype(np.float32)
    placed = place_window(shape, (0.9, 1.3), 32, fov_mm, np.array([20.0, 30.0]))
    down, back = [], []
    for length, axis in zip(shape, (1, 0), strict=True):
        scale, origin = placed.scale_xy[axis], placed.origin_xy[axis]
        center = np.arange(32) * scale + origin
        weights = np.maximum(0.0, 1 - np.abs(center[:, None] - np.arange(length)) / max(scale, 1.0))
        total = weights.sum(1, keepdims=True)
        seen = (center >= -0.5) & (center <= length - 0.5)
        down.append(np.where(seen[:, None], weights / np.where(total > 0, total, 1), 0))
        position = (np.arange(length) - origin) / scale
        within = (position >= -0.5) & (position <= 31.5)
        weights = np.maximum(0.0, 1 - np.abs(position.clip(0, 31)[:, None] - np.arange(32)))
        back.append(weights * within[:, None])
    covered = np.ix_(np.arange(3), back[0].any(1), back[1].any(1))
    restored = np.full((3, *shape), -1.0)
    restored[covered] = (back[0] @ maps @ back[1].T)[covered]
    assert np.allclose(placed.resample(slices), down[0] @ slices @ down[1].T, atol=1e-5)
    assert np.allclose(placed.restore(maps, -1.0), restored, atol=1e-5)


def test_a_slice_with_millions_of_pixels_takes_little_memory() -> None:
    import tracemalloc

    placed = place_window((2, 1_000_000), (1.0, 1.0), 512, 0.0)
    tracemalloc.start()
    resampled = placed.resample(np.ones((1, 2, 1_000_000), dtype=np.float32))
    restored = placed.restore(resampled, -1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert restored.shape == (1, 2, 1_000_000) and peak < 300e6
