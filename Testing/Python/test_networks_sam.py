"""Against segment-anything's own code: ViT encoders at 1024 and 512 pixels, the mask decoder; torchvision broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_predictor import adapters_off

from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.networks import backbones
from SPDSegmentLib.networks.backbones import ViTShape, build_sam, import_segment_anything_modeling
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel

SMALL = ViTShape(embed_dim=16, depth=2, num_heads=2, global_blocks=(1,))
VITS = ("sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b")


@pytest.fixture
def small_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ViT backbone with two thin blocks, one windowed and one global."""
    monkeypatch.setattr(backbones, "VIT_SHAPES", dict.fromkeys(VITS, SMALL))


@pytest.fixture
def published(small_vits: None, tmp_path: Path) -> Path:
    """Weights as a publisher would give them for 1024 pixels: upstream's names, random values."""
    torch.manual_seed(0)
    sam = build_sam(NetworkConfig("sam_vit_b", 1024))
    parts = {"image_encoder": sam.image_encoder, "prompt_encoder": sam.prompt_encoder, "mask_decoder": sam.mask_decoder}
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    for name, value in state.items():
        if "pos_embed" in name or "rel_pos" in name:
            value.normal_(0, 0.5)
    state["image_encoder.pos_embed"] = torch.nn.functional.interpolate(
        torch.randn(1, SMALL.embed_dim, 4, 4), (64, 64), mode="bicubic"
    ).permute(0, 2, 3, 1)
    torch.save(state, tmp_path / "published.pth")
    return tmp_path / "published.pth"


@pytest.mark.parametrize("backbone", VITS)
def test_a_vit_takes_512_pixels_with_weights_of_1024(published: Path, backbone: str) -> None:
    model = SPDModel(NetworkConfig(backbone, 512, lora_rank=2, decoder_lora_rank=2), published)
    with torch.no_grad():
        embeddings = model.encode(torch.rand(1, 1, 512, 512))
        assert embeddings.shape == (1, 256, 32, 32)
        assert model.saliency_logits(embeddings).shape == (1, 1, 512, 512)
        logits, quality = model.decode(embeddings, torch.rand(1, 3, 2) * 512, torch.ones(1, 3))
    assert logits.shape == (1, 1, 512, 512) and quality.shape == (1,)
    assert torch.isfinite(logits).all()


def test_interpolated_positions_keep_their_place_in_the_image(published: Path) -> None:
    large = build_sam(NetworkConfig("sam_vit_b", 1024), published).image_encoder
    small = build_sam(NetworkConfig("sam_vit_b", 512), published).image_encoder
    theirs = large.pos_embed.reshape(1, 32, 2, 32, 2, -1).mean((2, 4))  # type: ignore[operator]
    assert torch.allclose(small.pos_embed, theirs, atol=0.05)  # type: ignore[arg-type]
    for name in ("rel_pos_h", "rel_pos_w"):
        assert torch.equal(getattr(small.blocks[0].attn, name), getattr(large.blocks[0].attn, name))  # type: ignore[index, union-attr]
        assert getattr(small.blocks[1].attn, name).shape == (63, 8)  # type: ignore[index, union-attr]


def test_at_full_size_the_weights_are_taken_as_they_are_and_the_gray_slice_as_sam_was_trained(published: Path) -> None:
    model = SPDModel(NetworkConfig("sam_vit_b", 1024), published)
    published_state = torch.load(published, weights_only=True)
    encoder = build_sam(NetworkConfig("sam_vit_b", 1024), published).image_encoder
    assert all(torch.equal(v, published_state[f"image_encoder.{k}"]) for k, v in encoder.state_dict().items())
    gray = torch.rand(1, 1, 1, 1).expand(1, 1, 64, 64)
    rgb = (gray * 255 - torch.tensor(backbones.SAM_PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(
        backbones.SAM_PIXEL_STD
    ).view(3, 1, 1)
    assert torch.allclose((gray.expand(-1, 3, -1, -1) - model.pixel_mean) / model.pixel_std, rgb, atol=1e-5)


def test_with_lora_off_a_vit_comes_back_bit_for_bit(published: Path) -> None:
    adapted = SPDModel(NetworkConfig("sam_vit_b", 256, lora_rank=2, decoder_lora_rank=2), published)
    base = SPDModel(NetworkConfig("sam_vit_b", 256, lora_rank=0, decoder="frozen"), published)
    images, points, labels = torch.rand(2, 1, 256, 256), torch.rand(2, 3, 2) * 256, torch.ones(2, 3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
        assert not torch.equal(adapted.encode(images), base.encode(images))
        with adapters_off(adapted):
            embeddings = adapted.encode(images)
            assert torch.equal(embeddings, base.encode(images))
            ours, theirs = adapted.decode(embeddings, points, labels), base.decode(embeddings, points, labels)
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_the_decoder_gives_each_slice_of_a_batch_what_upstreams_gives_it_alone() -> None:
    """Different numbers of points per slice; upstream takes one image at a time and pads nothing."""
    torch.manual_seed(0)
    model = SPDModel(NetworkConfig("tiny_random", 64), adapters=False)
    embeddings, counts = torch.randn(3, 32, 16, 16), [1, 4, 2]
    points, labels = torch.rand(3, 4, 2) * 64, torch.full((3, 4), -1)
    for i, n in enumerate(counts):
        labels[i, :n] = 1
    with torch.no_grad():
        logits, quality = model.decode(embeddings, points, labels)
        for i in range(3):
            sparse, dense = model.prompt_encoder((points[i : i + 1], labels[i : i + 1]), None, None)
            masks, iou = model.mask_decoder(
                image_embeddings=embeddings[i : i + 1],
                image_pe=model.prompt_encoder.get_dense_pe(),  # type: ignore[operator]
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            assert torch.allclose(logits[i], masks[0], atol=1e-4)
            assert torch.allclose(quality[i], iou[0, 0], atol=1e-5)


def test_weights_of_another_backbone_are_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="does not hold the weights of lite_medsam"):
        build_sam(NetworkConfig("lite_medsam"), published)


def test_the_classes_are_segment_anythings_own(small_vits: None) -> None:
    modeling = import_segment_anything_modeling()
    sam = build_sam(NetworkConfig("sam_vit_b", 256))
    assert type(sam.image_encoder) is modeling.ImageEncoderViT
    assert type(sam.mask_decoder) is modeling.MaskDecoder
    assert type(sam.prompt_encoder) is modeling.PromptEncoder


BROKEN = {
    "nms": "raise RuntimeError('operator torchvision::nms does not exist')",
    "qnms": "import torch\ntorch.library.register_fake('torchvision::qnms')(lambda *a: a)\nraise RuntimeError('qnms')",
}
PROGRAM = """
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.loop import hide_broken_torchvision
SPDModel(NetworkConfig('tiny_random', 64))
hide_broken_torchvision()
import accelerate
print('built')
"""


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_torchvision_that_cannot_be_imported_does_no_harm(tmp_path: Path, repository: Path, kind: str) -> None:
    """It looks installed, with its metadata, and fails halfway through its import."""
    package, metadata = tmp_path / "torchvision", tmp_path / "torchvision-0.28.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text(f"from . import extension\n{BROKEN[kind]}\n")
    (package / "extension.py").write_text("loaded = True\n")
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"},
        timeout=300,
    )
    assert done.stdout.strip() == "built", done.stderr
