"""Rewrite the lists of files in CMakeLists.txt from the tree: python Testing/update_cmake_lists.py"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = {"SPDSEGMENT_SCRIPTS": ("SPDSegmentLib", ".py"), "SPDSEGMENT_RESOURCES": ("Resources", "")}
NOT_INSTALLED = ("Resources/Screenshots/",)  # pictures of the README


def present_files(folder: str, suffix: str, root: Path = ROOT) -> list[str]:
    """Files of a folder that are installed, relative to the repository."""
    found = (path for path in (root / folder).rglob(f"*{suffix}") if path.is_file())
    names = (path.relative_to(root) for path in found)
    return sorted(
        name.as_posix()
        for name in names
        if not any(part == "__pycache__" or part.startswith(".") for part in name.parts)
        and not name.as_posix().startswith(NOT_INSTALLED)
    )


def listed_files(text: str, name: str) -> list[str]:
    """Files that a list of CMakeLists.txt names."""
    found = re.search(rf"set\({name}\n(.*?)\n?  \)", text, re.DOTALL)
    return [line.strip() for line in found.group(1).splitlines()] if found else []


def updated(text: str) -> str:
    """CMakeLists.txt with both lists as the tree is."""
    for name, (folder, suffix) in LISTS.items():
        lines = "".join(f"  {path}\n" for path in present_files(folder, suffix))
        text = re.sub(rf"set\({name}\n.*?  \)", f"set({name}\n{lines}  )", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    file = ROOT / "CMakeLists.txt"
    file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
