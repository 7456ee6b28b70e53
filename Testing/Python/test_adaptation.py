"""Learning from corrected slices: what is learned, when nothing is, and that the model itself stays as it was."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_helpers import tiny_info
from tiny_predictor import SIZE, BrightnessEngine, listening_predictor, tiny_predictor, tube_volume
from torch import Tensor

from SPDSegmentLib import InteractiveSegmenter, LoadedModel
from SPDSegmentLib.api import Segmentation
from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.adaptation import Lesson, learn
from SPDSegmentLib.inference.engine import Engine, Rows
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import read_bundle, write_bundle
from SPDSegmentLib.networks.config import NetworkConfig, SegmentationLossConfig
from SPDSegmentLib.networks.spd import SPDModel, segmentation_loss
from SPDSegmentLib.prompts.distillation import PromptConfig

MIDDLES = {t: (20 + t // 2 + 5, 30) for t in range(4, 20)}


class HeadEngine(BrightnessEngine):
    """Masks are where the saliency head says so; what it sees carries the slice's brightness."""

    saliency = Engine.saliency

    @torch.inference_mode()
    def decode(
        self, embeddings: Rows, points: Sequence[np.ndarray], saliency: Tensor | None, places: int
    ) -> tuple[Tensor, Tensor]:
        assert saliency is not None
        return saliency.float() - 0.5, torch.full((len(saliency),), 0.8)


def truth(t: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    if 3 <= t < 21:
        mask[24:36, 20 + t // 2 : 30 + t // 2] = True
    return mask


@functools.cache
def predictor() -> Predictor:
    """Whose head was taught that the structure is much wider than it is."""
    torch.manual_seed(0)
    network = NetworkConfig("tiny_random", SIZE, dense_saliency_prompt=True)
    engine = HeadEngine(SPDModel(network, adapters=False), torch.device("cpu"), torch.float32, 4)
    made = Predictor(engine, PromptConfig(), IntensityConfig("window", 0.0, 100.0), 0.0, "axial", {"name": "tiny"})
    session = made.open(SliceStack(tube_volume(), "axial"))
    session.saliency(10)
    slices = range(4, 20, 2)
    own, previous, following = session.features.learning_inputs(slices, Call())
    wide = F.max_pool2d(torch.from_numpy(np.stack([truth(t) for t in slices])[:, None].astype(np.float32)), 7, 1, 3)
    head = engine.model.saliency_head.requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        logits = engine.model.saliency_logits(own, previous, following)
        segmentation_loss(logits, wide, SegmentationLossConfig()).mean().backward()
        optimizer.step()
    head.requires_grad_(False)
    return made


def clicks() -> Clicks:
    slices = sorted(MIDDLES)[::3]
    xy = np.array([MIDDLES[t] for t in slices], dtype=float)
    return Clicks(np.array(slices), xy, np.zeros(len(slices), bool), tuple(map(str, slices)))


def corrected(*slices: int) -> dict[int, np.ndarray]:
    return {t: truth(t) for t in slices}


@pytest.fixture
def session() -> Session:
    return predictor().open(SliceStack(tube_volume(), "axial"))


def dice(mask: np.ndarray, slices: Sequence[int]) -> float:
    own, reference = mask[list(slices)], np.stack([truth(t) for t in slices])
    return float(2 * (own & reference).sum() / (own.sum() + reference.sum()))


def test_other_slices_get_better_by_what_corrected_ones_taught_and_nothing_is_encoded(session: Session) -> None:
    fixed = corrected(6, 9, 12, 15)
    before = session.segment(clicks(), locked=fixed)
    encoded = session.features.encoded
    weights = {name: tensor.clone() for name, tensor in session.predictor.engine.model.state_dict().items()}
    lesson = learn(session, clicks(), fixed)
    assert lesson.session is not None and lesson.after > lesson.before
    after = lesson.session.segment(clicks(), locked=fixed)
    rest = [t for t in range(5, 19) if t not in fixed]
    assert dice(after.mask, rest) > dice(before.mask, rest) + 0.02
    assert all(np.array_equal(after.mask[t], truth(t)) for t in fixed)
    assert session.features.encoded == lesson.session.features.encoded == encoded
    # what would change was said exactly, and the model itself is as it was
    differ = {t: after.mask[t] for t in range(24) if (after.mask[t] != before.mask[t]).any()}
    assert lesson.changed.keys() == differ.keys()
    assert all(np.array_equal(lesson.changed[t], mask) for t, mask in differ.items())
    assert lesson.voxels == int((after.mask ^ before.mask).sum())
    assert f"{len(differ)} slices and {lesson.voxels} voxels" in lesson.sentence
    again = session.segment(clicks(), locked=fixed)
    assert np.array_equal(again.mask, before.mask) and again.recomputed == []
    assert all(torch.equal(weights[n], t) for n, t in session.predictor.engine.model.state_dict().items())


def test_the_result_says_from_how_many_slices_it_has_learned(session: Session) -> None:
    lesson = learn(session, clicks(), corrected(6, 9, 12, 15))
    assert lesson.session is not None
    report = lesson.session.segment(clicks()).report()
    assert report["model"]["learned"] == {"name": lesson.name, "slices": 4}
    assert any("adapted to 4 slices" in note for note in report["notes"])
    assert "learned" not in session.segment(clicks()).report()["model"]


def test_learning_from_many_slices_holds_a_batch_of_them_at_a_time(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, engine = session.features, session.predictor.engine
    monkeypatch.setattr(engine, "cache_bytes", engine.batch_size * engine.embedding_bytes)
    inputs, held = features.learning_inputs, []

    def note(slices: Sequence[int], call: Call) -> list[Tensor]:
        found = inputs(slices, call)
        held.append((len(slices), features._embeddings.nbytes))
        return found

    monkeypatch.setattr(features, "learning_inputs", note)
    lesson = learn(session, clicks(), corrected(*range(4, 20)))
    assert lesson.session is not None and sum(slices for slices, _ in held) >= 16
    assert all(slices <= engine.batch_size and nbytes <= engine.cache_bytes for slices, nbytes in held)
    assert session.nbytes >= engine.batch_size * engine.embedding_bytes, "also what batches are stacked in"
    assert all(len(stacked) <= engine.batch_size for stacked in features._memory.values())


def test_the_same_corrections_teach_the_same(session: Session) -> None:
    first = learn(session, clicks(), corrected(6, 9, 12))
    assert first.name == learn(session, clicks(), corrected(6, 9, 12)).name != ""
    assert first.name != learn(session, clicks(), corrected(6, 9, 15)).name


def test_corrections_that_contradict_one_another_teach_nothing_and_say_so(session: Session) -> None:
    rng = np.random.default_rng(0)
    noise = {t: rng.random((SIZE, SIZE)) > 0.97 for t in (6, 9, 12, 15)}
    before = session.segment(clicks(), locked=noise)
    lesson = learn(session, clicks(), noise)
    assert lesson.session is None and lesson.changed == {} and lesson.name == ""
    assert lesson.sentence.startswith("Nothing was gained from 4 corrected slices")
    assert np.array_equal(session.segment(clicks(), locked=noise).mask, before.mask)


def test_a_block_of_saliency_rests_on_its_own_pixel_so_that_few_pixels_teach_the_head() -> None:
    head = predictor().engine.model.saliency_head
    mixed = torch.randn(2, head.up1.in_channels, 5, 6)
    whole = head.upscaled(mixed)
    gathered = head.upscaled(mixed[:, :, [0, 3, 4], [5, 1, 2]][:, :, None])
    for k, (row, column) in enumerate(((0, 5), (3, 1), (4, 2))):
        block = whole[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.allclose(gathered[..., 4 * k : 4 * k + 4], block, atol=1e-6)


def test_one_corrected_slice_and_a_listening_saliency_are_refused(session: Session) -> None:
    with pytest.raises(BadInput, match="too few"):
        learn(session, clicks(), corrected(6))
    listening = listening_predictor().open(SliceStack(tube_volume(), "axial"))
    with pytest.raises(BadInput, match="listens to clicks"):
        learn(listening, clicks(), corrected(6, 9))


def test_corrections_past_a_marked_end_teach_nothing(session: Session) -> None:
    marked = dataclasses.replace(clicks(), ends=np.isin(clicks().slice_index, (4, 13)))
    erased = {t: np.zeros((SIZE, SIZE), bool) for t in (15, 17)}
    lesson, alone = learn(session, marked, corrected(6, 9, 12) | erased), learn(session, marked, corrected(6, 9, 12))
    assert lesson.slices == (6, 9, 12) and (lesson.before, lesson.after) == (alone.before, alone.after)
    with pytest.raises(BadInput, match="1 corrected slices up to the marked end are too few"):
        learn(session, marked, corrected(6) | erased)


def test_learning_tells_its_progress_and_can_be_cancelled_and_then_nothing_has_changed(session: Session) -> None:
    fixed = corrected(6, 9, 12)
    before = session.segment(clicks(), locked=fixed)
    seen: list[tuple[str, int, int]] = []
    call = Call(
        on_progress=lambda p: seen.append((p.stage, p.done, p.total)),
        cancelled=lambda: sum(stage == "learning" for stage, _, _ in seen) >= 5,
    )
    with pytest.raises(Cancelled):
        learn(session, clicks(), fixed, call=call)
    assert [done for stage, done, _ in seen if stage == "learning"] == [1, 2, 3, 4, 5]
    assert np.array_equal(session.segment(clicks(), locked=fixed).mask, before.mask)


def test_a_field_of_view_that_moves_in_one_session_leaves_the_other_as_it_was(session: Session) -> None:
    lesson = learn(session, clicks(), corrected(6, 9, 12, 15))
    assert lesson.session is not None
    kept = lesson.session.features.cached_slices()
    session.close()
    assert session.features.cached_slices() == set() and lesson.session.features.cached_slices() == kept


@pytest.fixture
def loaded(spd_home: Path, tmp_path: Path) -> LoadedModel:
    bundle = tmp_path / "tiny"
    write_bundle(bundle, tiny_info(), {"w": torch.zeros(2)}, "")
    return LoadedModel(read_bundle(bundle), predictor())


def test_what_was_learned_from_one_volume_is_not_applied_to_another(loaded: LoadedModel) -> None:
    lesson = Lesson((6, 9), 0.5, 0.9, "it", InteractiveSegmenter(tube_volume(), loaded, axis="axial")._session)
    other = InteractiveSegmenter(tube_volume(), loaded, axis="axial")
    places = clicks()
    before = other.add(other.stack.to_ras(places.slice_index, places.xy))
    with pytest.raises(BadInput, match="learned from another volume"):
        other.apply(lesson)
    assert other.found is before
    assert other.move("1", other.clicks["1"]).result.recomputed == [], "and it goes on as it was"


def test_from_python_what_was_learned_is_applied_and_forgotten_by_the_person(loaded: LoadedModel) -> None:
    case = InteractiveSegmenter(tube_volume(), loaded, axis="axial")
    with pytest.raises(BadInput, match="no mask"):
        case.suggest()
    places = clicks()
    first = case.add(case.stack.to_ras(places.slice_index, places.xy))
    suggested = case.suggest()
    if suggested is not None:
        assert case.suggest([suggested]) != suggested
        assert case.suggest(suggested) == case.suggest([suggested]) == case.suggest(np.array([suggested]))
    for wrong in ([np.nan, 0, 0], None, [[1, 2]], "here"):
        with pytest.raises(BadInput):
            case.suggest(wrong)  # type: ignore[arg-type]
    mask = case.stack.from_volume(first.mask.copy())
    for t, reference in corrected(6, 9, 12, 15).items():
        mask[t] = reference
    own = case.correct(case.stack.to_volume(mask))
    lesson = case.learn()
    assert np.array_equal(case.release([]).mask, own.mask), "nothing changes by learning alone"
    under = case.apply(lesson)
    assert under.report()["model"]["learned"]["slices"] == 4
    assert int((under.mask ^ own.mask).sum()) == lesson.voxels > 0
    assert np.array_equal(case.forget().mask, own.mask)
    with pytest.raises(BadInput, match="Nothing was gained"):
        case.apply(Lesson((6, 9), 0.5, 0.5))


def corrected_case(loaded: LoadedModel, *slices: int) -> InteractiveSegmenter:
    case = InteractiveSegmenter(tube_volume(), loaded, axis="axial")
    places = clicks()
    case.add(case.stack.to_ras(places.slice_index, places.xy))
    correct(case, *slices)
    return case


def correct(case: InteractiveSegmenter, *slices: int) -> None:
    assert case.found is not None
    mask = case.stack.from_volume(case.found.mask.copy())
    for t, reference in corrected(*slices).items():
        mask[t] = reference
    case.correct(case.stack.to_volume(mask))


def test_every_slice_that_differs_from_the_last_result_is_among_the_recomputed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = corrected_case(loaded, 6, 9, 12, 15)
    lesson = case.learn()

    def differing(last: Segmentation, new: Segmentation) -> set[int]:
        return set(np.flatnonzero((last.result.mask != new.result.mask).any(axis=(1, 2))).tolist())

    for change in (lambda: case.apply(lesson), case.forget, lambda: case.apply(lesson)):
        last = case.found
        assert last is not None
        found = change()
        assert differing(last, found) and differing(last, found) <= set(found.result.recomputed)

    last = case.found
    moved = np.array(case.clicks["3"]) + (2, 2, 0)
    keep = Session._keep

    def fail_after_a_slice(*given: Any) -> None:
        keep(*given)
        raise MemoryError

    monkeypatch.setattr(Session, "_keep", fail_after_a_slice)
    with pytest.raises(MemoryError):
        case.move("3", moved)
    monkeypatch.undo()
    assert case.found is last and last is not None
    found = case.move("3", moved)
    assert differing(last, found) <= set(found.result.recomputed)


def test_what_a_second_lesson_would_change_is_said_of_the_masks_that_the_person_has(loaded: LoadedModel) -> None:
    case = corrected_case(loaded, 6, 9, 12, 15)
    first = case.learn()
    case.apply(first)
    correct(case, 5, 8, 18)
    last = case.found
    second = case.learn()
    assert last is not None and case.found is last and not first.again
    assert "by the model before it learned anything" in second.sentence
    found = case.apply(second)
    differ = np.flatnonzero((found.result.mask != last.result.mask).any(axis=(1, 2)))
    assert sorted(second.changed) == differ.tolist() and second.voxels == int((found.mask ^ last.mask).sum())
    assert "by the model before" in Lesson((6, 9), 0.5, 0.5, again=True).sentence


def test_an_end_that_could_not_be_marked_bounds_no_suggestion(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = InteractiveSegmenter(tube_volume(), dataclasses.replace(loaded, predictor=tiny_predictor()), axis="axial")
    case.add(case.stack.to_ras(np.array([9, 12, 15]), np.full((3, 2), 30.0)))
    before = case.suggest()
    assert before is not None and before[2] < case.clicks["1"][2]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(case._session.features, "make_room", Mock(side_effect=MemoryError))
        case.end("1")
    assert case.suggest() == before


def test_for_the_thresholded_saliency_nothing_is_suggested_or_learned_and_this_is_said(loaded: LoadedModel) -> None:
    case = InteractiveSegmenter(tube_volume(), loaded, axis="axial", prompts="saliency-only")
    places = clicks()
    case.add(case.stack.to_ras(places.slice_index, places.xy))
    correct(case, 6, 9)
    for ask in (case.suggest, case.learn):
        with pytest.raises(BadInput, match="thresholded saliency") as raised:
            ask()
        assert "prompts='consensus'" in raised.value.remedy
