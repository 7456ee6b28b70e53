"""Checksums of a segment's slices: scenes keep them, so that an edit is recognized after reopening."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest_plugins = ["Testing.Host.pytest_plugin"]

SHAPE = (9, 20, 30)


@pytest.fixture
def grid(host: Any) -> Any:
    """The file with the boxes of voxels."""
    from SPDSegmentLib.gui.scene import volumes

    return volumes


def labels() -> np.ndarray:
    """Two segments in one labelmap (t, h, w) that lies at slice 2, row 3, column 4."""
    array = np.zeros((5, 12, 16), dtype=np.uint8)
    array[1, 2:7, 3:11] = 1
    array[2, 4, 5] = 1
    array[2, 6:9, 1:3] = 2
    array[4] = 2
    return array


def whole(array: np.ndarray, value: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:7, 3:15, 4:20] = array == value
    return mask


def test_checksums_of_saved_scenes_stay_valid(grid: Any) -> None:
    assert grid.sliceDigests(labels(), 1, (2, 3, 4), SHAPE[0]) == {3: "eedb19cf84460c8f", 4: "adfee6387d7a62c0"}


@pytest.mark.parametrize("value", [1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (1, -1, 1), (-1, 1, -1)])
def test_they_depend_neither_on_the_labelmap_s_extent_nor_on_its_memory(
    grid: Any, value: int, order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    inMemory = np.ascontiguousarray(labels()[:: flips[0], :: flips[1], :: flips[2]].transpose(order))
    view = inMemory.transpose(np.argsort(order))[:: flips[0], :: flips[1], :: flips[2]]
    digests = grid.sliceDigests(view, value, (2, 3, 4), SHAPE[0])
    mask = whole(labels(), value)
    assert digests == grid.sliceDigests(mask, 1, (0, 0, 0), SHAPE[0])
    content = grid.SegmentContent(SHAPE, view == value, (2, 3, 4))
    for t in range(SHAPE[0]):
        assert digests.get(t, "") == content.digest(t) == grid.maskDigest(mask[t])
        assert (t in digests) == mask[t].any()


def test_what_sticks_out_of_the_volume_has_none(grid: Any) -> None:
    array = np.ones((5, 4, 4), dtype=np.uint8)
    assert list(grid.sliceDigests(array, 1, (-2, 0, 0), 2)) == [0, 1]
    assert grid.sliceDigests(array, 1, (9, 0, 0), 9) == grid.sliceDigests(array, 1, (-5, 0, 0), 9) == {}


def test_one_voxel_more_or_elsewhere_changes_it(grid: Any) -> None:
    mask = whole(labels(), 1)[3]
    more, moved = mask.copy(), np.roll(mask, 1, axis=1)
    more[4, 8] ^= True
    assert len({grid.maskDigest(mask), grid.maskDigest(more), grid.maskDigest(moved)}) == 3
