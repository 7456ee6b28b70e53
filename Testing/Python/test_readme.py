"""Links and pictures of the README."""

from __future__ import annotations

import re
from pathlib import Path

MAX_BYTES = 300_000


def test_every_link_and_picture_of_the_readme_is_there(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    if "<!-- results -->" in text:  # a part that is still to come
        anchors.add("how-good-is-it")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not link.startswith("#") and not (repository / link).exists()]
    missing += [link for link in links if link.startswith("#") and link[1:] not in anchors]
    assert missing == []


def test_pictures_of_the_tutorial_are_small(repository: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (repository / "Resources" / "Screenshots").glob("slicer-*.png")}
    assert len(sizes) == 5 and max(sizes.values()) < MAX_BYTES, sizes
