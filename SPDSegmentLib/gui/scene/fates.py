"""From the worker's decisions about every point on every slice to one line for each click."""

from __future__ import annotations

from collections.abc import Iterable

from SPDSegmentLib.prompts.fates import BORROWED, INSISTED, KEPT, OUTSIDE, REJECTED, SYNTHESIZED, best_fates
from SPDSegmentLib.worker.payloads import Fate

from .write_record import ClickFate

COLORS = {
    KEPT: (0.20, 0.72, 0.35),
    INSISTED: (0.55, 0.85, 0.15),
    BORROWED: (0.20, 0.55, 0.95),
    REJECTED: (0.90, 0.25, 0.20),
    SYNTHESIZED: (0.80, 0.45, 0.90),
    OUTSIDE: (0.55, 0.55, 0.55),
}


def clickFates(fates: Iterable[Fate]) -> list[ClickFate]:
    """Return one fate for each click and for each synthesized point, see ``prompts.fates.best_fates``."""
    return [
        ClickFate(fate.click_id, fate.fate, fate.slice_index, fate.position_ras, fate.reason)
        for fate in best_fates(fates)
    ]
