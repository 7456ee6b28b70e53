"""Write the tree that goes to the Slicer Extensions Index, and check all of it that can be checked without a network.

    python Testing/publish_tree.py --repository https://github.com/OWNER/SlicerSPDSegment [--output build/publish]

The tree is what the last commit holds, as a repository of one commit; an earlier one of this script is replaced, and
nothing else. The address of the repository is the one setting
``SPDSEGMENT_REPOSITORY`` of CMakeLists.txt, or ``--repository`` in its place; homepage, icon and screenshots follow
from it and are written out in the tree, so that programs that only read CMakeLists.txt find them. Beside the tree lies
``SPDSegment.json``, the file for a pull request at the Index. Every failed check is said; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Testing.update_cmake_lists import LISTS, listed_files, present_files

ROOT = Path(__file__).resolve().parents[1]
MODULE = "SPDSegment"
SETTING = "SPDSEGMENT_REPOSITORY"
FIELDS = ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS")
CHECKOUT_BYTES, TREE_BYTES, FILE_BYTES = 40_000_000, 100_000_000, 50_000_000
LARGEST_SCREENSHOT = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"


class PublishError(Exception):
    """The tree cannot be written; one sentence says why."""


def cmake_settings(text: str) -> dict[str, str]:
    """Values of every ``set(NAME "value")`` on a line of its own, with those set above it put in."""
    values: dict[str, str] = {}
    for name, value in re.findall(r'^set\((\w+) "([^"]*)"\)$', text, re.MULTILINE):
        values[name] = _with_values(value, values)
    return values


def filled_in(text: str, repository: str) -> str:
    """CMakeLists.txt with an address of the repository and everything that follows from it written out."""
    text = re.sub(rf'^set\({SETTING} "[^"]*"\)$', f'set({SETTING} "{repository}")', text, flags=re.MULTILINE)
    for name, value in cmake_settings(text).items():
        if name.startswith("EXTENSION_"):
            text = re.sub(rf'^set\({name} "[^"]*"\)$', f'set({name} "{value}")', text, flags=re.MULTILINE)
    return text


def _with_values(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def write_tree(source: Path, output: Path, repository: str) -> None:
    """The last commit of ``source`` as a repository of one commit in ``output``; such a tree there is replaced.

    Raises:
        PublishError: ``source`` has changes that are not committed, or ``output`` holds something else or ``source``.
    """
    if _git(source, "status", "--porcelain", "--untracked-files=no"):
        raise PublishError(f"{source} has changes that are not committed; commit them or put them aside first.")
    if output.exists() and any(output.iterdir()) and (_lies_in(source, output) or not _was_written_here(output)):
        raise PublishError(f"{output} holds other files or commits; name a folder that is empty or not there.")
    author = _git(source, "log", "-1", "--format=%an <%ae>")
    date = _git(source, "log", "-1", "--format=%aI")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as made:
        tree = Path(made) / "tree"
        archive = Path(made) / "tree.tar"
        _git(source, "archive", "--output", str(archive), "HEAD")
        with tarfile.open(archive) as file:
            file.extractall(tree, filter="data")
        cmake = tree / "CMakeLists.txt"
        cmake.write_text(filled_in(cmake.read_text(encoding="utf-8"), repository), encoding="utf-8")
        _git(tree, "init", "--quiet", "--initial-branch", "main")
        _git(tree, "add", "--all", "--force")
        name, _, address = author.rpartition(" <")
        identity = ["-c", f"user.name={name}", "-c", f"user.email={address.rstrip('>')}"]
        _git(tree, *identity, "commit", "--quiet", "--date", date, "-m", f"{MODULE} {version_of(tree)}")
        _git(tree, "gc", "--quiet", "--prune=now")
        shutil.rmtree(output, ignore_errors=True)
        tree.rename(output)


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _was_written_here(output: Path) -> bool:
    """Whether the folder is what :func:`write_tree` left: one commit of its own and nothing besides, ignored or not."""
    if not all((output / name).exists() for name in (".git", "SPDSegmentLib/__init__.py")):
        return False
    commits = _git(output, "log", "--all", "--reflog", "--format=%s").splitlines()
    besides = _git(output, "status", "--porcelain", "--ignored")
    return len(commits) == 1 and commits[0] == f"{MODULE} {version_of(output)}" and not besides


def index_entry(settings: dict[str, str]) -> dict[str, object]:
    """The entry of the extension in the Extensions Index."""
    return {
        "$schema": "https://raw.githubusercontent.com/Slicer/ExtensionsIndex/main/schemas/"
        "slicer-extension-catalog-entry-schema-v1.0.1.json#",
        "build_dependencies": settings.get("EXTENSION_DEPENDS", "").split(),
        "build_subdirectory": ".",
        "category": settings.get("EXTENSION_CATEGORY", ""),
        "scm_revision": "main",
        "scm_url": f"{settings.get(SETTING, '')}.git",
        "tier": 1,
    }


def problems_of(tree: Path) -> list[str]:
    """A sentence for everything that would fail at the Index."""
    return [*_layout(tree), *_license(tree), *_fields(tree), *_pictures(tree), *_sizes(tree)]


def version_of(tree: Path) -> str:
    """The version that the library says of itself."""
    found = re.search(r'__version__ = "([^"]+)"', (tree / "SPDSegmentLib" / "__init__.py").read_text(encoding="utf-8"))
    return found.group(1) if found else "0"


def _layout(tree: Path) -> Iterator[str]:
    path = tree / "CMakeLists.txt"
    if not path.is_file():
        yield "CMakeLists.txt is not at the top of the tree."
        return
    text = path.read_text(encoding="utf-8")
    if f"project({MODULE})" not in text:
        yield f"CMakeLists.txt does not say project({MODULE}), the extension's name at the Index."
    for name in (f"{MODULE}/CMakeLists.txt", f"{MODULE}/{MODULE}.py", "README.md"):
        if not (tree / name).is_file():
            yield f"{name} is not in the tree."
    for folder in re.findall(r"^add_subdirectory\((\w+)\)", text, re.MULTILINE):
        if not (tree / folder / "CMakeLists.txt").is_file():
            yield f"CMakeLists.txt adds the folder {folder}, which has no CMakeLists.txt."
    for name, (folder, suffix) in LISTS.items():
        listed, present = set(listed_files(text, name)), set(present_files(folder, suffix, tree))
        for missing in sorted(listed - present):
            yield f"{missing} is listed in {name} of CMakeLists.txt and is not in the tree."
        for unlisted in sorted(present - listed):
            yield f"{unlisted} is not listed in {name} of CMakeLists.txt; run python Testing/update_cmake_lists.py."


def _license(tree: Path) -> Iterator[str]:
    path = tree / "LICENSE.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "Apache License" not in text[:400] or "Version 2.0" not in text[:400]:
        yield "LICENSE.txt at the top of the tree is not the Apache License, Version 2.0."
    project = tree / "pyproject.toml"
    if project.is_file() and 'license = "Apache-2.0"' not in project.read_text(encoding="utf-8"):
        yield "pyproject.toml names another license than LICENSE.txt."


def _fields(tree: Path) -> Iterator[str]:
    settings = _settings(tree)
    for name in FIELDS:
        if not settings.get(f"EXTENSION_{name}", "").strip():
            yield f"EXTENSION_{name} is empty in CMakeLists.txt."
        elif "${" in settings[f"EXTENSION_{name}"]:
            yield f"EXTENSION_{name} in CMakeLists.txt uses a variable that is set nowhere above it."
    repository = settings.get(SETTING, "")
    if not repository:
        yield f"{SETTING} is empty: set it in CMakeLists.txt or give --repository."
        return
    address = urlsplit(repository)
    if address.scheme != "https" or not address.netloc or repository.endswith(("/", ".git")):
        yield f"{SETTING} is '{repository}', which is not an address like https://github.com/OWNER/SlicerSPDSegment."
    elif "slicer" not in address.path.rpartition("/")[2].lower():
        name = address.path.rpartition("/")[2]
        yield f"The repository's name '{name}' must contain 'Slicer', as SlicerSPDSegment does."


def _pictures(tree: Path) -> Iterator[str]:
    settings = _settings(tree)
    prefix = settings.get("SPDSEGMENT_FILES", "") + "/"
    icon = settings.get("EXTENSION_ICONURL", "")
    shots = settings.get("EXTENSION_SCREENSHOTURLS", "").split()
    for address in [icon, *shots]:
        if not address:
            continue
        if not address.startswith(prefix) or prefix == "/":
            yield f"{address} does not begin with the address of the repository's files, ${{SPDSEGMENT_FILES}}."
            continue
        name = address.removeprefix(prefix)
        size = _png_size(tree / name)
        if size is None:
            yield f"{name}, which CMakeLists.txt names, is not a PNG file in the tree."
        elif address == icon and size[0] != size[1]:
            yield f"The icon {name} is {size[0]} x {size[1]} pixels, not square."
        elif address != icon and (tree / name).stat().st_size > LARGEST_SCREENSHOT:
            yield f"The screenshot {name} is larger than {LARGEST_SCREENSHOT / 1e6:g} MB."
    readme = tree / "README.md"
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme.read_text(encoding="utf-8") if readme.is_file() else ""):
        if "://" not in name and not (tree / name).is_file():
            yield f"README.md shows {name}, which is not in the tree."


def _sizes(tree: Path) -> Iterator[str]:
    sizes = {path: path.stat().st_size for path in tree.rglob("*") if path.is_file()}
    own = {path: size for path, size in sizes.items() if ".git" not in path.relative_to(tree).parts}
    for path, size in own.items():
        if size > FILE_BYTES:
            yield f"{path.relative_to(tree)} is {size / 1e6:.0f} MB; a file may have {FILE_BYTES / 1e6:.0f}."
    for what, total, limit in (
        ("The files", sum(own.values()), CHECKOUT_BYTES),
        ("The tree with .git", sum(sizes.values()), TREE_BYTES),
    ):
        if total > limit:
            yield f"{what} take {total / 1e6:.0f} MB; at most {limit / 1e6:.0f} are allowed."


def _settings(tree: Path) -> dict[str, str]:
    path = tree / "CMakeLists.txt"
    return cmake_settings(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _png_size(path: Path) -> tuple[int, int] | None:
    """Width and height; ``None`` where there is no PNG file."""
    head = path.read_bytes()[:24] if path.is_file() else b""
    if len(head) < 24 or not head.startswith(PNG):
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PublishError(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: list[str] | None = None, source: Path = ROOT) -> int:
    """Write the tree and its entry, and say what fails; 0 when nothing does, 2 when there is no tree."""
    parser = argparse.ArgumentParser(prog="publish_tree.py", description="The tree for the Extensions Index.")
    parser.add_argument("--repository", default="", help=f"address of the repository, in place of {SETTING}")
    parser.add_argument("--output", type=Path, default=source / "build" / "publish", help="folder for the tree")
    given = parser.parse_args(arguments)
    output = given.output.resolve()
    repository = given.repository or _settings(source).get(SETTING, "")
    try:
        write_tree(source, output, repository)
    except (PublishError, OSError) as error:
        print(f"No tree was written: {error}", file=sys.stderr)
        return 2
    entry = output.with_name(f"{MODULE}.json")
    entry.write_text(json.dumps(index_entry(_settings(output)), indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: one commit, {size / 1e6:.0f} MB with .git; the entry for the Index is {entry}.")
    problems = problems_of(output)
    for problem in problems:
        print(f"FAILS: {problem}")
    print(f"{len(problems)} checks fail." if problems else "Everything that can be checked here is as the Index asks.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
