"""Short versions of the module's long runs; ``python Testing/Soak/module.py`` runs the long ones."""

from __future__ import annotations

import os
from typing import Any

import module_soak
import pytest

pytest_plugins = ["Testing.Host.pytest_plugin"]

KILLS = int(os.environ.get("SPDSEGMENT_SOAK_KILLS", "6"))
UPDATES = int(os.environ.get("SPDSEGMENT_SOAK_UPDATES", "10"))
LONG_RUN = 100
MAX_GROWTH = 0.05
MAX_SECONDS = 2.0


@pytest.mark.alone
def test_kills_at_random_moments_lose_nothing(host: Any) -> None:
    killed = module_soak.kills(host, KILLS)
    print(killed)
    assert killed.before + killed.during + killed.after == KILLS
    assert killed.median_seconds < MAX_SECONDS
    assert KILLS < LONG_RUN or killed.longest_seconds < MAX_SECONDS


def test_live_updates_in_a_row_do_not_fill_the_memory(host: Any) -> None:
    growth = module_soak.updates(host, UPDATES)
    print(growth, f"{growth.largest:+.2%}")
    assert UPDATES < LONG_RUN or growth.largest < MAX_GROWTH
