"""The host's lists and its checks of .ui files and code against Slicer's real widgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from Testing.Host.checks import check_ui_file, check_widget_attributes
from Testing.Host.widget_api import VERSIONS, ClassInfo, PropertyInfo, WidgetApi, load_own_list

pytest_plugins = ["Testing.Host.pytest_plugin"]

DEMO = Path(__file__).resolve().parents[1] / "Host" / "Modules" / "HostDemo"
DEMO_UI = DEMO / "Resources" / "UI" / "HostDemo.ui"

UI = """<ui version="4.0"><class>Form</class><widget class="qDemoWidget" name="Form">
<widget class="qDemoSlider" name="slider"><property name="{property}"><double>1</double></property></widget>
<widget class="QPushButton" name="button"/></widget>
<customwidgets><customwidget><class>qDemoWidget</class></customwidget>
<customwidget><class>qDemoSlider</class></customwidget></customwidgets>
<connections><connection><sender>slider</sender><signal>{signal}</signal>
<receiver>button</receiver><slot>setEnabled(bool)</slot></connection></connections></ui>"""


@pytest.fixture
def api() -> WidgetApi:
    """Two classes; the slider's property `step` came with 5.12."""
    slider = ClassInfo(
        "qDemoSlider",
        "qDemoWidget",
        {"value": PropertyInfo("double"), "step": PropertyInfo("double"), "count": PropertyInfo("int", False)},
        ("valueChanged(double)", "movedByUser(bool)"),
        ("reset()",),
        member_versions={"step": ("5.12", "5.13")},
    )
    return WidgetApi({"qDemoWidget": ClassInfo("qDemoWidget", "QWidget"), "qDemoSlider": slider})


def write_ui(folder: Path, prop: str = "value", signal: str = "movedByUser(bool)") -> Path:
    path = folder / "form.ui"
    path.write_text(UI.format(property=prop, signal=signal), encoding="utf-8")
    return path


def test_a_good_ui_file_has_no_faults(api: WidgetApi, tmp_path: Path) -> None:
    assert check_ui_file(write_ui(tmp_path), api) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prop": "valeu"}, "has no property valeu"),
        ({"prop": "count"}, "cannot be set"),
        ({"prop": "step"}, "has no property step in Slicer 5.10"),
        ({"signal": "moved(bool)"}, "has no signal moved(bool)"),
    ],
)
def test_faults_of_a_ui_file_are_named(api: WidgetApi, tmp_path: Path, change: dict[str, str], fault: str) -> None:
    (only,) = check_ui_file(write_ui(tmp_path, **change), api)
    assert fault in only


def test_a_version_that_is_not_asked_for_does_not_count(api: WidgetApi, tmp_path: Path) -> None:
    assert check_ui_file(write_ui(tmp_path, prop="step"), api, versions=("5.12", "5.13")) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("self.ui.slider.valeu", "has no member 'valeu'"),
        ("self.ui.slider.value()", "is a property of qDemoSlider, it is not called"),
        ("self.ui.slider.step = 1", "has no 'step' in Slicer 5.10"),
        ("self.ui.slider.count = 1", "cannot be set"),
        ("self.ui.slider.reset = 1", "is no property and cannot be assigned"),
        ("self.ui.sliderr.value", "has no widget 'sliderr'"),
        ("self.ui.slider.connect('moved(bool)', f)", "has no signal 'moved(bool)'"),
        ("self.ui.button.text()", "is a property of QPushButton, it is not called"),
        ("self.ui.button.connect('clickedd()', f)", "has no signal 'clickedd()'"),
        ("box = self.ui.slider; box.valeu", "has no member 'valeu'"),
        ("box = self.ui.slider; box.count = 1", "cannot be set"),
        ("for w in (self.ui.slider,): w.value()", "it is not called"),
    ],
)
def test_wrong_uses_of_widgets_are_named(api: WidgetApi, tmp_path: Path, line: str, fault: str) -> None:
    code = tmp_path / "panel.py"
    code.write_text(f"def f(self):\n    {line}\n", encoding="utf-8")
    (only,) = check_widget_attributes([code], write_ui(tmp_path), api)
    assert only.startswith("panel.py:2: ")
    assert fault in only


def test_good_uses_of_widgets_have_no_faults(api: WidgetApi, tmp_path: Path) -> None:
    code = tmp_path / "panel.py"
    code.write_text(
        "def f(self):\n    self.ui.slider.value = 2\n    self.ui.slider.reset()\n"
        "    self.ui.button.connect('clicked(bool)', self.g)\n    self.ui.button.setEnabled(True)\n",
        encoding="utf-8",
    )
    assert check_widget_attributes([code], write_ui(tmp_path), api) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_demo_module_fits_every_version(slicer_table: WidgetApi, version: str) -> None:
    assert check_ui_file(DEMO_UI, slicer_table, (version,)) == []
    assert check_widget_attributes([DEMO / "HostDemo.py"], DEMO_UI, slicer_table, (version,)) == []


def test_the_own_list_says_nothing_that_slicer_does_not_have(slicer_table: WidgetApi) -> None:
    own = load_own_list()
    for name in own:
        real, mine = slicer_table[name], own[name]
        assert mine.base == real.base
        assert set(mine.signals) <= set(real.signals), name
        assert set(mine.methods) <= set(real.methods), name
        assert mine.enums.items() <= real.enums.items(), name
        for key, info in mine.properties.items():
            assert real.properties[key] == info, f"{name}.{key}"


def test_every_behavior_keeps_to_the_members_of_its_class(host: Any) -> None:
    from Testing.Host.widgets import behavior

    names = [name for name in behavior._behaviors if host.factory.knows(name)]
    assert len(names) > 20
    for name in names:
        host.factory.build(name)


def test_the_demo_needs_no_more_than_the_own_list(host: Any) -> None:
    host.load_module(DEMO / "HostDemo.py")
    assert host.factory.unlisted == set()


def test_a_member_that_only_slicers_table_has_is_remembered_until_the_end_of_the_test(
    host: Any, slicer_table: WidgetApi
) -> None:
    import slicer

    known = load_own_list()["qSlicerCoreApplication"].properties
    name = next(name for name in slicer_table["qSlicerCoreApplication"].properties if name not in known)
    getattr(slicer.app, name)
    assert host.factory.unlisted == {f"qSlicerApplication.{name}"}
    host.reset()
    assert host.factory.unlisted == set()
