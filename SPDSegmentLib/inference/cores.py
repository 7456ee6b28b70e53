"""Slices of a batch side by side on a CPU's cores, each on one.

Every layer of one core stays in its cache (``works_in_tiles`` of the encoder); many cores on one layer wait for one
another and for the memory (``Testing/Benchmarks/encoder_variants.py``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
FEWEST, MOST = 4, 16
"""Slices per call on few and on many cores."""
START_SECONDS = 10.0
_pools: dict[tuple[int, int], ThreadPoolExecutor | None] = {}
_lock = threading.Lock()


def batch_for_cores() -> int:
    """Slices per call that keep all cores busy: two for each of them."""
    return max(FEWEST, min(2 * torch.get_num_threads(), MOST))


def on_cores(run: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``run`` on (B, ...), split among torch's threads; on all at once where half of them would get no slice."""
    threads = torch.get_num_threads()
    if len(batch) == 1 or not 1 < threads <= 2 * len(batch) or _pool(threads) is None:
        return run(batch)
    return torch.cat(each_on_a_core(run, batch.tensor_split(min(len(batch), threads))))


def each_on_a_core(run: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``run`` of each item on one core, also where there is only one, so that no item depends on the others.

    Whatever ``run`` raises is raised when none is under way any more.
    """
    threads = torch.get_num_threads()
    pool = _pool(threads) if threads > 1 else None
    if pool is None:
        return [run(item) for item in items]

    def work(item: T) -> R:
        with torch.inference_mode():
            return run(item)

    futures = [pool.submit(work, item) for item in items]
    wait(futures)
    return [future.result() for future in futures]


def _pool(threads: int) -> ThreadPoolExecutor | None:
    """As many threads, of which torch uses one core each; ``None`` where this build of torch cannot tell them apart."""
    with _lock:
        key = (os.getpid(), threads)  # a forked process has none of them
        if key not in _pools:
            _pools[key] = _start(threads)
        return _pools[key]


def _start(threads: int) -> ThreadPoolExecutor | None:
    all_here = threading.Barrier(threads, timeout=START_SECONDS)

    def alone() -> int:
        torch.set_num_threads(1)
        all_here.wait()
        return torch.get_num_threads()

    pool = ThreadPoolExecutor(threads, "slices")
    try:
        found = [future.result() for future in [pool.submit(alone) for _ in range(threads)]]
    finally:
        torch.set_num_threads(threads)  # it is also what threads to come begin with
    if found != [1] * threads or torch.get_num_threads() != threads:
        pool.shutdown(wait=False)
        return None
    return pool
