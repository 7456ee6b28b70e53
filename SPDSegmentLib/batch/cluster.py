"""A batch on a Dask cluster: cases travel as their paths, results as their rows; masks are written where they are made.

Every worker needs this version of SPDSegment, and sees images and output folder under the same names. Whatever breaks,
a case is lost at most while it runs: a killed worker's case goes to another one, and what a lost scheduler leaves is
found again by content.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import queue
import threading
import time
import uuid
from asyncio import CancelledError as AsyncCancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any

from SPDSegmentLib import __version__
from SPDSegmentLib.batch.cases import BatchCase, BatchModel, batch_model
from SPDSegmentLib.batch.report import empty_row
from SPDSegmentLib.batch.run import CaseProcess, SchedulerLost, SegmentCase
from SPDSegmentLib.batch.segmenting import FOR_NO_CASE, BatchSettings, CaseSegmenter
from SPDSegmentLib.errors import BadInput, SPDError, import_package
from SPDSegmentLib.geometry.limits import usable_cores
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.worker.client import WorkerClient
from SPDSegmentLib.worker.requests import local_command

MakeSegmenter = Callable[[BatchModel, BatchSettings], SegmentCase]
CONNECT_SECONDS = 15
LOST_SECONDS = 20.0
NO_WORKER_SECONDS = 60.0
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
"""How long a worker that cannot segment holds each case that is given to it all the same."""
_idle: dict[Any, list[SegmentCase]] = {}
"""What segments cases on this worker and has nothing to do, by what it is for."""
_unfit: dict[Any, UnfitWorker] = {}
"""Why this worker cannot segment, by what it is for; until the end of the batch."""
_batches = [0]
"""How many batches this worker has ended."""
_guard = threading.Lock()


def connect(address: str) -> Any:
    """A client of a scheduler.

    Raises:
        BadInput: nothing answers there.
        DependencyMissing: Dask is not installed.
    """
    distributed = import_package("distributed")
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"No Dask scheduler answers at {address}.",
            "Give the address that 'dask scheduler' shows, such as tcp://host:8786.",
            repr(error),
        ) from error


@contextlib.contextmanager
def slurm_jobs(count: int) -> Iterator[Any]:
    """A client of ``count`` Slurm jobs, one worker each, that end with the block.

    Raises:
        BadInput: what a job needs is not configured.
        DependencyMissing: dask-jobqueue is not installed.
    """
    distributed = import_package("distributed")
    jobs = import_package("dask_jobqueue")
    try:
        cluster = jobs.SLURMCluster(processes=1, worker_extra_args=["--nthreads", "1"], n_workers=0)
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"The Slurm jobs are not described: {str(error).splitlines()[0]}",
            "Write cores, memory and queue under jobqueue: slurm: into ~/.config/dask/jobqueue.yaml.",
            repr(error),
        ) from error
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        cluster.scale(jobs=count)
        yield client


@dataclass
class ClusterDispatch:
    """Runs cases on the workers of a cluster.

    Attributes:
        client: of the cluster, see :func:`connect`.
        make_segmenter: called on a worker when it needs one; what it returns stays there for the next case.
        say: told what the user should know.
    """

    client: Any
    make_segmenter: MakeSegmenter | None = None
    say: Callable[[str], None] = lambda sentence: None
    _unfit: set[str] = field(default_factory=set, init=False)
    _here: str = field(default_factory=lambda: uuid.uuid4().hex[:12], init=False)

    def __call__(self, process: CaseProcess, cases: Sequence[BatchCase]) -> Iterator[dict[str, Any]]:
        """Yield the row of each case as it is finished.

        The case of a worker that cannot begin, for want of the model or a device, goes to the others.

        Raises:
            SchedulerLost: the scheduler does not answer any more; rows of finished cases stay on disk.
            BadInput: a worker has another version, also one that joins later, or, of those that are there, not this
                model; as above.
            UnfitWorker: no other worker is left; as above.
        """
        self._check_workers()
        self._check_models(process.model)
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        make = self.make_segmenter or worker_segmenter
        numbers = itertools.count()
        futures: dict[Any, BatchCase] = {}

        def submit(case: BatchCase, rather: set[str]) -> None:
            future = self.client.submit(
                process_on_worker, process, make, case, __version__,
                key=f"spdsegment-{self._here}-{next(numbers)}", pure=False,
                workers=sorted(rather) or None, allow_other_workers=bool(rather),
            )  # fmt: skip
            futures[future] = case
            future.add_done_callback(finished.put)

        try:
            for case in map(_absolute, cases):
                submit(case, set())
            while futures:
                future = self._next(finished)
                case = futures.pop(future)
                try:
                    row = self._row_of(future, process, case)
                except UnfitWorker as error:
                    submit(case, self._others(error))
                else:
                    yield row
        finally:
            if self.client.status == "running":  # a lost scheduler would be waited for
                with contextlib.suppress(Exception):
                    if left := [future for future in futures if not future.done()]:
                        self.client.cancel(left)
                    self.client.run(close_segmenters)

    def _others(self, error: UnfitWorker) -> set[str]:
        """Where the case of a worker that cannot begin goes; what is wrong with that one is said, or raised."""
        if error.details not in self._unfit:
            self._unfit.add(error.details)
            self.say(f"{error.message} Its cases go to the other workers. {error.remedy}")
        if not (others := set(self.client.nthreads()) - self._unfit):
            raise error
        return others

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What each worker answers; one that has just gone, before the scheduler knows of it, is left out."""
        answers = self.client.run(question, *arguments, on_error="return")
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, OSError | SPDError):
                raise answer
        return {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}

    def _check_workers(self) -> None:
        found = self._ask(version_of_worker)
        for worker, version in found.items():
            if version != __version__:
                raise other_version(worker, version, __version__)
        if not found:
            self.say("The cluster has no worker yet; the batch waits for the first one.")

    def _check_models(self, model: BatchModel) -> None:
        if self.make_segmenter is None:
            for worker, error in self._ask(model_error_of_worker, model).items():
                if error is not None:
                    raise UnfitWorker(f"The worker {worker} cannot go on: {error.message}", error.remedy, worker)

    def _next(self, finished: queue.SimpleQueue[Any]) -> Any:
        """The next finished task; a scheduler that is away for longer is lost, and for a worker it is waited."""
        away, pause, due = 0.0, NO_WORKER_SECONDS, time.monotonic() + NO_WORKER_SECONDS
        while True:
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=_POLL_SECONDS)
                if future.status in ("finished", "error"):
                    return future
                if future.status == "cancelled":  # not by us
                    away = LOST_SECONDS
                else:  # its worker is gone with the row, which another one makes again
                    time.sleep(_POLL_SECONDS)
                    future.add_done_callback(finished.put)
            away = 0.0 if self.client.status == "running" and away < LOST_SECONDS else away + _POLL_SECONDS
            if away >= LOST_SECONDS:
                raise _lost()
            if self.client.status == "running" and time.monotonic() >= due:
                pause *= 2  # a queue of jobs may take hours
                due = time.monotonic() + pause
                with contextlib.suppress(OSError):
                    if not self.client.nthreads():
                        self.say("The cluster has no worker; the batch goes on waiting for one. Ctrl+C ends it.")

    def _row_of(self, future: Any, process: CaseProcess, case: BatchCase) -> dict[str, Any]:
        if future.status == "finished":
            try:
                row: dict[str, Any] = future.result()
            except (OSError, CancelledError, AsyncCancelledError) as gone:
                raise _lost() from gone
            return row
        error = future.exception()
        if isinstance(error, OtherVersion | UnfitWorker):  # it would fail every case that it takes
            raise error
        why = error.sentence if isinstance(error, SPDError) else f"{type(error).__name__}: {error}".splitlines()[0]
        said = {"error": f"No worker could finish this case: {process.told(why, case)}"}
        return empty_row(case, process.model.name, process.settings.full_paths) | said


class UnfitWorker(BadInput):
    """A worker cannot segment any case; ``details`` is its address."""


class OtherVersion(BadInput):
    """A worker has another version of this library."""


def other_version(worker: str, version: str, wanted: str) -> OtherVersion:
    """The error of a worker, by its address, whose version is not the one that is wanted."""
    said = f"The worker {worker} has SPDSegment {version}, and this is {wanted}."
    return OtherVersion(said, "Install the same version everywhere; what is finished is kept.")


def _lost() -> SchedulerLost:
    return SchedulerLost(
        "The scheduler of the cluster was lost; what is finished is kept.",
        "Start it again and run the same command: it does only what is missing.",
    )


def _absolute(case: BatchCase) -> BatchCase:
    """A case that means the same in another working folder."""
    return replace(
        case, **{name: os.path.abspath(path) for name in ("image", "points") if (path := getattr(case, name))}
    )


def version_of_worker() -> str:
    """The version of SPDSegment that a worker has."""
    return __version__


def process_on_worker(process: CaseProcess, make: MakeSegmenter, case: BatchCase, version: str) -> dict[str, Any]:
    """One case on a worker, with a segmenter that stays there: models are loaded once.

    Raises:
        OtherVersion: the batch is of another ``version``.
        UnfitWorker: the model or a device is missing here.
    """
    if version != __version__:
        raise other_version(f"with process {os.getpid()} on {platform.node()}", __version__, version)
    key = (make, process.model, process.settings)
    with _guard:
        waiting, batch = _idle.setdefault(key, []), _batches[0]
        segment = waiting.pop() if waiting else None
        known = _unfit.get(key)
    if known is not None:
        time.sleep(_PAUSE_SECONDS)
        raise known
    if segment is None:
        try:
            segment = make(process.model, process.settings)
        except SPDError as error:
            raise _unfit_here(error, key, batch) from error
    try:
        row = process(segment, case) | {"worker": os.getpid()}
    except FOR_NO_CASE as error:
        _close(segment)
        raise _unfit_here(error, key, batch) from error
    with _guard:
        if batch == _batches[0]:
            _idle.setdefault(key, []).append(segment)
            return row
    _close(segment)
    return row


def _unfit_here(error: SPDError, key: Any, batch: int) -> UnfitWorker:
    """Why this worker cannot go on, kept for the rest of the batch."""
    from distributed import get_worker

    here: str = get_worker().address
    found = UnfitWorker(f"The worker {here} on {platform.node()} cannot go on: {error.message}", error.remedy, here)
    with _guard:
        if batch == _batches[0]:
            _unfit[key] = found
    return found


def model_error_of_worker(model: BatchModel) -> SPDError | None:
    """What is wrong where a worker has another model of that name, or none."""
    try:
        _require_model(model)
    except SPDError as error:
        return error
    return None


def worker_segmenter(model: BatchModel, settings: BatchSettings) -> CaseSegmenter:
    """What segments cases on a worker of a cluster.

    Raises:
        BadInput: the worker's model of this name is another one.
        ModelMissing: it has none.
    """
    _require_model(model)
    command = replace(local_command(), environment=tuple(sorted(background_environment().items())))
    return CaseSegmenter(WorkerClient(command=command), model, settings)


def background_environment() -> dict[str, str]:
    """Variables for a background process of this worker: its share of the cores, unless somebody has decided on that.

    What Dask's nanny has set is left out: one core for numerical libraries, and how memory is given back.
    """
    import psutil
    from dask import config
    from distributed import get_worker

    variables = dict(os.environ)
    if get_worker().nanny is not None:
        before: dict[str, str] = {}
        with contextlib.suppress(psutil.Error, OSError, AttributeError):
            before = psutil.Process().parent().environ()
        for name, value in config.get("distributed.nanny.pre-spawn-environ", {}).items():
            if variables.get(name) == str(value) and name not in before:
                del variables[name]
    if "OMP_NUM_THREADS" not in variables:
        variables["OMP_NUM_THREADS"] = str(share_of_cores())
    return variables


def share_of_cores() -> int:
    """How many of the cores that this worker may use are its own, by the threads of all workers that may use them."""
    from distributed import get_client, get_worker

    beside, host = 1, get_worker().address.rpartition(":")[0]
    with contextlib.suppress(Exception):  # whatever Dask cannot say fails no case
        client = get_client()
        threads = {worker: count for worker, count in client.nthreads().items() if worker.rpartition(":")[0] == host}
        places = client.run(place_of_worker, workers=list(threads), on_error="ignore")
        beside = sum(threads[worker] for worker, place in places.items() if place == place_of_worker())
    return max(1, usable_cores() // max(1, beside))


def place_of_worker() -> str:
    """The machine of a worker, and the cores that it may use there where the system says."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "all"
    return f"{platform.node()} {cores}"


def _require_model(model: BatchModel) -> None:
    if batch_model(find_bundle(model.key)).digest != model.digest:
        raise BadInput(
            f"Its model {model.name} is not the one of this batch.", "Copy it there and run the same command again."
        )


def close_segmenters() -> None:
    """End what a worker has kept between cases; what is still busy ends after its case."""
    with _guard:
        _batches[0] += 1
        kept = [segment for waiting in _idle.values() for segment in waiting]
        _idle.clear()
        _unfit.clear()
    for segment in kept:
        _close(segment)


def _close(segment: SegmentCase) -> None:
    if isinstance(segment, CaseSegmenter):
        segment.close()
