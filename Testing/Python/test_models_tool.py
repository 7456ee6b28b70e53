"""``python -m SPDSegmentLib.models``: fetch and check for a program that must not wait."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from models_helpers import CONTENT, url_weights, use_manifest

from SPDSegmentLib.models import __main__ as tool
from Testing.Host.environment import limit

COMMAND = [sys.executable, "-m", "SPDSegmentLib.models"]


@pytest.fixture
def open_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that stays open."""
    monkeypatch.setattr(tool, "_stop_at_end_of_input", lambda stopped: threading.Event().wait(60))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was printed."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("open_input", "spd_home")
def test_fetch_tells_progress_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stub.pth").write_bytes(CONTENT)
    use_manifest(monkeypatch, url_weights(tmp_path / "stub.pth"))
    assert tool.main(["fetch", "stub"]) == 0
    told = lines(capsys)
    assert told[-1] == {"good": "stub"}
    assert {"progress": [len(CONTENT), len(CONTENT)], "name": "stub"} in told


@pytest.mark.usefixtures("open_input", "spd_home")
def test_a_failure_is_told_by_name_and_gives_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stub.pth").write_bytes(CONTENT[:-5])
    use_manifest(monkeypatch, url_weights(tmp_path / "stub.pth"))
    assert tool.main(["fetch", "stub"]) == 2
    told = lines(capsys)[-1]
    assert told["name"] == "stub" and told["problem"]["error"] == "ModelCorrupt"


@pytest.mark.usefixtures("open_input")
def test_check_reads_weights_and_models(
    spd_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "stub.pth").write_bytes(CONTENT)
    use_manifest(monkeypatch, url_weights(tmp_path / "stub.pth", name="lite_medsam"))
    assert tool.main(["fetch", "lite_medsam"]) == 0
    assert tool.main(["check"]) == 0
    assert {"kidney-mr", "lite_medsam"} <= {line.get("good") for line in lines(capsys)}
    weights = spd_home / "weights" / "stub.pth"
    weights.write_bytes(b"x" + CONTENT[1:])
    assert tool.main(["check"]) == 2
    assert [line["name"] for line in lines(capsys) if "problem" in line] == ["lite_medsam"]


def test_the_process_stops_and_cleans_up_when_its_input_closes(tmp_path: Path, spd_home: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom SPDSegmentLib.models import __main__ as tool\n"
        "def slow(name, progress, cancel):\n    from SPDSegmentLib.errors import Cancelled\n"
        "    progress(1, 2)\n    while not cancel():\n        time.sleep(0.01)\n    raise Cancelled()\n"
        "tool.fetch_base_weights = slow\nsys.exit(tool.main(['fetch', 'x']))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert b"progress" in process.stdout.readline()
        process.stdin.close()
        assert b"Cancelled" in process.stdout.readline()
        assert process.wait(limit(10)) == 130


def test_the_process_needs_the_standard_library_only(spd_home: Path) -> None:
    heavy = ["torch", "numpy", "typer", "rich", "SimpleITK"]
    code = f"import sys; import SPDSegmentLib.models.__main__; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    wrong = subprocess.run([*COMMAND, "dance"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_the_process_ends_by_itself_while_its_input_is_open(spd_home: Path) -> None:
    with subprocess.Popen([*COMMAND, "check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(limit(30)) == 0
        assert process.stdout is not None and b"kidney-mr" in process.stdout.read()


@pytest.mark.usefixtures("open_input")
def test_what_a_killed_download_left_is_removed_a_day_later(
    tmp_path: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import time

    old, young = (spd_home / "weights" / f".spd-part-0123abcd-1-{name}" for name in ("aaaaaa", "bbbbbb"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    (tmp_path / "stub.pth").write_bytes(CONTENT)
    use_manifest(monkeypatch, url_weights(tmp_path / "stub.pth"))
    assert tool.main(["fetch", "stub"]) == 0
    assert not old.exists() and young.exists()
