"""Batches on a real Dask scheduler with real workers, of which some are killed; skipped where Dask is not installed."""

from __future__ import annotations

import functools
import json
import os
import platform
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from batch_helpers import MODEL, Case, cases, states, write_clicks, write_image
from cluster_stub import not_here, segmenter_on_an_unfit_node, segmenter_that_needs, sleeping_segmenter, starts_in

from SPDSegmentLib import __version__
from SPDSegmentLib.batch.cases import BatchCase, BatchModel
from SPDSegmentLib.batch.report import read_row
from SPDSegmentLib.batch.run import BatchRun
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseResult
from SPDSegmentLib.errors import BadInput, DependencyMissing, DeviceUnavailable
from SPDSegmentLib.geometry.limits import usable_cores

pytest.importorskip("distributed", reason="Dask is not installed (pip install '.[batch]')")

from SPDSegmentLib.batch import cluster

__all__ = ["cases"]


class Dask:
    """A scheduler and workers as processes of their own, on the loopback interface."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(file),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)

        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        code = f"from {module} import main; main()"
        here = str(Path(__file__).parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
        log = (self.folder / "dask.log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=log, stderr=log, cwd=self.folder, env=environment
        )

    def add_worker(self, watched: str = "--no-nanny") -> subprocess.Popen[bytes]:
        """A worker, without a nanny by default, so that a kill is one."""
        self.workers.append(
            self._start(
                "distributed.cli.dask_worker", self.address, watched, "--nthreads", "1", "--no-dashboard",
                "--host", "127.0.0.1", "--death-timeout", "60", "--local-directory", str(self.folder),
            )
        )  # fmt: skip
        return self.workers[-1]

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


in_soak = pytest.mark.skipif("SPDSEGMENT_SOAK" not in os.environ, reason="a long one of the cluster: make soak")


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask")
    try:
        yield started
    finally:
        started.close()


def many(tmp_path: Path, count: int) -> list[Case]:
    (tmp_path / "many").mkdir(exist_ok=True)
    image, points = tmp_path / "many" / "image.nii.gz", tmp_path / "many" / "points.mrk.json"
    write_image(image)
    write_clicks(points)
    return [(f"case{n:02d}", str(image), str(points)) for n in range(count)]


def run_on(dask: Dask, folder: Path, listed: list[Case], seconds: float = 0.2, **options: Any) -> dict[str, Any]:
    model, settings = MODEL, options.pop("settings", BatchSettings(suffix=".nii.gz", series=f"{seconds}"))
    make = options.pop("make", sleeping_segmenter)
    client = cluster.connect(dask.address)
    try:
        if count := options.pop("workers", 0):
            client.wait_for_workers(count, timeout=240)
        dispatch = cluster.ClusterDispatch(client, make)
        return BatchRun(not_here, folder, model, settings, dispatch=dispatch, **options)(listed)
    finally:
        client.close()


def test_cases_go_to_the_workers_and_models_are_loaded_once_each(dask: Dask, tmp_path: Path) -> None:
    dask.add_worker(), dask.add_worker()
    listed = many(tmp_path, 8)
    report = run_on(dask, tmp_path / "out", listed, workers=2)
    assert set(states(report).values()) == {"done"} and len(report["cases"]) == 8
    used = {row["worker"] for row in report["cases"]}
    assert used <= {worker.pid for worker in dask.workers} and len(used) == 2
    assert sorted(starts_in(tmp_path / "out")) == sorted(used)  # one start a worker, not one a case
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    again = run_on(dask, tmp_path / "out", listed)
    assert set(states(again).values()) == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}


def test_a_worker_that_is_killed_at_random_loses_no_case(dask: Dask, tmp_path: Path) -> None:
    for _ in range(3):
        dask.add_worker()
    listed, out = many(tmp_path, 12), tmp_path / "out"

    def kill() -> None:
        while len(list(out.glob("*.nii.gz"))) < random.Random(os.getpid()).randint(2, 5):
            time.sleep(0.02)
        dask.workers[random.Random(os.getpid()).randrange(3)].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = run_on(dask, out, listed, seconds=0.4, workers=3)
    killer.join(10)
    assert not killer.is_alive() and sum(worker.poll() is not None for worker in dask.workers) == 1
    assert set(states(report).values()) == {"done"} and len(report["cases"]) == 12, report["cases"]
    assert not list(out.glob(".*partial*"))


def test_a_row_that_went_with_its_worker_is_waited_for() -> None:
    class Gone(SimpleNamespace):
        def add_done_callback(self, done: Callable[[Any], None]) -> None:
            self.status = "finished"
            done(self)

    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    finished.put(future := Gone(status="lost"))
    assert cluster.ClusterDispatch(SimpleNamespace(status="running"))._next(finished) is future


def test_a_worker_without_a_device_costs_no_case_and_is_named(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    dispatch = functools.partial(cluster.ClusterDispatch, say=said.append)
    monkeypatch.setattr(cluster, "ClusterDispatch", dispatch)
    dask.add_worker(), dask.add_worker()
    listed = many(tmp_path, 8)
    report = run_on(dask, tmp_path / "out", listed, 0.1, make=segmenter_on_an_unfit_node, workers=2)
    assert set(states(report).values()) == {"done"}, report
    assert len({row["worker"] for row in report["cases"]}) == 1
    (sentence,) = said
    assert f"on {platform.node()} cannot go on: The GPU does not answer. Its cases go to the other" in sentence
    # where no other one is left, the batch ends with that sentence
    fit = int(report["cases"][0]["worker"])
    next(worker for worker in dask.workers if worker.pid == fit).kill()
    (tmp_path / "out" / ".unfit").rename(tmp_path / "unfit")
    with pytest.raises(cluster.UnfitWorker, match="cannot go on: The GPU does not answer"):
        run_on(dask, tmp_path / "out", many(tmp_path, 9), 0.2, make=segmenter_on_an_unfit_node)


def test_what_a_worker_lacked_in_a_batch_that_has_ended_is_not_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: object, settings: object) -> Callable[[BatchCase, Path], CaseResult]:
        def segment(case: BatchCase, output: Path) -> CaseResult:
            cluster.close_segmenters()  # the batch is stopped meanwhile
            raise DeviceUnavailable("The GPU does not answer.")

        return segment

    class Process(SimpleNamespace):
        def __call__(self, segment: Callable[[BatchCase, Path], CaseResult], case: BatchCase) -> dict[str, str]:
            segment(case, Path())  # which a row would be made of
            return {}

    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://here"))
    process: Any = Process(model="fake", settings="")
    with pytest.raises(cluster.UnfitWorker, match="tcp://here .* The GPU does not answer"):
        cluster.process_on_worker(process, make, BatchCase("a", "a.nii", "a.json"), __version__)
    assert not cluster._unfit


def test_a_worker_without_the_model_is_named_before_the_first_case(dask: Dask, tmp_path: Path, spd_home: Path) -> None:
    dask.add_worker()
    with pytest.raises(cluster.UnfitWorker, match=r"The worker tcp://.* cannot go on: There is no model 'fake'"):
        run_on(dask, tmp_path / "out", many(tmp_path, 2), make=None, workers=1)
    assert not list((tmp_path / "out").glob("*.case.json"))


@in_soak
def test_a_lost_scheduler_loses_no_finished_case(dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOST_SECONDS", 1.0)
    dask.add_worker()
    listed, out = many(tmp_path, 10), tmp_path / "out"

    def kill() -> None:
        while len(list(out.glob("*.nii.gz"))) < 3:
            time.sleep(0.02)
        dask.scheduler.send_signal(signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(cluster.SchedulerLost, match="what is finished is kept"):
        run_on(dask, out, listed, seconds=0.4)
    done = [case[0] for case in listed if (out / f"{case[0]}.nii.gz").exists()]
    assert len(done) >= 3
    for name in done:
        row = read_row(out / f"{name}.case.json")
        assert row is not None and row["state"] in ("done", "writing")
    told = {row["case"]: row["state"] for row in json.loads((out / "report.json").read_text(encoding="utf-8"))["cases"]}
    assert sum(state == "done" for state in told.values()) >= len(done) - 1


@in_soak
def test_a_full_disk_on_a_worker_costs_that_case_alone(dask: Dask, tmp_path: Path) -> None:
    dask.add_worker()
    listed = many(tmp_path, 4)
    settings = BatchSettings(suffix=".nii.gz", series="0.05", insist=("case02",))  # the disk is full there
    report = run_on(dask, tmp_path / "out", listed, settings=settings, make=segmenter_that_needs)
    assert states(report) == {"case00": "done", "case01": "done", "case02": "failed", "case03": "done"}
    (failed,) = [row for row in report["cases"] if row["state"] == "failed"]
    assert "disk is full" in failed["error"] and not (tmp_path / "out" / "case02.nii.gz").exists()


def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(BadInput, match="No Dask scheduler answers at tcp://127.0.0.1:1"):
        cluster.connect("tcp://127.0.0.1:1")
    with pytest.raises(BadInput, match="No Dask scheduler answers"):
        cluster.connect("nonsense://x")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DependencyMissing):
        cluster.connect("tcp://127.0.0.1:1")


@pytest.mark.parametrize("chosen", ["", "1"])
def test_a_background_process_has_the_cores_that_dasks_nanny_takes_away_unless_somebody_did(
    dask: Dask, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", chosen) if chosen else monkeypatch.delenv("OMP_NUM_THREADS")
    dask.add_worker("--nanny")
    client = cluster.connect(dask.address)
    with client:
        seen = client.submit(os.getenv, "OMP_NUM_THREADS", pure=False).result(120)
        given = client.submit(cluster.background_environment, pure=False).result(120)
    assert seen == "1" and given["OMP_NUM_THREADS"] == (chosen or str(usable_cores()))
    assert "MALLOC_TRIM_THRESHOLD_" not in given


def test_workers_on_the_same_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cluster.place_of_worker()
    places = {"tcp://a:1": here, "tcp://a:2": here, "tcp://a:3": f"{here} of another job", "tcp://b:1": here}

    def run(ask: object, workers: list[str], on_error: str) -> dict[str, str]:
        return {worker: places[worker] for worker in workers}

    seen = SimpleNamespace(run=run, nthreads=lambda: dict.fromkeys(places, 2))
    monkeypatch.setattr("distributed.get_client", lambda: seen)
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://a:1"))
    monkeypatch.setattr(cluster, "usable_cores", lambda: 16)
    assert cluster.share_of_cores() == 4
    monkeypatch.setattr(cluster, "usable_cores", lambda: 2)
    assert cluster.share_of_cores() == 1
    seen.nthreads = Mock(side_effect=TimeoutError("the scheduler does not answer"))
    assert cluster.share_of_cores() == 2


def test_a_cluster_that_stays_without_a_worker_is_said_again_and_again_until_there_is_one(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 3:
            dask.add_worker()

    monkeypatch.setattr(cluster, "NO_WORKER_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "ClusterDispatch", functools.partial(cluster.ClusterDispatch, say=say))
    assert set(states(run_on(dask, tmp_path / "out", many(tmp_path, 2))).values()) == {"done"}
    assert said[0].startswith("The cluster has no worker yet")
    assert said[1] == said[2] == "The cluster has no worker; the batch goes on waiting for one. Ctrl+C ends it."


def test_a_worker_that_goes_as_the_batch_begins_is_not_waited_for(dask: Dask, tmp_path: Path) -> None:
    leaving, _ = dask.add_worker(), dask.add_worker()
    with cluster.connect(dask.address) as client:
        client.wait_for_workers(2, 60)
        os.kill(leaving.pid, signal.SIGSTOP)
        threading.Timer(0.3, leaving.kill).start()  # while it is asked for its version
        dispatch = cluster.ClusterDispatch(client)
        assert list(dispatch._ask(cluster.version_of_worker).values()) == [__version__]
        with pytest.raises(ZeroDivisionError):
            dispatch._ask(divmod, 1, 0)


@pytest.mark.parametrize("joins", ["before", "later"])
def test_a_worker_of_another_version_is_refused_and_no_case_is_written(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joins: str
) -> None:
    monkeypatch.setattr(cluster, "__version__", "9.9.9")
    if joins == "later":
        monkeypatch.setattr(cluster.ClusterDispatch, "_check_workers", lambda self: dask.add_worker())
    else:
        dask.add_worker()
    with pytest.raises(BadInput) as refused:
        run_on(dask, tmp_path / "out", many(tmp_path, 2), workers=int(joins == "before"))
    assert "has SPDSegment 0." in refused.value.sentence and "this is 9.9.9" in refused.value.sentence
    assert not list((tmp_path / "out").glob("*.nrrd"))


@in_soak
def test_slurm_jobs_are_workers(tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in of sbatch that runs the job's script here: what dask-jobqueue submits is what starts."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(
        '#!/bin/sh\ncp "$1" "$0.job"\nnohup sh "$0.job" >"$0.log" 2>&1 &\necho "Submitted batch job $!"\n', "utf-8"
    )
    (commands / "scancel").write_text('#!/bin/sh\nfor pid in "$@"; do pkill -P "$pid"; kill "$pid"; done\n', "utf-8")
    for name in ("sbatch", "scancel"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    import dask.config

    told = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB", "jobqueue.slurm.queue": "gpu",
            "jobqueue.slurm.interface": "lo", "jobqueue.slurm.scheduler-options": {"dashboard": False},
            "jobqueue.slurm.local-directory": str(tmp_path)}  # fmt: skip
    settings = BatchSettings(suffix=".nii.gz", series="0.05")
    with dask.config.set(told), cluster.slurm_jobs(1) as client:
        dispatch = cluster.ClusterDispatch(client, sleeping_segmenter)
        report = BatchRun(not_here, tmp_path / "out", MODEL, settings, dispatch=dispatch)(cases)
    assert set(states(report).values()) == {"done"}
    script = (commands / "sbatch.job").read_text(encoding="utf-8")
    assert "#SBATCH -p gpu" in script and "--nthreads 1" in script


def test_the_model_of_the_batch_is_a_parameter_of_every_case() -> None:
    """What travels to a worker can be read there: no open file, no thread, no client."""
    import pickle

    from SPDSegmentLib.batch.run import CaseProcess

    process = CaseProcess(Path("out"), BatchModel("k", "n", "S", (1.0, 0.0, 0.0)), BatchSettings(), True)
    assert pickle.loads(pickle.dumps(process)) == process
