"""A click-conditioned saliency: the network, what a changed click reaches, the field of view, intensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_session import center, clicks_at
from tiny_predictor import SIZE, listening_predictor, reached, tube_volume
from torch import Tensor

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import IntensityConfig, looks_like_ct
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import FIELDS_OF_VIEW_MM, fov_of_clicks
from SPDSegmentLib.inference.device_slices import histograms, local_range
from SPDSegmentLib.inference.engine import Engine, Rows
from SPDSegmentLib.inference.next_click import suggest
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import ClickTokens, click_tokens
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.prompts.saliency_maps import SliceClicks
from SPDSegmentLib.training import joint_batches


def conditioned_model(**settings: object) -> SPDModel:
    torch.manual_seed(0)
    return SPDModel(
        NetworkConfig.from_dict({"backbone": "tiny_random", "image_size": 64, "saliency": "conditioned", **settings})
    )


def trained_by_chance(saliency: str = "conditioned", **settings: object) -> SPDModel:
    """A model without adapters whose parameters all matter, those that start at zero too."""
    torch.manual_seed(0)
    network = {"backbone": "tiny_random", "image_size": SIZE, "saliency": saliency, **settings}
    model = SPDModel(NetworkConfig.from_dict(network), adapters=False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def network_predictor(kept_bytes: int) -> Predictor:
    engine = Engine(trained_by_chance(), torch.device("cpu"), torch.float32, 4, kept_bytes)
    return Predictor(engine, PromptConfig(), IntensityConfig("window", 0.0, 100.0), 64.0, "axial", {"name": "tiny"})


def batch_of_tokens(slices: int) -> TokenBatch:
    clicks = SliceClicks(np.array([0, 2, 2]), np.array([[10.0, 20.0], [30.0, 12.0], [33.0, 40.0]]))
    return TokenBatch.of(click_tokens(range(slices), clicks, 3.0))


@pytest.fixture
def session() -> Session:
    return listening_predictor().open(SliceStack(tube_volume(), "axial"))


def test_before_training_pass_one_is_sam_with_the_same_points() -> None:
    model, embeddings = conditioned_model(), torch.randn(1, 32, 16, 16)
    tokens = click_tokens([2], SliceClicks(np.array([2]), np.array([[10.0, 20.0]])), 3.0, neighbors=0)
    expected, _ = model.decode(embeddings, torch.tensor([[[10.0, 20.0]]]), torch.ones(1, 1))
    logits, _ = model.decode_clicks(embeddings, TokenBatch.of(tokens))
    # SAM pads by one place where no box is given, and here by five.
    assert torch.corrcoef(torch.stack((logits.flatten(), expected.flatten())))[0, 1] > 0.9


def test_the_adapter_of_a_conditioned_model_comes_back_whole() -> None:
    model, other = conditioned_model(decoder="full"), conditioned_model(decoder="full")
    with torch.no_grad():
        for parameter in model.stage2_parameters() + model.encoder_lora_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state = model.adapter_state()
    assert "conditioning.kind.weight" in state and not any("saliency_head" in name for name in state)
    other.load_adapter_state(state)
    merged = SPDModel(model.config, adapters=False)
    merged.load_state_dict(SPDModel(model.config, adapters=False).state_dict())
    assert all(torch.equal(other.adapter_state()[name], tensor) for name, tensor in state.items())
    assert merged.adapter_shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_an_unknown_saliency_is_refused() -> None:
    with pytest.raises(BadInput, match="Unknown saliency"):
        conditioned_model(saliency="clicked")


def test_the_clicked_body_is_segmented_and_not_the_like_one_beside_it(session: Session) -> None:
    result = session.segment(clicks_at(*[center(t) for t in range(4, 20, 3)]))
    assert result.mask[10, 26:34, 26:34].all()
    assert not result.mask[:, 48:60, 48:60].any(), "the other body is as bright, but nobody clicked it"


def test_before_there_are_clicks_the_saliency_is_refused_in_a_sentence_and_nothing_is_encoded(session: Session) -> None:
    with pytest.raises(BadInput, match="listens to clicks"):
        session.saliency(10, (30.0, 30.0))
    assert session.features.encoded == 0
    session.segment(clicks_at(center(10)))
    assert session.saliency(10).any()


def test_a_moved_click_changes_only_its_reach_and_coming_back_gives_the_same_bits(session: Session) -> None:
    before = clicks_at(*[center(t) for t in range(0, 24, 3)])
    places = [center(t) for t in range(0, 24, 3)]
    after = clicks_at(*[(t, x + 2, y + 1) if t == 12 else (t, x, y) for t, x, y in places])
    first = session.segment(before)
    reach = reached(session, before, after)
    second = session.segment(after)
    assert 12 in reach and set(second.recomputed) <= reach and second.encoded == 0
    untouched = [t for t in range(24) if t not in reach]
    assert np.array_equal(first.mask[untouched], second.mask[untouched])
    assert np.array_equal(session.segment(before).mask, first.mask)


def test_a_fresh_session_gives_what_a_session_with_a_history_gives(session: Session) -> None:
    session.segment(clicks_at(center(4), center(8), (12, 50.0, 52.0)))
    clicks = clicks_at(center(4), center(8), center(12), center(17))
    fresh = listening_predictor().open(SliceStack(tube_volume(), "axial"))
    assert np.array_equal(session.segment(clicks).mask, fresh.segment(clicks).mask)


def test_a_real_network_gives_the_same_bits_whatever_was_asked_before_and_however_little_is_kept() -> None:
    stack = SliceStack(tube_volume(), "axial")
    places = [((4, 22.0, 30.0), (8, 24.0, y), (15, 28.0, 30.0)) for y in (30.0, 45.0)]
    wandering = [replace(clicks_at(*three), insisted=np.ones(3, bool)) for three in places]

    def masks(kept_bytes: int, history: int) -> tuple[np.ndarray, np.ndarray]:
        session = network_predictor(kept_bytes).open(stack)
        for clicks in [*wandering[:history], *wandering[:1]]:
            result = session.segment(clicks)
        return result.mask, np.stack([session.saliency(t) for t in range(24)])

    mask, saliency = masks(1 << 30, 0)
    assert 0 < mask[8].mean() < 1 and saliency.std() > 0
    for kept_bytes, history in ((1 << 30, 2), (1_200_000, 2)):  # all embeddings, but what becomes of three of them
        again, heard = masks(kept_bytes, history)
        assert np.array_equal(mask, again) and np.array_equal(saliency, heard)


@pytest.mark.parametrize("saliency", ["image", "conditioned"])
def test_the_decoder_of_one_slice_at_a_time_is_sam_s_own(saliency: str) -> None:
    model = trained_by_chance(saliency, dense_saliency_prompt=saliency == "image").requires_grad_(False)
    embeddings, tokens = torch.randn(3, 3, 32, 16, 16).unbind(0), batch_of_tokens(3)
    points, labels, said = torch.rand(3, 4, 2) * 64, torch.ones(3, 4), torch.randn(3, 1, 64, 64) * 5

    def passes() -> list[tuple[Tensor, Tensor]]:
        if saliency == "image":
            return [model.decode(embeddings[0], points, labels, given) for given in (None, said)]
        known = model.with_context(*embeddings)
        return [model.decode_clicks(known, tokens, given) for given in (None, said)]

    by_sam = passes()
    model.prepare_for_inference(torch.float32)
    assert model.slice_decoder is not None
    for (logits, quality), (expected, its_quality) in zip(passes(), by_sam, strict=True):
        assert expected.std() > 1e-2
        assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))
        assert torch.allclose(quality, its_quality, atol=1e-4)


def test_a_person_s_slices_stay_as_they_are(session: Session) -> None:
    own = np.zeros((SIZE, SIZE), dtype=bool)
    own[26:34, 24:34] = True
    clicks = clicks_at(*[center(t) for t in range(4, 20, 3)])
    session.segment(clicks)
    result = session.segment(clicks, locked={10: own})
    assert np.array_equal(result.mask[10], own) and result.slices[10].status == "locked"


def test_the_local_range_of_use_is_that_of_training() -> None:
    rng = np.random.default_rng(0)
    images = np.concatenate((rng.uniform(0.2, 0.7, (3, 40, 40)), np.zeros((3, 10, 40))), axis=1).astype(np.float32)
    run = torch.from_numpy(images)
    channel = joint_batches.local_channel(run[None])[0]
    low, high = (float(limit) for limit in local_range(histograms(run).sum(0, keepdim=True)))
    assert torch.allclose(channel, ((run - low) / (high - low)).clamp(0, 1), atol=1e-6)
    assert (low, high) == pytest.approx((0.205, 0.695), abs=0.01)
    assert [float(limit) for limit in local_range(histograms(torch.zeros(1, 9, 9)))] == [0.0, 1.0]


@pytest.mark.parametrize("shift", [0, 30])
def test_hounsfield_units_are_told_from_mr_intensities(shift: float) -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(40 + shift, 30, 20000)
    assert looks_like_ct(np.concatenate((body, np.full(9000, -1000.0))))
    assert looks_like_ct(np.concatenate((body, rng.normal(-100, 10, 9000)))), "a crop without air has fat in it"
    assert not looks_like_ct(np.concatenate((rng.normal(400, 100, 20000).clip(0), np.zeros(9000))))
    assert not looks_like_ct(rng.normal(0, 1, 20000)), "standardized MR"


def test_a_field_of_view_is_chosen_from_the_clicks_and_stays_when_one_of_them_moves() -> None:
    xy = np.random.default_rng(1).normal(256, 20, (20, 2))
    chosen = fov_of_clicks(xy, (512, 512), (0.8, 0.8))
    moved = np.vstack((xy[:-1], [[400.0, 90.0]]))
    assert chosen in FIELDS_OF_VIEW_MM and chosen == fov_of_clicks(moved, (512, 512), (0.8, 0.8)) == 180
    assert fov_of_clicks(xy / 8, (64, 64), (0.8, 0.8)) < 100, "not much larger than the slice"
    assert fov_of_clicks(xy * 1.0 + np.linspace(-200, 200, 20)[:, None], (512, 512), (0.8, 0.8)) > 180


def test_clicks_that_drifted_off_do_not_widen_the_field_of_view() -> None:
    along = np.column_stack((np.linspace(120, 260, 20), np.full(20, 200.0)))
    drifted = along.copy()
    drifted[12:17] += (140.0, 60.0)
    assert fov_of_clicks(along, (320, 320), (1.0, 1.0)) == fov_of_clicks(drifted, (320, 320), (1.0, 1.0)) == 180


def test_without_a_limit_of_points_the_second_pass_is_told_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, told = listening_predictor(), list[int]()
    decode = predictor.engine.decode_conditioned

    def note(embeddings: Rows, tokens: ClickTokens, saliency: Tensor) -> tuple[Tensor, Tensor]:
        told.extend(tokens.valid.sum(1).tolist())
        return decode(embeddings, tokens, saliency)

    monkeypatch.setattr(predictor.engine, "decode_conditioned", note)
    clicks = clicks_at(center(8), *[(9, center(9)[1] + d, center(9)[2] + d) for d in (-2, -1, 0, 1, 2)])
    unlimited = predictor.with_prompts(PromptConfig(max_points=0, min_distance_px=0.0, n_neighbors=0))
    unlimited.open(SliceStack(tube_volume(), "axial")).segment(clicks)
    assert max(told) == 5 and min(told) == 1


def test_after_clicks_were_removed_the_next_click_is_found_by_those_that_are_left() -> None:
    session = listening_predictor().open(SliceStack(tube_volume(), "axial"))
    places = [center(t) for t in range(4, 18)]
    session.segment(clicks_at(*places))
    left = clicks_at(*places[7:])
    session.segment(left)
    assert all(p.sources.max(initial=-1) < len(left) for p, _ in session.decided.values())
    assert suggest(session, left) is not None
