"""What a training cost, as the comparator wrote it into ``training.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_training_record(folder: Path) -> dict[str, Any]:
    """``steps``, ``seconds`` and ``parameters`` where they are known; empty without a record."""
    try:
        values = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
