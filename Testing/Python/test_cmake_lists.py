"""What CMake installs is what the tree has."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.update_cmake_lists import LISTS, listed_files, present_files


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
