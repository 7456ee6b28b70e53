"""A short run of the protocol fuzz; ``make soak`` runs 10,000 frames, ``make fuzz`` frames and files."""

from __future__ import annotations

from worker_fuzz import fuzz_client, fuzz_server


def test_the_server_answers_or_refuses_every_mutated_frame() -> None:
    summary = fuzz_server(500, seed=1)
    assert summary.faults == []
    assert summary.outcomes["still serving"] > 250 and summary.outcomes["stream ended"] > 50


def test_the_client_survives_every_mutated_frame() -> None:
    summary = fuzz_client(1000, seed=2)
    assert summary.faults == []
    assert summary.outcomes["running"] > 100 and summary.outcomes["WorkerDied"] > 100
