"""Joint training: batches in one go, two passes of one decoder, kept embeddings, exact resume, a bundle."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import write_cases

from SPDSegmentLib.errors import BadInput, Cancelled, ModelCorrupt
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.networks.adapters import TokenBatch
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import TokenKind
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.training.joint import (
    JointStageRunner,
    consensus_tokens,
    joint_bundle_info,
    keep_runs,
    raw_tokens,
    save_joint_bundle,
    supported_tokens,
    train_joint,
)
from SPDSegmentLib.training.joint_batches import JointSampler, Runs
from SPDSegmentLib.training.joint_cases import load_joint_cases, tube
from SPDSegmentLib.training.joint_config import JointConfig, is_joint, read_joint_config
from SPDSegmentLib.training.loop import Processes
from SPDSegmentLib.training.result import model_card
from SPDSegmentLib.training.run import RunHooks

CONFIG = """
seed = 3
checkpoint_seconds = 0.0
[bundle]
name = "tiny"
title = "Tiny"
structure = "Blob"
modality = "MR"
[network]
backbone = "tiny_random"
image_size = 64
decoder = "full"
saliency = "conditioned"
{network}
[augmentation]
flip = 0.0
rotation_deg = 0.0
scale_low = 1.0
scale_high = 1.0
shift = 0.05
darker = 0.0
brighter = 0.0
gamma = 0.0
bias_field = 0.0
noise = 0.0
inversion = 0.0
[stage]
steps = {steps}
runs_per_step = 3
click_sets = 6
severities = [0.0, 1.0]
learning_rate = 3e-3
encoder_learning_rate = 1e-2
warmup = 5
{stage}
[sets.blobs]
folder = "data"
structures = {{ blob = [1] }}
fov_mm = 64.0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    write_cases(folder / "data")
    return folder


def configured(data: Path, steps: int = 4, network: str = "", stage: str = "") -> JointConfig:
    path = data / "joint.toml"
    path.write_text(CONFIG.format(steps=steps, network=network, stage=stage), encoding="utf-8")
    assert is_joint(path)
    return read_joint_config(path)


def run(config: JointConfig, data: Path, folder: Path, hooks: RunHooks | None = None) -> SPDModel:
    return train_joint(config, data, folder, None, Processes(), hooks)


def sampler_of(config: JointConfig, data: Path) -> JointSampler:
    volumes, targets = load_joint_cases(config.sets, data, config.stage, config.seed)
    return JointSampler(volumes, targets, config.network, config.stage, config.augmentation, torch.device("cpu"))


def test_a_tiny_joint_run_overfits_two_cases_and_its_bundle_segments_them(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(configured(data, 100), checkpoint_seconds=1000.0)
    model = run(config, data, tmp_path / "run")
    bundle = save_joint_bundle(model, config, "joint.toml", data, tmp_path / "bundle")
    assert bundle.info.network["saliency"] == "conditioned" and bundle.info.training["structures"] == ["blob"]
    assert bundle.info.fov_mm == 64.0 and "Starts from" not in bundle.card
    warm = joint_bundle_info(dataclasses.replace(config, initialize_from="../runs/earlier"), "joint.toml", data)
    assert "- Starts from: the adapter of `earlier`" in model_card(warm)
    torch.manual_seed(config.seed)
    assert Predictor.load(bundle, "cpu", "float32").engine.model.config.conditioned
    rows = (tmp_path / "run" / "joint_joint.csv").read_text(encoding="utf-8").splitlines()
    scores = [float(row.split(",")[-1]) for row in rows[-20:]]
    assert np.mean(scores) > 0.8


def test_what_all_sets_share_is_the_models_and_else_clicks_and_image_decide(data: Path) -> None:
    one = configured(data)
    ct = dataclasses.replace(one.sets["blobs"], modality="CT", plane="coronal")
    info = joint_bundle_info(dataclasses.replace(one, sets={"ct": ct}), "joint.toml", data)
    assert (info.slicing_axis, info.fov_mm, info.normalization["kind"]) == ("coronal", 64.0, "window")
    wide = dataclasses.replace(one.sets["blobs"], fov_mm=90.0)
    info = joint_bundle_info(dataclasses.replace(one, sets={"ct": ct, "wide": wide}), "joint.toml", data)
    assert (info.slicing_axis, info.fov_mm, info.normalization["kind"]) == ("auto", 0.0, "auto")
    assert "over a field of view that the clicks decide" in model_card(info)


def test_a_training_starts_from_stage_1_of_a_model_with_an_image_saliency(data: Path, tmp_path: Path) -> None:
    config = configured(data, 1, stage='objective = "frozen_encoder"')
    image = SPDModel(dataclasses.replace(config.network, saliency="image", dense_saliency_prompt=True))
    start = {name: torch.randn_like(tensor) for name, tensor in image.adapter_state().items()}
    model = train_joint(config, data, tmp_path / "run", None, Processes(), start=start)
    after = model.adapter_state()
    encoder = [name for name in start if name.startswith("image_encoder.")]
    assert encoder and all(torch.equal(after[name], start[name]) for name in encoder)
    assert not [name for name in after if name.startswith("saliency_head.")]
    del start[encoder[0]]
    with pytest.raises(ModelCorrupt, match="1 missing"):
        train_joint(config, data, tmp_path / "other", None, Processes(), start=start)


@pytest.mark.parametrize("objective", ["joint", "saliency_first", "frozen_encoder", "prompted"])
def test_every_objective_trains_what_it_says(data: Path, tmp_path: Path, objective: str) -> None:
    config = configured(data, 4, stage=f'objective = "{objective}"')
    before = SPDModel(config.network).adapter_state()
    torch.manual_seed(config.seed)
    start = SPDModel(config.network).adapter_state()
    after = run(config, data, tmp_path / "run").adapter_state()
    changed = {name.split(".")[0] for name in before if not torch.equal(start[name], after[name])}
    assert ("image_encoder" in changed) == (objective != "frozen_encoder")
    assert ("conditioning" in changed) == (objective != "prompted")
    assert "mask_decoder" in changed


def test_a_stopped_run_with_kept_embeddings_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    config = configured(data, 6, stage='objective = "frozen_encoder"\nentries = 3')
    whole = run(config, data, tmp_path / "whole").adapter_state()
    polls = iter([False] * 5)
    with pytest.raises(Cancelled):
        run(config, data, tmp_path / "stopped", RunHooks(cancelled=lambda: next(polls, True)))
    resumed = run(config, data, tmp_path / "stopped").adapter_state()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "whole" / "embeddings").exists(), "they are large and not needed any more"


def test_a_damaged_kept_embedding_is_computed_again(data: Path, tmp_path: Path) -> None:
    config = configured(data, 1, stage='objective = "frozen_encoder"\nentries = 2')
    sampler, model = sampler_of(config, data), SPDModel(config.network)
    whole = keep_runs(model, sampler, config, tmp_path, Processes())
    damaged = tmp_path / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    again = keep_runs(model, sampler, config, tmp_path, Processes())
    assert all(torch.equal(a.embeddings, b.embeddings) for a, b in zip(whole, again, strict=True))


def test_a_finished_run_computes_no_embeddings_again(data: Path, tmp_path: Path) -> None:
    config, done = configured(data, 2, stage='objective = "frozen_encoder"\nentries = 2'), list[str]()
    run(config, data, tmp_path)
    run(config, data, tmp_path, RunHooks(on_progress=lambda what, *_: done.append(what)))
    assert "reading cases" in done and "computing embeddings" not in done


def test_a_run_does_not_go_on_with_other_labels(data: Path, tmp_path: Path) -> None:
    config, copy = configured(data, 1), tmp_path / "copy"
    shutil.copytree(data, copy)
    run(config, copy, tmp_path / "run")
    run(config, copy, tmp_path / "run")
    shutil.copy(copy / "data" / "a_label.nii.gz", copy / "data" / "b_label.nii.gz")
    with pytest.raises(BadInput, match=r"learned before image, labels or clicks of data/b changed"):
        run(config, copy, tmp_path / "run")


def test_encoder_and_tokens_learn_before_a_frozen_decoder(data: Path, tmp_path: Path) -> None:
    config = configured(data, 3)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, decoder="frozen"))
    torch.manual_seed(config.seed)
    start = SPDModel(config.network).state_dict()
    model = run(config, data, tmp_path / "run")
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])
    }
    assert changed == {"image_encoder", "conditioning", "prompt_encoder"}
    assert save_joint_bundle(model, config, "joint.toml", data, tmp_path / "bundle").info.adapter_sha256


class TwoProcesses:
    """An accelerate of two processes that are in the same state."""

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        return tensor * 2 if how == "sum" else tensor

    def wait_for_everyone(self) -> None:
        """Both are here."""


@pytest.mark.parametrize("processes", [Processes(), Processes(0, 2, accelerator=TwoProcesses())])
def test_the_encoder_stays_in_the_second_half_of_saliency_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    config, seen, loss = configured(data, 6, stage='objective = "saliency_first"'), [], JointStageRunner.loss

    def noting(self: JointStageRunner, step: int) -> dict[str, torch.Tensor]:
        seen.append(torch.cat([p.detach().flatten() for p in self.model.encoder_lora_parameters()]))
        return loss(self, step)

    monkeypatch.setattr(JointStageRunner, "loss", noting)
    train_joint(config, data, tmp_path, None, processes)
    assert not torch.equal(seen[2], seen[3]) and torch.equal(seen[3], seen[5])


def test_the_curve_of_saliency_first_names_the_terms_of_both_halves_and_stays_whole(data: Path, tmp_path: Path) -> None:
    config = configured(data, 4, stage='objective = "saliency_first"')
    run(config, data, tmp_path)
    run(config, data, tmp_path)
    with (tmp_path / "joint_saliency_first.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    halves = [[float(row[term]) > 0 for term in ("saliency", "segmentation")] for row in (rows[0], rows[3])]
    assert halves == [[True, False], [False, True]]
    assert all(float(row["dsc"]) <= 1 and float(row["segmentation"]) <= float(row["total"]) for row in rows)


def test_kept_embeddings_do_not_go_with_an_encoder_that_learns(data: Path) -> None:
    with pytest.raises(BadInput, match="do not go with an encoder that learns"):
        configured(data, stage="entries = 3")


def test_a_value_of_another_kind_deep_in_the_file_is_named(data: Path) -> None:
    path = data / "wrong.toml"
    path.write_text(CONFIG.format(steps=1, network="", stage="").replace("blob = [1]", 'blob = ["1"]'))
    with pytest.raises(BadInput, match="structures"):
        read_joint_config(path)


def test_an_unchanged_view_shows_the_volume_as_it_is(data: Path) -> None:
    sampler = sampler_of(configured(data), data)
    volumes, targets = load_joint_cases(configured(data).sets, data, configured(data).stage, 3)
    shape = volumes[targets[0].volume].images.shape
    offset = np.array([[-3.0, 2.0]])
    images, masks = sampler.images_and_masks(Runs(np.array([0]), np.array([2]), np.eye(2)[None], offset, 0))
    expected = np.zeros((64, 64), np.float32)
    height, width = min(shape[1] - 2, 64), min(shape[2], 61)
    expected[:height, 3 : 3 + width] = volumes[targets[0].volume].images[2, 2 : 2 + height, :width] / 255
    assert np.allclose(images[0, 0].numpy(), expected, atol=1e-5)
    inside = np.isin(volumes[targets[0].volume].labels[2], targets[0].values)
    assert np.array_equal(masks[0, 0].numpy()[:height, 3 : 3 + width], inside[2 : 2 + height, :width])


def test_clicks_move_with_the_view(data: Path) -> None:
    sampler = sampler_of(configured(data, stage=""), data)
    runs, chosen = sampler.draw_runs(np.random.default_rng(0), 8)
    _, masks = sampler.images_and_masks(runs)
    tokens = sampler.tokens(runs, chosen)
    own = tokens.valid & (tokens.kind == 0)
    rows, columns = tokens.xy[own][:, 1].round().long(), tokens.xy[own][:, 0].round().long()
    slices = torch.arange(len(masks))[:, None].expand_as(own)[own]
    assert masks[slices, 0, rows, columns].float().mean() > 0.6, "most clicks of mild noise are on the structure"


def test_only_tokens_that_the_saliency_supports_prompt_pass_two() -> None:
    logits = torch.full((1, 1, 8, 8), -5.0)
    logits[0, 0, 2, 3] = 5.0
    xy = torch.tensor([[[3.0, 2.0], [6.0, 6.0], [3.0, 2.0]]])
    tokens = TokenBatch(
        xy, torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, 4), torch.tensor([[True, True, False]])
    )
    assert supported_tokens(logits, tokens, 0.5).tolist() == [[True, False, False]]


def told(tokens: TokenBatch, row: int) -> list[tuple[TokenKind, int, list[float]]]:
    """Kind, distance in slices and place of the tokens of a slice."""
    valid = tokens.valid[row]
    distances = (tokens.distance[row, valid, 1] * 4).tolist()
    kinds = [TokenKind(kind) for kind in tokens.kind[row, valid].tolist()]
    return list(zip(kinds, map(round, distances), tokens.xy[row, valid].tolist(), strict=True))


def test_pass_two_is_prompted_as_in_use(data: Path) -> None:
    # given: a run of four slices, all but the last salient around (4, 4), and the second one at (12, 12) as well
    logits = torch.full((4, 1, 16, 16), -5.0)
    logits[:3, 0, 2:7, 2:7] = 5.0
    logits[1, 0, 10:15, 10:15] = 5.0
    kinds = torch.tensor([TokenKind.BEYOND, TokenKind.OWN, TokenKind.BEFORE, TokenKind.AFTER, TokenKind.BEFORE])
    xy = torch.tensor([[4.0, 4.0], [3.0, 3.0], [12.0, 12.0], [5.0, 5.0], [6.0, 6.0]])
    steps = torch.tensor([0.0, 0.0, -1.0, 1.0, -3.0])
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[2, 1] = valid[2, 3] = False
    distance = (steps / 4)[:, None].expand(4, 5, 4)
    tokens = TokenBatch(xy.expand(4, 5, 2), kinds.expand(4, 5), distance, valid)
    # when
    consensus = consensus_tokens(logits, tokens, PromptConfig(), 4)
    # then: clicks that both slices support and that lie near, never the guess; else the deepest salient place
    assert told(consensus, 0) == [(TokenKind.OWN, 0, [3.0, 3.0]), (TokenKind.AFTER, 1, [5.0, 5.0])]
    assert told(consensus, 1) == [(TokenKind.OWN, 0, [3.0, 3.0]), (TokenKind.AFTER, 1, [5.0, 5.0])]
    assert told(consensus, 2) == [(TokenKind.INTERPOLATED, 0, [4.0, 4.0])]
    assert told(consensus, 3) == []
    assert told(consensus_tokens(logits, tokens, PromptConfig(unsupported="abstain"), 4), 2) == []
    assert (TokenKind.BEFORE, -3, [6.0, 6.0]) in told(
        consensus_tokens(logits, tokens, PromptConfig(n_neighbors=3), 4), 0
    )


def test_a_run_that_is_longer_than_its_volume_learns_each_slice_once(data: Path) -> None:
    config = configured(data, stage="run_length = 16\npsc_weight = 1.0")
    sampler, model = sampler_of(config, data), SPDModel(config.network)
    runner = JointStageRunner(model, sampler, config, Processes(), [])
    batch = runner.batch(0)
    assert batch.real.tolist() == ([True] * 14 + [False] * 2) * 3
    copies = dataclasses.replace(batch, target=batch.target | ~batch.real.view(-1, 1, 1, 1))
    with torch.no_grad():
        assert torch.equal(runner.loss_of(batch, 0)["total"], runner.loss_of(copies, 0)["total"])


def test_sam_tuning_sees_own_and_interpolated_clicks_alone(data: Path) -> None:
    sampler = sampler_of(configured(data), data)
    tokens = sampler.tokens(*sampler.draw_runs(np.random.default_rng(0), 4))
    plain = raw_tokens(tokens)
    assert not plain.kind.any() and not plain.distance.any()
    assert set(tokens.kind[plain.valid].tolist()) <= {0, 3}


def test_a_batch_is_drawn_without_a_loop_over_runs(data: Path) -> None:
    config = configured(data)
    config = dataclasses.replace(config, stage=dataclasses.replace(config.stage, runs_per_step=64))
    sampler = sampler_of(config, data)
    lines = _python_lines(lambda: sampler.tokens(*sampler.draw_runs(np.random.default_rng(0), 64)))
    assert lines < 1.5 * _python_lines(lambda: sampler.tokens(*sampler.draw_runs(np.random.default_rng(0), 2)))


def test_a_synthetic_tube_differs_from_what_was_there() -> None:
    rng = np.random.default_rng(4)
    images = rng.integers(80, 110, (24, 64, 64)).astype(np.uint8)
    made = tube(images, np.array([3.0, 1.0, 1.0]), rng)
    assert made is not None
    changed, mask = made
    assert mask.any() and abs(float(changed[mask].mean()) - float(images[mask].mean())) > 12
    far = ~mask & (changed == images)
    assert far.mean() > 0.5, "the rest of the volume stays"


def _python_lines(work: object) -> int:
    """Lines of this project's code that run."""
    import sys

    count = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line" and "SPDSegmentLib" in frame.f_code.co_filename  # type: ignore[attr-defined]
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        work()  # type: ignore[operator]
    finally:
        sys.settrace(None)
    return count
