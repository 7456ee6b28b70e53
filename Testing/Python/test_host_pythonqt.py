"""The host's `qt` behaves as PythonQt does: properties, connections, enumerations, errors."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from Testing.Host.errors import UnexpectedDialog, UnknownAttribute, UnknownSignal

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def qt(host: Any) -> Any:
    import qt

    return qt


def test_properties_are_read_without_a_call_and_set_by_assignment(qt: Any) -> None:
    button = qt.QPushButton("Segment")
    button.toolTip = "Run"
    button.enabled = False
    assert (button.text, button.toolTip, button.enabled, button.isEnabled()) == ("Segment", "Run", False, False)


def test_calling_a_property_fails(qt: Any) -> None:
    with pytest.raises(TypeError):
        qt.QLabel("x").text()


def test_a_property_that_cannot_be_set_refuses(qt: Any) -> None:
    with pytest.raises(AttributeError, match="not writable"):
        qt.QComboBox().count = 3


def test_a_property_refuses_none_and_foreign_types(qt: Any) -> None:
    label = qt.QLabel()
    for wrong in (None, object()):
        with pytest.raises(AttributeError, match="does not accept"):
            label.enabled = wrong


def test_no_attribute_is_created_on_a_cpp_object(qt: Any) -> None:
    with pytest.raises(UnknownAttribute):
        qt.QLabel().lable = "typing error"


def test_a_class_derived_in_python_may_have_attributes(qt: Any) -> None:
    class Panel(qt.QWidget):
        pass

    panel = Panel()
    panel.slices = 3
    assert panel.slices == 3


def test_children_and_dynamic_properties_are_attributes(qt: Any) -> None:
    parent = qt.QWidget()
    child = qt.QLabel(parent)
    child.objectName = "volumeLabel"
    parent.setProperty("SlicerParameterName", "volume")
    assert parent.volumeLabel is child
    assert parent.SlicerParameterName == "volume"
    assert parent.findChildren("QLabel") == (child,)


def test_connect_takes_a_full_signature_and_disconnect_undoes_it(qt: Any) -> None:
    button = qt.QPushButton()
    calls: list[tuple[Any, ...]] = []

    def slot(*arguments: Any) -> None:
        calls.append(arguments)

    button.connect("clicked(bool)", slot)
    button.click()
    assert button.disconnect("clicked(bool)", slot)
    button.click()
    assert calls == [(False,)]


def test_a_signal_without_signature_or_with_a_wrong_one_fails(qt: Any) -> None:
    button = qt.QPushButton()
    for wrong in ("clicked", "clickd()", "clicked(int)"):
        with pytest.raises(UnknownSignal):
            button.connect(wrong, print)


def test_a_slot_gets_as_many_arguments_as_it_takes(qt: Any) -> None:
    box = qt.QSpinBox()
    values: list[Any] = []
    box.connect("valueChanged(int)", lambda: values.append("none"))
    box.connect("valueChanged(int)", lambda value: values.append(value))
    box.valueChanged.connect(lambda *all_of_them: values.append(all_of_them))
    box.value = 7
    assert values == ["none", 7, (7,)]


def test_a_slot_that_takes_more_than_the_signal_gives_is_an_error(qt: Any, slot_errors: Any) -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert [type(error.exception) for error in slot_errors.take()] == [TypeError]


def test_exceptions_in_slots_timers_and_event_handlers_are_recorded(host: Any, qt: Any, slot_errors: Any) -> None:
    class Broken(qt.QWidget):
        def mousePressEvent(self, event: Any) -> None:
            raise RuntimeError("event handler")

    from PySide6.QtTest import QTest

    def fail(text: str) -> None:
        raise RuntimeError(text)

    button = qt.QPushButton()
    button.connect("clicked()", lambda: fail("slot"))
    button.click()
    qt.QTimer.singleShot(0, lambda: fail("timer"))
    host.process_events(50)
    widget = Broken()
    QTest.mousePress(widget, qt.Qt.LeftButton)
    assert [str(error.exception) for error in slot_errors.take()] == ["slot", "timer", "event handler"]


def test_an_exception_in_a_vtk_observer_is_recorded(host: Any, slot_errors: Any) -> None:
    def observer(caller: Any, event: str) -> None:
        raise ValueError("observer")

    node = host.scene.AddNewNodeByClass("vtkMRMLTextNode")
    node.AddObserver("ModifiedEvent", observer)
    node.Modified()
    assert [str(error.exception) for error in slot_errors.take()] == ["observer"]


def test_enumerations_are_unscoped_and_are_numbers(qt: Any) -> None:
    assert qt.Qt.AlignLeft | qt.Qt.AlignTop == 0x21
    frame = qt.QFrame()
    frame.frameShape = qt.QFrame.StyledPanel
    assert frame.frameShape == 6
    assert frame.StyledPanel == 6


def test_a_process_gives_bytes(host: Any, qt: Any) -> None:
    process = qt.QProcess()
    ends: list[tuple[int, Any]] = []
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ends.append((code, status)))
    process.start(sys.executable, ["-c", "import sys; sys.stdout.buffer.write(bytes([0, 255, 10]))"])
    host.wait_until(lambda: ends)
    assert process.readAllStandardOutput().data() == b"\x00\xff\n"
    assert ends == [(0, qt.QProcess.NormalExit)]


def test_names_that_pythonqt_lacks_are_missing(qt: Any) -> None:
    for name in ("Signal", "Slot", "Property"):
        assert not hasattr(qt, name)


def test_file_dialogs_return_a_text(host: Any, qt: Any) -> None:
    host.dialogs.choose_file("/data/points.mrk.json", "")
    assert qt.QFileDialog.getOpenFileName(None, "Points") == "/data/points.mrk.json"
    assert qt.QFileDialog.getSaveFileName(None, "Save") == ""


def test_dialogs_that_nobody_answers_fail_and_answered_ones_do_not(host: Any, qt: Any) -> None:
    for open_dialog in (
        lambda: qt.QFileDialog.getOpenFileName(None, "Points"),
        lambda: qt.QMessageBox().exec_(),
        lambda: qt.QInputDialog.getText(None, "Name", "Name:"),
    ):
        with pytest.raises(UnexpectedDialog):
            open_dialog()
    host.dialogs.on_next_dialog(lambda dialog: qt.QMessageBox.Ok)
    assert qt.QMessageBox().exec_() == qt.QMessageBox.Ok
