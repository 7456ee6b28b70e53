"""The straightened view on tubes of known size, and as the command line writes it."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from models_helpers import tiny_info
from scipy.spatial.transform import Rotation
from segment_case import files_in, run

from SPDSegmentLib.cli import segment_command
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.straighten import COLUMNS, straighten
from SPDSegmentLib.geometry.volume import Volume

pytest_plugins = ["segment_case"]

OBLIQUE = Rotation.from_euler("xyz", (12, -20, 33), degrees=True).as_matrix()
RADIUS, RING = 7.0, 28.0


def _volume(spacing, directions, extent=76.0):
    shape = [int(np.ceil(extent / s)) for s in spacing]
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2 + (0.3, 0.2, 0.1))
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return shape, affine, ijk @ affine[:3, :3].T + affine[:3, 3]


def _phantom(inside, spacing, directions=OBLIQUE):
    shape, affine, ras = _volume(spacing, directions)
    mask = inside(ras).reshape(shape).transpose(2, 1, 0)
    stack = SliceStack(Volume(np.where(mask, 100, 0).astype(np.int16), affine))
    return stack.from_volume(mask), stack


def _straight(direction, length=56.0, radius=RADIUS):
    unit = np.asarray(direction, dtype=float) / np.linalg.norm(direction)

    def inside(ras):
        along = ras @ unit
        return (np.abs(along) <= length / 2) & (np.linalg.norm(ras - along[:, None] * unit, axis=1) <= radius)

    return inside


def _arc(turn, degrees=140.0, radius=RADIUS):
    def inside(ras):
        x, y, z = (ras @ Rotation.from_euler("xyz", turn, degrees=True).as_matrix()).T
        x = x + RING / 2
        return (np.hypot(np.hypot(x, y) - RING, z) <= radius) & (np.abs(np.degrees(np.arctan2(y, x))) <= degrees / 2)

    return inside


def _middle(values):
    return values[len(values) // 8 : -(len(values) // 8)]


@pytest.mark.parametrize(
    ("spacing", "directions"),
    [((1.0, 1.0, 1.0), np.eye(3)), ((0.9, 0.9, 2.5), OBLIQUE)],
    ids=["isotropic and upright", "anisotropic and oblique"],
)
@pytest.mark.parametrize(
    ("inside", "length_mm"),
    [(_straight((0, 0, 1), 75.0), 75.0), (_straight((1, 1, 2), 75.0), 75.0), (_arc((90, 0, 0)), RING * np.radians(140)),
     (_arc((60, 20, 0)), RING * np.radians(140))],
    ids=["along", "aslant", "arc", "arc aslant"],
)  # fmt: skip
def test_a_tube_has_its_length_its_areas_and_its_diameters(inside, length_mm, spacing, directions):
    mask, stack = _phantom(inside, spacing, directions)
    found = straighten(mask, stack, image=False)
    area = np.pi * RADIUS**2
    assert found.centerline_mm == pytest.approx(length_mm, rel=0.02)
    assert _middle(found.area_mm2).mean() == pytest.approx(area, rel=0.03)
    assert _middle(found.diameter_mm).mean() == pytest.approx(2 * RADIUS, rel=0.02)
    assert _middle(found.feret_min_mm).mean() == pytest.approx(2 * RADIUS, rel=0.06)
    assert _middle(found.feret_max_mm).mean() == pytest.approx(2 * RADIUS, rel=0.06)
    assert (_middle(found.feret_min_mm) <= 1.03 * _middle(found.diameter_mm)).all()
    assert (_middle(found.diameter_mm) <= 1.03 * _middle(found.feret_max_mm)).all()
    assert found.left_out < 0.02


def test_the_planes_stand_across_the_centerline_and_do_not_turn_round_it():
    mask, stack = _phantom(_arc((60, 20, 0)), (0.8, 0.8, 2.5))
    found = straighten(mask, stack, image=False)
    steps = np.diff(found.center_ras, axis=0)
    assert np.linalg.norm(steps, axis=1) == pytest.approx(found.centerline_mm / len(found.center_ras), rel=0.02)
    along = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    assert np.abs(np.einsum("sj,skj->sk", along, found.across_ras[:-1])).max() < 0.1
    turned = np.einsum("sj,sj->s", found.across_ras[1:, 0], found.across_ras[:-1, 0])
    assert turned.min() > 0.99
    position, _ = stack.to_slices(found.center_ras)
    assert position[0] < position[-1]


def test_the_image_is_straightened_with_the_mask():
    mask, stack = _phantom(_arc((90, 0, 0)), (1.0, 1.0, 1.0))
    found = straighten(mask, stack)
    assert found.image is not None
    seen = found.image > 50
    assert np.mean(seen == found.masks) > 0.97
    half = found.masks.shape[1] // 2
    assert found.image[3:-3, half, half].min() > 95


def test_an_ellipse_has_two_ferets():
    def inside(ras):
        return ((ras[:, 0] / 12) ** 2 + (ras[:, 1] / 6) ** 2 <= 1) & (np.abs(ras[:, 2]) <= 28)

    mask, stack = _phantom(inside, (0.8, 0.8, 2.0), np.eye(3))
    found = straighten(mask, stack, image=False)
    assert _middle(found.feret_max_mm).mean() == pytest.approx(24, rel=0.04)
    assert _middle(found.feret_min_mm).mean() == pytest.approx(12, rel=0.04)


def test_a_gap_is_bridged_and_a_stray_part_is_left_out_and_said():
    mask, stack = _phantom(_straight((0, 0, 1)), (1.0, 1.0, 2.0), np.eye(3))
    broken = mask.copy()
    broken[17:19] = False
    assert straighten(broken, stack, image=False).centerline_mm == pytest.approx(56, rel=0.03)
    stray = mask.copy()
    stray[8:13, 3:9, 3:9] = True
    found = straighten(stray, stack, image=False)
    assert found.centerline_mm == pytest.approx(56, rel=0.03)
    assert found.left_out > 0.02
    assert "lies apart" in found.sentence()


def test_a_gap_counts_for_the_length_and_not_for_the_diameter():
    mask, stack = _phantom(_straight((0, 0, 1)), (1.0, 1.0, 2.0), np.eye(3))
    broken = mask.copy()
    broken[14:22] = False
    found = straighten(broken, stack, image=False)
    words = r"(\d+) mm along the centerline \((\d+) mm of it in gaps\), diameter ([\d.]+) mm on average"
    said = re.match(words, found.sentence())
    assert said is not None, found.sentence()
    length, gaps, diameter = map(float, said.groups())
    assert length == pytest.approx(56, abs=2) and gaps == pytest.approx(16, abs=2)
    assert diameter == pytest.approx(2 * RADIUS, rel=0.03)
    assert "gaps" not in straighten(mask, stack, image=False).sentence()


@pytest.mark.parametrize("voxels", [[(5, 6, 7)], [(5, 6, 7), (6, 6, 7)], [(5, 6, n) for n in range(3, 9)]])
def test_a_few_voxels_are_measured_as_well(voxels):
    stack = SliceStack(Volume(np.zeros((12, 14, 16), dtype=np.int16), np.diag([1.0, 1.0, 2.0, 1.0])))
    mask = np.zeros(stack.shape, dtype=bool)
    mask[tuple(np.array(voxels).T)] = True
    found = straighten(mask, stack)
    assert len(found.table()) == len(found.area_mm2) > 0
    assert all(isinstance(row[COLUMNS.index("slice_number")], int) for row in found.table())
    assert 0 < found.centerline_mm < 12
    assert np.isfinite(np.array(found.table())).all()


def test_a_way_may_be_given():
    mask, stack = _phantom(_arc((90, 0, 0)), (1.0, 1.0, 1.0))
    whole = straighten(mask, stack, image=False)
    rough = whole.center_ras[::12] + np.random.default_rng(3).normal(0, 1.5, whole.center_ras[::12].shape)
    found = straighten(mask, stack, rough, image=False)
    assert found.centerline_mm == pytest.approx(whole.centerline_mm, rel=0.03)


def test_nothing_to_measure_is_said():
    stack = SliceStack(Volume(np.zeros((4, 5, 6), dtype=np.int16), np.eye(4)))
    with pytest.raises(BadInput, match="empty"):
        straighten(np.zeros(stack.shape, dtype=bool), stack)
    with pytest.raises(BadInput, match="shape"):
        straighten(np.zeros((2, 2, 2), dtype=bool), stack)


def test_the_command_writes_the_table_and_a_picture_beside_it(case):
    image = pytest.importorskip("matplotlib.image")
    result = run(case, "--measure", case.out / "along.csv")
    assert result.exit_code == 0, result.output
    assert files_in(case.out) == ["along.csv", "along.png", "mask.nii.gz"]
    table = _read_table(case.out / "along.csv")
    assert (np.diff(table[:, 0]) > 0).all() and table[:, 5].max() > 0
    picture = image.imread(case.out / "along.png")[..., :3]
    assert ((np.abs(picture - np.array(tiny_info().color)) < 0.06).all(axis=-1)).sum() > 100
    assert "along the centerline" in result.stdout and "along.png" in result.stdout.replace("\n", "")


def test_without_matplotlib_the_table_is_written_and_the_missing_picture_said(case, monkeypatch):
    monkeypatch.setattr(segment_command.importlib.util, "find_spec", lambda name: None)
    result = run(case, "--measure", case.out / "along.csv")
    assert result.exit_code == 0, result.output
    assert files_in(case.out) == ["along.csv", "mask.nii.gz"]
    assert "without its picture" in result.stderr and "matplotlib" in result.stderr


@pytest.mark.parametrize("taken", ["--preview", "--measure"])
def test_the_picture_beside_the_table_takes_no_other_files_place(case, taken):
    pytest.importorskip("matplotlib")
    if taken == "--preview":
        result = run(case, "--measure", case.out / "p.csv", "--preview", case.out / "p.png")
    else:
        result = run(case, "--measure", case.out / "p.txt")
    assert result.exit_code == 2
    assert files_in(case.out) == []


def _read_table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert tuple(rows[0]) == COLUMNS
    return np.array(rows[1:], dtype=float)
