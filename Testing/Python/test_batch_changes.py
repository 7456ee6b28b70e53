"""What somebody changes while a batch runs: masks, clicks and models."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batch_helpers import MODEL, Case, Run, states, write_clicks, write_image
from segment_case import tiny_bundle

from SPDSegmentLib.batch.cases import BatchCase, batch_model, image_digest
from SPDSegmentLib.batch.report import claim_row, has_claim, without_folders
from SPDSegmentLib.batch.run import BatchRun, CaseProcess
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseResult, CaseSegmenter
from SPDSegmentLib.errors import BadInput, OutOfMemory
from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.models.bundle import find_bundle, write_bundle
from SPDSegmentLib.networks.backbones import load_adapter
from SPDSegmentLib.worker.client import WorkerClient

pytest_plugins = ["batch_helpers"]


@pytest.mark.parametrize("resume", [True, False])
def test_a_mask_that_a_person_saves_while_its_case_is_computed_is_left_alone(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    first = run(cases[:1])["cases"][0]
    output, segment, edited = tmp_path / "out" / "a.seg.nrrd", CaseSegmenter.__call__, []

    def while_edited(self: CaseSegmenter, case: BatchCase, output: Path) -> CaseResult:
        result = segment(self, case, output)
        mask = read_labelmap(output)
        write_labelmap(output, 1 - mask.array, mask)
        edited.append(output.read_bytes())
        return result

    monkeypatch.setattr(CaseSegmenter, "__call__", while_edited)
    write_clicks(Path(cases[0][2]), (2, 7))
    (row,) = run(cases[:1], resume=resume)["cases"]
    assert row["state"] == "kept" and [output.read_bytes()] == edited and row["volume_ml"] == first["volume_ml"]
    monkeypatch.setattr(CaseSegmenter, "__call__", segment)
    assert states(run(cases[:1])) == {"a": "kept"} and [output.read_bytes()] == edited


def test_a_row_that_the_disk_gives_only_a_moment_later_is_still_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, read, failures = tmp_path / "a.case.json", Path.read_text, [OSError(errno.ESTALE, "Stale file handle")]
    claim = claim_row(row, None)

    def read_text(path: Path, *args: Any, **options: Any) -> str:
        if failures:
            raise failures.pop()
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("SPDSegmentLib.batch.report.time.sleep", lambda seconds: None)
    assert has_claim(row, claim) and not failures
    failures += 4 * [OSError(errno.EACCES, "Permission denied")]
    with pytest.raises(BadInput, match="a.case.json cannot be read, .*: Permission denied"):
        has_claim(row, claim)


def test_a_folder_whose_name_an_error_writes_with_escapes_is_left_out_too() -> None:
    case = BatchCase("a", "/study/M\udcfcller/ct.nii.gz", "/study/a.mrk.json")
    error = f"OSError: {OSError(5, 'Input/output error', case.image)}"
    assert without_folders(error, case, Path("/out")) == "OSError: [Errno 5] Input/output error: 'ct.nii.gz'"


@pytest.mark.parametrize(
    "end", ["fails", "is done", "is done when the next batch has found an earlier result", "is written"]
)
def test_a_case_that_runs_on_after_its_batch_was_stopped_writes_nothing_over_the_next_one(
    run: Run, cases: list[Case], tmp_path: Path, end: str
) -> None:
    # given: a case of a stopped batch, still on its worker while the same table runs again with other clicks
    out, points, there = tmp_path / "out", Path(cases[0][2]), {}
    first = points.read_bytes()
    run(cases[:1])
    write_clicks(points, (2, 7))

    def meanwhile(staged: Path = out) -> None:
        write_clicks(points, (4, 6))
        if end.endswith("earlier result"):
            points.write_bytes(first)
        assert states(run(cases[:1])) == {"a": "done"}
        there.update({path: path.read_bytes() for path in out.iterdir() if path != staged})
        if staged != out:
            staged.write_bytes(b"mask")

    def segment(case: BatchCase, output: Path) -> CaseResult:
        if end == "is written":
            return CaseResult({}, [], {}, meanwhile)
        meanwhile()
        if end == "fails":
            raise OutOfMemory("There is no memory.")
        return CaseResult({}, [], {}, lambda path: None)

    # when
    row = CaseProcess(out, MODEL, BatchSettings(), True)(segment, BatchCase(*cases[0]))
    # then
    assert row["state"] == "failed" and ("took this case over" in row["error"]) == (end != "fails")
    assert there and {path: path.read_bytes() for path in out.iterdir()} == there


def test_a_model_that_is_replaced_while_a_batch_runs_makes_no_mask_under_the_name_of_the_first(
    cases: list[Case], tmp_path: Path, spd_home: Path
) -> None:
    tiny_bundle(SimpleNamespace(model=tmp_path / "model"))
    bundle = find_bundle(tmp_path / "model")
    other, adapter, model = replace(bundle.info, prompts={"threshold": 0.4}), load_adapter(bundle), batch_model(bundle)

    def exchange(done: int, total: int, row: dict[str, Any]) -> None:
        if done == 1:
            write_bundle(tmp_path / "model", other, adapter, "")

    with WorkerClient() as client:
        segment = CaseSegmenter(client, model, BatchSettings())
        rows = BatchRun(lambda stopped: segment, tmp_path / "out", model, on_case=exchange)(cases)["cases"]
    assert [row["state"] for row in rows[1:]] == ["failed", "failed"] and rows[0]["state"] != "failed"
    assert all("tiny-test was replaced while the batch ran. Run the same" in row["error"] for row in rows[1:])
    assert [path.name for path in (tmp_path / "out").glob("*.seg.nrrd")] == ["a.seg.nrrd"]


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_an_image_of_several_files_is_read_for_its_digest_once_and_again_only_when_one_has_changed(
    run: Run, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    read: list[str] = []

    def digest(path: Path, *which: Any) -> str:
        read.append(path.name)
        return image_digest(path, *which)

    monkeypatch.setattr("SPDSegmentLib.batch.cases.image_digest", digest)
    listed = [(name, image.replace(".nii.gz", suffix), points) for name, image, points in cases]
    for _, image, _ in listed:
        write_image(Path(image))
    for number in (1, 2):
        run(listed, part=(number, 2))
    assert sorted(read) == [f"{name}{suffix}" for name in "abc"]
    voxels = next(path for path in Path(listed[0][1]).parent.glob("a.*") if path.suffix in (".raw", ".zraw", ".img"))
    voxels.touch()
    run(listed, part=(2, 2))
    assert sorted(read[3:]) == [f"a{suffix}", f"b{suffix}"]
