"""Scripted modules in the host: loading, events, reloading, the end, and requests to install."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.Host.errors import SlotErrors
from Testing.Host.pytest_plugin import fail_on_slot_errors

pytest_plugins = ["Testing.Host.pytest_plugin"]

DEMO = Path(__file__).resolve().parents[1] / "Host" / "Modules" / "HostDemo" / "HostDemo.py"


def record_cleanup(widget: Any) -> list[str]:
    """Return a list that gets an entry when a module's widget cleans up."""
    events: list[str] = []
    cleanup = widget.cleanup

    def recorded() -> None:
        events.append("cleanup")
        cleanup()

    widget.cleanup = recorded
    return events


def test_the_gui_modules_former_names_lead_to_their_rooms(host: Any) -> None:
    former = importlib.import_module("SPDSegmentLib.gui.volumes")
    from SPDSegmentLib.gui.scene import editor_nodes, volumes

    assert former.takeSnapshot is volumes.takeSnapshot
    assert importlib.import_module("SPDSegmentLib.gui.target").editorNode is editor_nodes.editorNode, "moved further"
    with pytest.raises(AttributeError, match="no room"):
        _ = former.neverThere


def test_a_module_runs_from_volume_to_segment(host: Any) -> None:
    import slicer

    array = np.zeros((6, 8, 10), np.int16)
    array[2:4, 2:5, 2:6] = 200
    host.add_volume(array)
    module = host.load_module(DEMO)
    module.ui.thresholdSlider.value = 150
    module.ui.applyButton.click()
    node = host.wait_until(lambda: module.widget.parameters.segmentation)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, node.GetSegmentation().GetNthSegmentID(0))
    assert int(mask.sum()) == 24
    assert (module.ui.progressBar.value, module.ui.segmentsTable.segmentCount) == (100, 1)


def test_without_a_volume_nothing_can_be_started(host: Any) -> None:
    module = host.load_module(DEMO)
    assert not module.ui.applyButton.enabled
    host.add_volume(np.zeros((2, 2, 2), np.int16))
    host.select_module("HostDemo")
    assert module.ui.applyButton.enabled


def test_the_own_test_of_a_module_runs(host: Any) -> None:
    import slicer

    host.load_module(DEMO)
    slicer.selfTests["HostDemo"]()


def test_a_reload_cleans_up_and_makes_a_new_panel(host: Any) -> None:
    module = host.load_module(DEMO)
    before = module.widget
    events = record_cleanup(before)
    again = host.reload_module("HostDemo")
    assert again.widget is not before
    assert events == ["cleanup"]
    assert again.ui.applyButton.isVisible()


def test_quitting_cleans_up(host: Any) -> None:
    import slicer

    events = record_cleanup(host.load_module(DEMO).widget)
    slicer.app.connect("aboutToQuit()", lambda: events.append("aboutToQuit"))
    host.quit()
    assert events == ["aboutToQuit", "cleanup"]
    assert not hasattr(slicer.modules, "hostdemo")


def test_an_untaken_slot_error_fails_the_test(host: Any, slot_errors: Any) -> None:
    host.load_module(DEMO).ui.failButton.click()
    taken = slot_errors.take()
    assert [str(error.exception) for error in taken] == ["This slot has a bug."]
    record = SlotErrors()
    record.record("slot", taken[0].exception)
    with pytest.raises(pytest.fail.Exception, match="has a bug"):
        fail_on_slot_errors(record)
    fail_on_slot_errors(SlotErrors())


def test_messages_and_questions_are_recorded(host: Any) -> None:
    import slicer

    host.dialogs.answer(True)
    slicer.util.errorDisplay("No model.", detailedText="long")
    answers = [slicer.util.confirmOkCancelDisplay("Fetch 40 MB?") for _ in range(2)]
    assert answers == [True, False]
    assert host.dialogs.texts("error") == ["No model."]
    assert host.dialogs.texts("confirm") == ["Fetch 40 MB?"] * 2


def test_requests_to_install_are_recorded_and_install_nothing(host: Any) -> None:
    import PyTorchUtils
    import slicer.packaging

    host.installs.missing |= {"peft", "torch"}
    assert not slicer.packaging.pip_check("peft>=0.1")
    slicer.packaging.pip_ensure(["numpy", "peft>=0.1"])
    PyTorchUtils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=">=2.6")
    assert host.installs.requests == [("pip_ensure", ("peft>=0.1",)), ("installTorch", ("torch>=2.6",))]
    assert slicer.packaging.pip_check("peft>=0.1")


def test_slicer_5_10_has_no_packaging_module(host: Any) -> None:
    import slicer

    host.use_slicer_version("5.10.0")
    assert (slicer.app.majorVersion, slicer.app.minorVersion) == (5, 10)
    with pytest.raises(ModuleNotFoundError):
        import slicer.packaging
    slicer.util.pip_install("peft==0.11")
    assert host.installs.requests == [("pip_install", ("peft==0.11",))]


def test_a_missing_extension_cannot_be_imported(host: Any) -> None:
    host.remove_extension("PyTorchUtils")
    with pytest.raises(ModuleNotFoundError):
        import PyTorchUtils  # noqa: F401


def test_registered_sample_data_is_loaded_from_a_file(host: Any, tmp_path: Path) -> None:
    import SampleData
    import slicer

    path = tmp_path / "sample.nrrd"
    slicer.util.saveNode(host.add_volume(np.zeros((2, 3, 4), np.int16)), str(path), {})
    register = SampleData.SampleDataLogic.registerCustomSampleDataSource
    register("Demo", "Box", uris=path.as_uri(), fileNames="sample.nrrd", nodeNames="Box")
    assert SampleData.downloadSample("Box").GetName() == "Box"


def test_texts_go_through_the_translation(host: Any) -> None:
    from slicer import i18n

    host.load_module(DEMO)
    assert ("HostDemo", "Host demo") in i18n.translated


COMPLETE_FOLDER = """
import os, sys
from Testing.Host.host import start_host
host = start_host()
import slicer
slicer.packaging.pip_install("spdsegment-no-such-package")
assert slicer.packaging.load_requirements("x") == ["real"], "not the folder's own"
assert host.installs.requests == [("pip_install", ("spdsegment-no-such-package",))]
print("installed nothing", flush=True)
os._exit(0)
"""


def test_slicers_own_packages_are_taken_but_install_nothing(host: Any, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "packaging.py").write_text(
        "def load_requirements(path):\n    return ['real']\ndef pip_install(*a, **o):\n    raise SystemExit('pip')\n"
    )
    environment = {**os.environ, "SLICER_BASE_PYTHON": str(tmp_path)}
    command = [sys.executable, "-c", COMPLETE_FOLDER]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert "installed nothing" in done.stdout, done.stderr


def test_python_slicer_runs_python(host: Any) -> None:
    import slicer

    launcher = Path(slicer.app.slicerHome) / "bin" / "PythonSlicer"
    done = subprocess.run([launcher, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.prefix


def test_the_longest_block_of_the_main_thread_is_measured(host: Any) -> None:
    import time

    import qt

    def work() -> None:
        end = time.thread_time() + 0.08
        while time.thread_time() < end:
            pass

    with host.longest_block() as block:
        qt.QTimer.singleShot(0, work)
        host.process_events(200)
    assert block.longest_ms >= 80
    assert 80 <= block.longest_cpu_ms < 160 and "in the system" in block.longest_was
