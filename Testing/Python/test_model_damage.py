"""Damaged, changed and foreign models: each is refused by a sentence, and none is taken for an empty result."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_helpers import tiny_info
from segment_case import files_in, run, tiny_bundle
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app, find_sample, model_of
from SPDSegmentLib.errors import BadInput, ModelCorrupt, SPDError
from SPDSegmentLib.geometry.intensity import IntensityConfig, intensity_range, normalize
from SPDSegmentLib.geometry.volume import Volume, check_image
from SPDSegmentLib.inference.engine import require_numbers
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models import bundle as bundle_module
from SPDSegmentLib.models.bundle import add_bundle, find_bundle, origin_note, read_bundle, scan_bundles, write_bundle
from SPDSegmentLib.models.storage import check_finite, read_tensor_shapes, shipped_models_folder
from SPDSegmentLib.networks.backbones import build_sam, load_adapter, load_state_dict
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.settings import parse_json

torch = pytest.importorskip("torch")
pytest_plugins = ["segment_case"]

SMALL: dict[str, Any] = {"backbone": "tiny_random", "image_size": 64, "lora_rank": 2, "decoder_lora_rank": 2}


@pytest.fixture
def real_predictor(case: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The case of the command line's tests, with the real predictor in place of the stand-in."""
    monkeypatch.delitem(sys.modules, "SPDSegmentLib.inference.predictor")
    return case


def make_bundle(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, **network: Any) -> Path:
    """A bundle with a random model's tensors, changed by ``change`` before they are written."""
    settings = {**SMALL, **network}
    tensors = SPDModel(NetworkConfig(**settings)).adapter_state()
    if change is not None:
        change(tensors)
    described = {name: value for name, value in settings.items() if name not in ("backbone", "image_size")}
    return write_bundle(folder, tiny_info(network=described, prompts={}), tensors, "").folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


@pytest.mark.parametrize("decoder", ["lora", "full", "frozen"])
@pytest.mark.parametrize("blocks", [-1, 1])
def test_a_model_without_adapters_knows_every_tensor_of_a_bundle(decoder: str, blocks: int) -> None:
    config = NetworkConfig(**SMALL, decoder=decoder, lora_encoder_blocks=blocks, saliency_slice_context=True)
    held = {name: tuple(tensor.shape) for name, tensor in SPDModel(config).adapter_state().items()}
    assert SPDModel(config, adapters=False).adapter_shapes() == held


@pytest.mark.parametrize("part", ["mask_decoder.", "saliency_head.", "image_encoder.", "prompt_encoder."])
def test_a_bundle_that_lacks_a_part_is_refused_by_name(tmp_path: Path, part: str) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(part)]:
            del tensors[name]

    bundle = read_bundle(make_bundle(tmp_path / "b", drop, decoder="full"))
    with pytest.raises(ModelCorrupt, match=f"missing \\({part}"):
        Predictor.load(bundle, "cpu")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: tensors.update({"odd key": torch.zeros(1)}), "1 unknown"),
        (lambda tensors: tensors.update({"saliency_head.norm.bias": torch.zeros(3)}), "of another shape"),
        (lambda tensors: tensors.update({"saliency_head.norm.bias": torch.zeros(())}), "of another shape"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    with pytest.raises(ModelCorrupt, match=text):
        Predictor.load(read_bundle(make_bundle(tmp_path / "b", change)), "cpu")


@pytest.mark.parametrize("version", [1, 2])
def test_an_adapter_of_an_older_format_is_read_as_it_is(tmp_path: Path, version: int) -> None:
    folder = make_bundle(tmp_path / "b", lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    edit(folder, format_version=version)
    bundle = read_bundle(folder)
    held = load_state_dict(bundle.adapter_path)
    assert all(torch.equal(tensor, held[name]) for name, tensor in load_adapter(bundle).items()) and held
    Predictor.load(bundle, "cpu")


def test_a_change_of_random_weights_is_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
        rows, columns = tensors[name].shape
        tensors.update({name: torch.ones(rows, columns, dtype=torch.int8), f"{name}.scale": torch.ones(rows)})

    with pytest.raises(ModelCorrupt, match="stored as a change of base weights that do not have it"):
        Predictor.load(read_bundle(make_bundle(tmp_path / "b", change, decoder="full")), "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_with_a_value_that_is_not_finite_is_neither_written_nor_read(
    tmp_path: Path, value: float, dtype: Any
) -> None:
    from safetensors.torch import save_file

    tensor = torch.zeros(70_000, dtype=dtype)
    tensor[69_999] = value
    with pytest.raises(ModelCorrupt, match="NaN or infinite"):
        write_bundle(tmp_path / "b", tiny_info(), {"a": tensor}, "")
    assert files_in(tmp_path) == []
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    for read in (check_finite, load_state_dict):
        with pytest.raises(ModelCorrupt, match="'a' holds values that are NaN or infinite"):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int64, torch.bool, torch.uint8])
def test_other_types_of_numbers_are_refused_by_name(tmp_path: Path, dtype: Any) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, dtype=dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelCorrupt, match="'a' has the type .*, not F16, BF16 or F32"):
        read_tensor_shapes(tmp_path / "a.safetensors")


def test_weights_that_overflow_in_the_network_are_an_error_and_no_empty_mask(real_predictor: Any) -> None:
    def grow(tensors: dict[str, Any]) -> None:
        tensors["saliency_head.up1.weight"] += 3e38

    case = real_predictor
    make_bundle(case.model, grow)
    result = run(case, "--device", "cpu")
    assert result.exit_code == 2
    assert "failed in slice" in result.stderr and "nothing" not in result.stderr.split("slice")[0]
    assert files_in(case.out) == []


def test_every_output_that_is_no_number_names_its_slice() -> None:
    outputs = np.zeros((2, 3, 3), np.float32)
    require_numbers([7, 9], outputs)
    outputs[1, 2, 2] = np.nan
    with pytest.raises(ModelCorrupt, match="failed in slice 9"):
        require_numbers([7, 9], np.zeros((2, 3)), outputs)


BASE_CHANGES: dict[str, Callable[[dict[Any, Any]], None]] = {
    "NaN": lambda state: state["mask_decoder.iou_token.weight"].fill_(float("nan")),
    "beyond single precision": lambda state: state.update(x=torch.tensor([1e300], dtype=torch.float64)),
    "missing": lambda state: state.pop("mask_decoder.iou_token.weight"),
    "extra part": lambda state: state.update({"optimizer.step": torch.zeros(1)}),
    "extra tensor": lambda state: state.update({"mask_decoder.odd": torch.zeros(1)}),
    "whole numbers": lambda state: state.update(
        {"mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"].int()}
    ),
    "complex": lambda state: state.update(x=torch.zeros(1, dtype=torch.complex64)),
    "sparse": lambda state: state.update(x=torch.zeros(2, 2).to_sparse()),
    "key": lambda state: state.update({3: torch.zeros(1)}),
    "shape": lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(())}),
    "qkv": lambda state: state.update({next(k for k in state if k.endswith("qkv.bias")): torch.zeros(())}),
}


@pytest.mark.parametrize("change", BASE_CHANGES.values(), ids=BASE_CHANGES.keys())
def test_foreign_base_weights_are_refused(tmp_path: Path, change: Callable[[dict[Any, Any]], None]) -> None:
    config = NetworkConfig("tiny_random", 64)
    sam, path = build_sam(config), tmp_path / "base.pth"
    parts = {name: getattr(sam, name) for name in ("image_encoder", "prompt_encoder", "mask_decoder")}
    state: dict[Any, Any] = {
        f"{p}.{k}": v.clone() for p, module in parts.items() for k, v in module.state_dict().items()
    }
    change(state)
    torch.save(state, path)
    with pytest.raises(ModelCorrupt):
        build_sam(config, path)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("prompts", {"n_neighbors": 10**9}),
    ("prompts", {"max_points": 10**7}),
    ("prompts", {"min_distance_px": 1e9}),
    ("prompts", {"follow_beyond": -7}),
    ("network", {"lora_rank": 100_000}),
    ("network", {"decoder_lora_rank": 100_000}),
    ("network", {"lora_alpha": 1e30}),
    ("network", {"lora_encoder_blocks": 10**6}),
]


@pytest.mark.parametrize(("part", "values"), SETTINGS)
def test_every_setting_has_a_highest_value(real_predictor: Any, part: str, values: dict[str, Any]) -> None:
    case = real_predictor
    tiny_bundle(case)
    edit(case.model, **{part: json.loads((case.model / "model.json").read_text(encoding="utf-8"))[part] | values})
    result = run(case, "--device", "cpu")
    assert result.exit_code == 2
    assert next(iter(values)) in result.stderr and "which is not from" in result.stderr
    with pytest.raises(BadInput):
        (PromptConfig if part == "prompts" else NetworkConfig).from_dict(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 4096},
        {"fov_mm": 1e-9},
        {"fov_mm": 10**400},
        {"title": "a\x1b[2Jb"},
        {"title": "x" * 300},
        {"structure": "two\nlines"},
        {"color": [0, 0, 10**400]},
        {"backbone": []},
        {"slicing_axis": {}},
    ],
)
def test_values_that_nothing_can_use_are_refused_when_the_bundle_is_read(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_bundle(tmp_path / "b", tiny_info(), {"a": torch.zeros(1)}, "").folder
    edit(folder, **changes)
    with pytest.raises(ModelCorrupt, match=r"model\.json"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("prompts", {"threshold": 0.4}),
        ("normalization", {"kind": "window", "low": 0.0, "high": 5.0}),
        ("fov_mm", 100.0),
        ("slicing_axis", "coronal"),
    ],
)
def test_a_setting_that_was_changed_by_hand_is_said_until_it_is_accepted(
    spd_home: Path, tmp_path: Path, part: str, values: Any
) -> None:
    folder = make_bundle(tmp_path / "b")
    edit(folder, **{part: values})
    for use in (lambda: Predictor.load(read_bundle(folder), "cpu"), lambda: add_bundle(folder)):
        with pytest.raises(ModelCorrupt, match="settings have the wrong checksum") as caught:
            use()
    command = caught.value.remedy.partition("spdsegment ")[2].split()
    assert CliRunner().invoke(build_app(), command).exit_code == 0
    Predictor.load(find_bundle("tiny-test"), "cpu")


def test_descriptions_may_be_changed_and_reformatted(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", lora_alpha=4.0)
    edit(folder, title="Better title", metrics={"dsc": 0.9})
    text = (folder / "model.json").read_text(encoding="utf-8")
    assert '"lora_alpha": 4.0' in text
    (folder / "model.json").write_text(text.replace('"lora_alpha": 4.0', '"lora_alpha": 4'))
    read_bundle(folder).check_settings()


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', f'{{"a": {"9" * 400}}}', "[" * 100_000, '{"a": ', "\xff"],
)
def test_json_that_says_two_things_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is|holds|has"):
        parse_json(text.encode("latin-1"))


def test_one_bad_folder_hides_nothing(spd_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = add_bundle(make_bundle(tmp_path / "b"))
    contents = [b"", b"[" * 100_000, b"\xff\xfe", b'{"format_version": 1' + b"0" * 5000 + b"}", b"[]", b"null"]
    for number, content in enumerate(contents):
        folder = spd_home / "models" / f"[red]bad {number}"
        shutil.copytree(good.folder, folder)
        (folder / "model.json").write_bytes(content)
    (spd_home / "models" / "dir" / "model.json").mkdir(parents=True)
    bundles, broken = scan_bundles()
    assert good.folder in [bundle.folder for bundle in bundles] and len(broken) == len(contents)
    listed = CliRunner().invoke(build_app(), ["models", "list"])
    assert listed.exit_code == 0 and "[red]bad 0" in listed.output and "kidney-mr" in listed.output


def test_a_fault_of_ours_in_one_folder_hides_nothing(
    spd_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = add_bundle(make_bundle(tmp_path / "b"))
    shutil.copytree(good.folder, spd_home / "models" / "bad")

    def fail(folder: Path) -> Any:
        return original(folder) if folder.name != "bad" else 1 / 0

    original = bundle_module.read_bundle
    monkeypatch.setattr(bundle_module, "read_bundle", fail)
    bundles, broken = scan_bundles()
    assert good.folder in [bundle.folder for bundle in bundles]
    assert [(folder.name, type(error)) for folder, error in broken] == [("bad", ModelCorrupt)]


def own_kidney(spd_home: Path) -> Path:
    """A copy of a shipped model among the user's, under the same name."""
    shipped = shipped_models_folder()
    assert shipped is not None
    return Path(shutil.copytree(shipped / "kidney-mr", spd_home / "models" / "kidney-mr"))


def test_an_own_model_of_a_shipped_name_is_said(spd_home: Path) -> None:
    folder = own_kidney(spd_home)
    assert find_bundle("kidney-mr").folder == folder
    assert str(folder) in origin_note(find_bundle("kidney-mr"))
    assert origin_note(find_bundle("hippocampus-mr")) == ""
    assert "is your own" in CliRunner().invoke(build_app(), ["models", "list"]).output


def test_a_damaged_own_model_of_a_shipped_name_is_named_with_a_way_out(spd_home: Path) -> None:
    folder = own_kidney(spd_home)
    (folder / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(SPDError, match="is damaged") as caught:
        find_bundle("kidney-mr")
    assert caught.value.remedy.endswith("spdsegment models remove kidney-mr")
    assert model_of(find_sample(None)).shipped, "the demo takes what is shipped"
    CliRunner().invoke(build_app(), ["models", "remove", "--yes", "kidney-mr"])
    assert find_bundle("kidney-mr").shipped


def test_a_sound_own_model_is_used_though_the_shipped_one_of_its_name_is_damaged(
    spd_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    for name, root in (("damaged", shipped), ("sound", spd_home / "models")):
        shutil.copytree(make_bundle(tmp_path / name), root / "tiny-test")
    (shipped / "tiny-test" / "adapter.safetensors").write_bytes(b"")
    monkeypatch.setattr(bundle_module, "shipped_models_folder", lambda: shipped)
    assert find_bundle("tiny-test").folder == spd_home / "models" / "tiny-test"
    # where a damaged one outside the user's folder comes first, the sound one is not what must go
    with pytest.raises(SPDError) as caught:
        find_bundle("tiny-test", [shipped])
    assert "models remove" not in caught.value.remedy


def test_two_own_models_of_one_name_are_said(spd_home: Path, tmp_path: Path) -> None:
    add_bundle(make_bundle(tmp_path / "b"))
    shutil.copytree(tmp_path / "b", spd_home / "models" / "z-copy")
    ((folder, error),) = scan_bundles()[1]
    assert folder.name == "z-copy" and "same name" in error.message
    assert find_bundle(folder).folder == folder


@pytest.mark.parametrize("value", [1e300, -1e35, 3e38])
def test_an_image_beyond_single_precision_is_refused_by_name(value: float) -> None:
    array = np.zeros((2, 3, 4))
    array[1, 1, 1] = value
    with pytest.raises(BadInput, match="The image scan.nii has intensities"):
        check_image(Volume(array, np.eye(4), "scan.nii"))


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e20, -1e29])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_image_that_is_taken_becomes_numbers_from_0_to_1(offset: float, dtype: Any) -> None:
    array = (offset + np.arange(24.0).reshape(2, 3, 4)).astype(dtype)
    for config in (IntensityConfig(), IntensityConfig("window", -1e9, 1e9), IntensityConfig("window", 0, 1e-3)):
        with np.errstate(all="raise", under="ignore"):
            scaled = normalize(array, intensity_range(array, config))
        assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-320), (1e9, 1e9 + 1), (-1e300, 1e300)])
def test_intensity_limits_that_cannot_be_told_apart_are_refused(low: float, high: float) -> None:
    with pytest.raises(BadInput):
        IntensityConfig("window", low, high)


def test_a_model_whose_normalization_none_could_use_is_not_written(tmp_path: Path) -> None:
    info = tiny_info(normalization={"kind": "percentile", "low": 0.5, "high": 250.0})
    with pytest.raises(ModelCorrupt, match="was not written"):
        write_bundle(tmp_path / "b", info, {"a": torch.zeros(2)}, "")
    assert list(tmp_path.iterdir()) == []
