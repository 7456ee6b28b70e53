"""Rows that a script keeps beside what they were measured with, so that rows of other inputs are not taken for them.

A file is ``{"inputs": {...}, "rows": [...]}``; one of before that has rows alone can be read, and not gone on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from SPDSegmentLib.files import write_json
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.prompts.noise import NOISE_VERSION

Rows = list[dict[str, Any]]


def inputs_of(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    """What rows of a bundle depend on: the bundle, the version of the clicks, and a script's settings."""
    of_bundle = {"adapter_sha256": bundle.info.adapter_sha256, "prompts": bundle.info.prompts}
    inputs: dict[str, Any] = json.loads(json.dumps({**of_bundle, "noise_version": NOISE_VERSION, **settings}))
    return inputs


def rows_in(path: Path) -> Rows:
    """Every row of a file, whatever it was measured with."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows: Rows = kept["rows"] if isinstance(kept, dict) else kept
    return rows


def rows_to_go_on_with(path: Path, inputs: dict[str, Any], table: Callable[[Rows], Iterable[str]]) -> Rows:
    """Rows of a file that were measured with these inputs; none where there is no file.

    Args:
        table: the lines of a script's table, which is printed of rows that are refused, too.

    Raises:
        SystemExit: they were measured with others, or nobody knows with which.
    """
    if not path.is_file():
        return []
    kept = json.loads(path.read_text(encoding="utf-8"))
    before = kept.get("inputs", {}) if isinstance(kept, dict) else {}
    if before != inputs:
        other = ", ".join(name for name in {**before, **inputs} if before.get(name) != inputs.get(name))
        print(*table(rows_in(path)), sep="\n", flush=True)
        raise SystemExit(f"{path} was measured with other inputs ({other}): move it away, and it is measured again.")
    return rows_in(path)


def keep(path: Path, inputs: dict[str, Any], rows: Rows) -> None:
    """Write rows and what they were measured with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"inputs": inputs, "rows": rows}, "rows", indent=None)
