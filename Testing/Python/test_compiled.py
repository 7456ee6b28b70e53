"""The encoder is compiled in the background: it never waits, never changes a result, and can be switched off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_speed import _masks
from tiny_predictor import tiny_predictor, tube_volume
from torch import Tensor

import without_network
from SPDSegmentLib.errors import OutOfMemory
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference import acceleration
from SPDSegmentLib.inference.acceleration import CapturedDecoder, CompiledEncoder, batch_for, compiling_is_on

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Compiler:
    """Stands in for torch.compile: waits until it is let go, and counts the shapes that its product is given."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda maps: maps) -> None:
        self.may_go_on = threading.Event()
        self.shapes: list[tuple[int, ...]] = []
        self._change = change

    def __call__(self, eager: Any, dynamic: bool) -> Any:
        assert not dynamic and self.may_go_on.wait(30)

        def fast(images: Tensor) -> Tensor:
            self.shapes.append(tuple(images.shape))
            return self._change(eager(images))

        return fast


def doubled(images: Tensor) -> Tensor:
    return 2 * images


def _compiled(compiler: Compiler, batch: Tensor) -> CompiledEncoder:
    """An encoder whose compilation for batches like this one has ended, well or not."""
    encoder = CompiledEncoder(doubled, compiler)
    compiler.may_go_on.set()
    thread = encoder.begin(batch)
    assert thread is not None
    thread.join(30)
    return encoder


def test_the_eager_encoder_serves_until_the_compiled_one_is_ready() -> None:
    compiler, images = Compiler(), torch.rand(4, 1, 8, 8)
    encoder = CompiledEncoder(doubled, compiler)
    thread = encoder.begin(images)
    assert thread is not None and encoder.begin(images) is None, "it is compiled once"
    assert torch.equal(encoder(images), 2 * images) and not encoder.is_compiled and not compiler.shapes
    compiler.may_go_on.set()
    thread.join(30)
    assert encoder.is_compiled


def test_smaller_batches_are_filled_to_the_one_shape_and_larger_ones_go_the_eager_way() -> None:
    compiler, images = Compiler(), torch.rand(9, 1, 8, 8)
    encoder = _compiled(compiler, images[:4])
    for count in (1, 3, 4, 9):
        assert torch.equal(encoder(images[:count]), 2 * images[:count])
    assert compiler.shapes == [(4, 1, 8, 8)] * 4, "the trial and three calls"


@pytest.mark.parametrize("fault", ["fails to compile", "gives other numbers", "gives NaN"])
def test_a_compiled_encoder_that_is_wrong_is_never_used(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    def change(maps: Tensor) -> Tensor:
        if fault == "fails to compile":
            raise AssertionError("no compiler")
        return maps + 1 if fault == "gives other numbers" else maps * torch.nan

    compiler, images = Compiler(change), torch.rand(4, 1, 8, 8)
    encoder = _compiled(compiler, images)
    assert not encoder.is_compiled and torch.equal(encoder(images), 2 * images)
    assert "compiling it failed" in caplog.text


def test_an_encoder_that_fails_later_gives_way_to_the_eager_one(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def change(maps: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("lost")
        return maps

    compiler, images = Compiler(change), torch.rand(4, 1, 8, 8)
    encoder = _compiled(compiler, images)
    assert encoder.is_compiled and torch.equal(encoder(images), 2 * images)
    assert not encoder.is_compiled and "lost" in caplog.text


def test_masks_are_the_same_whether_the_encoder_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, at = SliceStack(tube_volume(), "axial"), np.arange(4, 20, 3)
    clicks = Clicks(at, np.column_stack((25.0 + at // 2, np.full(6, 30.0))), np.zeros(6, bool), tuple("abcdef"))
    plain, compiler = _masks(tiny_predictor(), stack, clicks), Compiler()
    predictor = tiny_predictor()
    monkeypatch.setattr("SPDSegmentLib.inference.engine.compiling_is_on", lambda device: True)
    predictor.engine.encoder = CompiledEncoder(predictor.engine.model.encode, compiler)
    compiler.may_go_on.set()
    first = _masks(predictor, stack, clicks)
    thread = predictor.engine.encoder._thread
    assert thread is not None, "compiling begins after a result"
    thread.join(30)
    later = _masks(predictor, stack, clicks)
    assert np.array_equal(first, plain) and np.array_equal(later, plain)
    assert set(compiler.shapes) == {(4, 1, 64, 64)} and len(compiler.shapes) > 1


def test_only_a_gpu_s_encoder_is_compiled_and_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(acceleration.SWITCH, raising=False)
    assert compiling_is_on(GPU) and not compiling_is_on(CPU)
    monkeypatch.setenv(acceleration.SWITCH, "0")
    assert not compiling_is_on(GPU)


def test_the_batch_follows_the_free_memory_of_the_gpu() -> None:
    assert batch_for(GPU, 256, lambda device: 80 << 30) == acceleration.LARGEST_BATCH
    assert batch_for(GPU, 256, lambda device: 4 << 30) == 16
    assert batch_for(GPU, 512, lambda device: 4 << 30) == 4
    with pytest.raises(OutOfMemory, match="has 1024 MB of free memory; the model needs 1152 MB for") as raised:
        batch_for(GPU, 256, lambda device: 1 << 30)
    assert "choose the CPU" in raised.value.remedy


def test_before_a_volume_is_begun_its_need_is_compared_with_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, free = tiny_predictor(), [0]
    engine, each = predictor.engine, acceleration.slice_bytes(64)
    monkeypatch.setattr(acceleration, "free_memory_bytes", lambda: free[0])
    stack = SliceStack(tube_volume(), "axial")
    clicks = Clicks(np.array([8, 9]), np.full((2, 2), 29.0), np.zeros(2, bool), ("a", "b"))
    free[0] = each - 1
    with pytest.raises(OutOfMemory, match="cpu has 7 MB of free memory; the model needs 8 MB for this volume"):
        predictor.open(stack).segment(clicks)
    free[0] = 2 * each + 1000
    session = predictor.open(stack)
    assert session.segment(clicks).mask.any() and engine.batch_size == 2
    assert session._features._embeddings.limit == 1000, "no more embeddings are kept than there is room for"
    free[0] = 0
    session.segment(without_network.moved(clicks, 0))  # what was begun goes on


def test_a_volume_that_is_opened_while_memory_is_short_slows_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, free = tiny_predictor(), [0]
    monkeypatch.setattr(acceleration, "free_memory_bytes", lambda: free[0])
    clicks = Clicks(np.array([8, 9]), np.full((2, 2), 29.0), np.zeros(2, bool), ("a", "b"))
    for free[0], batch in ((acceleration.slice_bytes(64), 1), (1 << 40, 4)):
        predictor.open(SliceStack(tube_volume(), "axial")).segment(clicks)
        assert predictor.engine.batch_size == batch


def test_a_gpu_s_volume_counts_and_an_unknown_amount_of_memory_limits_nothing() -> None:
    each = acceleration.slice_bytes(256)
    assert batch_for(GPU, 256, lambda device: 5 * each, 64, each) == 4
    assert batch_for(GPU, 256, lambda device: 5 * each, 64, 3 * each) == 2
    assert batch_for(CPU, 256, lambda device: None, 3) == 3


class Capturer:
    """Stands in for CUDA graphs: a replay leaves its outputs in the same memory each time, as a graph does."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda maps: maps) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self._change = change

    def __call__(self, run: Any, inputs: Any) -> Any:
        self.captured.append(len(inputs[0]))
        outputs = [torch.empty_like(output) for output in run(*inputs)]

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            self.replayed.append(len(given[0]))
            for output, value in zip(outputs, run(*given), strict=True):
                output.copy_(self._change(value))
            return tuple(outputs)

        return replay


def sums(maps: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    return maps + points.sum((1, 2))[:, None, None], points.sum((1, 2))


def test_a_decoder_is_captured_for_the_usual_numbers_of_slices_and_replayed() -> None:
    capturer = Capturer()
    decoder = CapturedDecoder(sums, capturer)
    maps, points = torch.rand(40, 5, 5), torch.rand(40, 3, 2)
    kept = []
    for first, count in ((0, 3), (4, 3), (8, 4), (12, 1), (0, 40)):
        chosen = slice(first, first + count)
        kept.append((decoder(maps[chosen], points[chosen]), sums(maps[chosen], points[chosen])))
    assert capturer.captured == [4, 1] and capturer.replayed == [4, 4, 4, 1], "a trial each, two calls; 40 are too many"
    for found, expected in kept:  # also after later replays
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("change", [lambda maps: maps + 1, lambda maps: maps * torch.nan])
def test_a_captured_decoder_that_is_wrong_is_never_used(
    change: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    capturer = Capturer(change)
    decoder = CapturedDecoder(sums, capturer)
    maps, points = torch.rand(3, 5, 5), torch.rand(3, 3, 2)
    for _ in range(2):
        assert torch.equal(decoder(maps, points)[0], sums(maps, points)[0])
    assert capturer.captured == [4] and "capturing it failed" in caplog.text


def test_masks_are_the_same_whether_the_decoder_is_captured() -> None:
    stack, at = SliceStack(tube_volume(), "axial"), np.arange(4, 20, 3)
    clicks = Clicks(at, np.column_stack((25.0 + at // 2, np.full(6, 30.0))), np.zeros(6, bool), tuple("abcdef"))
    plain, predictor, capturer = _masks(tiny_predictor(), stack, clicks), tiny_predictor(), Capturer()
    engine = predictor.engine
    engine.model.slice_decoder = None  # as on a GPU
    engine.model.decoder_pass = CapturedDecoder(engine.model.decode_batch, capturer)
    _masks(predictor, stack, clicks)
    assert (_masks(predictor, stack, clicks) != plain).sum() <= 2 and capturer.replayed
