"""What concerns a batch as a whole and not one of its cases: settings, devices, locks, what its masks say."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import SimpleITK as sitk
from batch_helpers import FAKE_WORKER, MODEL, Case, Run, states, times, write_series
from segment_case import tiny_bundle
from typer.testing import CliRunner

from SPDSegmentLib.batch import report as report_module
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, Cards, CaseSegmenter, cards_of
from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.errors import BadInput, DependencyMissing, DeviceUnavailable, ModelCorrupt, ModelMissing, WorkerDied
from SPDSegmentLib.staging import FolderLock
from SPDSegmentLib.worker.client import ModelChoice, WorkerClient
from SPDSegmentLib.worker.messages import Device, StatusReply
from SPDSegmentLib.worker.requests import WorkerCommand
from Testing.Host.environment import limit

pytest_plugins = ["batch_helpers"]


@pytest.mark.parametrize(
    "wrong", [{"axis": "axail"}, {"prompts": "all"}, {"device": "gpu"}, {"dicom": ("seg",)}, {"prompts": None}]
)
def test_a_setting_that_no_case_could_be_segmented_with_is_refused_before_the_first(
    run: Run, cases: list[Case], tmp_path: Path, wrong: dict[str, Any]
) -> None:
    run(cases[:1])
    before = times(tmp_path / "out"), (tmp_path / "out" / "a.case.json").read_bytes()
    with pytest.raises(BadInput, match=r"^Unknown .* '(axail|all|gpu|seg|None)'\. (Choose one of|Use) \w+"):
        run(cases, settings=BatchSettings(**wrong))
    assert (times(tmp_path / "out"), (tmp_path / "out" / "a.case.json").read_bytes()) == before


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("lacks", ["no_device", "missing", "corrupt", "no_torch"])
def test_what_would_fail_every_case_ends_the_batch_with_the_first_and_is_said_once(
    run: Run, cases: list[Case], tmp_path: Path, lacks: str, workers: int
) -> None:
    run(cases[:1])
    with pytest.raises((DeviceUnavailable, ModelMissing, ModelCorrupt, DependencyMissing)) as failed:
        run(cases, bundle=f"fake?{lacks}=1", workers=workers, settings=BatchSettings(device="cuda:7"))
    assert failed.value.remedy
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["cases"]
    assert [(row["case"], row["state"]) for row in rows] == [("a", "done")]
    assert set(states(run(cases)).values()) == {"done"}


def test_a_worker_command_that_leads_nowhere_ends_the_batch_with_the_first_case(
    cases: list[Case], tmp_path: Path
) -> None:
    told: list[str] = []
    with WorkerClient(command=WorkerCommand(("sh", "-c", "exit 127"))) as client:
        batch = BatchRun(
            lambda stopped: CaseSegmenter(client, MODEL, BatchSettings(), stopped), tmp_path / "out", MODEL
        )
        batch.on_case = lambda done, total, row: told.append(row["case"])
        with pytest.raises(
            WorkerDied, match=r"^The worker command .* exit code 127, the command was not found\. Install"
        ):
            batch(cases)
    assert not told


@pytest.mark.parametrize(
    ("device", "found", "given"),
    [
        ("auto", ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", ["cuda:0", "cuda:1", "cuda:2"], ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", ["cuda:0"], ["auto"] * 3),
        ("auto", ["cuda:1"], ["cuda:1"] * 3),
        ("auto", [], ["auto"] * 3),
        ("cuda:1", None, ["cuda:1"] * 3),
        ("cpu", None, ["cpu"] * 3),
    ],
)
def test_workers_share_the_graphics_cards_in_turn_unless_one_is_named(
    device: str, found: list[str] | None, given: list[str]
) -> None:
    find = Mock(return_value=found)
    cards = Cards(device, find)
    with WorkerClient() as client:
        assert [cards.next(client) for _ in given] == given
    assert find.call_count == (found is not None)  # the first worker is asked, and no other


@pytest.mark.parametrize(
    ("free", "used"), [([24, 20], [0, 1]), ([24, 2], [0]), ([2, 24, 13], [1, 2]), ([None, None], [0, 1]), ([], [])]
)
def test_a_small_graphics_card_beside_a_large_one_is_left_out(free: list[int | None], used: list[int]) -> None:
    found = [*(Device(f"cuda:{n}", "", size) for n, size in enumerate(free)), Device("cpu", "CPU", 99)]
    client = Mock(wait=Mock(return_value=StatusReply(1, tuple(found))))
    assert cards_of(client) == [f"cuda:{n}" for n in used]


def test_every_worker_of_a_batch_keeps_its_card_for_all_its_cases(cases: list[Case], tmp_path: Path) -> None:
    used: list[tuple[int, str]] = []

    class Noting(WorkerClient):
        def set_model(self, model: ModelChoice) -> None:
            used.append((id(self), model.device))
            super().set_model(model)

    with contextlib.ExitStack() as clients:
        cards = Cards("auto", lambda client: ["cuda:0", "cuda:1"])

        def make(stopped: Any) -> CaseSegmenter:
            client = clients.enter_context(Noting(command=WorkerCommand(FAKE_WORKER)))
            return CaseSegmenter(client, slow, BatchSettings(), stopped, cards=cards)

        slow, many = replace(MODEL, key="fake?delay=0.05"), [(f"{name}{n}", *of) for n in "12" for name, *of in cases]
        report = BatchRun(make, tmp_path / "out", slow, workers=2)(many)
    assert set(states(report).values()) == {"done"} and len(used) == 6
    assert sorted(dict(used).values()) == ["cuda:0", "cuda:1"] and len(set(used)) == 2


def test_masks_and_dicom_objects_of_both_commands_say_the_same_of_their_structure(
    cases: list[Case], tmp_path: Path, spd_home: Path
) -> None:
    pytest.importorskip("highdicom")
    tiny_bundle(SimpleNamespace(model=tmp_path / "model"))  # of a kidney, without codes of its own
    (tmp_path / "cases.csv").write_text(f"name,image,points\na,{write_series(tmp_path / 'dicom')},{cases[0][2]}\n")
    how = ["-m", tmp_path / "model", "--saliency-only", "--insist", "3,5", "--dicom-seg"]
    one = ["segment", "-i", tmp_path / "dicom", "-p", cases[0][2], "-o", tmp_path / "a.seg.nrrd", *how]
    many = ["batch", tmp_path / "cases.csv", "-o", tmp_path / "out", *how]
    for words in ([*one, tmp_path / "a.seg.dcm"], many):
        assert CliRunner().invoke(build_app(), [str(word) for word in words]).exit_code == 0
    assert described(tmp_path) == described(tmp_path / "out") and "^Kidney~" in described(tmp_path)[0]


def described(folder: Path) -> tuple[str, ...]:
    """What mask and DICOM object of the case a say of their segment."""
    import pydicom

    segment = pydicom.dcmread(folder / "a.seg.dcm").SegmentSequence[0]
    codes = segment.SegmentedPropertyCategoryCodeSequence[0], segment.SegmentedPropertyTypeCodeSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    tags = sitk.ReadImage(str(folder / "a.seg.nrrd")).GetMetaData("Segment0_Tags")
    return tags, segment.SegmentLabel, *map(str, codes), str(algorithm.AlgorithmParameters)


def test_another_process_with_the_report_costs_no_time_with_each_case_and_no_mask(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "_LOCK_SECONDS", 2.0)
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out", "report", report_module._LOCK_NAME):
        begun: list[float] = []
        with pytest.raises(BadInput, match=r"every mask is kept: The folder .* is in use by another report") as refused:
            run(cases, on_case=lambda done, total, row: begun.append(time.monotonic()))
    assert len(times(tmp_path / "out")) == 3 and begun[2] - begun[0] < limit(2.0)
    assert "run the same command again" in refused.value.remedy
    assert refused.value.remedy.startswith("Wait until it has ended, or choose another folder.")
    assert set(states(run(cases)).values()) == {"done"} and (tmp_path / "out" / "report.csv").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks in another way")
@pytest.mark.parametrize("reason", ["EBADF", "ENOLCK", "ENOTSUP", "EIO"])
def test_a_file_system_without_locks_fails_no_case_and_one_that_fails_is_a_sentence(
    run: Run, cases: list[Case], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(getattr(errno, reason), "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    if reason == "EIO":
        with pytest.raises(BadInput, match=r"The folder .*out cannot be used: No locks available\."):
            run(cases)
    else:
        assert set(states(run(cases, workers=2)).values()) == {"done"}
