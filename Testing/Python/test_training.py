"""Training: it learns, it resumes exactly, it refuses what it cannot use, it writes a bundle that segments."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_training import write_cases, write_config

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.evaluation.evaluator import EvaluationConfig, evaluate, load_targets
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.volume import read_volume, set_geometry
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.distillation import Distillation, SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps
from SPDSegmentLib.prompts.strategies import distill_prompts
from SPDSegmentLib.training import stages, survey
from SPDSegmentLib.training.cases import apply_view, load_case, random_view
from SPDSegmentLib.training.config import AugmentationConfig, check_fit, patient_of, read_training_config
from SPDSegmentLib.training.loop import Loop, Phase, Processes, schedule
from SPDSegmentLib.training.planning import plan
from SPDSegmentLib.training.result import save_bundle, update_metrics
from SPDSegmentLib.training.run import RunHooks, plot_curves, train
from SPDSegmentLib.training.stages import prompt_beyond
from SPDSegmentLib.training.survey import shared_numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_cases(folder / "data")
    return folder


def run(config_path: Path, run_folder: Path, hooks: RunHooks | None = None) -> SPDModel:
    config = read_training_config(config_path)
    return train(config, config_path.parent / "data", run_folder, None, Processes(), hooks)


def test_the_older_name_of_the_license_is_still_read(tmp_path: Path) -> None:
    path = write_config(tmp_path, 1, 1, 1)
    text = path.read_text(encoding="utf-8")
    for key in ("license", "licence"):
        path.write_text(text.replace("[bundle]", f'[bundle]\n{key} = "CC0"'), encoding="utf-8")
        assert read_training_config(path).bundle.license == "CC0"


def test_a_tiny_run_overfits_two_cases_and_its_bundle_segments_them(data: Path, tmp_path: Path) -> None:
    config_path = write_config(data, stage1=250, head=60, stage2=250)
    config = read_training_config(config_path)
    model = run(config_path, tmp_path / "run")
    # A random backbone is part of the bundle's identity only by its seed, so it is rebuilt with the same one.
    bundle = save_bundle(model, config, config_path.name, tmp_path / "bundle")
    assert plot_curves(tmp_path / "run") == tmp_path / "run" / "curves.png"
    assert bundle.info.training["patients"] == ["a", "b"]
    torch.manual_seed(config.seed)
    predictor = Predictor.load(bundle, "cpu", "float32")
    assert config.data.targets == ((1,),) and config.data.plane == "axial"
    targets = load_targets(data / "data", config.data, ["a", "b"])
    rows = list(evaluate(predictor, targets, EvaluationConfig(("clean",), 1), "tiny"))
    assert min(row.dsc or 0 for row in rows) > 0.95


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    """Weights and folder of a short run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return run(write_config(data, stage1=6, head=3, stage2=6), folder).adapter_state(), folder


@pytest.mark.parametrize("stop_after", [3, 8, 11])
def test_a_run_that_was_stopped_and_resumed_gives_the_same_weights(
    data: Path, tmp_path: Path, whole: tuple[dict[str, torch.Tensor], Path], stop_after: int
) -> None:
    config_path = write_config(data, stage1=6, head=3, stage2=6)
    weights, folder = whole
    steps = 0

    def count(what: str, done: int, total: int, left: float | None, values: dict[str, float]) -> None:
        nonlocal steps
        steps += what.startswith("stage")

    with pytest.raises(Cancelled):
        run(config_path, tmp_path / "parts", RunHooks(count, lambda: steps >= stop_after))
    resumed = run(config_path, tmp_path / "parts").adapter_state()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert (folder / "stage2.csv").read_text(encoding="utf-8") == (tmp_path / "parts" / "stage2.csv").read_text(
        encoding="utf-8"
    )


def test_sam_tuning_is_the_same_command_with_raw_clicks_and_no_consistency(data: Path, tmp_path: Path) -> None:
    config_path = write_config(data, stage1=4, head=2, stage2=4, strategy="raw")
    state = run(config_path, tmp_path / "run").adapter_state()
    assert all(torch.isfinite(value).all() for value in state.values())


def test_sam_tuning_learns_encoder_and_decoder_from_clicks_and_leaves_the_saliency_head(
    data: Path, tmp_path: Path
) -> None:
    config_path = write_config(data, stage1=60, head=0, stage2=60, strategy="raw")
    text = config_path.read_text(encoding="utf-8").replace("[stage1]", '[stage1]\nobjective = "prompted"')
    config_path.write_text(text.replace("learning_rate = 1e-2", "learning_rate = 3e-3"))
    config = read_training_config(config_path)
    torch.manual_seed(config.seed)
    before = SPDModel(config.network).adapter_state()
    after = run(config_path, tmp_path / "run").adapter_state()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("image_encoder.") for name in changed)
    assert any(name.startswith("mask_decoder.") for name in changed)
    assert not any(name.startswith("saliency_head.") for name in changed)
    curve = (tmp_path / "run" / "stage1.csv").read_text(encoding="utf-8").splitlines()
    column = curve[0].split(",").index("segmentation")
    losses = [float(row.split(",")[column]) for row in curve[1:]]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def with_both(config_path: Path, extra: str = "") -> Path:
    """The configuration with a stage I that learns saliency and clicked target together."""
    text = config_path.read_text(encoding="utf-8").replace("[stage1]", '[stage1]\nobjective = "both"')
    path = config_path.with_name("both.toml")
    path.write_text(extra + text, encoding="utf-8")
    return path


def test_stage_one_can_learn_saliency_and_clicked_target_together(data: Path, tmp_path: Path) -> None:
    config_path = with_both(write_config(data, stage1=40, head=0, stage2=0))
    config = read_training_config(config_path)
    torch.manual_seed(config.seed)
    before = SPDModel(config.network).adapter_state()
    after = run(config_path, tmp_path / "run").adapter_state()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert {"image_encoder", "saliency_head", "mask_decoder"} <= changed
    names, *rows = (tmp_path / "run" / "stage1.csv").read_text(encoding="utf-8").splitlines()
    for term in ("dice_loss", "segmentation"):
        losses = [float(row.split(",")[names.split(",").index(term)]) for row in rows]
        assert sum(losses[-5:]) < sum(losses[:5])


def test_such_a_stage_one_goes_on_from_a_bundle_with_its_decoder(data: Path, tmp_path: Path) -> None:
    config = read_training_config(with_both(write_config(data, stage1=0, head=0, stage2=0)))
    begun = {name: tensor + 0.25 for name, tensor in SPDModel(config.network).adapter_state().items()}
    model = train(config, data / "data", tmp_path / "run", None, Processes(), stage1_state=begun)
    assert all(torch.equal(tensor, begun[name]) for name, tensor in model.adapter_state().items())


def test_a_prior_cannot_be_asked_of_sam_tuning(data: Path) -> None:
    config_path = write_config(data, stage1=2, head=2, stage2=2, strategy="raw")
    config_path.write_text(
        config_path.read_text(encoding="utf-8").replace("[stage1]", '[stage1]\nobjective = "prompted"')
    )
    with pytest.raises(BadInput, match="trains no saliency"):
        read_training_config(config_path)


def test_slices_just_beyond_the_prompted_ones_get_their_neighbors_point() -> None:
    nothing = np.empty((0, 2)), np.empty(0, int)
    prompts = [SlicePrompts(t, *nothing, SliceStatus.ABSTAINED) for t in range(8)]
    prompts[3] = SlicePrompts(3, np.array([[5.0, 6.0]]), np.array([0]), SliceStatus.SUPPORTED)
    prompts[4] = SlicePrompts(4, np.array([[7.0, 8.0]]), np.array([1]), SliceStatus.SUPPORTED)
    extended = prompt_beyond(prompts, 1.0, np.random.default_rng(0))
    assert [p.points.tolist() for p in extended] == [[], *[[[5.0, 6.0]]] * 3, *[[[7.0, 8.0]]] * 3, []]
    assert prompt_beyond(prompts, 0.0, np.random.default_rng(0)) == prompts


def test_a_run_folder_of_another_configuration_is_refused(data: Path, tmp_path: Path) -> None:
    run(write_config(data, stage1=2, head=0, stage2=0), tmp_path / "run")
    with pytest.raises(BadInput, match="another configuration"):
        run(write_config(data, stage1=3, head=0, stage2=0), tmp_path / "run")


@pytest.mark.parametrize("first", ["64.0", "64"])
def test_a_run_goes_on_where_a_number_is_written_otherwise(data: Path, tmp_path: Path, first: str) -> None:
    path, runs = write_config(data, stage1=2, head=0, stage2=1), list[SPDModel]()
    for number in (first, "64.0", "64"):
        path.write_text(path.read_text(encoding="utf-8").replace("fov_mm = 64.0", f"fov_mm = {number}"))
        runs.append(run(path, tmp_path / "run"))
        path = write_config(data, stage1=2, head=0, stage2=1)
    assert all(torch.equal(*values) for values in zip(*(list(m.state_dict().values()) for m in runs[:2]), strict=True))


def test_another_model_in_the_same_folder_has_no_figures_yet(data: Path, tmp_path: Path) -> None:
    config = read_training_config(write_config(data, stage1=1, head=0, stage2=0))
    for seed in (0, 1):
        torch.manual_seed(seed)
        bundle = save_bundle(SPDModel(config.network), config, "tiny.toml", tmp_path / "bundle")
        assert not bundle.info.metrics and "Nothing yet" in bundle.card
        update_metrics(bundle, {"table": "| 91.5 |"})


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    config_path = write_config(data, stage1=2, head=0, stage2=0)
    run(config_path, tmp_path / "run")
    (tmp_path / "run" / "stage1.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(Exception, match=r"stage1\.ckpt cannot be continued"):
        run(config_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = [", "not valid TOML"),
        ("sed = 3", "Unknown setting 'sed'"),
        ("[bundle]\nname = 'x'", "incomplete"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read_training_config(path)


def test_a_patient_in_both_parts_is_refused(data: Path, tmp_path: Path) -> None:
    text = (
        write_config(data, 1, 0, 0)
        .read_text(encoding="utf-8")
        .replace('train = ["a", "b"]', 'train = ["s1_l"]\nvalidation = ["s1_r"]')
    )
    path = tmp_path / "leak.toml"
    path.write_text(text.replace('plane = "axial"', 'plane = "axial"\npatient_pattern = "(s\\\\d+)_"'))
    with pytest.raises(BadInput, match="Patient s1 is in both"):
        read_training_config(path)
    path.write_text(path.read_text().replace("(s\\\\d+)_", "(patient\\\\d+)"))
    with pytest.raises(BadInput, match="fits none of the 2 names of cases; one that it does not fit is s1_l"):
        read_training_config(path)


def test_a_pattern_is_to_find_a_patient_in_every_name_or_to_say_that_all_others_are_one_each() -> None:
    names = ["subj1_a", "subj1_b", "subj2_b", "left"]
    with pytest.raises(BadInput, match=r"\(--patient\) fits only 2 of the 4 names of cases; .* is subj2_b"):
        check_fit("(subj1)", "--patient", names)
    check_fit("(subj1|.*)", "--patient", names)
    hint = shared_numbers(names, "(.*)").partition("give --patient '")[2].partition("'")[0]
    check_fit(hint, "--patient", names)
    assert len({patient_of(name, hint) for name in names}) == 3
    with pytest.raises(BadInput) as refused:
        check_fit(r"case_(\d+)", "--patient", ["case_01", "case_01b", "x1"])
    wanted = refused.value.remedy.split("'")[1]
    check_fit(wanted, "--patient", ["case_01", "case_01b", "x1"])
    assert [patient_of(name, wanted) for name in ("case_01b", "x1")] == ["case_01", "x1"]
    assert "--patient '([^/]+)'" in shared_numbers(["Doe/ses1", "Doe/ses2", "Roe/ses1"], "(.*)")


def test_prompts_in_training_know_millimeters_as_in_use(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = write_config(data, 1, 0, 2), list[tuple[float, float]]()
    path.write_text(path.read_text(encoding="utf-8").replace("fov_mm = 64.0", "fov_mm = 128.0"), encoding="utf-8")

    def note(maps: SaliencyMaps, *rest: Any) -> Distillation:
        seen.append((maps.pixel_mm, maps.slice_px * maps.pixel_mm))
        return distill_prompts(maps, *rest)

    monkeypatch.setattr(stages, "distill_prompts", note)
    run(path, tmp_path / "run")
    assert seen and np.allclose(seen, (2.0, 4.0))


def test_a_label_without_the_target_is_refused(data: Path, tmp_path: Path) -> None:
    path = data / "other.toml"
    path.write_text(write_config(data, 1, 0, 0).read_text(encoding="utf-8").replace("[[1]]", "[[9]]"))
    with pytest.raises(BadInput, match="holds none of the label values"):
        run(path, tmp_path / "run")


def test_clicks_move_with_the_image(data: Path) -> None:
    """A bright pixel seen through a random view lies where the view puts its click."""
    image = np.zeros((1, 80, 80), np.float32)
    image[0, 38:41, 49:52] = 1
    for seed in range(5):
        config = AugmentationConfig(gamma=0, bias_field=0, noise=0)
        view = random_view(np.random.default_rng(seed), config, 64, 80.0, (1.0, 1.0), np.array([45.0, 42.0]))
        seen = apply_view(image, view, image=True)[0, 0].numpy()
        weights = seen / seen.sum()
        rows, columns = np.mgrid[:64, :64]
        expected = view.to_input(np.array([[50.0, 39.0]]))[0]
        assert np.allclose([(weights * columns).sum(), (weights * rows).sum()], expected, atol=0.15)


@pytest.mark.parametrize(("pixel_mm", "apart"), [(0.5, 1e-3), (0.7, 0.035), (1.0, 1e-3)])
def test_a_view_in_training_shows_what_the_network_sees_in_use(pixel_mm: float, apart: float) -> None:
    image = np.random.default_rng(0).random((2, 100, 100)).astype(np.float32)
    still, center = AugmentationConfig(0, 0, 0, 0, 0, 0, 0), np.array([49.5, 49.5])
    pixels = (pixel_mm, pixel_mm)
    used = place_window((100, 100), pixels, 40, 40.0, center).resample(image)
    view = random_view(np.random.default_rng(0), still, 40, 40.0, pixels, center)
    seen = apply_view(image, view, image=True)[:, 0].numpy()
    assert np.abs(used - seen).mean() < apart and abs(used.std() - seen.std()) < apart
    mask = (image > 0.5).astype(np.float32)
    assert apply_view(mask, view, image=False).std() > seen.std(), "masks keep their edges"


def test_the_learning_rate_warms_up_and_decays() -> None:
    rates = [schedule(step, 100, 250) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] and max(rates) == 1.0
    assert rates[-1] < 0.03


def test_a_finished_run_with_a_frozen_decoder_computes_no_embeddings_again(data: Path, tmp_path: Path) -> None:
    path, done = write_config(data, stage1=1, head=1, stage2=1, strategy="local"), list[str]()
    path.write_text(path.read_text(encoding="utf-8").replace('"full"', '"frozen"'), encoding="utf-8")
    run(path, tmp_path)
    run(path, tmp_path, RunHooks(on_progress=lambda what, *_: done.append(what)))
    assert "reading cases" in done and "computing embeddings" not in done


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_unstable_training_ends_at_once_and_its_last_checkpoint_is_sound(tmp_path: Path, what: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))

    def loss(step: int) -> dict[str, torch.Tensor]:
        total = ((parameter - 10) ** 2).sum()
        if step == 3:
            total = total * float("nan") if what == "loss" else total + (parameter * 0).sqrt().sum()
        return {"total": total}

    with pytest.raises(BadInput, match=r"^p became unstable: at step 4 .* \(learning rate 0.1\)") as ended:
        Loop(tmp_path, checkpoint_seconds=-1.0).run(Phase("p", [parameter], 12, 0.1, 0.0, 1, loss))
    assert "another run folder" in ended.value.remedy
    state = torch.load(tmp_path / "p.ckpt", weights_only=True)
    assert state["step"] == 3 and state["parameters"][0].isfinite().all()
    assert len((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()) == 4


def change_images(folder: Path, change: Callable[[np.ndarray], np.ndarray], names: Sequence[str] = ("a", "b")) -> None:
    """Change the intensities of the images of :func:`write_cases`."""
    for name in names:
        path = folder / f"{name}_image.nii.gz"
        volume = read_volume(path)
        image = sitk.GetImageFromArray(change(volume.array.astype(np.float32)))
        sitk.WriteImage(set_geometry(image, volume.ijk_to_ras), str(path))


@pytest.mark.parametrize("padded", ["a", "ab"])
def test_bright_padding_leaves_a_bundle_that_can_be_loaded(tmp_path: Path, padded: str) -> None:
    write_cases(tmp_path / "data")
    change_images(tmp_path / "data", lambda image: np.where(np.arange(64)[:, None] < 10, 30000, image), padded)
    config = read_training_config(write_config(tmp_path, 1, 0, 0))
    config = dataclasses.replace(config, intensity=IntensityConfig(), fov_mm=40.0)
    model = SPDModel(config.network)
    usual = save_bundle(model, config, "c.toml", tmp_path / "bundle", tmp_path / "data").intensity()
    assert (usual.usual_low > 0) == (padded == "a") and usual.usual_low <= usual.usual_high


@pytest.mark.parametrize(
    ("modality", "change", "words"),
    [
        ("CT", lambda image: image + 1, "The CT images hold nothing below 0: no Hounsfield units"),
        ("CT", lambda image: (image - image.mean()) / image.std(), "CT images hardly differ within the structure: no"),
        ("MRI", lambda image: (image - image.mean()) / image.std(), r"voxels \d\d% are below 0, as after a z-score"),
        ("MRI", lambda image: image - 20 * (image < 10), ""),
    ],
)
def test_intensities_that_no_scanner_gives_are_said_in_the_plan_and_show_all_of_the_image(
    tmp_path: Path, modality: str, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    write_cases(tmp_path)
    change_images(tmp_path, change)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": modality}}), encoding="utf-8")
    made = plan(survey.survey(tmp_path, survey.find_cases(tmp_path)), ".")
    assert re.search(words, " ".join(made.notes)) and bool(made.notes) == bool(words)
    case = load_case(tmp_path, "a", made.config.data, made.config.intensity)
    assert made.config.bundle.modality == modality[:2] and np.mean((case.images > 0) & (case.images < 1)) > 0.9


def test_cases_are_found_where_links_lead_and_none_twice(tmp_path: Path) -> None:
    for case in ("p1", "p2", "data/p3"):
        for name in ("image", "label", "predictions/label", ".a/image"):
            (tmp_path / case / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / case / f"{name}.nii.gz").touch()
    for name, leads_to in {"p1": "p1", "p2": "p2", "best": "data/p3"}.items():
        (tmp_path / "data" / name).symlink_to(tmp_path / leads_to)
    (tmp_path / "data" / "all").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    found = survey.find_cases(tmp_path / "data")
    assert (found.image, found.label, found.cases) == ("{case}/image.nii.gz", "{case}/label.nii.gz", ("p1", "p2", "p3"))


def test_more_files_than_any_data_set_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cases(tmp_path)
    monkeypatch.setattr(survey, "MAX_FILES", 4)
    assert survey.find_cases(tmp_path).cases == ("a", "b")
    monkeypatch.setattr(survey, "MAX_FILES", 3)
    with pytest.raises(BadInput, match="holds more than 3 files"):
        survey.find_cases(tmp_path)
