"""What is packed, declared and pinned agrees with the tree."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_layers import PACKAGE, SLICER, benchmark_sources, imported_names, sources

from SPDSegmentLib.errors import REQUIREMENTS

IMPORT_OF = {"SimpleITK": "simpleitk", "skimage": "scikit-image", "distributed": "dask"}


def normalized(name: str) -> str:
    """Name of a distribution as package indexes compare it, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;]", name, maxsplit=1)[0]).lower()


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    """The content of ``pyproject.toml``."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def requirements(project: dict[str, Any]) -> set[str]:
    """Names of all declared dependencies, extras included."""
    extras = project["project"]["optional-dependencies"].values()
    return {normalized(r) for group in [project["project"]["dependencies"], *extras] for r in group}


def test_exactly_the_folders_of_the_library_are_packed(repository: Path, project: dict[str, Any]) -> None:
    packed = set(project["tool"]["setuptools"]["packages"]) - {f"{PACKAGE}.Resources"}
    # gui runs inside 3D Slicer, which gets it from the extension
    present = {
        ".".join(path.parent.relative_to(repository).parts)
        for path in sources(repository)
        if "gui" not in path.parent.relative_to(repository).parts
    }
    assert packed == present


def test_every_import_is_declared(repository: Path, requirements: set[str]) -> None:
    known = set(sys.stdlib_module_names) | SLICER | {PACKAGE, "spdbench"}
    undeclared = {
        f"{path.relative_to(repository)} imports {name}"
        for path in [*sources(repository), *benchmark_sources(repository)]
        for name, _ in imported_names(repository, path)
        if (top := name.split(".")[0]) not in known
        if normalized(IMPORT_OF.get(top, top)) not in requirements
        if "gui" not in path.relative_to(repository).parts
    }
    assert undeclared == set()


def test_every_declared_dependency_is_pinned(repository: Path, requirements: set[str]) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert requirements <= {normalized(name) for name in pins}
    assert pins["torch"] == "2.13.0"


def test_hooks_before_a_commit_run_every_check_of_make_lint(repository: Path) -> None:
    recipes = re.findall(
        r"^(?:lint|style):.*\n((?:\t.*\n)+)", (repository / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    checks = {words.strip() for recipe in recipes for words in re.findall(r"\$\(BIN\)/(\w+ ?\w*)", recipe)}
    hooks = (repository / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert checks >= {"ruff check", "ruff format", "mypy", "hadolint Dockerfile"}
    assert [check for check in checks if f".venv/bin/{check}" not in hooks] == []


def test_what_a_message_tells_to_install_is_what_is_declared(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    declared = {r for group in [project["project"]["dependencies"], *extras.values()] for r in group}
    assert set(REQUIREMENTS.values()) <= declared
    assert {IMPORT_OF.get(name, name).replace("_", "-") for name in REQUIREMENTS} - {"distributed"} == {
        normalized(requirement) for requirement in REQUIREMENTS.values()
    }
