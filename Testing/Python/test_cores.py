"""On a CPU each core embeds slices of its own; what comes out is what one core gives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tiny_predictor import tiny_predictor
from torch import Tensor

from SPDSegmentLib.cli.batch_command import _share_cores
from SPDSegmentLib.errors import OutOfMemory
from SPDSegmentLib.geometry import limits
from SPDSegmentLib.inference import acceleration
from SPDSegmentLib.inference.acceleration import batch_for_cores, keep_to_own_cores, on_cores
from SPDSegmentLib.inference.engine import list_devices


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two threads of torch's for this test, as many as before afterward."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Spy:
    """Doubles a batch; notes the size of each part, the thread that it came on, and how many cores torch uses there."""

    def __init__(self, fail: type[Exception] | None = None) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self._fail = fail
        self._both = threading.Barrier(2, timeout=20)

    def __call__(self, batch: Tensor) -> Tensor:
        self.seen.append((len(batch), threading.get_ident(), torch.get_num_threads()))
        if len(batch) < 4:
            self._both.wait()  # both parts are under way at once
        if self._fail is not None and batch[0, 0] == 0:
            raise self._fail
        return batch * 2


def _noting(seen: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    def run(batch: Tensor) -> Tensor:
        seen.append((len(batch), torch.get_num_threads()))
        return batch

    return run


@pytest.mark.parametrize(("own", "threads"), [(1, 1), (2, 2), (8, 2)])
def test_torch_has_no_more_threads_than_a_container_has_cores(
    monkeypatch: pytest.MonkeyPatch, own: int, threads: int
) -> None:
    monkeypatch.setattr(acceleration, "usable_cores", lambda: own)
    keep_to_own_cores()
    assert torch.get_num_threads() == threads


def test_a_batch_is_split_among_the_cores_and_comes_back_in_order() -> None:
    spy, batch = Spy(), torch.arange(5.0)[:, None]
    assert torch.equal(on_cores(spy, batch), batch * 2)
    assert sorted(n for n, _, _ in spy.seen) == [2, 3] and len({thread for _, thread, _ in spy.seen}) == 2
    assert [used for _, _, used in spy.seen] == [1, 1] and torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "slices"), [(1, 4), (2, 1), (9, 4)])
def test_where_cores_would_have_nothing_to_do_all_work_on_all(threads: int, slices: int) -> None:
    torch.set_num_threads(threads)
    seen: list[tuple[int, int]] = []
    on_cores(_noting(seen), torch.zeros(slices, 1))
    assert seen == [(slices, threads)]


def test_an_error_in_one_part_comes_after_the_other_has_ended() -> None:
    spy = Spy(fail=MemoryError)
    with pytest.raises(MemoryError):
        on_cores(spy, torch.arange(4.0)[:, None])
    assert len(spy.seen) == 2
    assert torch.equal(on_cores(Spy(), torch.ones(4, 1)), torch.full((4, 1), 2.0))


def test_where_threads_of_torch_share_one_number_nothing_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_pools", {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # also in the threads of the pool
    seen: list[tuple[int, int]] = []
    on_cores(_noting(seen), torch.zeros(4, 1))
    assert seen == [(4, 2)]


@pytest.mark.parametrize("why", ["too busy", "one more thread is refused"])
def test_where_the_threads_do_not_start_nothing_is_split_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    monkeypatch.setattr(acceleration, "_pools", {})
    begin, begun = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begin(thread)

    if why == "too busy":
        monkeypatch.setattr(acceleration, "START_SECONDS", 0.0)
    else:
        monkeypatch.setattr(threading.Thread, "start", start)
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        on_cores(_noting(seen), torch.zeros(4, 1))
    assert seen == [(4, 2)] * 2 and torch.get_num_threads() == 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Slices are not divided among the cores"
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")
def test_a_forked_child_of_a_process_that_has_segmented_segments_the_same(repository: Path) -> None:
    code = (
        "import multiprocessing, numpy, torch\n"
        "from SPDSegmentLib.geometry.slices import SliceStack\n"
        "from tiny_predictor import tiny_predictor, tube_volume\n"
        "from test_session import clicks_at, center\n"
        "torch.set_num_threads(2)\n"
        "model, clicks = tiny_predictor(), clicks_at(center(10))\n"
        "def mask(): return model.open(SliceStack(tube_volume(), 'axial')).segment(clicks).mask\n"
        "own = mask()\n"
        "assert own.any() and torch.get_num_threads() == 2\n"
        "def work(): assert numpy.array_equal(mask(), own)\n"
        "child = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n"
        "child.start()\n"
        "child.join(60)\n"
        "print('ended with', child.exitcode)\n"
    )
    options = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (repository, Path(__file__).parent)))}
    options.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", code], env=options, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ended with 0", done.stderr


def test_each_core_has_two_slices_within_reason() -> None:
    found = []
    for threads in (1, 2, 4, 64):
        torch.set_num_threads(threads)
        found.append(batch_for_cores())
    assert found == [4, 4, 8, 16]


def test_embeddings_are_those_of_one_core_and_memory_that_runs_out_halves_the_batch() -> None:
    engine = tiny_predictor().engine
    images = torch.rand(5, 1, engine.image_size, engine.image_size)
    together = engine.encode(images)
    torch.set_num_threads(1)
    assert torch.allclose(together, engine.encode(images), atol=1e-5)
    torch.set_num_threads(2)
    sizes: list[int] = []

    def fail(batch: Tensor) -> Tensor:
        raise MemoryError

    def run(batch: Sequence[int]) -> None:
        sizes.append(len(batch))
        on_cores(fail, torch.zeros(len(batch), 1))

    engine.batch_size = 4
    with pytest.raises(OutOfMemory):
        engine.with_smaller_batches(list(range(4)), run)
    assert sizes == [4, 2, 1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_workers_share_the_cores_of_the_job_and_not_those_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(limits, "SYSTEM", tmp_path)
    _share_cores(4)
    assert os.environ["OMP_NUM_THREADS"] == "2" and list_devices()[-1][1] == "CPU, 8 cores"
