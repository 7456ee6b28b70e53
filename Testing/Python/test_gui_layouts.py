"""The module from a source checkout and from an installed tree, and its widgets in a narrow panel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gui_helpers import load, segmented

from Testing.update_cmake_lists import LISTS, listed_files

pytest_plugins = ["Testing.Host.pytest_plugin"]

SCRIPT = """
import json, os, sys
from pathlib import Path
from Testing.Host.host import start_host
host = start_host()
module = host.load_module(sys.argv[1])
import SampleData, slicer
import SPDSegmentLib
host.process_events()
sample = SampleData.downloadSamples("Kidney MR with clicks")
module.widget.panel.enter()
request = module.logic.workerHost.client.status()
host.wait_until(lambda: request.finished, 60_000)
hello = module.logic.workerHost.client.hello
told = {
    "library": SPDSegmentLib.__file__,
    "worker": hello.library_version,
    "models": [module.ui.modelBox.itemText(n) for n in range(module.ui.modelBox.count)],
    "sample": [node.GetName() for node in sample],
    "segment": module.ui.segmentButton.enabled,
    "heavy": sorted({"torch", "peft"} & set(sys.modules)),
    "errors": [str(error) for error in host.take_slot_errors()],
}
host.quit()
Path(sys.argv[2]).write_text(json.dumps(told))
os._exit(0)
"""


@pytest.fixture
def installed_tree(repository: Path, tmp_path: Path) -> Path:
    """What CMake installs, with a version of its own so that nobody takes another copy for it."""
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    folder = tmp_path / "qt-scripted-modules"
    for name in [name for names in LISTS for name in listed_files(text, names)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, folder / name)
    module = (repository / "SPDSegment" / "CMakeLists.txt").read_text(encoding="utf-8")
    for name in re.findall(r"SCRIPTS (.*)", module.replace("${MODULE_NAME}", "SPDSegment"))[0].split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / "SPDSegment" / name, folder / name)
    (folder / "SPDSegmentLib" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    return folder


def loaded(repository: Path, module: Path, tmp_path: Path) -> dict[str, Any]:
    """Load a module in a host of its own, from another folder, and return what it has."""
    script, told = tmp_path / "load.py", tmp_path / "told.json"
    script.write_text(SCRIPT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths = os.pathsep.join([str(tmp_path / "host"), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "Testing").symlink_to(repository / "Testing", target_is_directory=True)
    done = subprocess.run(
        [sys.executable, str(script), str(module), str(told)],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.is_file(), done.stderr[-3000:]
    return json.loads(told.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("layout", ["checkout", "installed"])
def test_module_worker_and_resources_are_found(
    repository: Path, installed_tree: Path, tmp_path: Path, layout: str
) -> None:
    from SPDSegmentLib import __version__

    root = repository if layout == "checkout" else installed_tree
    module = repository / "SPDSegment" / "SPDSegment.py" if layout == "checkout" else root / "SPDSegment.py"
    told = loaded(repository, module, tmp_path)
    assert Path(told["library"]).parent == root / "SPDSegmentLib"
    assert told["worker"] == (__version__ if layout == "checkout" else "9.9.9")
    assert {"Kidney, T2 MR", "Hippocampus, T1 MR", "Esophagus, CT"} <= set(told["models"])
    assert told["sample"] == ["Kidney MR", "Kidney clicks"]
    assert told["segment"], "with the sample loaded, Segment can be pressed"
    assert told["heavy"] == [] and told["errors"] == []


@pytest.mark.usefixtures(
    "spd_home"
)  # without base weights it ends before it segments; test_tutorial_screenshots does that
def test_the_self_test_passes(host: Any) -> None:
    module = host.load_module(Path(__file__).resolve().parents[2] / "SPDSegment" / "SPDSegment.py")
    module.python.SPDSegmentTest().runTest()


NARROW_LINES = 20
"""Lines of text that are as high as the narrowest panel is wide, 350 pixels at Slicer's usual size of letters."""


@pytest.mark.parametrize("row", ["removeRow", "suggestRow", "straightRow", "lockRow", "learnRow", "setupRow"])
def test_no_row_of_buttons_is_wider_than_a_narrow_panel(host: Any, row: str) -> None:
    from PySide6.QtWidgets import QLayout

    module = load(host)
    for section in ("clicks", "straight", "correct", "setup"):
        getattr(module.ui, f"{section}Section").collapsed = False
    panel = module.widget.panel.widget
    assert panel.findChild(QLayout, row).minimumSize().width() <= NARROW_LINES * panel.fontMetrics().height()


def test_slice_numbers_have_room_where_letters_are_large(host: Any) -> None:
    from SPDSegmentLib.gui.scene.state import lineHeight

    module = segmented(host)
    plot, font = module.ui.qualityPlot, module.ui.qualityPlot.font
    module.ui.reviewSection.collapsed = False
    before = plot.pixmap.height() - lineHeight(plot)
    font.setPointSizeF(2 * font.pointSizeF())
    plot.font = font
    module.widget.panel.review._drawCurrent()
    assert plot.pixmap.height() - lineHeight(plot) == before


def test_the_straightened_picture_follows_the_width_of_the_panel(host: Any) -> None:
    module = segmented(host)
    module.ui.straightSection.collapsed = False
    straight, picture = module.widget.panel.straight, module.ui.straightPicture
    module.ui.straightButton.click()
    host.wait_until(lambda: straight.found is not None)
    picture.resize(picture.width + 90, picture.height)
    host.wait_until(lambda: not straight._drawTimer.isActive())
    assert picture.pixmap.width() == picture.width


def test_the_titles_of_the_table_of_measures_are_whole(host: Any) -> None:
    header = load(host).ui.straightTable.horizontalHeader()
    assert all(header.sectionSize(n) == header.sectionSizeHint(n) for n in range(header.count()))
