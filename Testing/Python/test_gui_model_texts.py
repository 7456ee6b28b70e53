"""What models are called and say of themselves, as plain text and never as built in; the first visit to the module."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gui_helpers import FAKE_WORKER, add_volume

from SPDSegmentLib.models.storage import shipped_models_folder, user_models_folder

pytest_plugins = ["Testing.Host.pytest_plugin"]

MODULE = Path(__file__).resolve().parents[2] / "SPDSegment" / "SPDSegment.py"
LABELS = ("statusLabel", "deviceWarningLabel", "setupLabel", "deviceLabel", "exportLabel", "reviewLabel", "clicksLabel")


@pytest.fixture
def module(host: Any, spd_home: Path) -> Any:
    return host.load_module(MODULE)


def add_own_kidney(title: str, card: str = "") -> None:
    """A model of the user's with a shipped model's name."""
    shipped = shipped_models_folder()
    assert shipped is not None
    folder = Path(shutil.copytree(shipped / "kidney-mr", user_models_folder() / "kidney-mr"))
    info = folder / "model.json"
    info.write_text(json.dumps(json.loads(info.read_text(encoding="utf-8")) | {"title": title}))
    (folder / "README.md").write_text(card)


def show_setup(module: Any) -> list[tuple[Any, Any]]:
    """Fill the panel and its set-up; the cells of each row."""
    module.widget.panel.state.model = "kidney-mr"
    module.widget.panel.inputs.fill()
    module.ui.setupSection.collapsed = True
    module.ui.setupSection.collapsed = False
    table = module.ui.setupTable
    return [(table.item(row, 0), table.item(row, 1)) for row in range(table.rowCount)]


def test_an_own_model_of_a_built_in_name_is_said(module: Any) -> None:
    add_own_kidney("Kidney of mine")
    states = {title.text(): state.text() for title, state in show_setup(module)}
    assert "in place of the built-in one" in states["Kidney of mine"]
    box = module.ui.modelBox
    assert "Kidney of mine (yours)" in [box.itemText(row) for row in range(box.count)]


def test_texts_of_a_model_are_never_read_as_markup(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt
    import slicer

    add_own_kidney("<b>Kidney</b>", "<img src='http://example.org/x.png'>")
    titles = [title for title, _ in show_setup(module)]
    (row,) = [number for number, title in enumerate(titles) if title.text() == "<b>Kidney</b>"]
    assert "&lt;b&gt;" in titles[row].toolTip()
    shown: list[Any] = []
    monkeypatch.setattr(
        slicer.util, "confirmOkCancelDisplay", lambda text, **options: shown.append(options.get("textFormat"))
    )
    module.ui.modelBox.currentIndex = module.ui.modelBox.findText("<b>Kidney</b> (yours)")
    module.ui.modelBox.activated.emit(module.ui.modelBox.currentIndex)
    module.ui.modelCardButton.click()
    card = module.widget.panel.inputs._card.findChild(qt.QTextBrowser)
    assert "<img" in card.toPlainText() and "<img" not in card.toHtml()
    module.ui.setupTable.selectRow(row)
    module.ui.removeItemButton.click()
    assert shown == [qt.Qt.PlainText]
    assert all(getattr(module.ui, name).textFormat == qt.Qt.PlainText for name in LABELS)


def test_the_first_visit_unfolds_the_section_where_something_is_missing_and_installs_nothing(
    host: Any, spd_home: Path
) -> None:
    loaded = host.load_module(MODULE)
    host.process_events(60)
    assert not loaded.ui.setupSection.collapsed
    assert "Nothing was installed yet" in loaded.ui.setupLabel.text and not host.installs.requests
    loaded.ui.setupSection.collapsed = True
    loaded.widget.exit()
    loaded.widget.enter()
    host.process_events(60)
    assert loaded.ui.setupSection.collapsed


def test_a_worker_on_another_computer_needs_nothing_here(host: Any, spd_home: Path) -> None:
    import slicer

    slicer.app.settings().setValue("SPDSegment/WorkerCommand", "ssh host spdsegment worker")
    loaded = host.load_module(MODULE)
    host.process_events(60)
    assert loaded.ui.setupSection.collapsed


def test_a_worker_elsewhere_is_told_the_name_of_a_model_of_this_machine(host: Any, module: Any) -> None:
    from SPDSegmentLib.gui.run.task import VolumeView

    volume = add_volume(host)
    module.logic.workerHost.setCommand(FAKE_WORKER)
    model = next(model for model in module.widget.panel.inputs.models if model.name == "kidney-mr")
    module.logic.segmenter.saliency(VolumeView(volume, model), None, 0, lambda answer: None)
    assert Path(model.key).is_dir() and module.logic.workerHost.client.model.bundle == "kidney-mr"


@pytest.mark.parametrize("typed", ["kidney-mr", "{folder}/kidney-mr", "/far/away", "fake?radius=5"])
def test_what_was_typed_for_a_worker_elsewhere_goes_as_it_is(module: Any, typed: str) -> None:
    from SPDSegmentLib.gui.run.task import findModel

    typed = typed.format(folder=shipped_models_folder())
    host = module.logic.workerHost
    host.setCommand(FAKE_WORKER)
    entry = findModel(typed, remote=True)
    assert host.choiceOf(entry, "cpu").bundle == typed
    assert entry.digest == f"name:{typed}", "which version the worker has is not known here"


def test_the_sample_has_a_name_for_people_and_a_picture(host: Any) -> None:
    import qt
    import SampleData

    host.load_module(MODULE)
    source = SampleData.SampleDataLogic.sampleDataSourcesByCategory("SPDSegment")[-1]
    assert source.sampleName == "Kidney MR with clicks"
    assert qt.QPixmap(source.thumbnailFileName).width() == 160
