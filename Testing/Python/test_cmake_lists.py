"""What CMake installs is what the tree has."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.update_cmake_lists import LISTS, listed_files, present_files

REQUIRED = {"HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
AT_RUN_TIME = (
    "UI/SPDSegment.ui",
    "Icons/SPDSegment.png",
    "SampleData/kidney-mr/image.nii.gz",
    "SampleData/kidney-mr/clicks.mrk.json",
)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_every_file_is_listed_and_every_listed_file_exists(repository: Path, name: str) -> None:
    listed = listed_files((repository / "CMakeLists.txt").read_text(encoding="utf-8"), name)
    assert listed == present_files(*LISTS[name]), "run: python Testing/update_cmake_lists.py"


def test_the_module_and_its_library_are_installed_side_by_side(repository: Path) -> None:
    module = (repository / "SPDSegment" / "CMakeLists.txt").read_text(encoding="utf-8")
    library = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "slicerMacroBuildScriptedModule(" in module and "WITH_GENERIC_TESTS" in module
    assert "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)" in module
    assert "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}" in library
    assert 'set(EXTENSION_DEPENDS "PyTorch")' in library


def test_what_the_module_reads_at_run_time_is_installed(repository: Path) -> None:
    listed = listed_files((repository / "CMakeLists.txt").read_text(encoding="utf-8"), "SPDSEGMENT_RESOURCES")
    models = [f"Models/{folder.name}" for folder in (repository / "Resources" / "Models").iterdir() if folder.is_dir()]
    assert len(models) >= 3
    parts = [f"{model}/{part}" for model in models for part in ("model.json", "adapter.safetensors", "README.md")]
    assert {f"Resources/{name}" for name in (*AT_RUN_TIME, *parts)} <= set(listed)
    assert not any("Screenshots" in name for name in listed)


def test_the_extension_says_what_the_index_asks_for(repository: Path) -> None:
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    assert all(f"set(EXTENSION_{name} " in text for name in REQUIRED)
    ends = ["find_package(Slicer REQUIRED)", "include(${Slicer_USE_FILE})", "add_subdirectory(SPDSegment)"]
    ends += ["include(${Slicer_EXTENSION_GENERATE_CONFIG})", "include(${Slicer_EXTENSION_CPACK})"]
    assert sorted(ends, key=text.index) == ends
    assert (repository / "LICENSE.txt").is_file()


def test_a_checkout_stays_far_below_what_the_index_allows(repository: Path) -> None:
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    sizes = [(repository / name).stat().st_size for names in LISTS for name in listed_files(text, names)]
    assert sum(sizes) < 60e6
