"""What makes the network fast on its device, and how many slices of a batch its memory takes.

On a CPU slices lie side by side on its cores, each on one: every layer of one core stays in its cache
(``works_in_tiles`` of the encoder); many cores on one layer wait for one another and for the memory
(``Testing/Benchmarks/encoder_variants.py``).

On a GPU the encoder is compiled in the background for one batch size, and the decoder captured. Compiling takes a
minute or more, so it begins after the first result, on a thread of its own; the eager encoder serves until the compiled
one is there and gives the same embeddings. The decoder's passes are CUDA graphs from then on. Where either fails, the
log says why and the eager one stays.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

from SPDSegmentLib.errors import MORE_CARD_MEMORY, MORE_MEMORY, OutOfMemory
from SPDSegmentLib.geometry.limits import free_memory_bytes, usable_cores
from SPDSegmentLib.models.storage import home_folder

SWITCH = "SPDSEGMENT_COMPILE"
"""Environment variable: ``0`` leaves the encoder as it is; a GPU's is compiled otherwise."""
AGREEMENT = 0.05
"""Largest difference of compiled embeddings, as a share of the eager ones' standard deviation, on average."""
BYTES_PER_PIXEL, CHANNEL_BYTES = 2, 1024
"""A slice of S x S pixels takes about S * S * the product of these while it is encoded."""
RESERVE_BYTES = 1 << 30
"""GPU memory for weights, the volume and what is kept of it, beside the batch that is encoded."""
LARGEST_BATCH = 64
CAPTURED_SIZES = (1, 2, 4, 8, 16, 32)
"""Numbers of slices that a decoder is captured for."""
MOST_GRAPHS = 8
FEWEST, MOST = 4, 16
"""Slices per call on few and on many cores."""
START_SECONDS = 10.0

T = TypeVar("T")
R = TypeVar("R")
Encode = Callable[[Tensor], Tensor]
log = logging.getLogger("spdsegment.inference")
_pools: dict[tuple[int, int], ThreadPoolExecutor | None] = {}
_lock = threading.Lock()


def _alone_in_child() -> None:
    """A forked child has no thread of its parent's, torch's own ones included, for which it would wait without end."""
    global _lock
    _lock = threading.Lock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_in_child)


def keep_to_own_cores() -> None:
    """Let torch have no more threads than this process may use cores: in a container it counts the machine's."""
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


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
    except RuntimeError as error:  # one more thread is refused, or the machine is too busy to start them in time
        all_here.abort()
        log.warning("Slices are not divided among the cores: %s", str(error) or "their threads did not start in time")
        found = []
    finally:
        torch.set_num_threads(threads)  # it is also what threads to come begin with
    if found != [1] * threads or torch.get_num_threads() != threads:
        pool.shutdown(wait=False)
        return None
    return pool


class CompiledEncoder:
    """An encoder that becomes its compiled self when that is ready.

    Args:
        eager: (B, 1 or 3, S, S) to (B, C, h, w).
        compile_: makes the compiled one of it.
    """

    def __init__(self, eager: Encode, compile_: Callable[..., Any] = torch.compile) -> None:
        self._eager = eager
        self._compile = compile_
        self._fast: Encode | None = None
        self._batch = 0
        self._thread: threading.Thread | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled encoder serves."""
        return self._fast is not None

    def begin(self, batch: Tensor) -> threading.Thread | None:
        """Compile for batches like this one on a thread of its own, once; ``None`` where that has begun before."""
        if self._thread is not None:
            return None
        self._thread = threading.Thread(target=self._prepare, args=(batch,), name="compile encoder", daemon=True)
        self._thread.start()
        return self._thread

    def __call__(self, images: Tensor) -> Tensor:
        fast, count = self._fast, len(images)
        if fast is None or count > self._batch:
            return self._eager(images)
        whole = images
        if count < self._batch:  # of the one shape that was compiled
            whole = torch.cat((images, images[:1].expand(self._batch - count, *images.shape[1:])))
        try:
            return fast(whole)[:count]
        except (RuntimeError, AssertionError) as error:
            self._give_up(error)
            return self._eager(images)

    @torch.inference_mode()
    def _prepare(self, batch: Tensor) -> None:
        try:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home_folder() / "compiled"))
            fast = self._compile(self._eager, dynamic=False)
            check_agreement(fast(batch), self._eager(batch))
        except Exception as error:
            self._give_up(error)
            return
        self._batch, self._fast = len(batch), fast
        log.info("The encoder is compiled for batches of %d.", len(batch))

    def _give_up(self, error: BaseException) -> None:
        self._fast = None
        log.warning("The encoder stays as it is; compiling it failed: %s", str(error).partition("\n")[0] or error)


Run = Callable[..., tuple[Tensor, ...]]


class CapturedDecoder:
    """A decoder whose passes over the usual numbers of slices are replayed, each as one CUDA graph.

    A number of slices is captured when it first occurs, tried once against the eager decoder, and replayed from then
    on; smaller numbers are filled up. Where that fails, the log says why and the eager one stays.

    Args:
        eager: tensors (B, ...) to tensors (B, ...), on the device and without waiting for it.
        capture: makes what replays a run on inputs like those that it is given; outputs may be overwritten by the next.
    """

    def __init__(self, eager: Run, capture: Callable[[Run, Sequence[Tensor]], Run] | None = None) -> None:
        self._eager = eager
        self._capture = capture or capture_graph
        self._replays: dict[tuple[torch.Size, ...], Run] = {}
        self._on = True

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        size = next((size for size in CAPTURED_SIZES if size >= count), 0)
        if not self._on or not size:
            return self._eager(*inputs)
        whole = [torch.cat((t, t[:1].expand(size - count, *t.shape[1:]))) if count < size else t for t in inputs]
        key = tuple(t.shape for t in whole)
        try:
            if key in self._replays:
                return tuple(output[:count].clone() for output in self._replays[key](*whole))
            eager = self._eager(*whole)
            replay = self._capture(self._eager, whole)
            for found, truth in zip(replay(*whole), eager, strict=True):
                check_agreement(found, truth)
            if len(self._replays) < MOST_GRAPHS:
                self._replays[key] = replay
            return tuple(output[:count] for output in eager)
        except (RuntimeError, AssertionError) as error:
            self._on = False
            self._replays.clear()
            log.warning("The decoder stays as it is; capturing it failed: %s", str(error).partition("\n")[0] or error)
            return self._eager(*inputs)


def capture_graph(run: Run, inputs: Sequence[Tensor]) -> Run:
    """A run on a GPU as a CUDA graph; each replay takes its inputs from, and leaves its outputs in, the same memory."""
    static = [t.clone() for t in inputs]
    kept, aside = torch.is_autocast_cache_enabled(), torch.cuda.Stream()
    torch.set_autocast_cache_enabled(False)  # weights that were cast before would be gone when the graph is replayed
    torch.clear_autocast_cache()
    try:
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                run(*static)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(*static)
    finally:
        torch.set_autocast_cache_enabled(kept)

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        torch._foreach_copy_(static, list(given))
        graph.replay()
        return outputs

    return replay


def check_agreement(found: Tensor, truth: Tensor) -> None:
    """Raise RuntimeError where an output differs from the eager one by more than :data:`AGREEMENT`."""
    found, truth = found.float(), truth.float()
    spread = truth.std(correction=0).clamp(min=1e-2 * float(truth.abs().mean()) + 1e-12)
    difference = float((found - truth).abs().mean() / spread)
    if not difference <= AGREEMENT:
        raise RuntimeError(f"what it gives differs by {difference:.3g} standard deviations")


def compiling_is_on(device: torch.device) -> bool:
    """Whether an encoder on this device is to be compiled."""
    return device.type == "cuda" and os.environ.get(SWITCH, "1") != "0"


def batch_for(
    device: torch.device,
    image_size: int,
    free_bytes: Callable[[torch.device], int | None] | None = None,
    most: int = LARGEST_BATCH,
    beside: int = RESERVE_BYTES,
) -> int:
    """Slices per encoder call that a device's free memory allows: ``most``, or a power of two below it.

    Args:
        beside: bytes that are needed beside the batch.

    Raises:
        OutOfMemory: there is no room for one.
    """
    free = (free_bytes or free_bytes_of)(device)
    if free is None:
        return most
    each = slice_bytes(image_size)
    batch = (free - beside) // each
    if batch < 1:
        raise OutOfMemory(
            f"The device {device} has {free >> 20} MB of free memory; "
            f"the model needs {(beside + each) >> 20} MB for this volume.",
            MORE_MEMORY if device.type == "cpu" else MORE_CARD_MEMORY,
        )
    return int(min(most, 1 << (int(batch).bit_length() - 1)))


def slice_bytes(image_size: int) -> int:
    """About what a slice of S x S pixels takes while it is encoded."""
    return image_size * image_size * BYTES_PER_PIXEL * CHANNEL_BYTES


def free_bytes_of(device: torch.device) -> int | None:
    """Free memory of a device; ``None`` where the system does not say."""
    if device.type == "cpu":
        return free_memory_bytes()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
