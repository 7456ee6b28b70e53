"""Pytest fixtures: `host` gives an application with an empty scene, `slot_errors` what slots raised.

A conftest.py takes them with `from Testing.Host.pytest_plugin import host, slot_errors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from . import environment, moved_modules
from .errors import SlotErrors
from .errors import slot_errors as recorded_errors
from .widget_api import WidgetApi, load_slicer_table

if TYPE_CHECKING:
    from .host import Host

moved_modules.install()


def require_host() -> None:
    """Skip where the host's packages are not installed; fail there if CI or SPDSEGMENT_REQUIRE_HOST is set."""
    missing = environment.missing_packages()
    if not missing:
        return
    message = f"The test host needs {' and '.join(missing)}."
    if os.environ.get("CI") or os.environ.get("SPDSEGMENT_REQUIRE_HOST"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def fail_on_slot_errors(record: SlotErrors) -> None:
    """Fail the test if slots, event handlers or observers raised something that the test did not take."""
    errors = record.take()
    if errors:
        pytest.fail("An exception left a slot:\n" + "\n".join(str(error) for error in errors), pytrace=False)


@pytest.fixture(scope="session")
def slicer_table() -> WidgetApi:
    """Slicer's real widgets of all versions; the test is skipped where the table is absent."""
    path = environment.widget_api_file()
    if path is None or not path.is_file():
        pytest.skip("Slicer's widget table (../shared/slicer/slicer_widget_api.json) is not here.")
    return load_slicer_table(path)


@pytest.fixture
def slot_errors() -> SlotErrors:
    """What slots, event handlers and observers raised; a test that expects errors calls `take()`."""
    return recorded_errors


@pytest.fixture
def host() -> Iterator[Host]:
    """The application with an empty scene; afterward modules are unloaded.

    No slot may have failed, and every member of Slicer that was used must be in the own list.
    """
    require_host()
    from .host import start_host

    running = start_host()
    recorded_errors.install()
    recorded_errors.take()
    running.factory.unlisted.clear()
    yield running
    unlisted = sorted(running.factory.unlisted)
    running.reset()
    fail_on_slot_errors(recorded_errors)
    if unlisted:
        pytest.fail(f"Testing/Host/widget_list.toml lacks {', '.join(unlisted)}.", pytrace=False)
