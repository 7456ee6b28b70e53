"""Stand-in of `slicer.packaging`: nothing is installed, every request is recorded."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


@dataclass
class InstallRecord:
    """Requests to install, and packages that a test declares missing or broken."""

    requests: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    failure: Exception | None = None

    def reset(self) -> None:
        """Forget requests and declarations."""
        self.requests.clear()
        self.missing.clear()
        self.failure = None

    def install(self, command: str, requirements: tuple[str, ...]) -> None:
        """Record a request; the packages are no longer missing, or the prepared failure is raised."""
        self.requests.append((command, requirements))
        if self.failure is not None:
            raise self.failure
        self.missing -= {Requirement(text).name for text in requirements}


record = InstallRecord()


def _as_tuple(requirements: Any) -> tuple[str, ...]:
    if isinstance(requirements, (str, Requirement)):
        return tuple(str(requirements).split())
    return tuple(str(requirement) for requirement in requirements)


def pip_check(req: Any) -> bool:
    """Tell whether all requirements are met by what is installed."""
    return all(_is_met(Requirement(text)) for text in _as_tuple(req))


def _is_met(requirement: Requirement) -> bool:
    if requirement.name in record.missing:
        return False
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def pip_ensure(
    requirements: Any,
    constraints: Any = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> list[str]:
    """Record a request for what is not met yet."""
    needed = tuple(text for text in _as_tuple(requirements) if not pip_check(text))
    if needed:
        record.install("pip_ensure", needed)
    return []


def pip_install(requirements: Any, **_options: Any) -> None:
    """Record a request."""
    record.install("pip_install", _as_tuple(requirements))


def pip_uninstall(requirements: Any, **_options: Any) -> None:
    """Record a request."""
    record.requests.append(("pip_uninstall", _as_tuple(requirements)))


def load_pyproject_dependencies(path: str | Path) -> list[Requirement]:
    """Return the dependencies that a pyproject.toml names."""
    table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return [Requirement(text) for text in table["project"].get("dependencies", [])]
