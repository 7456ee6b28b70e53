"""The set-up: nothing happens unasked, what is missing is named and comes with one button."""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import passes_alone
from models_helpers import CONTENT, sha256

from SPDSegmentLib.worker.messages import Device
from SPDSegmentLib.worker.requests import WorkerCommand

pytest_plugins = ["Testing.Host.pytest_plugin"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SPDSegment" / "SPDSegment.py"
FAKE_WORKER = WorkerCommand((sys.executable, str(Path(__file__).with_name("fake_predictor.py"))))

TOOL_WITH_STUB = """
import dataclasses, pathlib, sys
sys.path.insert(0, {root!r})
from SPDSegmentLib.models import __main__ as tool, base_weights
base_weights.BASE_WEIGHTS = {{"lite_medsam": dataclasses.replace(base_weights.BASE_WEIGHTS["lite_medsam"], kind="url",
    source=pathlib.Path({source!r}).as_uri(), size={size}, sha256={digest!r})}}
sys.exit(tool.main(sys.argv[1:]))
"""
STUCK_TOOL = 'import sys; print(\'{"progress": [1, 9], "name": "x"}\', flush=True); sys.stdin.read(); sys.exit(130)'


@pytest.fixture
def module(host: Any, spd_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module without base weights, with the packages that the host does not declare missing."""
    loaded = host.load_module(MODULE)
    loaded.logic.workerHost.setCommand(FAKE_WORKER)
    from SPDSegmentLib.gui import setup as packages

    real = packages.installedVersion
    monkeypatch.setattr(packages, "installedVersion", lambda name: "" if name in host.installs.missing else real(name))
    return loaded


def rows(module: Any) -> dict[str, str]:
    """State by title, as the table shows it."""
    table = module.ui.setupTable
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def open_section(module: Any) -> None:
    """Unfold the section, which the first visit may have unfolded."""
    module.ui.setupSection.collapsed = True
    module.ui.setupSection.collapsed = False


def choose(module: Any, title: str) -> None:
    """Click a row."""
    module.ui.setupTable.selectRow(list(rows(module)).index(title))


def use_stub_weights(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool = False) -> None:
    """Let LiteMedSAM be a small file on this disk, for this process and for the tool's."""
    import dataclasses

    from SPDSegmentLib.models import base_weights

    source = tmp_path / "publisher.pth"
    source.write_bytes(CONTENT[:-1] if damaged else CONTENT)
    values = {"root": str(ROOT), "source": str(source), "size": len(CONTENT), "digest": sha256(CONTENT)}
    script = tmp_path / "tool.py"
    script.write_text(TOOL_WITH_STUB.format(**values))
    module.widget.panel.setup.tool.command = (sys.executable, str(script))
    entry = dataclasses.replace(base_weights.BASE_WEIGHTS["lite_medsam"], size=len(CONTENT), sha256=sha256(CONTENT))
    monkeypatch.setitem(base_weights.BASE_WEIGHTS, "lite_medsam", entry)


def run_with(host: Any, module: Any, bundle: str) -> None:
    """Segment with a fake model."""
    import slicer

    from SPDSegmentLib.gui.run.task import ModelEntry

    host.add_volume(np.random.default_rng(0).integers(0, 99, (6, 20, 20)).astype(np.int16))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "C")
    node.AddControlPointWorld(10, 10, 3)
    module.widget.panel.inputs.extraModels = [ModelEntry(bundle, "fake", "Kidney", title="Fake")]
    module.widget.panel.state.model = "fake"
    module.widget.panel.enter()
    module.ui.segmentButton.click()
    run = module.widget.panel.run
    host.wait_until(lambda: run.job is not None and run.job.finished, 60_000)


def test_nothing_is_installed_fetched_or_started_by_looking(
    host: Any, module: Any, request: pytest.FixtureRequest
) -> None:
    if "torch" in sys.modules:
        assert passes_alone(request)
        return
    open_section(module)
    shown = rows(module)
    assert shown["Weights LiteMedSAM (TinyViT)"] == "not here (39.4 MB)"
    assert {"PyTorch", "PEFT", "Segment Anything", "Kidney, T2 MR"} <= set(shown), shown
    assert host.installs.requests == [] and host.dialogs.messages == []
    assert not module.logic.workerHost.client.running and not module.widget.panel.setup.tool.isRunning
    assert not {"torch", "peft"} & set(sys.modules)


def test_one_button_installs_what_is_missing_and_fetches_the_weights(
    host: Any, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub_weights(module, tmp_path, monkeypatch)
    host.installs.missing = {"torch", "peft"}
    open_section(module)
    assert rows(module)["PyTorch"] == "not installed"
    module.ui.installButton.click()
    assert host.installs.requests == [], "a refused question installs nothing"
    (asked,) = host.dialogs.texts("confirm")
    assert "PyTorch" in asked and "PEFT" in asked and "safetensors" not in asked and "0.3 MB" in asked
    host.dialogs.answer(True)
    module.ui.installButton.click()
    assert host.installs.requests == [("installTorch", ("torch>=2.6",)), ("pip_ensure", ("peft>=0.11",))]
    host.wait_until(lambda: not module.widget.panel.setup.tool.isRunning, 30_000)
    assert rows(module)["Weights LiteMedSAM (TinyViT)"] == "here, checked"
    assert "Good: lite_medsam" in module.ui.setupLabel.text
    module.ui.installButton.click()
    assert module.ui.setupLabel.text == "Nothing is missing."


def test_slicer_5_10_installs_with_its_own_pip_and_keeps_its_numpy(
    host: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slicer

    held = []

    def pip_install(arguments: list[str]) -> None:
        held.append((arguments[:-1], Path(arguments[-1]).read_text(encoding="utf-8")))
        host.installs.missing.clear()

    host.use_slicer_version("5.10.0")
    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    host.installs.missing = {"peft"}
    host.dialogs.answer(True)
    module.widget.panel.setup.tool.command = (sys.executable, "-c", "")
    module.ui.installButton.click()
    ((arguments, constraints),) = held
    assert arguments == ["peft>=0.11", "--constraint"]
    assert f"numpy=={np.__version__}" in constraints and "torch==" in constraints and "scipy==" in constraints


def test_a_missing_pytorch_extension_is_explained(host: Any, module: Any) -> None:
    host.remove_extension("PyTorchUtils")
    host.installs.missing = {"torch", "peft"}
    host.dialogs.answer(True)
    module.ui.installButton.click()
    assert "Extensions Manager" in module.ui.setupLabel.text
    assert host.installs.requests == []


def test_a_failed_installation_is_one_sentence(host: Any, module: Any) -> None:
    host.installs.missing = {"peft"}
    host.installs.failure = RuntimeError("pip ended with code 1")
    host.dialogs.answer(True)
    module.ui.installButton.click()
    assert module.ui.setupLabel.text.startswith("peft>=0.11 could not be installed. Check the network")
    assert module.ui.installButton.enabled


def test_an_installation_that_moves_numpy_is_reported(host: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.gui import setup as packages

    real = packages.installedVersion
    monkeypatch.setattr(
        packages, "installedVersion", lambda name: "9.9" if name == "numpy" and host.installs.requests else real(name)
    )
    host.installs.missing = {"peft"}
    host.dialogs.answer(True)
    module.ui.installButton.click()
    assert "changed numpy" in module.ui.setupLabel.text


def test_an_old_package_counts_as_missing(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    from SPDSegmentLib.gui import setup as packages

    monkeypatch.setattr(packages, "installedVersion", lambda name: {"torch": "2.3.1+cu121"}.get(name, "99.0"))
    open_section(module)
    assert rows(module)["PyTorch"] == "2.3.1+cu121, too old: 2.6 is needed"
    assert [state.name for state in packages.missingPackages()] == ["torch"]


def test_a_download_that_is_damaged_is_refused(
    host: Any, module: Any, tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub_weights(module, tmp_path, monkeypatch, damaged=True)
    open_section(module)
    choose(module, "Weights LiteMedSAM (TinyViT)")
    host.dialogs.answer(True)
    module.ui.fetchButton.click()
    host.wait_until(lambda: not module.widget.panel.setup.tool.isRunning, 30_000)
    assert "arrived with" in module.ui.setupLabel.text
    assert not list((spd_home / "weights").glob("*.pth"))


@pytest.mark.alone
def test_a_download_can_be_cancelled_and_the_window_stays_alive(host: Any, module: Any) -> None:
    tool = module.widget.panel.setup.tool
    tool.command = (sys.executable, "-c", STUCK_TOOL)
    open_section(module)
    with host.longest_block() as block:
        module.ui.verifyButton.click()
        host.wait_until(lambda: module.ui.setupProgress.value > 0, 10_000)
        assert module.ui.setupCancelButton.visible and not module.ui.installButton.enabled
        module.ui.setupCancelButton.click()
        host.wait_until(lambda: not tool.isRunning, 10_000)
    assert module.ui.setupLabel.text == "Cancelled." and module.ui.installButton.enabled
    assert block.longest_cpu_ms < 100, block.longest_was


def test_a_tool_that_dies_is_reported(host: Any, module: Any) -> None:
    tool = module.widget.panel.setup.tool
    tool.command = (sys.executable, "-c", "import os; os._exit(7)")
    module.ui.verifyButton.click()
    host.wait_until(lambda: not tool.isRunning, 10_000)
    assert "ended early (exit code 7)" in module.ui.setupLabel.text


def test_weights_and_own_models_can_be_removed_and_shipped_models_cannot(
    host: Any, module: Any, spd_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "Resources" / "Models" / "kidney-mr", tmp_path / "mine")
    info = tmp_path / "mine" / "model.json"
    info.write_text(
        info.read_text(encoding="utf-8")
        .replace('"kidney-mr"', '"mine"', 1)
        .replace('"Kidney, T2 MR"', '"My kidney"', 1)
    )
    host.dialogs.choose_file(str(tmp_path / "mine"))
    open_section(module)
    module.ui.addBundleButton.click()
    assert rows(module)["My kidney"] == "yours" and "was added" in module.ui.setupLabel.text
    assert module.ui.modelBox.findText("My kidney") >= 0
    choose(module, "Kidney, T2 MR")
    assert not module.ui.removeItemButton.enabled
    choose(module, "My kidney")
    module.ui.removeItemButton.click()
    assert "My kidney" in rows(module), "a refused question deletes nothing"
    host.dialogs.answer(True)
    module.ui.removeItemButton.click()
    assert "My kidney" not in rows(module) and module.ui.modelBox.findText("My kidney") < 0
    (spd_home / "weights").mkdir(parents=True, exist_ok=True)
    (spd_home / "weights" / "lite_medsam.pth").write_bytes(b"x")
    module.widget.panel.setup.fill()
    choose(module, "Weights LiteMedSAM (TinyViT)")
    host.dialogs.answer(True)
    module.ui.removeItemButton.click()
    assert not (spd_home / "weights" / "lite_medsam.pth").exists()


def test_a_folder_without_a_model_is_refused(host: Any, module: Any, tmp_path: Path) -> None:
    host.dialogs.choose_file(str(tmp_path))
    module.ui.addBundleButton.click()
    assert "holds no model bundle" in module.ui.setupLabel.text


def test_the_worker_command_is_kept_and_a_bad_one_is_said(host: Any, module: Any) -> None:
    module.ui.commandEdit.text = "ssh gpu spdsegment worker"
    module.ui.commandEdit.editingFinished.emit()
    assert module.logic.workerHost.client.command.arguments == ("ssh", "gpu", "spdsegment", "worker")
    assert module.logic.workerHost.isRemote and "are sent" in module.ui.setupLabel.text
    module = host.reload_module("SPDSegment")
    assert module.ui.commandEdit.text == "ssh gpu spdsegment worker" and module.logic.workerHost.isRemote
    module.ui.commandEdit.text = 'ssh "gpu'
    module.ui.commandEdit.editingFinished.emit()
    assert "quotes" in module.ui.setupLabel.text
    module.ui.commandEdit.text = ""
    module.ui.commandEdit.editingFinished.emit()
    assert not module.logic.workerHost.isRemote


def test_check_all_names_the_devices_and_warns_of_an_unused_card(
    host: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SPDSegmentLib.gui.panel import setup_section
    from SPDSegmentLib.gui.run import worker_host as devices

    monkeypatch.setattr(devices, "hasNvidiaCard", lambda: True)
    monkeypatch.setattr(setup_section, "installedVersion", lambda name: "2.13.0+cpu")
    module.logic.workerHost.isRemote = False
    module.widget.panel.setup.tool.command = (sys.executable, "-c", "")
    module.ui.verifyButton.click()
    host.wait_until(lambda: module.ui.deviceLabel.text, 60_000)
    assert "CPU," in module.ui.deviceLabel.text and "free" in module.ui.deviceLabel.text
    assert module.ui.deviceBox.findText("GPU (none found)") >= 0
    assert "stayed unused" in module.ui.deviceWarningLabel.text and module.ui.deviceWarningLabel.visible


def test_opening_the_options_names_the_devices_of_a_worker_that_has_worked(host: Any, module: Any) -> None:
    module.ui.optionsSection.collapsed = False
    host.process_events(100)
    assert not module.logic.workerHost.client.running, "no worker is started for it"
    module.ui.optionsSection.collapsed = True
    run_with(host, module, "fake")
    module.ui.optionsSection.collapsed = False
    host.wait_until(lambda: module.ui.deviceBox.findText("GPU (none found)") >= 0, 60_000)
    assert [module.ui.deviceBox.itemData(n) for n in range(3)] == ["auto", "cuda", "cpu"]


def test_cards_are_choices_with_their_free_memory(host: Any) -> None:
    from SPDSegmentLib.gui.run.worker_host import deviceChoices

    found = (
        Device("cuda:0", "H100", 80_000_000_000),
        Device("cuda:1", "T4", None),
        Device("cpu", "CPU, 8 cores", 1),
    )
    assert deviceChoices(found) == [
        ("auto", "Automatic"),
        ("cuda", "GPU: H100 (80.00 GB free)"),
        ("cuda:1", "GPU: T4"),
        ("cpu", "CPU"),
    ]
    assert [value for value, _ in deviceChoices(None)] == ["auto", "cuda", "cpu"]


@pytest.mark.parametrize(
    ("device", "chosen", "version", "remote", "warned"),
    [
        ("cpu", "auto", "2.13.0+cpu", False, "build for the CPU"),
        ("cpu", "auto", "2.13.0+cu130", False, "does not see it"),
        ("cpu", "cpu", "2.13.0+cpu", False, ""),
        ("cuda:0", "auto", "2.13.0", False, ""),
        ("cpu", "auto", "2.13.0", True, ""),
    ],
)
def test_an_unused_card_is_a_warning_unless_chosen(
    host: Any, monkeypatch: pytest.MonkeyPatch, device: str, chosen: str, version: str, remote: bool, warned: str
) -> None:
    from SPDSegmentLib.gui.run import worker_host as devices

    monkeypatch.setattr(devices, "hasNvidiaCard", lambda: True)
    text = devices.unusedCardWarning(device, chosen, lambda: version, remote)
    assert warned in text and bool(text) == bool(warned)
    monkeypatch.setattr(devices, "hasNvidiaCard", lambda: False)
    assert devices.unusedCardWarning(device, chosen, lambda: version, remote) == ""


@pytest.mark.parametrize("behavior", ["missing=1", "no_torch=1"])
def test_a_run_that_lacks_something_opens_the_setup(host: Any, module: Any, behavior: str) -> None:
    module.logic.workerHost.isRemote = False
    run_with(host, module, f"fake?{behavior}")
    assert not module.ui.setupSection.collapsed
    assert "Press the button below" in module.ui.setupLabel.text


def test_a_scene_that_names_one_structure_suggests_its_model(host: Any) -> None:
    from SPDSegmentLib.gui.run.task import ModelEntry, likelyModel

    kinds = (("e", "Esophagus", "CT"), ("h", "Hippocampus", "MR"), ("k", "Kidney", "MR"), ("c", "Spinal cord", "MR"))
    models = [ModelEntry("", name, structure, title=name, modality=modality) for name, structure, modality in kinds]
    ct_too = [*models, ModelEntry("", "kct", "Kidney", title="kct", modality="CT")]
    for given, names, lowest, expected in (
        (models, ["Kidney MR", "F"], 0.0, "k"),
        (models, ["vol", "left_kidneys clicks"], -1000.0, "k"),
        (models, ["cord of the spinal canal"], 0.0, "c"),
        (ct_too, ["kidney"], -1000.0, "kct"),
        (ct_too, ["kidney"], 0.0, "k"),
        (ct_too, ["kidney"], None, None),
        (models, ["kidney and hippocampus"], 0.0, None),
        (models, ["CTChest"], -1024.0, None),
        (models, ["MRHead", "12: t1_mprage", "records"], 0.0, None),
        ([], ["kidney"], 0.0, None),
    ):
        found = likelyModel(given, names, lowest)
        assert (None if found is None else given[found].name) == expected, names


def test_remedies_for_a_terminal_become_remedies_for_slicer(host: Any) -> None:
    from SPDSegmentLib.errors import DependencyMissing, ModelMissing
    from SPDSegmentLib.gui.panel.setup_section import forSlicer

    error = ModelMissing("The base weights x are not here.", "Run: spdsegment models fetch x", "details")
    assert forSlicer(error).sentence.endswith("Open Set-up and press Install what is missing.")
    assert forSlicer(error).details == "details"
    error2 = DependencyMissing("torch cannot be imported.", "Install it in the set-up.")
    assert "Install what is missing" in forSlicer(error2).sentence


def test_the_packages_are_those_of_pyproject(repository: Path, host: Any) -> None:
    from SPDSegmentLib.gui.setup import PROTECTED, REQUIREMENTS

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["optional-dependencies"]["torch"], *project["dependencies"]}
    of_slicer = ("typer", "rich", "pydicom")  # not needed there, or Slicer's own
    wanted = {text for text in wanted if text.split(">=")[0] not in (*PROTECTED, *of_slicer)}
    assert {f"{name}>={minimum}" for name, minimum in REQUIREMENTS.items()} == wanted
