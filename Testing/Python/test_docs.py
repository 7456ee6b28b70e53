"""What the pages under docs say of the code is so, and their examples run."""

from __future__ import annotations

import csv
import importlib
import json
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_comparators import tube_target
from tiny_training import write_cases
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.geometry.centerline import clicks_from_points
from SPDSegmentLib.models.bundle import list_bundles, read_bundle
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.networks import backbones, config
from SPDSegmentLib.worker.protocol import FrameParser, decode_frame, decode_message, encode_message

MOST_FILES = 35
NOISES = ("clean", "clinic", "severe")


@pytest.fixture
def update_docs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes the generated parts."""
    monkeypatch.syspath_prepend(str(repository / "Testing"))
    return importlib.import_module("update_docs")


def blocks(repository: Path, language: str) -> list[str]:
    """Code of docs/extending.md."""
    text = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_block(repository: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names that the only block with a phrase leaves behind."""
    (code,) = [block for block in blocks(repository, "python") if wanted in block]
    module = type(sys)("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(code, "docs/extending.md", "exec"), module.__dict__)
    return module.__dict__


def test_the_way_of_a_click_names_files_that_exist_and_is_short(update_docs: Any) -> None:
    missing = [name for name in update_docs.CLICK_WAY if not update_docs.way_file(name).is_file()]
    assert missing == []
    assert len(set(update_docs.CLICK_WAY)) == len(update_docs.CLICK_WAY) <= MOST_FILES


def test_the_picture_of_the_layers_and_the_way_are_those_of_the_code(update_docs: Any) -> None:
    text = update_docs.PAGE.read_text(encoding="utf-8")
    assert update_docs.updated(text) == text, "run: python Testing/update_docs.py"


def test_the_example_of_a_structure_trains(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks(repository, "toml")
    write_cases(tmp_path / "data")
    (tmp_path / "structure.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPDSEGMENT_HOME", str(tmp_path / "home"))
    for line in blocks(repository, "bash")[0].splitlines():
        arguments = line.split("#")[0].split()[1:]
        done = CliRunner().invoke(build_app(), arguments)
        assert done.exit_code == 0, done.output
    assert read_bundle(tmp_path / "home" / "models" / "gallbladder-mr").info.structure == "Gallbladder"


def test_the_example_of_a_backbone_builds(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BACKBONES", config.BACKBONES)
    monkeypatch.setattr(backbones, "VIT_SHAPES", dict(backbones.VIT_SHAPES))
    assert "sam" in run_block(repository, "sam_vit_small", monkeypatch)


def test_the_example_of_a_message_crosses_the_protocol(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message_type = run_block(repository, "class Histogram", monkeypatch)["Histogram"]
    sent = message_type(7, "volume", np.array([0.0, 10.0, 20.0]))
    (frame,) = FrameParser().feed(b"".join(map(memoryview, encode_message(sent))))
    received = decode_message(decode_frame(frame), {"histogram": message_type})
    np.testing.assert_array_equal(received.edges, sent.edges)


def test_the_example_of_a_row_segments(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = run_block(repository, "class Disks", monkeypatch)["Disks"](None)
    target = tube_target()
    mask = row.segment(target, clicks_from_points(np.array([[-27.0, -30.0, 30.0]]), target.stack))
    assert mask.sum() == mask[10].sum() == 81


def shipped_models() -> list[BundleInfo]:
    """What the shipped bundles say of themselves."""
    return [bundle.info for bundle in list_bundles() if bundle.shipped]


def test_the_comparison_counts_the_models_that_are_shipped(repository: Path) -> None:
    page = (repository / "docs" / "peers.md").read_text(encoding="utf-8")
    assert f"| structures that work at once | **-** {len(shipped_models())} |" in page


def test_the_page_of_the_command_line_says_of_every_shipped_model_how_low_its_dice_may_be(repository: Path) -> None:
    page = (repository / "docs" / "command-line.md").read_text(encoding="utf-8")
    for info in shipped_models():
        table = info.calibration
        row = f"| `{info.name}` | {table.get('patients', 'not calibrated')} | no bound | - |"
        if table.get("volume_margin") is not None:
            less = table["volume_margin"] - table["volume_bias"]
            row = f"| `{info.name}` | {table['patients']} | {less:.2f} | {100 * table['coverage']:.0f} % |"
        assert row in page


def test_the_benchmark_writes_no_page_that_is_not_kept(repository: Path) -> None:
    folder = repository / "Testing" / "Benchmarks"
    settings = {path.name: tomllib.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.toml")}
    pages = {name: folder / values["report"] for name, values in settings.items() if values.get("report")}
    assert "benchmark.toml" in pages and [name for name, page in pages.items() if not page.exists()] == []


def points(repository: Path, cell: str, severity: str) -> float:
    """Mean DSC over patients of a kept cell, in percent."""
    path = repository / "Testing" / "Benchmarks" / "results" / f"{cell}.jsonl"
    head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    of_patient: dict[str, list[float]] = defaultdict(list)
    for row in (dict(zip(head["columns"], line, strict=True)) for line in lines):
        if (row.get("severity") or row.get("noise")) == severity:
            of_patient[row["patient"]].append(row["dsc"])
    return 100 * float(np.mean([np.mean(values) for values in of_patient.values()]))


def test_figures_that_are_said_in_words_are_those_of_the_kept_rows(repository: Path) -> None:
    def more(cell: str, severity: str, method: str, other: str) -> float:
        return points(repository, f"{cell}/{method}", severity) - points(repository, f"{cell}/{other}", severity)

    notes = " ".join((repository / "Testing" / "Benchmarks" / "benchmark-notes.md").read_text("utf-8").split())
    hippocampus = [points(repository, "full/cells/hippocampus-mr/spd", noise) for noise in ("clinic", "severe")]
    kidneys = [
        more(f"full/cells/{name}", "severe", "spd", "no-local-validation") for name in ("kidney-mr", "kidney-mr-cv")
    ]
    spleen = [more("full/cells/spleen-mr", noise, "beyond-6", "spd") for noise in ("clean", "clinic", "severe")]
    assert "91, {:.0f} and {:.0f} with the synthesized points".format(*hippocampus) in notes
    assert "without it {:.0f} and {:.0f} points are lost".format(*kidneys) in notes
    assert f"gain {min(spleen):.1f} to {max(spleen):.1f} on the spleen" in notes
    results = " ".join((repository / "docs" / "results.md").read_text(encoding="utf-8").split())
    stage1 = "conditioned-stage1/cells"
    ahead = [
        more(f"{stage1}/{name}", "severe", "conditioned", "sam-tuning-stage1")
        for name in ("kidney-mr-cv", "esophagus-ct")
    ]
    assert {f"{value:.0f}" for value in ahead} == {"4"} and "(4 points at severe on both" in results
    config = repository / "Testing" / "Benchmarks" / "Configs" / "any-structure.toml"
    sets = [one["structures"] for one in tomllib.loads(config.read_text(encoding="utf-8"))["sets"].values()]
    kinds = {re.sub("^(left|right)_|_2$", "", name) for structures in sets for name in structures}
    assert f"{sum(map(len, sets))} structures of seven data sets in MR and CT ({len(kinds)} kinds)" in results
    assert len(sets) == 7
    behind = [more(f"{stage1}/esophagus-ct", noise, "spd", "conditioned") for noise in ("clinic", "severe")]
    assert "{:.0f} and {:.0f} on the esophagus. `esophagus-ct`".format(*behind) in results


def test_what_is_said_of_the_spleens_model_and_its_limit_follows_from_the_kept_rows(repository: Path) -> None:
    folder = repository / "Testing" / "Benchmarks" / "results"

    def means(name: str) -> str:
        found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        with (folder / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["method"] == "consensus":
                    found[row["severity"]][row["patient"]].append((float(row["dsc"]), float(row["hd95_mm"])))
        of_patients = (np.mean([np.mean(p, axis=0) for p in found[noise].values()], axis=0) for noise in NOISES)
        return "{:.3f} ({:.1f}), {:.3f} ({:.1f}) and {:.3f} ({:.1f})".format(*np.concatenate(list(of_patients)))

    results = " ".join((repository / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert f"three of the others, it has {means('cards/spleen-mr.csv')}" in results
    assert f"with the same limit {means('stage1-both/spleen-mr-former.csv')}" in results
    cells = [f"full/cells/spleen-mr/{row}" for row in ("beyond-2", "spd")]
    limited, free = ([points(repository, cell, noise) / 100 for noise in NOISES] for cell in cells)
    mm = r"\([^)]*\)"
    assert re.search(
        "13 patients {:.3f} MM clean, {:.3f} MM clinic and {:.3f} ".format(*limited).replace("MM", mm), results
    )
    assert re.search("in place of {:.3f} MM, {:.3f} MM and {:.3f} ".format(*free).replace("MM", mm), results)


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    pages = [*(repository / "docs").glob("*.md"), repository / "CONTRIBUTING.md", repository / "CHANGELOG.md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))]
    missing = [f"{p.name}: {link}" for p, link in links if "://" not in link and not (p.parent / link).exists()]
    assert len(links) > 10 and missing == []


def test_docstrings_cite_the_page_of_the_method_and_sections_that_it_has(repository: Path) -> None:
    page = (repository / "docs" / "method.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\.", page, re.MULTILINE))
    texts = {path: path.read_text(encoding="utf-8") for path in (repository / "SPDSegmentLib").rglob("*.py")}
    cited = {number for text in texts.values() for number in re.findall(r"docs/method\.md, section (\d+)", text)}
    assert cited and cited <= sections
    assert [path.name for path, text in texts.items() if "../shared" in text or "design.md" in text] == []
