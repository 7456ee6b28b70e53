"""Links, pictures and figures of the README."""

from __future__ import annotations

import re
from pathlib import Path

MAX_BYTES = 300_000


def anchors_of(page: Path) -> set[str]:
    """Names by which the parts of a page can be linked to."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_and_picture_of_the_readme_is_there(repository: Path) -> None:
    readme = repository / "README.md"
    links = re.findall(r"\]\(([^)]+)\)", readme.read_text(encoding="utf-8"))
    missing = []
    for link in links:
        name, _, anchor = link.partition("#")
        page = repository / name if name else readme
        if not link.startswith("http") and (not page.exists() or (anchor and anchor not in anchors_of(page))):
            missing.append(link)
    assert len(links) > 20 and missing == []


def test_every_figure_of_quality_and_speed_in_the_readme_stands_in_the_results(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    part = text[text.index("## How good is it") : text.index("## Safety and privacy")]
    results = (repository / "docs" / "results.md").read_text(encoding="utf-8")
    figures = re.findall(r"\b0\.\d{3}(?: \(\d+\.\d\))?|\b\d+\.\d+ s\b", part)
    assert len(figures) > 20 and [figure for figure in figures if figure not in results] == []


def test_pictures_of_the_tutorial_are_small(repository: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (repository / "Resources" / "Screenshots").glob("slicer-*.png")}
    assert len(sizes) == 6 and max(sizes.values()) < MAX_BYTES, sizes
