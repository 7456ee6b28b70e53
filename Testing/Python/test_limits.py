"""What a file would need is compared with what there is before anything large is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_helpers import multi_frame, series
from geometry_helpers import nifti

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


@pytest.mark.parametrize(("kind", "megabytes"), [("i2", 6), ("i4", 12), ("f4", 8)])
def test_a_nifti_that_is_scaled_needs_memory_for_what_is_stored_and_for_what_it_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, megabytes: int
) -> None:
    path = nifti(tmp_path, (112, "2f", (0.5, -3.0)), values=np.arange(100**3, dtype=kind).reshape(100, 100, 100))
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: megabytes * 1_000_000 - 1)
    with pytest.raises(OutOfMemory, match=rf"need about {megabytes}\.0 MB"):
        read_volume(path)
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: megabytes * 1_000_000)
    assert read_volume(path).array[0, 0, 5] == -0.5


@pytest.mark.parametrize(("frames", "megabytes"), [(1, 8), (3, 20)])
def test_an_image_that_itk_reads_needs_memory_for_its_copy_and_for_all_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int, megabytes: int
) -> None:
    path = tmp_path / "image.mha"
    still = sitk.GetImageFromArray(np.arange(100**3, dtype=np.float32).reshape(100, 100, 100))
    sitk.WriteImage(still if frames == 1 else sitk.JoinSeries([still] * frames), str(path))
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: megabytes * 1_000_000 - 1)
    with pytest.raises(OutOfMemory, match=rf"need about {megabytes}\.0 MB"):
        read_volume(path, frame=frames)
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: megabytes * 1_000_000)
    assert read_volume(path, frame=frames).array.shape == (100, 100, 100)


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


def system(monkeypatch: pytest.MonkeyPatch, root: Path, groups: str, files: dict[str, str]) -> None:
    """Let the kernel's files lie in a folder: the process's groups, and files of them."""
    named = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in ({"proc/self/cgroup": groups} | named).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n", encoding="utf-8")
    monkeypatch.setattr(limits, "SYSTEM", root)


MB = 1 << 20
V1, V2 = "4:memory:/docker/a b\n3:cpu,cpuacct:/docker/a b\n0::/", "0::/pod/box"
UNLIMITED_V1 = "9223372036854771712"


@pytest.mark.parametrize(
    ("groups", "folder", "memory_file", "used_file", "prefix"),
    [
        (V2, "pod/box", "memory.max", "memory.current", ""),
        (V2, "pod", "memory.max", "memory.current", ""),
        (V2, "", "memory.max", "memory.current", ""),
        (V2, "unified/pod/box", "memory.max", "memory.current", ""),
        (V1, "memory/docker/a b", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        (V1, "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_a_container_s_memory_bounds_what_is_free_and_its_file_cache_is_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    folder: str,
    memory_file: str,
    used_file: str,
    prefix: str,
) -> None:
    kept = f"anon 5\n{prefix}inactive_file {2 * MB}\n{prefix}active_file {MB // 2}\n{prefix}slab_reclaimable {MB // 2}"
    files = {memory_file: str(30 * MB), used_file: str(20 * MB), "memory.stat": kept}
    system(monkeypatch, tmp_path, groups, {f"{folder}/{name}": content for name, content in files.items()})
    assert (limits.free_memory_bytes(), limits.total_memory_bytes()) == (13 * MB, 30 * MB)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {"pod/box/cpu.max": "150000 100000"}, 2),
        (V2, {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "20000 100000"}, 1),
        (V2, {"pod/box/cpu.max": "max 100000"}, 8),
        (V2, {"pod/box/cpu.max": "9900000 100000"}, 8),
        ("0::/../box", {"box/cpu.max": "100000 100000", "cpu.max": "400000 100000"}, 4),  # box is another one
        (
            V1,
            {"cpu,cpuacct/docker/a b/cpu.cfs_quota_us": "300000", "cpu,cpuacct/docker/a b/cpu.cfs_period_us": "1e5"},
            8,
        ),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_container_s_share_of_the_cores_is_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    system(monkeypatch, tmp_path, groups, files)
    assert limits.usable_cores() == cores


@pytest.mark.parametrize("said", ["max", UNLIMITED_V1, "", "many", str(1 << 59)])
def test_a_limit_that_is_none_or_not_known_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(limits, "SYSTEM", tmp_path / "nothing")
    total = limits.total_memory_bytes()
    system(monkeypatch, tmp_path / "damaged", "what\x00\n::\n", {"memory.max": "5"})
    assert limits.total_memory_bytes() == 5
    system(monkeypatch, tmp_path, V2, {"pod/box/memory.max": said, "pod/box/memory.current": "0"})
    assert limits.total_memory_bytes() == total


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
