"""A short run of the fuzz of files, and every file that once did harm; ``make fuzz`` runs the long one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_corpus import CORPUS, EXITS
from fuzz_files import FileFuzz, FuzzSummary

from SPDSegmentLib.errors import MUST_LOOK

SEEDS = range(4)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileFuzz]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPDSEGMENT_HOME", str(tmp_path_factory.mktemp("home")))
        logging.disable()
        yield FileFuzz(tmp_path_factory.mktemp("fuzz"))
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_that_once_did_harm_is_refused_by_a_sentence_or_used_in_part(fuzz: FileFuzz, name: str) -> None:
    target, prepare = CORPUS[name]
    summary = FuzzSummary()
    fuzz.prepare(prepare)
    fuzz.judge(target, name, summary)
    assert summary.faults == []
    assert list(summary.outcomes) == [f"{target}: exit {EXITS.get(name, 2)}"]


@pytest.mark.parametrize(
    "name", ["nifti", "nifti.gz", "pair", "nrrd", "metaimage", "dicom", "markups", "fcsv", "bundle"]
)
def test_a_changed_file_gives_a_mask_or_a_sentence(fuzz: FileFuzz, name: str) -> None:
    assert name in fuzz.targets
    summary = FuzzSummary()
    for seed in SEEDS:
        fuzz.run(name, seed, summary)
    assert summary.faults == []
    assert sum(summary.outcomes.values()) == len(SEEDS)


def test_the_good_files_give_a_mask(fuzz: FileFuzz) -> None:
    good: list[dict[str, Path]] = [
        *({"image": fuzz.good / name} for name in ("image.nii", "image.nrrd", "image.mha", "image.hdr")),
        {"image": fuzz.good / "series", "points": fuzz.dicom_points},
        {"points": fuzz.fcsv},
    ]
    summary = FuzzSummary()
    for number, files in enumerate(good):
        fuzz.prepare(lambda fuzz, files=files: fuzz.use(**files))  # type: ignore[misc]
        fuzz.judge("good", f"good {number}", summary)
    assert summary.faults == []
    assert summary.outcomes == {f"good: exit {MUST_LOOK}": len(good)}, "a random network's masks must be looked at"
