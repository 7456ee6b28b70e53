"""Short runs of the worker's long tests; ``Testing/Soak`` has the long ones."""

from __future__ import annotations

import pytest
from worker_drivers import FAKE_WORKER, TRANSPORTS
from worker_soak import kills, sending, updates, volumes

from SPDSegmentLib.worker.client import ModelChoice
from SPDSegmentLib.worker.requests import WorkerCommand
from Testing.Host.environment import limit


@pytest.mark.alone
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_memory_stays_over_many_updates(transport: str) -> None:
    growth = updates(transport, 30)
    assert growth.client_share < 0.05 and growth.worker_share < 0.05, growth


@pytest.mark.alone
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_at_random_moments_the_next_result_is_whole_and_soon_there(transport: str) -> None:
    result = kills(transport, 4)
    assert result.longest_seconds < limit(2.0), result


def test_many_volumes_take_no_more_than_their_bound() -> None:
    command = WorkerCommand((*FAKE_WORKER.arguments, "--volume-memory", "40"))
    peaks = volumes((1, 12), (40, 256, 512), ModelChoice("fake"), command)
    assert peaks[12] - peaks[1] < 60 << 20, "120 MB were sent"


@pytest.mark.alone
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_volume_hardly_costs_the_caller_any_time(transport: str) -> None:
    cost = sending(transport)
    assert cost.submit < limit(0.05), cost
    assert cost.longest_call < 0.05, cost
    assert cost.all_calls < 0.3, cost
