"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Tiny networks gain nothing from threads, and several threads on a busy core cost them their time. Read by torch once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from Testing.Host import environment

# Files run in any order: a test that imports Qt or VTK alone must not spoil the process for the host.
environment.prepare()

if "PYTEST_XDIST_WORKER" in os.environ:
    settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("beside others")

REPOSITORY = Path(__file__).resolve().parents[2]

LONGEST = (
    "worker_health", "shipped_bundles", "training_faults", "training", "worker_death", "training_command",
    "benchmark_run", "worker_ending", "gui_records", "batch_run", "worker_real_model", "benchmark_joint",
    "worker_cancel", "gui_live_update", "gui_show_3d", "gui_editable_area", "gui_surfaces", "joint_training",
    "benchmark_training", "session_calls", "gui_clinician_path", "tutorial_screenshots", "gui_clicks_review",
)  # fmt: skip
"""Files that take more than half a minute each."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where tests that run alone are asked for, a file without one need not be imported."""
    asked = config.getoption("markexpr") == "alone" and collection_path.suffix == ".py"
    return True if asked and "mark.alone" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Beside others the longest files come first, so that no process is left with one while the others have ended."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="module", autouse=True)
def what_lives_is_not_searched() -> Iterator[None]:
    """What earlier files left in the process is no garbage of this one: collections of a large heap take their time."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real volumes beside the repository; the test is skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def lite_medsam() -> Path:
    """Verified base weights of the user; the test is skipped where they were not fetched."""
    from SPDSegmentLib.errors import SPDError
    from SPDSegmentLib.models.base_weights import find_base_weights

    try:
        return find_base_weights("lite_medsam")
    except SPDError as error:
        pytest.skip(error.sentence)


@pytest.fixture
def spd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder of SPDSegment for one test."""
    home = tmp_path / "spdsegment-home"
    monkeypatch.setenv("SPDSEGMENT_HOME", str(home))
    return home


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spd_home: Path) -> Path:
    """A file that the manifest's only entry, ``stub``, is fetched from."""
    from models_helpers import CONTENT, url_weights, use_manifest

    source = tmp_path / "publisher" / "stub.pth"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    use_manifest(monkeypatch, url_weights(source))
    return source
