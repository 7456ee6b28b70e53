"""A worker behind ssh: a real sshd on the loopback address, with keys and a port of its own, that the test starts."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from worker_drivers import AFFINE, FAKE_WORKER, Driver, line

from SPDSegmentLib.errors import WorkerDied
from SPDSegmentLib.worker.client import ModelChoice
from SPDSegmentLib.worker.requests import WorkerCommand, parse_command
from Testing.Host.environment import limit

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytest_plugins = ["Testing.Host.pytest_plugin"]
SAID_WITHIN_SECONDS = 5.0
VOLUME = np.random.default_rng(3).integers(-900, 900, (24, 192, 192)).astype(np.int16)
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None or not hasattr(os, "getuid"),
    reason="no sshd and ssh are installed here (Debian: openssh-server)",
)


@dataclass(frozen=True)
class Server:
    """An sshd that runs, and how to reach it."""

    process: subprocess.Popen[bytes]
    ssh: tuple[str, ...]
    folder: Path

    def sessions(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if "sshd" in child.name()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = (folder / "host.pub").read_text(encoding="utf-8").split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n", encoding="utf-8")
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "PidFile": folder / "pid",
        "AuthorizedKeysFile": folder / "authorized", "StrictModes": "no", "UsePAM": "no",
        "AllowUsers": getpass.getuser(), "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no",
        "AcceptEnv": "*", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    (folder / "config").write_text(text, encoding="utf-8")
    jail = Path("/run/sshd")  # an empty folder, without which sshd does not start as root
    made = os.getuid() == 0 and not jail.exists()
    if made:
        jail.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "config"], stderr=log)
    options = {
        "UserKnownHostsFile": folder / "known", "StrictHostKeyChecking": "yes", "IdentitiesOnly": "yes",
        "BatchMode": "yes", "ServerAliveInterval": 1, "ServerAliveCountMax": 2,
        "SendEnv": "PYTHON* LD_LIBRARY_PATH QT_*",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    ssh = ("ssh", "-F", "none", "-p", str(port), "-i", str(folder / "user"), *map(str, words), "127.0.0.1")
    try:
        for _ in range(100):
            answer = subprocess.run([*ssh, "true"], capture_output=True)
            if answer.returncode == 0:
                break
            time.sleep(0.1)
        else:
            said = (folder / "log").read_text(encoding="utf-8", errors="replace")
            pytest.fail(f"the server cannot be reached: {answer.stderr.decode(errors='replace')} {said}")
        yield Server(process, ssh, folder)
    finally:
        process.terminate()
        process.wait()
        if made:
            jail.rmdir()


def remote(server: Server, bundle: str = "fake?radius=30") -> Driver:
    """A client of a worker behind the server, with a volume of 24 slices open."""
    driver = Driver("subprocess", WorkerCommand((*server.ssh, shlex.join(FAKE_WORKER.arguments))))
    driver.client.set_model(ModelChoice(bundle))
    driver.client.open_volume("volume", VOLUME, AFFINE)
    return driver


def centerline() -> list[Any]:
    return [line(2, 20, i=96.0)]


def test_a_worker_behind_ssh_serves_and_masks_arrive_as_bits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a client that counts what comes
    received = 0
    from SPDSegmentLib.worker.connection import Connection

    take = Connection.on_output

    def count(connection: Connection, data: bytes) -> None:
        nonlocal received
        received += len(data)
        take(connection, data)

    monkeypatch.setattr(Connection, "on_output", count)
    driver = remote(server)
    # when
    with driver.client:
        request, answer = driver.segment(markups=centerline(), send_all=True)
    # then it is the whole volume that was segmented there, and a mask takes less than a fiftieth of its pixels' bytes
    assert answer.report["values"] == VOLUME.sum(dtype=float)
    assert len(request.slices) == len(VOLUME) and received < VOLUME.size / 50
    print(f"{received} bytes for {VOLUME.size} voxels of masks")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["session killed", "network silent"])
def test_a_broken_connection_is_said_in_time_and_the_next_request_brings_the_volume(
    server: Server, how: signal.Signals
) -> None:
    driver = remote(server, "fake?delay=0.05&radius=30")
    with driver.client:
        # given a request under way
        request = driver.client.segment("volume", centerline(), send_all=True)
        driver.until(lambda: len(request.slices) >= 2)
        sessions = server.sessions()
        assert sessions
        # when the connection breaks
        for session in sessions:
            session.send_signal(how)
        seconds = driver.until(lambda: request.finished)
        # then
        with pytest.raises(WorkerDied, match=r"exit code 255, the connection failed\)") as caught:
            request.result()
        assert seconds < limit(SAID_WITHIN_SECONDS) and "Run again" in caught.value.remedy
        for session in sessions:
            if how == signal.SIGSTOP:
                session.kill()
        again, answer = driver.segment(markups=centerline(), send_all=True)
        assert len(again.slices) == len(VOLUME) and answer.report["values"] == VOLUME.sum(dtype=float)
    # and nothing is left at the far end
    driver.until(lambda: not server.sessions(), limit(10))


def test_a_host_that_refuses_is_said_with_what_ssh_says(server: Server) -> None:
    driver = remote(server)
    words = [word if word != str(server.folder / "user") else str(server.folder / "nothing") for word in server.ssh]
    driver.client.set_command(WorkerCommand((*words, "true")))
    with driver.client, pytest.raises(WorkerDied, match="exit code 255, the connection failed") as caught:
        driver.segment()
    assert "Permission denied" in caught.value.details


def test_slicers_environment_reaches_neither_ssh_nor_the_worker(
    server: Server, tmp_path: Path, host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within Slicer, whose libraries and Python would break both; the server takes whatever ssh sends it."""
    import slicer

    from SPDSegmentLib.gui.run.worker_host import WorkerHost, slicerTransport

    # given an environment in which neither ssh nor Python start
    clean = dict(os.environ)
    (tmp_path / "lib").mkdir()
    for name in ("libcrypto.so.3", "libc.so.6", "libz.so.1"):
        (tmp_path / "lib" / name).write_text("Slicer's own", encoding="utf-8")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = subprocess.run([*server.ssh, "true"], capture_output=True)
    assert broken.returncode not in (0, 255), "the environment does harm"
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: clean)
    # when
    worker = WorkerHost(slicerTransport)
    worker.setCommand(shlex.join([*server.ssh, shlex.join(FAKE_WORKER.arguments)]))
    client = worker.client
    client.set_model(ModelChoice("fake"))
    client.open_volume("volume", VOLUME, AFFINE)
    try:
        request = client.segment("volume", centerline(), send_all=True)
        while not request.finished:
            client.poll(0.1)
        # then
        answer: Any = request.result()
        assert answer.report["values"] == VOLUME.sum(dtype=float)
    finally:
        worker.close()


def test_the_recipes_of_the_page_are_commands_as_the_setting_takes_them(repository: Path) -> None:
    text = (repository / "docs" / "remote.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.endswith("spdsegment worker")]
    assert len(commands) >= 3
    for text in commands:
        command = parse_command(text.strip())
        assert command is not None and command.arguments[0] in ("ssh", "conda")
