"""The whole worker with the real predictor on a small randomly initialized network."""

from __future__ import annotations

import gc
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from models_helpers import tiny_info
from worker_drivers import AFFINE, Driver, children, line, volume_array

from SPDSegmentLib.errors import Cancelled, ModelMissing
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.models.bundle import ADAPTER_NAME, bundle_state, describe_again, find_bundle
from SPDSegmentLib.models.bundle_info import read_info
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.__main__ import load_predictor
from SPDSegmentLib.worker.client import Callbacks, ModelChoice
from SPDSegmentLib.worker.handler import LOST_LESSON, RequestHandler, stop_between_layers
from SPDSegmentLib.worker.payloads import flatten_markups, pack_masks, unpack_mask, unpack_masks
from SPDSegmentLib.worker.requests import WorkerCommand, learn_message, local_command, suggest_message

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that needs no base weights."""
    return _write(tmp_path_factory.mktemp("models") / "tiny-test")


def _write(folder: Path, seed: int = 3) -> Path:
    from SPDSegmentLib.models.bundle import write_bundle
    from SPDSegmentLib.networks.config import NetworkConfig
    from SPDSegmentLib.networks.spd import SPDModel

    torch.manual_seed(seed)
    model = SPDModel(NetworkConfig(backbone="tiny_random", image_size=64, lora_rank=2, decoder_lora_rank=2))
    write_bundle(
        folder,
        tiny_info(network={"lora_rank": 2, "decoder_lora_rank": 2}, prompts={"threshold": 0.3}),
        model.adapter_state(),
        "",
    )
    return folder


@pytest.fixture
def worker(bundle: Path) -> Iterator[Driver]:
    """A client of the real worker."""
    d = Driver("subprocess", local_command())
    d.client.set_model(ModelChoice(str(bundle), "cpu", "float32"))
    d.client.open_volume("volume", volume_array(), AFFINE)
    yield d
    d.client.close()
    assert children() == []


def test_masks_are_those_of_the_predictor_without_a_worker(worker: Driver, bundle: Path) -> None:
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import read_bundle

    stack = SliceStack(Volume(volume_array(), AFFINE))
    session = Predictor.load(read_bundle(bundle), device="cpu", precision="float32").open(stack)
    expected = session.segment(clicks_from_markups([line()], stack))

    request, answer = worker.segment(send_all=True)

    masks = np.stack([unpack_mask(request.slices[t].packed) for t in range(stack.n_slices)])
    np.testing.assert_array_equal(masks, expected.mask)
    assert [request.slices[t].status for t in range(stack.n_slices)] == [s.status for s in expected.slices]
    assert [(f.click_id, f.slice_index, f.fate) for f in answer.fates] == [
        (f.click_id, f.slice_index, f.fate) for f in expected.fates
    ]
    assert answer.device == "cpu" and answer.report["model"]["name"] == "tiny-test"


def test_the_memory_for_embeddings_is_bounded_on_the_worker_s_command_line(worker: Driver, bundle: Path) -> None:
    usual = local_command()
    small = Driver("subprocess", WorkerCommand((*usual.arguments, "--cache-memory", "0"), usual.folder))
    small.client.set_model(ModelChoice(str(bundle), "cpu", "float32"))
    small.client.open_volume("volume", volume_array(), AFFINE)
    for driver, encodes_again in ((worker, False), (small, True)):
        driver.segment(markups=[line()], prompts="interpolated")
        _, answer = driver.segment(markups=[line()], prompts="raw")  # which decodes again
        assert answer.recomputed and (answer.report["slices_encoded"] > 0) == encodes_again
    small.client.close()


def test_a_moved_click_sends_exactly_its_reach(worker: Driver, bundle: Path) -> None:
    from tiny_predictor import reached

    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import read_bundle

    before, after = line(), line(2, 8)
    stack = SliceStack(Volume(volume_array(), AFFINE))
    session = Predictor.load(read_bundle(bundle), device="cpu", precision="float32").open(stack)
    first, second = (clicks_from_markups([markup], stack) for markup in (before, after))
    session.segment(first)
    reach = reached(session, first, second)
    worker.segment(markups=[before])
    request, answer = worker.segment(markups=[after])
    assert set(answer.recomputed) <= set(reach)
    assert set(request.slices) <= set(reach)


def test_a_new_worker_goes_on_in_the_field_of_view_of_the_last_one(worker: Driver) -> None:
    _, answer = worker.segment()
    again, second = worker.segment(anchor_ras=answer.anchor_ras, send_all=True)
    assert second.recomputed == () and second.anchor_ras == answer.anchor_ras
    psutil.Process(worker.client.process_id).kill()
    worker.until(lambda: not worker.client.running)
    request, third = worker.segment(anchor_ras=answer.anchor_ras, send_all=True)
    assert third.anchor_ras == answer.anchor_ras
    assert all(request.slices[t].packed.bits.tobytes() == s.packed.bits.tobytes() for t, s in again.slices.items())


def test_saliency_after_a_segmentation(worker: Driver) -> None:
    worker.segment()
    saliency = worker.result(worker.client.saliency("volume", 4)).saliency
    assert saliency.shape == (40, 48) and 0 <= saliency.min() <= saliency.max() <= 1


def test_a_warm_worker_has_loaded_the_model_before_the_first_segmentation(worker: Driver, bundle: Path) -> None:
    assert not worker.client.running
    worker.result(worker.client.warm_up())
    connection = worker.client.connection
    assert connection is not None and connection.model_sent == worker.client.model
    worker.until(lambda: not connection.implicit)
    process, seen = worker.client.process_id, []
    request = worker.client.segment("volume", [line()], callbacks=Callbacks(on_progress=lambda p: seen.append(p.stage)))
    worker.result(request)
    assert worker.client.process_id == process and "encoding" in seen and "load_model" not in seen


def test_a_model_that_was_trained_again_in_its_place_is_the_one_of_the_next_run(worker: Driver, tmp_path: Path) -> None:
    folder = tmp_path / "tiny-test"
    for seed in (1, 2):
        _write(folder, seed)
        worker.client.set_model(ModelChoice(str(folder), "cpu", "float32"))
        request, answer = worker.segment(send_all=True)
        assert answer.report["model"]["adapter_sha256"] == read_info(folder / "model.json").adapter_sha256
    shape, connection = volume_array().shape, worker.client.connection
    assert sorted(request.slices) == list(range(shape[0])) and connection is not None
    before = connection.session_of("volume", ModelChoice(str(folder), "cpu", "float32"))
    assert before is not None
    _write(folder, 3)
    assert connection.session_of("volume", ModelChoice(str(folder), "cpu", "float32")) is None


@pytest.mark.parametrize("by_name", [True, False])
def test_relative_paths_mean_the_same_folder_in_the_worker(
    by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "home" / "models" / "tiny-test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPDSEGMENT_HOME", "home" if by_name else "")
    d = Driver("subprocess", local_command())
    d.client.set_model(ModelChoice("tiny-test" if by_name else "home/models/tiny-test", "cpu", "float32"))
    d.result(d.client.warm_up())
    d.client.open_volume("volume", volume_array(), AFFINE)
    _, answer = d.segment()
    assert answer.report["model"]["name"] == "tiny-test"
    d.client.close()


def test_a_bundle_that_is_not_there(worker: Driver) -> None:
    worker.client.set_model(ModelChoice("no such model"))
    with pytest.raises(ModelMissing):
        worker.segment()


@pytest.mark.parametrize("asked", ["tiny-test", "trained-friday", "folder", "second-of-the-name"])
def test_a_model_that_was_trained_again_in_its_place_is_loaded_again(bundle: Path, spd_home: Path, asked: str) -> None:
    own, loads = spd_home / "models" / "trained-friday", []
    shutil.copytree(bundle, own)
    if asked == "second-of-the-name":  # the first of them is damaged
        asked = "tiny-test"
        (shutil.copytree(bundle, own.with_name("a-first")) / ADAPTER_NAME).unlink()
    name = str(own) if asked == "folder" else asked
    assert find_bundle(name).folder == own

    def load(*wanted: str) -> Any:
        loads.append(wanted)
        return object()

    handler = RequestHandler(load, lambda event: None, 1)
    for expected in (1, 1, 2, 2):
        if expected > len(loads) > 0:
            describe_again(find_bundle(name), title="Trained again on a Friday")
        handler.answer(m.LoadModel(1, name, "cpu", "float32"), lambda: False)
        assert len(loads) == expected
    assert bundle_state("unheard-of") == ()


@pytest.mark.parametrize("how", ["closed", "forgotten", "other model"])
def test_what_was_computed_of_a_volume_that_is_let_go_leaves_the_memory_at_once(bundle: Path, how: str) -> None:
    gc.disable()  # Python's own collector would hide what nobody frees
    try:
        handler = RequestHandler(load_predictor, lambda event: None, 1)
        handler.answer(m.LoadModel(1, str(bundle), "cpu", "float32"), lambda: False)
        array = volume_array()
        stack = weakref.ref(array)
        handler.open_volume(m.OpenVolume(2, "volume", "<i2", array.shape, AFFINE), array)
        request = m.Segment(3, "volume", *flatten_markups([line()]), *pack_masks({}))
        handler.answer(request, lambda: False)
        del array
        session = weakref.ref(handler.volumes.use("volume").session)  # type: ignore[union-attr]
        assert stack() is not None and session() is not None
        if how == "closed":
            handler.volumes.drop("volume")
        elif how == "forgotten":
            handler.volumes.shrink((), 1)
        else:
            handler.answer(m.LoadModel(4, str(bundle), "cpu", "auto"), lambda: False)
        assert session() is None and (stack() is None) == (how != "other model")
    finally:
        gc.enable()


def test_devices_are_listed_when_asked(worker: Driver) -> None:
    devices = worker.result(worker.client.status(probe=True)).devices
    assert devices[-1].name == "cpu" and devices[-1].free_bytes > 0


def test_a_running_layer_is_the_longest_that_cancel_waits_for() -> None:
    network = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(10)])
    calls: list[int] = []
    for layer in network:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(Cancelled), stop_between_layers(lambda: len(calls) == 3):
        network(torch.zeros(1, 4))
    assert len(calls) == 3
    network(torch.zeros(1, 4))
    assert len(calls) == 13


def test_without_torch_nothing_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(4, 4)
    monkeypatch.delitem(sys.modules, "torch")
    with stop_between_layers(lambda: True):
        assert layer(torch.zeros(1, 4)).shape == (1, 4)


def test_a_suggested_click_comes_from_the_last_result_and_away_from_what_was_dismissed(worker: Driver) -> None:
    clicks = [line()]
    segmented = worker.client.wait(worker.client.segment("volume", clicks))
    assert isinstance(segmented, m.Segmented)
    first = worker.client.wait(worker.client.ask(suggest_message("volume", clicks)))
    assert isinstance(first, m.Suggested)
    assert len(first.slices) == len(first.places_ras) == len(first.measures) <= 1
    if first.slices:
        again = worker.client.wait(worker.client.ask(suggest_message("volume", clicks, first.places_ras)))
        assert isinstance(again, m.Suggested) and again.slices != first.slices


def test_what_corrections_taught_is_asked_for_by_name_and_taken_back_bit_for_bit(worker: Driver) -> None:
    clicks = [line()]
    own: dict[int, np.ndarray] = {}
    take = Callbacks(lambda s: own.update({s.slice_index: unpack_mask(s.packed)}))
    worker.client.wait(worker.client.segment("volume", clicks, send_all=True, callbacks=take))
    shape = next(iter(own.values())).shape
    corrected = {t: np.zeros(shape, dtype=bool) for t in (3, 5, 7)}
    for mask in corrected.values():
        mask[20:30, 20:30] = True
    learned = worker.client.wait(worker.client.ask(learn_message("volume", clicks, corrected)))
    assert isinstance(learned, m.Learned)
    assert learned.slices == (3, 5, 7) and learned.sentence
    changed = unpack_masks(learned.changed_table, learned.changed_bits, shape)
    assert bool(learned.name) == (learned.after >= learned.before + 0.01) == bool(changed)
    if learned.name:
        found: dict[int, np.ndarray] = {}
        take = Callbacks(lambda s: found.update({s.slice_index: unpack_mask(s.packed)}))
        segmented = worker.client.wait(
            worker.client.segment("volume", clicks, locked=corrected, learned=learned.name, callbacks=take)
        )
        assert isinstance(segmented, m.Segmented)
        assert segmented.report["model"]["learned"] == {"name": learned.name, "slices": 3}
        assert all(np.array_equal(found[t], mask) for t, mask in changed.items())
    back: dict[int, np.ndarray] = {}
    take = Callbacks(lambda s: back.update({s.slice_index: unpack_mask(s.packed)}))
    segmented = worker.client.wait(worker.client.segment("volume", clicks, callbacks=take))
    assert isinstance(segmented, m.Segmented) and "learned" not in segmented.report["model"]
    assert all(np.array_equal(back[t], mask) for t, mask in own.items())


def test_a_lesson_that_went_with_its_worker_is_said_to_be_lost(worker: Driver) -> None:
    segmented = worker.client.wait(worker.client.segment("volume", [line()], learned="0123456789ab"))
    assert isinstance(segmented, m.Segmented)
    assert LOST_LESSON in segmented.report["notes"]
