"""Backbones, adapters, head and losses, on tiny randomly initialized networks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tiny_predictor import adapters_off

from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.networks import tiny_vit
from SPDSegmentLib.networks.adapters import SaliencyHead, adjoining
from SPDSegmentLib.networks.backbones import interpolate_positions, load_state_dict
from SPDSegmentLib.networks.config import NetworkConfig, SegmentationLossConfig
from SPDSegmentLib.networks.spd import (
    SPDModel,
    consistency_of_run,
    dice_loss,
    focal_loss,
    pairwise_slice_consistency,
    segmentation_loss,
)
from SPDSegmentLib.networks.tiny_vit import TinyViTEncoder, deinterleave_qkv, fold_batch_norms

TINY = NetworkConfig(backbone="tiny_random", image_size=64)


def tiny_model(config: NetworkConfig = TINY, lora: bool = True) -> SPDModel:
    torch.manual_seed(0)
    model = SPDModel(config)
    if lora:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2)
    return model


def prompts(batch: int, points: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, points, 2) * size, torch.ones(batch, points)


def test_with_lora_off_the_base_model_comes_back_bit_for_bit() -> None:
    adapted, base = tiny_model(), tiny_model(NetworkConfig("tiny_random", 64, lora_rank=0, decoder="frozen"))
    base.load_state_dict(
        {k.replace(".base_layer", "").replace(".qkv.fused", ".qkv"): v for k, v in adapted.state_dict().items()},
        strict=False,
    )
    images, (points, labels) = torch.rand(2, 1, 64, 64), prompts(2, 4)
    with torch.no_grad():
        assert not torch.equal(adapted.encode(images), base.encode(images))
        with adapters_off(adapted):
            embeddings = adapted.encode(images)
            assert torch.equal(embeddings, base.encode(images))
            for ours, theirs in zip(
                adapted.decode(embeddings, points, labels), base.decode(embeddings, points, labels), strict=True
            ):
                assert torch.equal(ours, theirs)


def test_a_bundle_is_merged_without_peft_into_the_same_model_up_to_rounding() -> None:
    adapted, images = tiny_model(), torch.rand(2, 1, 64, 64)
    points, labels = prompts(2, 3)
    torch.manual_seed(0)
    plain = SPDModel(TINY, adapters=False)
    base = {k.replace(".base_layer", "").replace(".qkv.fused", ".qkv"): v for k, v in adapted.state_dict().items()}
    plain.load_state_dict(base, strict=False)
    plain.merge_adapter_state(adapted.adapter_state())
    with torch.no_grad():
        embeddings = adapted.encode(images)
        logits, _ = adapted.decode(embeddings, points, labels)
        assert torch.allclose(plain.encode(images), embeddings, atol=1e-4)
        assert torch.allclose(plain.decode(embeddings, points, labels)[0], logits, atol=1e-3)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    incomplete = adapted.adapter_state()
    incomplete.pop(next(name for name in incomplete if "lora_A" in name))
    with pytest.raises(ModelCorrupt, match="does not fit"):
        SPDModel(TINY, adapters=False).merge_adapter_state(incomplete)


def test_only_lora_and_head_learn_in_stage_one_and_only_the_decoder_in_stage_two() -> None:
    model = tiny_model()
    names = {id(p): name for name, p in model.named_parameters()}
    stage1 = [names[id(p)] for p in model.stage1_parameters()]
    assert stage1 and all(n.startswith("saliency_head.") or "lora_" in n for n in stage1)
    stage2 = [names[id(p)] for p in model.stage2_parameters()]
    assert stage2 and all(n.startswith("mask_decoder.") for n in stage2)
    assert all("lora_" in n or "iou_prediction_head" in n for n in stage2)
    adapted = {n.split(".lora_")[0].rpartition(".")[2] for n in stage2 if "lora_" in n}
    assert adapted == {"q_proj", "v_proj"}


def test_lora_adapts_only_the_last_blocks_when_asked() -> None:
    model = tiny_model(NetworkConfig("tiny_random", 64, lora_encoder_blocks=1))
    adapted = {n.split(".attn.")[0] for n, _ in model.image_encoder.named_parameters() if "lora_" in n}
    assert adapted == {"layers.3.blocks.0"}


def test_a_slice_gets_the_same_mask_whatever_else_is_in_its_batch() -> None:
    model, embeddings = tiny_model(), torch.randn(3, 32, 16, 16)
    points, labels = prompts(3, 10)
    labels[0, 2:], labels[1, 7:] = -1, -1
    with torch.no_grad():
        together, _ = model.decode(embeddings, points, labels)
        alone, _ = model.decode(embeddings[1:2], points[1:2], labels[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_padding_points_at_other_places_changes_nothing() -> None:
    model, embeddings = tiny_model(), torch.randn(1, 32, 16, 16)
    points, labels = prompts(1, 6)
    labels[0, 3:] = -1
    moved = points.clone()
    moved[0, 3:] = 5
    with torch.no_grad():
        assert torch.equal(model.decode(embeddings, points, labels)[0], model.decode(embeddings, moved, labels)[0])


def test_the_saliency_head_starts_without_looking_at_neighbors() -> None:
    head, embeddings = SaliencyHead(32, slice_context=True), torch.randn(4, 32, 8, 8)
    with torch.no_grad():
        assert torch.equal(head(embeddings, *adjoining(embeddings)), head(embeddings, embeddings, embeddings))
    assert head(embeddings).shape == (4, 1, 32, 32)


def test_the_head_has_about_as_many_parameters_as_the_method_says() -> None:
    assert 70_000 < sum(p.numel() for p in SaliencyHead(256).parameters()) < 78_000


def test_folding_batch_norms_keeps_the_function() -> None:
    torch.manual_seed(1)
    encoder = TinyViTEncoder((8, 16, 16, 32), (1, 1, 1, 1), (1, 2, 2, 4), (7, 7, 7, 7), 2.0, 32).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(images)
        fold_batch_norms(encoder)
        assert torch.allclose(encoder(images), before, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules())


@pytest.mark.parametrize("side", [56, 60])
def test_working_in_tiles_keeps_the_function(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    torch.manual_seed(0)
    encoder = TinyViTEncoder((8, 16, 16, 32), (2, 1, 1, 1), (1, 2, 2, 4), (7, 7, 7, 7), 2.0, 32).eval()
    fold_batch_norms(encoder)
    images = torch.rand(2, 3, side, side)
    expected = encoder(images).detach()  # with gradients nothing is tiled
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for tile in (side, 5 * side, 10**6):  # one row, some rows that do not divide the height, all of it
        monkeypatch.setattr(tiny_vit, "TILE", tile)
        with torch.inference_mode():
            assert tiny_vit.works_in_tiles(images)
            assert torch.allclose(encoder(images), expected, atol=1e-5)


def test_qkv_rows_are_reordered_from_heads_to_kinds() -> None:
    rows = torch.arange(12)  # two heads, d = 2: (h0: q q k k v v) (h1: ...)
    assert deinterleave_qkv(rows, 2).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_position_embeddings_are_interpolated_for_a_smaller_input() -> None:
    state = {
        "pos_embed": torch.randn(1, 64, 64, 8),
        "blocks.2.attn.rel_pos_h": torch.randn(127, 4),
        "blocks.2.attn.rel_pos_w": torch.randn(127, 4),
        "blocks.0.attn.rel_pos_h": torch.randn(27, 4),
    }
    resized = interpolate_positions(state, 32, (2,))
    assert resized["pos_embed"].shape == (1, 32, 32, 8)
    assert resized["blocks.2.attn.rel_pos_h"].shape == (63, 4)
    assert resized["blocks.0.attn.rel_pos_h"].shape == (27, 4)


def test_an_adapter_of_another_network_is_refused() -> None:
    state = tiny_model().adapter_state()
    state.pop(next(iter(state)))
    with pytest.raises(ModelCorrupt, match="does not fit"):
        tiny_model().load_adapter_state(state)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    import pickle

    trap = tmp_path / "weights.pth"
    flag = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (flag,))

    trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelCorrupt, match="does not hold plain model weights"):
        load_state_dict(trap)
    assert not flag.exists()


def test_impossible_settings_are_refused_with_a_sentence() -> None:
    with pytest.raises(BadInput, match="Unknown backbone 'sam3'"):
        NetworkConfig(backbone="sam3")
    with pytest.raises(BadInput, match="multiple of 16"):
        NetworkConfig(backbone="sam_vit_b", image_size=1000)


def test_dice_loss_is_zero_for_a_perfect_mask_and_near_one_for_a_miss() -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    target[..., 4:12, 4:12] = True
    sure = (target.float() * 2 - 1) * 30
    assert dice_loss(sure, target).item() == pytest.approx(0, abs=1e-4)
    assert dice_loss(-sure, target).item() > 0.98


def test_focal_loss_matches_its_formula() -> None:
    p = torch.tensor(0.8)
    logits, target = torch.logit(p).view(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    expected = 0.25 * (1 - p) ** 2 * -torch.log(p)
    assert focal_loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-4)
    total = segmentation_loss(logits, target, SegmentationLossConfig(dice_weight=0, focal_weight=20))
    assert total.item() == pytest.approx(20 * expected.item(), rel=1e-4)


def test_slice_consistency_is_zero_for_equal_masks_and_skips_pairs_with_an_empty_truth() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    assert pairwise_slice_consistency(mask, mask).item() == pytest.approx(0, abs=1e-5)
    logits = torch.stack([mask[0], mask[0].roll(4, -1), mask[0]]) * 40 - 20
    target = (logits > 0).clone()
    losses, paired = consistency_of_run(logits, target, "next")
    assert paired == 2 and losses[0] > 0.1 and losses[2] == 0
    assert consistency_of_run(logits, target, "both")[1] == 3
    target[2] = False
    losses, paired = consistency_of_run(logits, target, "next")
    assert paired == 1 and losses[1] == 0
    assert consistency_of_run(logits, target, "none")[1] == 0
    assert consistency_of_run(logits, target, "both")[1] == 2


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_direction_of_slice_consistency_matters_only_where_the_neighbor_is_constant(stop_gradient: bool) -> None:
    start = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    target = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    gradients = {}
    for direction in ("next", "previous", "both"):
        logits = start.clone().requires_grad_()
        losses, paired = consistency_of_run(logits, target, direction, stop_gradient)
        (gradients[direction],) = torch.autograd.grad(losses.sum() / paired, logits)
    assert torch.allclose(gradients["next"], gradients["previous"]) != stop_gradient
    expected = (gradients["next"] + gradients["previous"]) * 3 / 4  # three slices have a next one, all four a neighbor
    assert torch.allclose(gradients["both"], expected, atol=1e-8)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_weights_are_read_from_a_folder_whose_name_is_no_utf8(tmp_path: Path, name: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8les"))
    folder.mkdir()
    made = {"a": torch.arange(3.0)}
    if name.endswith(".pth"):
        with open(folder / name, "wb") as file:
            torch.save(made, file)
    else:
        (folder / name).write_bytes(save(made))
    assert torch.equal(load_state_dict(folder / name)["a"], made["a"])
