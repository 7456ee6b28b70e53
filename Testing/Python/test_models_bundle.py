"""Model bundles: written whole, read strictly, found by name or folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_helpers import CONTENT, info_values, sha256, tiny_info, url_weights, use_manifest

from SPDSegmentLib.errors import BadInput, ModelCorrupt, ModelMissing
from SPDSegmentLib.models import bundle as bundle_module
from SPDSegmentLib.models.base_weights import add_file, fetch_base_weights
from SPDSegmentLib.models.bundle import (
    Bundle,
    add_bundle,
    base_weights_for,
    find_bundle,
    read_bundle,
    remove_bundle,
    scan_bundles,
    write_bundle,
)
from SPDSegmentLib.models.bundle_info import FORMAT_VERSION, BundleInfo, parse_info
from SPDSegmentLib.models.storage import from_changes, read_tensor_shapes, to_changes
from SPDSegmentLib.networks.backbones import load_adapter, load_state_dict

torch = pytest.importorskip("torch")
MATRIX = "mask_decoder.layers.0.weight"
LARGE = {MATRIX, "prompt_encoder.conv.weight"}


@pytest.fixture
def tensors() -> dict[str, Any]:
    return {"head.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4), "head.bias": torch.ones(3).half()}


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, Any]) -> Path:
    """A good bundle on disk."""
    return write_bundle(tmp_path / "models" / "tiny-test", tiny_info(), tensors, "# Card\n").folder


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of a ``model.json``; a value of None removes the field."""
    path = folder / "model.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_an_unchanged_adapter_is_checked_once_in_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bundle(folder)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "sha256_of", lambda path: pytest.fail("checked again"))
        read_bundle(folder)
    adapter = folder / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelCorrupt, match="checksum"):
        read_bundle(folder)


def test_a_written_bundle_reads_back_the_same(folder: Path, tensors: dict[str, Any]) -> None:
    bundle = read_bundle(folder)
    filled_in: dict[str, Any] = {"format_version": FORMAT_VERSION, "adapter_sha256": bundle.info.adapter_sha256}
    filled_in["settings_sha256"] = tiny_info().settings_digest()
    assert bundle.info == dataclasses.replace(tiny_info(), **filled_in)
    assert bundle.card == "# Card\n"
    assert read_tensor_shapes(bundle.adapter_path) == {"head.weight": (3, 4), "head.bias": (3,)}
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.safetensors", "model.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-test"]


def test_tensors_that_share_memory_or_are_not_contiguous_can_be_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    bundle = write_bundle(tmp_path / "b", tiny_info(), {"a": matrix.T, "b": matrix, "c": matrix}, "")
    assert read_tensor_shapes(bundle.adapter_path) == {"a": (3, 2), "b": (2, 3), "c": (2, 3)}


def test_figures_that_are_not_finite_are_written_as_null(tmp_path: Path, tensors: dict[str, Any]) -> None:
    info = tiny_info(metrics={"clinic": {"dsc": float("nan"), "hd95": (1.5, float("inf"))}})
    assert write_bundle(tmp_path / "b", info, tensors, "").info.metrics == {
        "clinic": {"dsc": None, "hd95": [1.5, None]}
    }


def test_writing_replaces_an_older_bundle_but_never_another_folder(folder: Path, tensors: dict[str, Any]) -> None:
    write_bundle(folder, tiny_info(title="Newer"), tensors, "")
    assert read_bundle(folder).info.title == "Newer"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-test"]

    other = folder.parent / "documents"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="is no model bundle"):
        write_bundle(other, tiny_info(), tensors, "")
    assert (other / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_a_failure_while_writing_keeps_the_older_bundle(
    folder: Path, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_json", no_space)
    with pytest.raises(BadInput, match="is full"):
        write_bundle(folder, tiny_info(title="Newer"), tensors, "")
    assert read_bundle(folder).info.title == "Tiny test model"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-test"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "Update SPDSegment"),
        ({"format_version": "1"}, "no format_version"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"structure": None}, "the field 'structure' is missing"),
        ({"adapter_sha256": None}, "the field 'adapter_sha256' is missing"),
        ({"name": "Has Spaces"}, "'name' is not"),
        ({"title": 3}, "'title' is not a text"),
        ({"image_size": 64.5}, "'image_size' is not"),
        ({"image_size": True}, "'image_size' is not"),
        ({"fov_mm": -1}, "'fov_mm' is not"),
        ({"slicing_axis": "diagonal"}, "'slicing_axis' is not one of"),
        ({"backbone": "resnet"}, "'backbone' is not one of"),
        ({"backbone": "lite_medsam"}, "'backbone_sha256' is not a SHA-256"),
        ({"normalization": {"kind": "percentile", "low": 9, "high": 1}}, "'normalization.low'"),
        ({"normalization": {"kind": "gamma", "low": 0, "high": 1}}, "'normalization.kind'"),
        ({"normalization": {"kind": "window", "low": 0, "high": 1, "bias": 2}}, "'normalization.bias'"),
        ({"terminology": {"type": "kidney"}}, "'terminology' is not a text"),
        ({"network": [1]}, "'network' is not an object"),
        ({"color": [1, 2, 3]}, "'color' is not three numbers"),
    ],
)
def test_a_wrong_description_is_refused_by_field(folder: Path, changes: dict[str, Any], text: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelCorrupt) as caught:
        read_bundle(folder)
    assert text in caught.value.sentence
    assert str(folder / "model.json") in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1, "fov_mm": NaN}', "\xff"])
def test_a_description_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelCorrupt, match="model.json"):
        read_bundle(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -1])
def test_a_truncated_adapter_is_refused(folder: Path, keep: int) -> None:
    adapter = folder / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:keep])
    with pytest.raises(ModelCorrupt, match="adapter.safetensors is damaged"):
        read_bundle(folder)


def test_extra_or_changed_bytes_of_the_adapter_are_refused(folder: Path) -> None:
    adapter = folder / "adapter.safetensors"
    content = adapter.read_bytes()
    adapter.write_bytes(content + b"\0")
    with pytest.raises(ModelCorrupt, match="is damaged"):
        read_bundle(folder)
    adapter.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelCorrupt, match="wrong checksum"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"shape": [2]}},
        {"a": 3},
        [],
    ],
)
def test_a_header_that_does_not_describe_the_bytes_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(ModelCorrupt, match="is damaged"):
        read_tensor_shapes(path)


def test_a_folder_without_a_bundle_or_without_its_adapter_is_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="holds no model bundle"):
        read_bundle(tmp_path)
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(ModelCorrupt, match=r"adapter\.safetensors is missing"):
        read_bundle(folder)


@pytest.fixture
def home_with_bundles(folder: Path, spd_home: Path, tensors: dict[str, Any]) -> Path:
    """A home with a good and a damaged bundle of the user's."""
    add_bundle(folder)
    broken = spd_home / "models" / "broken"
    shutil.copytree(folder, broken)
    (broken / "adapter.safetensors").write_bytes(b"")
    return spd_home


def test_bundles_are_found_by_name_and_by_folder(home_with_bundles: Path, folder: Path) -> None:
    assert find_bundle("tiny-test").folder == home_with_bundles / "models" / "tiny-test"
    assert find_bundle(folder).folder == folder
    with pytest.raises(ModelMissing, match="tiny-test"):
        find_bundle("unheard-of")
    with pytest.raises(ModelCorrupt, match="is damaged"):
        find_bundle("broken")


def test_a_damaged_bundle_does_not_hide_the_others(home_with_bundles: Path) -> None:
    bundles, broken = scan_bundles()
    assert "tiny-test" in [bundle.info.name for bundle in bundles]
    assert [path.name for path, _ in broken] == ["broken"]


def test_further_folders_come_first(home_with_bundles: Path, tmp_path: Path, tensors: dict[str, Any]) -> None:
    write_bundle(tmp_path / "extra" / "tiny-test", tiny_info(title="Mine"), tensors, "")
    assert find_bundle("tiny-test", [tmp_path / "extra"]).info.title == "Mine"
    assert find_bundle("tiny-test").info.title == "Tiny test model"


def test_only_bundles_of_the_users_folder_can_be_removed(home_with_bundles: Path, folder: Path) -> None:
    with pytest.raises(BadInput, match="is not in the folder of your models"):
        remove_bundle(folder)
    assert folder.is_dir()
    remove_bundle(find_bundle("tiny-test").folder)
    with pytest.raises(ModelMissing):
        find_bundle("tiny-test")


def bundle_on(backbone: str, digest: str) -> Bundle:
    info: BundleInfo = tiny_info(backbone=backbone, backbone_sha256=digest)
    return Bundle(info, Path("somewhere"), Path("somewhere/adapter.safetensors"))


def test_a_bundle_refuses_base_weights_that_it_was_not_trained_on(
    spd_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "stub.pth"
    source.write_bytes(CONTENT)
    use_manifest(monkeypatch, url_weights(source))
    bundle = bundle_on("stub", sha256(CONTENT))
    with pytest.raises(ModelMissing, match="models fetch stub"):
        base_weights_for(bundle)
    path = fetch_base_weights("stub")
    assert base_weights_for(bundle) == path
    source.write_bytes(b"another training")
    add_file("stub", source, accept_unknown=True)
    with pytest.raises(ModelCorrupt, match="trained on other weights of stub"):
        base_weights_for(bundle)


def test_a_random_backbone_needs_no_weights() -> None:
    assert base_weights_for(bundle_on("tiny_random", "")) is None


def test_reading_a_bundle_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from SPDSegmentLib.models.bundle import read_bundle\n"
        "read_bundle(sys.argv[1])\n"
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


def test_the_description_survives_json(tmp_path: Path) -> None:
    info = tiny_info(terminology="Segmentation category and type~SCT^123037004^Anatomical Structure", fov_mm=320)
    assert parse_info(json.loads(json.dumps(info.to_dict()))) == info


def test_unchanged_values_are_accepted() -> None:
    assert parse_info(info_values()) == tiny_info()


@pytest.fixture
def base() -> dict[str, Any]:
    """Base weights: a decoder's matrix, convolution and bias, and a tensor of its encoder."""
    torch.manual_seed(1)
    shapes = {MATRIX: (64, 128), "prompt_encoder.conv.weight": (256, 16, 1, 1), "mask_decoder.bias": (9000,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()} | {"image_encoder.a": torch.randn(80, 80)}


@pytest.fixture
def learned(base: dict[str, Any]) -> dict[str, Any]:
    """What a training made of them, with rows that no step changed, and two tensors of its own."""
    after = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in base.items()}
    after[MATRIX][3:5] = base[MATRIX][3:5]
    after[MATRIX][4] = after[MATRIX][4].half().float()
    own = {"saliency_head.weight": torch.randn(70, 70), "mask_decoder.token.weight": torch.randn(4, 64)}
    return {name: tensor.half() if name == MATRIX else tensor for name, tensor in after.items()} | own


def test_an_adapter_as_changes_is_the_base_and_scaled_whole_numbers(
    base: dict[str, Any], learned: dict[str, Any], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "b", tiny_info(), to_changes(learned, base), "")
    stored = load_state_dict(bundle.adapter_path)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == LARGE
    assert all(stored[name].dtype == torch.float16 for name in set(learned) & set(stored) if name not in base)
    adapter = load_adapter(bundle, base)
    assert adapter.keys() == learned.keys()
    for name in LARGE:
        scale = stored[f"{name}.scale"].numpy().reshape(-1, *[1] * (base[name].ndim - 1))
        exact = base[name].numpy() + scale * stored[name].numpy().astype(np.float32)
        assert exact.dtype == np.float32 and np.array_equal(adapter[name].numpy(), exact)
        rounding = abs(base[name].numpy()) / (1 << 10 if learned[name].dtype == torch.float16 else 1 << 20)
        assert (abs(exact - learned[name].float().numpy()) <= 0.501 * scale + rounding).all()
    assert torch.equal(adapter[MATRIX][3:5], base[MATRIX][3:5]), "what no step changed is the base, bit for bit"
    assert all(torch.equal(adapter[name], learned[name].half()) for name in learned.keys() - LARGE)
    size = sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(tuple(LARGE)))
    assert size < 0.6 * sum(learned[name].half().nbytes for name in LARGE)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{MATRIX}.scale"), "has the type I8, not F16, BF16 or F32"),
        (lambda t: t.update({f"{MATRIX}.scale": torch.ones(63)}), "has the type I8"),
        (lambda t: t.update({f"{MATRIX}.scale": torch.ones(64, 1)}), "has the type I8"),
        (lambda t: t.update({f"{MATRIX}.scale": torch.ones(64).half()}), "has the type I8"),
        (lambda t: t.update({MATRIX: t[MATRIX][0], f"{MATRIX}.scale": torch.ones(128)}), "has the type I8"),
        (lambda t: t.update({f"{MATRIX}.scale": torch.full((64,), float("nan"))}), "NaN or infinite"),
    ],
)
def test_changes_without_sound_scales_are_not_written(
    base: dict[str, Any], learned: dict[str, Any], tmp_path: Path, change: Any, text: str
) -> None:
    stored = to_changes(learned, base)
    change(stored)
    with pytest.raises(ModelCorrupt, match=text):
        write_bundle(tmp_path / "b", tiny_info(), stored, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_do_not_become_changes(
    base: dict[str, Any], learned: dict[str, Any], tmp_path: Path, value: float
) -> None:
    learned[MATRIX][7, 9] = value
    with pytest.raises(ModelCorrupt, match="NaN or infinite"):
        write_bundle(tmp_path / "b", tiny_info(), to_changes(learned, base), "")


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ({"mask_decoder.other.weight": torch.ones(64, 128).char()}, "do not have it"),
        ({MATRIX: torch.ones(128, 64).char()}, "do not have it"),
        ({"image_encoder.a": torch.ones(80, 80).char()}, "do not have it"),
        (
            {MATRIX: torch.full((64, 128), 127).char(), f"{MATRIX}.scale": torch.full((64,), 3e38)},
            "is not finite with its change",
        ),
    ],
)
def test_changes_that_the_base_weights_do_not_take_are_refused(
    base: dict[str, Any], stored: dict[str, Any], text: str
) -> None:
    (name, change), *_ = stored.items()
    with pytest.raises(ModelCorrupt, match=text):
        from_changes({f"{name}.scale": torch.ones(len(change))} | stored, base)
    with pytest.raises(ModelCorrupt, match="do not have it"):
        from_changes({name: change}, base)


def test_changes_are_added_to_no_other_base_weights(
    base: dict[str, Any], learned: dict[str, Any], tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(base, tmp_path / "0.pth")
    torch.save({name: tensor + 1 for name, tensor in base.items()}, tmp_path / "1.pth")
    content = (tmp_path / "0.pth").read_bytes()
    use_manifest(monkeypatch, url_weights(tmp_path / "0.pth", content))
    right = tiny_info(backbone="stub", backbone_sha256=sha256(content))
    bundle = write_bundle(tmp_path / "b", right, to_changes(learned, base), "")
    with pytest.raises(ModelMissing, match="not on this machine"):
        load_adapter(bundle)
    fetch_base_weights("stub")
    own = load_adapter(bundle, base)
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_adapter(bundle).items())
    add_file("stub", tmp_path / "1.pth", accept_unknown=True)
    with pytest.raises(ModelCorrupt, match="trained on other weights"):
        load_adapter(bundle)
    with pytest.raises(ModelCorrupt, match="do not have it"):
        load_adapter(write_bundle(tmp_path / "random", tiny_info(), to_changes(learned, base), ""))
