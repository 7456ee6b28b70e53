"""What a run takes beside the network: it does not wait for the device slice by slice, and does not become slow."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_helpers import tiny_info
from tiny_predictor import tiny_predictor, tube_volume

import gpu
import with_network
import without_network
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.inference.device_slices import DeviceSlices, EmbeddingCache, pack_bits
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import write_bundle
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel

WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__")


def waits(monkeypatch: pytest.MonkeyPatch, slices: int, saliency: str) -> tuple[Counter[str], Session]:
    """How often a first result and a changed click bring something from the device, all slices in one batch."""
    stack, clicks = without_network.tube(slices)
    session = without_network.instant_predictor(slices, "cpu", saliency, batch_size=64).open(stack)
    counted: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        for name in WAITS:
            original = getattr(torch.Tensor, name)

            def counting(self: torch.Tensor, *args: Any, _name: str = name, _call: Any = original, **rest: Any) -> Any:
                counted[_name] += 1
                return _call(self, *args, **rest)

            patched.setattr(torch.Tensor, name, counting)
        session.segment(clicks)
        moved = without_network.moved(clicks, 1)
        result = session.segment(moved)
    assert result.recomputed and sum(s.pixels > 0 for s in result.slices) == slices
    return counted, session


@pytest.mark.parametrize("saliency", ["image", "conditioned"])
def test_twice_as_many_slices_do_not_wait_for_the_device_more_often(
    monkeypatch: pytest.MonkeyPatch, saliency: str
) -> None:
    few, _ = waits(monkeypatch, 20, saliency)
    many, _ = waits(monkeypatch, 40, saliency)
    assert few["numpy"] > 0, "masks come from the device somehow"
    assert many == few


@pytest.mark.parametrize("saliency", ["image", "conditioned"])
def test_a_click_that_changes_is_one_call_of_each_pass_of_the_decoder(saliency: str) -> None:
    stack, clicks = without_network.tube(40, 64)
    predictor = without_network.instant_predictor(40, "cpu", saliency, batch_size=20)
    session = predictor.open(stack)
    session.segment(clicks)
    engine: Any = predictor.engine
    calls: dict[str, list[int]] = {}

    def counting(name: str) -> Any:
        run, sizes = getattr(engine, name), calls.setdefault(name, [])

        def counted(embeddings: torch.Tensor, *rest: Any) -> Any:
            sizes.append(len(embeddings))
            return run(embeddings, *rest)

        return counted

    passes = {"image": ["decode"], "conditioned": ["conditioned_saliency", "decode_conditioned"]}[saliency]
    for name in (*passes, "encode", "with_context"):
        setattr(engine, name, counting(name))
    result = session.segment(without_network.moved(clicks, 3))
    *heard, decoded = (calls.pop(name) for name in passes)
    assert decoded == [len(result.recomputed)] and decoded[0] >= 4
    assert all(len(sizes) == 1 for sizes in heard) and calls == {"encode": [], "with_context": []}


@pytest.mark.parametrize("saliency", ["image", "conditioned"])
def test_what_is_beside_the_network_stays_fast(saliency: str) -> None:
    """At most twice what it took when this was written; the bounds are in units of a fixed computation."""
    found = without_network.measure(30, 3, "cpu", saliency)
    assert found["mask_voxels"] > 10_000
    first, change = {"image": (2.8, 0.5), "conditioned": (5.0, 4.0)}[saliency]
    assert found["first_result_over_reference"] < 2 * first, found
    assert found["changed_click_over_reference"] < 2 * change, found


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "float64", ">i2", "bool"])
@pytest.mark.parametrize("axis", ["i", "j", "k"])
def test_the_volume_on_the_device_gives_the_slices_of_the_stack(axis: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2 if dtype == "bool" else 200, (13, 15, 17)).astype(dtype)
    for signs in itertools.product((1.0, -1.0), repeat=3):
        stack = SliceStack(Volume(array, np.diag([*(np.array(signs) * (1.0, 1.2, 0.9)), 1.0])), axis)
        height, width = stack.shape[1:]
        window = place_window((height, width), stack.pixel_mm, 12, 9.0, np.array([4.0, 9.0]))
        slices = DeviceSlices(stack, torch.device("cpu"), 0.0)
        slices.look_through(window, (0.1, 150.0))
        expected = window.resample(normalize(stack.array[[2, 5, 3]], (0.1, 150.0)))
        assert np.allclose(slices.inputs([2, 5, 3])[:, 0].numpy(), expected, atol=1e-6)
        logits = rng.normal(size=(2, 12, 12)).astype(np.float32)
        masks, _ = slices.masks(torch.from_numpy(logits)).arrays()
        assert np.array_equal(masks, window.restore(logits, -1.0) > 0)
        nothing, _ = slices.masks(torch.full((2, 12, 12), -1.0)).arrays()
        assert nothing.shape == (2, height, width) and not nothing.any()


def test_a_field_of_view_beside_the_slice_sees_nothing() -> None:
    stack = SliceStack(tube_volume(), "axial")
    slices = DeviceSlices(stack, torch.device("cpu"), 0.0)
    slices.look_through(place_window((64, 64), (1.0, 1.0), 16, 10.0, np.array([500.0, 500.0])), (0.0, 100.0))
    assert not slices.inputs([8]).any()
    assert not slices.masks(torch.ones(1, 16, 16)).arrays()[0].any()


def test_bits_come_back_as_they_were() -> None:
    masks = np.random.default_rng(0).random((3, 5, 19)) > 0.5
    packed = pack_bits(torch.from_numpy(masks)).numpy()
    assert packed.shape == (3, 5, 3)
    assert np.array_equal(np.unpackbits(packed, axis=-1, count=19, bitorder="little"), masks)


def test_embeddings_are_bounded_and_those_unused_for_longest_go_first() -> None:
    cache = EmbeddingCache(3 * 2 * 8 * 4, half=True)
    for first in (0, 2, 4):
        cache.add([first, first + 1], torch.full((2, 8, 2, 2), float(first)))
    assert cache[0][0, 0, 0] == 0 and cache.nbytes == 3 * 2 * 64
    cache.shrink()
    assert [t for t in range(6) if t in cache] == [0, 1] and cache.nbytes <= 3 * 2 * 8 * 4


def test_a_session_whose_embeddings_had_to_go_gives_the_same_masks() -> None:
    stack, predictor = SliceStack(tube_volume(), "axial"), tiny_predictor()
    at = np.arange(4, 20, 3)
    clicks = Clicks(at, np.column_stack((25.0 + at // 2, np.full(6, 30.0))), np.zeros(6, bool), tuple("abcdef"))
    roomy, small = _masks(predictor, stack, clicks), tiny_predictor()
    small.engine.cache_bytes = 1
    assert (_masks(small, stack, clicks) != roomy).sum() <= 2, "batches of another make-up may round another way"


def test_embeddings_in_half_precision_give_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, predictor = SliceStack(tube_volume(), "axial"), tiny_predictor()
    at = np.arange(4, 20, 3)
    clicks = Clicks(at, np.column_stack((25.0 + at // 2, np.full(6, 30.0))), np.zeros(6, bool), tuple("abcdef"))
    sessions = []
    for large in (False, True):  # whether a whole volume's embeddings are too large to be kept as they are
        monkeypatch.setattr("SPDSegmentLib.inference.features.CACHE_BYTES", 1 if large else 1 << 30)
        sessions.append(predictor.open(stack))
    whole, half = ([session.segment(clicks), session.segment(without_network.moved(clicks, 2))] for session in sessions)
    kept = [session._features._embeddings for session in sessions]
    assert [cache[6].dtype for cache in kept] == [torch.float32, torch.float16]
    assert kept[0].nbytes == 2 * kept[1].nbytes
    for exact, rounded in zip(whole, half, strict=True):
        assert exact.mask.any() and (dice(rounded.mask, exact.mask) or 0) > 0.995


def _masks(predictor: Predictor, stack: SliceStack, clicks: Clicks) -> np.ndarray:
    session = predictor.open(stack)
    session.segment(without_network.moved(clicks, 2))
    return session.segment(clicks).mask


def test_a_run_with_its_network_is_measured_and_what_is_beside_it_is_little(tmp_path: Path) -> None:
    torch.manual_seed(3)
    lora = {"lora_rank": 2, "decoder_lora_rank": 2}
    model = SPDModel(NetworkConfig("tiny_random", 64, lora_rank=2, decoder_lora_rank=2))
    write_bundle(tmp_path / "tiny", tiny_info(network=lora), model.adapter_state(), "")
    report = with_network.measure(str(tmp_path / "tiny"), 13, 2, tmp_path / "masks.npz")
    assert report["slices"] == 13 and report["encoded"] == 11, "from the first click to the last"
    for clock in with_network.CLOCKS:
        assert 0 < report["outside_network"][clock] < 1
        assert report["changed_click"][clock] > 0 and report["first_result"][clock] > 0
    with np.load(tmp_path / "masks.npz") as masks:
        assert masks["mask"].sum() == report["mask_voxels"]


def test_the_measurement_on_a_gpu_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    torch.manual_seed(3)
    lora = {"lora_rank": 2, "decoder_lora_rank": 2}
    model = SPDModel(NetworkConfig("tiny_random", 64, lora_rank=2, decoder_lora_rank=2))
    write_bundle(tmp_path / "tiny", tiny_info(network=lora), model.adapter_state(), "")
    output = tmp_path / "results" / "gpu.json"
    page = tmp_path / "page.md"
    page.write_text(f"Before\n{gpu.MARKS[0]}Nothing yet.\n{gpu.MARKS[1]}After\n", encoding="utf-8")
    asked = ["--device", "cpu", "--small", "--bundle", str(tmp_path / "tiny"), "--output", str(output)]
    report = gpu.main([*asked, "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before\n") and text.endswith("After\n") and "Nothing yet" not in text
    rows = ("first slice", "8 slices", "one changed click", "matrix peak", "of the bandwidth", "training, stage I")
    assert all(row in text for row in rows)
    assert all(mark in gpu.PAGE.read_text(encoding="utf-8") for mark in gpu.MARKS)
    assert json.loads(output.read_text(encoding="utf-8")) == report
    worker = report["worker"]
    assert 0 < worker["first_slice_cold_s"] <= worker["all_slices_cold_s"]
    assert 0 < worker["changed_click_median_s"] <= worker["changed_click_p95_s"]
    encoder = report["encoders"]["tiny_random at 64"]
    assert 0 < encoder["share_of_matrix_peak"] < 1 and 0 < encoder["share_of_bandwidth"] < 1
    assert report["training"]["slices_per_s"] > 0
