"""The panel against Slicer's real widgets: form and code, for every version that is supported."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.Host.checks import check_ui_file, check_widget_attributes
from Testing.Host.widget_api import VERSIONS, WidgetApi

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_form_fits_every_version(repository: Path, slicer_table: WidgetApi, version: str) -> None:
    assert check_ui_file(repository / "Resources" / "UI" / "SPDSegment.ui", slicer_table, (version,)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_use_of_a_widget_fits_every_version(repository: Path, slicer_table: WidgetApi, version: str) -> None:
    code = [*sorted((repository / "SPDSegmentLib" / "gui").glob("*.py")), repository / "SPDSegment" / "SPDSegment.py"]
    form = repository / "Resources" / "UI" / "SPDSegment.ui"
    assert check_widget_attributes(code, form, slicer_table, (version,)) == []
