"""Model bundles: written whole, read strictly, found by name or folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from SPDSegmentLib.models.storage import read_tensor_shapes

torch = pytest.importorskip("torch")


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
