"""Segmentation from Slicer's Python console: blocking, at once, in batches; never a dialog."""

from __future__ import annotations

import csv
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError, WorkerDied
from SPDSegmentLib.geometry.labelmap import read_labelmap
from SPDSegmentLib.worker.requests import WorkerCommand
from Testing.Host.environment import limit

pytest_plugins = ["Testing.Host.pytest_plugin"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SPDSegment" / "SPDSegment.py"
FAKE_WORKER = WorkerCommand((sys.executable, str(Path(__file__).with_name("fake_predictor.py"))))
SHAPE = (9, 30, 32)
SPACING = (1.0, 1.0, 3.0)


@pytest.fixture
def logic(host: Any) -> Iterator[Any]:
    """The module's logic with a fake worker; no dialog may have been shown at the end."""
    module = host.load_module(MODULE)
    logic = module.python.SPDSegmentLogic()
    logic.workerHost.setCommand(FAKE_WORKER)
    yield logic
    logic.close()
    assert host.dialogs.messages == []


@pytest.fixture
def nodes(host: Any) -> tuple[Any, Any]:
    """A volume and a point list with clicks on the slices 3 and 5."""
    import slicer

    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    volume = host.add_volume(array, SPACING)
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "C")
    for k in (3, 5):
        points.AddControlPointWorld(16, 15, 3.0 * k)
    return volume, points


@pytest.fixture
def case_files(tmp_path: Path) -> dict[str, tuple[str, str, str]]:
    """Two good cases on disk, one whose points are missing, one whose image is damaged."""
    import SimpleITK as sitk

    folder = tmp_path / "data"
    folder.mkdir()
    found = {}
    for number, name in enumerate(("first", "second")):
        array = np.random.default_rng(number).integers(0, 200, SHAPE).astype(np.int16)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
        points = [{"id": str(k), "position": [-16.0, -15.0, 3.0 * k]} for k in (3, 5)]  # NIfTI is LPS here
        markup = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": points}
        schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
        content = {"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": [markup]}
        (folder / f"{name}.mrk.json").write_text(json.dumps(content))
        found[name] = (name, str(folder / f"{name}.nii.gz"), str(folder / f"{name}.mrk.json"))
    found["lost"] = ("lost", found["first"][1], str(folder / "lost.mrk.json"))
    (folder / "damaged.nii.gz").write_bytes(b"no image")
    found["damaged"] = ("damaged", str(folder / "damaged.nii.gz"), found["first"][2])
    return found


def states(report: dict[str, Any]) -> dict[str, str]:
    """State of every case."""
    return {row["case"]: row["state"] for row in report["cases"]}


def node_names() -> list[str]:
    """Names of all nodes that are not singletons."""
    import slicer

    scene = slicer.mrmlScene
    every = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    return sorted(node.GetName() or "" for node in every if not node.GetSingletonTag())


def test_segment_blocks_and_returns_the_segmentation(logic: Any, nodes: Any) -> None:
    import slicer

    segmentation = logic.segment(*nodes, model="fake")
    assert segmentation.IsA("vtkMRMLSegmentationNode")
    segment_id = segmentation.GetSegmentation().GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, nodes[0])
    assert [k for k in range(SHAPE[0]) if mask[k].any()] == [1, 2, 3, 4, 5, 6, 7]


def test_an_unknown_segment_or_option_is_refused_in_a_sentence_and_nothing_is_made(logic: Any, nodes: Any) -> None:
    segmentation, before = logic.segment(*nodes, model="fake"), node_names()
    segment_id = segmentation.GetSegmentation().GetNthSegmentID(0)
    name = segmentation.GetSegmentation().GetSegment(segment_id).GetName()
    for call in (logic.segment, logic.start):
        with pytest.raises(BadInput, match=f"no segment with the ID other.*{segment_id} \\({name}\\)"):
            call(*nodes, model="fake", segmentation=segmentation, segmentId="other")
        with pytest.raises(BadInput, match="Give the segmentation that has it"):
            call(*nodes, model="fake", segmentId=segment_id)
        for option in ("segmentID", "blocking"):
            with pytest.raises(BadInput, match=f"no option {option}.*segmentId"):
                call(*nodes, model="fake", **{option: segment_id})
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 1 and node_names() == before


def test_segment_can_write_into_a_segment_that_is_there(logic: Any, nodes: Any) -> None:
    segmentation = logic.segment(*nodes, model="fake")
    segment_id = segmentation.GetSegmentation().GetNthSegmentID(0)
    nodes[1].SetNthControlPointPositionWorld(1, 20, 15, 15)
    again = logic.segment(*nodes, model="fake", segmentation=segmentation, segmentId=segment_id)
    assert again is segmentation and segmentation.GetSegmentation().GetNumberOfSegments() == 1


@pytest.mark.parametrize(("bundle", "error"), [("fake?bug=1", SPDError), ("fake?die_segment=9", WorkerDied)])
def test_a_failure_is_raised_and_leaves_the_scene_as_it_was(
    logic: Any, nodes: Any, bundle: str, error: type[SPDError]
) -> None:
    before = node_names()
    with pytest.raises(error):
        logic.segment(*nodes, model=bundle)
    assert node_names() == before


def test_bad_arguments_are_typed_errors(logic: Any, nodes: Any) -> None:
    volume, points = nodes
    with pytest.raises(ModelMissing):
        logic.segment(volume, points, model="")
    with pytest.raises(BadInput, match="no voxels"):
        logic.segment(None, points, model="fake")
    with pytest.raises(BadInput, match="no clicks"):
        logic.segment(volume, None, model="fake")


def test_what_is_no_node_of_the_scene_or_of_another_kind_is_refused_in_a_sentence(logic: Any, nodes: Any) -> None:
    import slicer

    volume, points = nodes
    loose, before = slicer.vtkMRMLSegmentationNode(), node_names()
    loose.SetName("Loose")
    for given, segmentation, named in (
        ((volume, points), loose, "Loose is no vtkMRMLSegmentationNode in the scene. Give the node itself, and add"),
        ((volume, points), volume, "is no vtkMRMLSegmentationNode"),
        ((volume.GetName(), points), None, f"{volume.GetName()} is no vtkMRMLScalarVolumeNode"),
        ((volume, [points, "Clicks"]), None, "Clicks is no vtkMRMLMarkupsNode"),
    ):
        for call in (logic.segment, logic.start):
            with pytest.raises(BadInput, match=named):
                call(*given, model="fake", segmentation=segmentation)
    assert node_names() == before


@pytest.mark.parametrize("how", ["segment", "start", "cancel"])
def test_a_run_that_comes_to_nothing_leaves_no_segment(host: Any, logic: Any, nodes: Any, how: str) -> None:
    import slicer

    kept = logic.segment(*nodes, model="fake")
    before, count = node_names(), kept.GetSegmentation().GetNumberOfSegments()
    for segmentation in (kept, None):
        if how == "segment":
            with pytest.raises(SPDError):
                logic.segment(*nodes, model="fake?bug=1", segmentation=segmentation)
        else:
            job = logic.start(*nodes, model="fake?bug=1", segmentation=segmentation)
            if how == "cancel":
                job.cancel()
            host.wait_until(lambda job=job: job.finished, 20_000)
            host.process_events(30)
        assert node_names() == before and kept.GetSegmentation().GetNumberOfSegments() == count
    assert slicer.util.arrayFromSegmentBinaryLabelmap(kept, kept.GetSegmentation().GetNthSegmentID(0), nodes[0]).any()


def test_clicks_that_are_not_there_are_left_out(logic: Any, nodes: Any) -> None:
    volume, points = nodes
    assert logic.segment(volume, [points, None], model="fake").IsA("vtkMRMLSegmentationNode")


@pytest.mark.alone
def test_start_returns_at_once_and_tells_progress(host: Any, logic: Any, nodes: Any) -> None:
    started = time.monotonic()
    job = logic.start(*nodes, model="fake?delay=0.02")
    assert time.monotonic() - started < 0.5 and not job.finished
    host.wait_until(lambda: job.progress is not None, 20_000)
    host.wait_until(lambda: job.finished, 20_000)
    assert job.error is None and job.result.IsA("vtkMRMLSegmentationNode")
    assert job.progress.done == job.progress.total == SHAPE[0]


def test_a_cancelled_job_is_finished_and_raises(host: Any, logic: Any, nodes: Any) -> None:
    job = logic.start(*nodes, model="fake?delay=0.2")
    host.wait_until(lambda: job.progress is not None, 20_000)
    job.cancel()
    assert job.finished
    with pytest.raises(Cancelled):
        _ = job.result


def test_every_one_of_many_jobs_comes_to_its_end_with_its_own_model(host: Any, logic: Any, nodes: Any) -> None:
    models = [f"fake?delay=0.01&radius={radius}" for radius in (2, 3, 4, 5, 6)]
    axes = ("axial", "axial", "coronal", "axial", "axial")
    jobs = [logic.start(*nodes, model=model, axis=axis) for model, axis in zip(models, axes, strict=True)]
    host.wait_until(lambda: all(job.finished for job in jobs), 60_000)
    assert [str(job.error) for job in jobs if job.error is not None] == []
    counts = [job.result.GetSegmentation().GetNumberOfSegments() for job in jobs]
    assert counts == [1] * 5 and len({job.result.GetID() for job in jobs}) == 5
    assert jobs[0].writer.record.written != jobs[4].writer.record.written


def test_a_job_that_was_just_started_can_be_waited_for_or_cancelled(logic: Any, nodes: Any) -> None:
    # the request leaves in an event of its own, and none has run yet
    assert logic.start(*nodes, model="fake").wait().IsA("vtkMRMLSegmentationNode")
    job = logic.start(*nodes, model="fake")
    job.cancel()
    assert job.finished and not logic.workerHost.client.busy
    with pytest.raises(Cancelled):
        job.wait()


def test_a_batch_goes_on_after_cases_that_fail(logic: Any, case_files: Any, tmp_path: Path) -> None:
    before = node_names()
    report = logic.segmentBatch(
        [case_files[name] for name in ("lost", "first", "damaged", "second")], tmp_path / "out", model="fake"
    )
    assert states(report) == {"lost": "failed", "first": "done", "damaged": "failed", "second": "done"}
    errors = {row["case"]: row["error"] for row in report["cases"]}
    assert "is not there" in errors["lost"] and "cannot be read" in errors["damaged"] and not errors["first"]
    assert node_names() == before, "nothing of the cases stays in the scene"
    mask = read_labelmap(tmp_path / "out" / "first.seg.nrrd")
    assert mask.array.any() and report["cases"][1]["voxels"] == int((mask.array > 0).sum())
    assert report["cases"][1]["volume_ml"] == pytest.approx(report["cases"][1]["voxels"] * 0.003, abs=1e-3)


def test_the_report_is_written_as_csv_and_json(logic: Any, case_files: Any, tmp_path: Path) -> None:
    report = logic.segmentBatch([case_files["first"], case_files["lost"]], tmp_path, model="fake")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["case"], line["state"]) for line in lines] == [("first", "done"), ("lost", "failed")]
    assert float(lines[0]["quality"]) == pytest.approx(0.9) and lines[0]["doubtful_slices"] == "0"


def test_a_list_of_cases_may_be_a_file(logic: Any, case_files: Any, tmp_path: Path) -> None:
    table = Path(case_files["first"][1]).parent / "cases.csv"
    table.write_text("name,image,points\na/b,first.nii.gz,first.mrk.json\n")
    report = logic.segmentBatch(table, tmp_path / "out", model="fake")
    assert states(report) == {"a/b": "done"} and (tmp_path / "out" / "a_b.seg.nrrd").is_file()
    table.write_text("name,image\nx,first.nii.gz\n")
    with pytest.raises(BadInput, match="points"):
        logic.segmentBatch(table, tmp_path / "out", model="fake")


def test_finished_cases_are_skipped_and_changed_ones_are_not(logic: Any, case_files: Any, tmp_path: Path) -> None:
    cases = [case_files["first"], case_files["second"]]
    logic.segmentBatch(cases, tmp_path, model="fake")
    written = {name: (tmp_path / f"{name}.seg.nrrd").stat().st_mtime_ns for name in ("first", "second")}
    (tmp_path / "second.seg.nrrd").unlink()
    assert states(logic.segmentBatch(cases, tmp_path, model="fake")) == {"first": "done", "second": "done"}
    assert (tmp_path / "first.seg.nrrd").stat().st_mtime_ns == written["first"]
    assert (tmp_path / "second.seg.nrrd").is_file()
    for change in ({"resume": False}, {"prompts": "raw"}):
        before = (tmp_path / "first.seg.nrrd").stat().st_mtime_ns
        logic.segmentBatch(cases, tmp_path, model="fake", **change)
        assert (tmp_path / "first.seg.nrrd").stat().st_mtime_ns > before, change


def test_a_case_that_failed_is_done_again(logic: Any, case_files: Any, tmp_path: Path) -> None:
    report = logic.segmentBatch([case_files["lost"]], tmp_path, model="fake")
    assert states(report) == {"lost": "failed"}
    Path(case_files["lost"][2]).write_text(Path(case_files["first"][2]).read_text(encoding="utf-8"), encoding="utf-8")
    assert states(logic.segmentBatch([case_files["lost"]], tmp_path, model="fake")) == {"lost": "done"}


def test_workers_that_die_on_every_case_do_not_end_the_batch(logic: Any, case_files: Any, tmp_path: Path) -> None:
    cases = [(f"{name}{n}", *case_files[name][1:]) for n in range(2) for name in ("first", "second")]
    report = logic.segmentBatch(cases, tmp_path, model="fake?die_segment=9")
    assert len(report["cases"]) == 4
    assert all("ended unexpectedly" in row["error"] for row in report["cases"]), report["cases"]
    assert set(states(logic.segmentBatch(cases, tmp_path, model="fake")).values()) == {"done"}


@pytest.mark.parametrize(
    "cases", [[("a", "i", "p"), ("A", "i", "p")], [("", "i", "p")], [("a", "i")], ["abc"], [("..", "i", "p")]]
)
def test_a_bad_list_is_refused_before_anything_is_done(logic: Any, tmp_path: Path, cases: Any) -> None:
    with pytest.raises(BadInput):
        logic.segmentBatch(cases, tmp_path / "out", model="fake")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_used_is_one_sentence(logic: Any, case_files: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be used"):
        logic.segmentBatch([case_files["first"]], tmp_path / "file" / "out", model="fake")


BATCH_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from Testing.Host.host import start_host
host = start_host()
module = host.load_module({module!r}, show=False)
from SPDSegmentLib.worker.requests import WorkerCommand
logic = module.python.SPDSegmentLogic()
logic.workerHost.setCommand(WorkerCommand({command!r}))
print("ready", flush=True)
logic.segmentBatch({cases!r}, {folder!r}, model="fake?delay=0.15")
"""


def test_a_killed_batch_goes_on_with_the_case_that_was_killed(logic: Any, case_files: Any, tmp_path: Path) -> None:
    cases = [case_files["first"], case_files["second"]]
    out = tmp_path / "out"
    script = tmp_path / "batch.py"
    script.write_text(
        BATCH_SCRIPT.format(
            root=str(ROOT), module=str(MODULE), command=FAKE_WORKER.arguments, cases=cases, folder=str(out)
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as killed:
        deadline = time.monotonic() + limit(60)
        while not (out / "first.seg.nrrd").exists() and time.monotonic() < deadline and killed.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)  # within the second case
        os.kill(killed.pid, signal.SIGKILL)
    assert (out / "first.seg.nrrd").is_file() and not (out / "second.seg.nrrd").exists()
    (out / f".partial-{killed.pid}-second.seg.nrrd").write_bytes(b"half")
    before = (out / "first.seg.nrrd").stat().st_mtime_ns
    report = logic.segmentBatch(cases, out, model="fake?delay=0.15")
    assert states(report) == {"first": "done", "second": "done"}
    assert (out / "first.seg.nrrd").stat().st_mtime_ns == before
    assert read_labelmap(out / "second.seg.nrrd").array.any()
    assert not list(out.glob(".partial*"))


def test_a_segment_that_the_console_has_written_is_written_whole_by_the_panel(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gui_helpers import add_clicks, add_volume, load, mask_of, segment, settle, state_of

    volume = add_volume(host)
    module = load(host)
    module.widget.panel.run.confirm = lambda question: True
    clicks, state = add_clicks((4, 6)), state_of(module)
    segment(host, module)
    first = mask_of(module)
    entry = module.widget.panel.inputs.extraModels[0]
    monkeypatch.setattr("SPDSegmentLib.gui.run.console.findModel", lambda name, remote=False: entry)
    console = type(module.logic)()
    console.workerHost.setCommand(FAKE_WORKER)
    others = add_clicks((3, 8), "Other", at=(14.0, 30.0))
    console.segment(volume, others, "fake", segmentation=state.segmentationNode, segmentId=state.segmentId)
    console.close()
    settle(host, module)
    assert not np.array_equal(mask_of(module), first)
    state.centerlineNodes = [clicks]
    segment(host, module)
    assert np.array_equal(mask_of(module), first)


def test_a_volume_that_is_removed_after_its_case_is_freed(host: Any, logic: Any) -> None:
    import slicer

    freed: list[int] = []
    for case in range(3):
        volume = host.add_volume(np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16), SPACING)
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "C")
        points.AddControlPointWorld(16, 15, 9)
        volume.GetImageData().AddObserver("DeleteEvent", lambda caller, event, case=case: freed.append(case))
        segmentation = logic.segment(volume, points, model="fake")
        for node in (segmentation, points, volume):
            slicer.mrmlScene.RemoveNode(node)
        host.process_events(30)
        del node, segmentation, points, volume
    gc.collect()
    assert {0, 1} <= set(freed)
