"""Rewrite what docs/architecture.md shows of the code: python Testing/update_docs.py"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Testing" / "Python"))
from test_layers import LAYERS, PACKAGE, imported_names, module_name, part_of, sources  # noqa: E402

PAGE = ROOT / "docs" / "architecture.md"
CLICK_WAY = [
    "SPDSegment/SPDSegment.py",
    "gui/panel/panel.py",
    "gui/panel/clicks_section.py",
    "gui/run/segmenter.py",
    "gui/run/task.py",
    "gui/scene/target.py",
    "gui/scene/centerlines.py",
    "geometry/centerline.py",
    "geometry/slices.py",
    "gui/run/worker_host.py",
    "worker/client.py",
    "worker/requests.py",
    "worker/connection.py",
    "worker/messages.py",
    "worker/protocol.py",
    "worker/pipes.py",
    "worker/transports.py",
    "worker/server.py",
    "worker/handler.py",
    "inference/predictor.py",
    "inference/session.py",
    "inference/features.py",
    "inference/engine.py",
    "prompts/strategies.py",
    "prompts/distillation.py",
    "networks/spd.py",
    "inference/results.py",
    "prompts/fates.py",
    "worker/payloads.py",
    "gui/run/job.py",
    "gui/run/result_writer.py",
    "gui/scene/write_record.py",
    "gui/panel/overlays.py",
]
"""Files in the order in which a click, and then its mask, comes through them."""


def way_file(name: str) -> Path:
    """Path of a file of CLICK_WAY."""
    return ROOT / (name if name.startswith("SPDSegment/") else f"{PACKAGE}/{name}")


def way_table() -> str:
    """The files of a click's way, each with the first sentence of its docstring."""
    rows = []
    for number, name in enumerate(CLICK_WAY, start=1):
        text = ast.get_docstring(ast.parse(way_file(name).read_text(encoding="utf-8"))) or ""
        said = text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| {number} | `{name}` | {said} |\n")
    return "| | file | what it is |\n|---|---|---|\n" + "".join(rows)


def imports_of_parts() -> dict[str, set[str]]:
    """What each part of the library imports, without what it already reaches through another part."""
    direct: dict[str, set[str]] = {part: set() for part in LAYERS}
    for path in sources(ROOT):
        part = part_of(module_name(ROOT, path))
        others = {part_of(name) for name, _ in imported_names(ROOT, path)} - {None, part}
        if part is not None:
            direct[part] |= {other for other in others if other is not None and LAYERS[other] < LAYERS[part]}

    def reached(part: str) -> set[str]:
        return direct[part].union(*(reached(other) for other in direct[part]))

    return {part: others - set().union(*map(reached, others)) for part, others in direct.items()}


def picture() -> str:
    """The layers as a Mermaid flowchart, the highest at the top."""
    lines = ["```mermaid", "flowchart TD"]
    for height in sorted(set(LAYERS.values()), reverse=True):
        parts = " ".join(f"{part}[{part}]" for part in LAYERS if LAYERS[part] == height).split()
        lines += [f"  subgraph L{height}[layer {height}]", *(f"    {part}" for part in parts), "  end"]
    lines += [f"  {part} --> {other}" for part, others in imports_of_parts().items() for other in sorted(others)]
    return "\n".join([*lines, "```\n"])


def updated(text: str) -> str:
    """The page with both generated parts as the code is."""
    for name, content in (("layers", picture()), ("way", way_table())):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = before + start + content + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
