"""``spdsegment models`` and the program's way of failing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from models_helpers import CONTENT, leftovers, sha256, tiny_info, url_weights, use_manifest
from typer.testing import CliRunner, Result

from SPDSegmentLib import __version__
from SPDSegmentLib.cli import app as app_module
from SPDSegmentLib.cli.terminal import FailureReportingGroup, as_spd_error
from SPDSegmentLib.errors import (
    BadInput,
    Cancelled,
    DependencyMissing,
    ModelCorrupt,
    ModelMissing,
    OutOfMemory,
    SPDError,
    WorkerDied,
)
from SPDSegmentLib.models import bundle as bundle_module
from SPDSegmentLib.models.bundle import write_bundle

torch = pytest.importorskip("torch")


def run(*arguments: str | Path, input: str | None = None) -> Result:
    """Run ``spdsegment`` with these arguments."""
    return CliRunner().invoke(app_module.build_app(), [str(a) for a in arguments], input=input)


@pytest.fixture
def publisher(publisher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As everywhere, and no bundle is shipped."""
    monkeypatch.setattr(bundle_module, "shipped_models_folder", lambda: None)
    return publisher


@pytest.fixture
def model_folder(tmp_path: Path, publisher: Path) -> Path:
    """A bundle that needs the base weights ``stub``."""
    info = tiny_info(backbone="stub", backbone_sha256=sha256(CONTENT), training={"license": "CC BY 4.0"})
    return write_bundle(tmp_path / "elsewhere" / "tiny-test", info, {"w": torch.zeros(2)}, "# The card\n").folder


def test_fetch_list_verify_and_remove_follow_each_other(publisher: Path, spd_home: Path) -> None:
    assert "not here" in run("models", "list").stdout

    fetched = run("models", "fetch", "stub")
    assert fetched.exit_code == 0
    assert str(spd_home / "weights" / "stub.pth") in fetched.stdout.replace("\n", "")
    assert "ready" in run("models", "list").stdout
    assert run("models", "verify").stdout.splitlines()[0] == "stub: good"

    (spd_home / "weights" / "stub.pth").write_bytes(CONTENT[:-1] + b"x")
    damaged = run("models", "verify", "stub")
    assert damaged.exit_code == 2
    assert "wrong checksum" in damaged.stdout

    assert run("models", "fetch", "stub").exit_code == 0
    assert run("models", "remove", "stub").stdout == "stub: removed\n"
    assert run("models", "remove", "stub").stdout == "stub: was not on this machine\n"
    assert leftovers(spd_home) == []


def test_a_size_that_the_publisher_does_not_say_is_not_known(publisher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_manifest(monkeypatch, dataclasses.replace(url_weights(publisher), size=None))
    assert re.search(r"stub +not known ", run("models", "list").stdout)


def test_a_failed_fetch_is_one_sentence_with_exit_code_3(publisher: Path, spd_home: Path) -> None:
    publisher.unlink()
    result = run("models", "fetch", "stub")
    assert result.exit_code == 3
    assert "could not be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert leftovers(spd_home) == []


def test_unknown_names_are_told_with_the_known_ones(publisher: Path) -> None:
    for command in ("fetch", "show", "verify"):
        result = run("models", command, "nonsense")
        assert result.exit_code == 3
        assert "nonsense" in result.output


def test_a_model_is_added_shown_and_its_weights_are_fetched_by_its_name(
    model_folder: Path, spd_home: Path, publisher: Path
) -> None:
    assert run("models", "add", model_folder).exit_code == 0
    shown = run("models", "show", "tiny-test").stdout
    assert "CC BY 4.0" in shown
    assert "# The card" in shown
    assert "tiny-test" in run("models", "list").stdout

    assert run("models", "fetch", "tiny-test").exit_code == 0
    assert (spd_home / "weights" / "stub.pth").read_bytes() == CONTENT


def test_the_list_cuts_no_name(tmp_path: Path, publisher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    info = tiny_info(name=f"{'prostate-' * 8}mr", structure="Peripheral zone of the prostate")
    run("models", "add", write_bundle(tmp_path / "m", info, {"w": torch.zeros(2)}, "").folder)
    first = [line[1 : line.index("  ")] for line in run("models", "list").stdout.split("\n\n")[0].splitlines()[1:]]
    assert "".join(first).replace(" ", "") == info.name


def test_a_model_without_base_weights_has_nothing_to_fetch(tmp_path: Path, publisher: Path) -> None:
    folder = write_bundle(tmp_path / "tiny-test", tiny_info(), {"w": torch.zeros(2)}, "").folder
    fetched = run("models", "fetch", folder)
    assert fetched.exit_code == 0 and fetched.stdout == "tiny_random: has no base weights to fetch\n"


def test_ctrl_c_at_a_question_is_a_cancellation(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(question: str) -> bool:  # as typer asks
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise typer.Abort from None

    run("models", "add", model_folder)
    monkeypatch.setattr(typer, "confirm", interrupted)
    assert run("models", "remove", "tiny-test").exit_code == 130


def test_a_model_of_the_user_is_deleted_only_after_a_yes(model_folder: Path, spd_home: Path) -> None:
    run("models", "add", model_folder)
    own = spd_home / "models" / "tiny-test"
    refused = run("models", "remove", "tiny-test", input="n\n")
    assert refused.exit_code == 1 and "no terminal" not in refused.stderr
    assert own.is_dir()
    unasked = run("models", "remove", "tiny-test")
    assert unasked.exit_code == 2 and "Error: There is no terminal to ask for a yes. Give --yes." in unasked.stderr
    assert own.is_dir()
    assert run("models", "remove", "tiny-test", "--yes").exit_code == 0
    assert not own.exists()


@pytest.mark.parametrize("its_own", [False, True])
def test_a_model_that_cannot_be_removed_stays_whole(
    model_folder: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch, its_own: bool
) -> None:
    run("models", "add", model_folder)
    denied = Mock(side_effect=PermissionError(errno.EACCES, "denied"))
    with monkeypatch.context() as patch:  # as in a folder without the right to write, or with a folder without it
        patch.setattr("os.rmdir", denied)
        patch.setattr(*("os.access", lambda path, mode: not mode & os.W_OK) if its_own else ("os.replace", denied))
        refused = run("models", "remove", "tiny-test", "--yes")
    assert refused.exit_code == 2 and "No permission to write" in refused.stderr
    assert run("models", "verify", "tiny-test").stdout == "tiny-test: good\n"


def test_a_model_that_may_not_be_entered_is_said_and_not_passed_over(
    model_folder: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("models", "add", model_folder)
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "tiny-test" and access(path, mode))
    for command in ("list", "verify"):
        assert "tiny-test may not be entered" in run("models", command).stdout
    assert "tiny-test may not be entered" in run("models", "show", "tiny-test").stderr


def test_a_shipped_model_is_not_removed_and_nothing_is_asked(
    model_folder: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "shipped_models_folder", lambda: model_folder.parent)
    refused = run("models", "remove", "tiny-test")
    assert refused.exit_code == 2 and "Delete" not in refused.output
    assert "The model tiny-test comes with SPDSegment and cannot be removed." in refused.stderr
    assert model_folder.is_dir()


def renamed(folder: Path, name: str) -> Path:
    """Give a model another name by its description; it stays in its folder."""
    values = json.loads((folder / "model.json").read_text()) | {"name": name}
    (folder / "model.json").write_text(json.dumps(values))
    return folder


def test_a_model_of_another_name_in_the_folder_of_a_name_is_neither_removed_nor_replaced(
    model_folder: Path, spd_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("models", "add", model_folder)
    own = renamed(spd_home / "models" / "tiny-test", "mine")
    monkeypatch.setattr(bundle_module, "shipped_models_folder", lambda: model_folder.parent)
    refused = run("models", "remove", "--yes", "tiny-test")
    assert refused.exit_code == 2 and "The model tiny-test comes with SPDSegment" in refused.stderr
    refused = run("models", "add", model_folder)
    assert refused.exit_code == 2 and "tiny-test holds another model of yours, mine. Rename" in refused.stderr
    assert "mine" in run("models", "show", "mine").stdout
    own.rename(own.with_name("mine"))
    assert run("models", "add", model_folder).exit_code == 0
    assert run("models", "remove", "--yes", "mine").exit_code == 0 and own.is_dir()


def test_that_a_model_of_the_same_name_was_replaced_is_said(model_folder: Path, spd_home: Path) -> None:
    assert "replaced" not in run("models", "add", model_folder).output
    assert "It replaced the model of this name that you had." in run("models", "add", model_folder).stderr
    own = spd_home / "models" / "tiny-test"
    assert "replaced" not in run("models", "add", "--accept-unknown", own).output


def test_what_is_no_model_is_said_to_be_what_it_is(model_folder: Path, tmp_path: Path) -> None:
    run("models", "add", model_folder)
    assert "Did you mean tiny-test?" in run("models", "pack", "Tiny-Tset").stderr
    assert "Did you mean" not in run("models", "pack", "lung").stderr
    assert "lite_medsam is base weights, not a model. Give a folder or" in run("models", "pack", "lite_medsam").stderr
    (tmp_path / "x.toml").touch()
    assert "x.toml is the configuration of a training, not a model." in run("models", "add", tmp_path / "x.toml").stderr
    assert "There is no file none.pth." in run("models", "add", "none.pth").stderr


def test_a_damaged_model_is_listed_as_damaged_and_can_be_removed(model_folder: Path, spd_home: Path) -> None:
    run("models", "add", model_folder)
    (spd_home / "models" / "tiny-test" / "adapter.safetensors").write_bytes(b"")
    assert "damaged" in run("models", "list").stdout
    assert run("models", "verify").exit_code == 2
    assert run("models", "remove", "tiny-test", "--yes").exit_code == 0
    assert run("models", "verify").exit_code == 0


def test_options_that_do_not_apply_to_what_is_added_are_refused(model_folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "tiny.zip"
    assert run("models", "pack", model_folder, "-o", packed).exit_code == 0
    for source, option, value in (
        (model_folder, "--sha256", "0" * 64),
        (model_folder, "--as", "stub"),
        (packed, "--as", "stub"),
    ):
        refused = run("models", "add", source, option, value)
        assert refused.exit_code == 2 and f"Leave {option} out" in refused.stderr
    assert run("models", "add", packed, "--sha256", sha256(packed.read_bytes())).exit_code == 0


def test_a_file_of_the_users_own_is_added_by_its_name_or_as_told(publisher: Path, tmp_path: Path) -> None:
    assert run("models", "add", publisher).exit_code == 0
    run("models", "remove", "stub")
    other = tmp_path / "mine.bin"
    other.write_bytes(b"mine")
    unnamed = run("models", "add", other)
    assert unnamed.exit_code == 2
    assert "--as" in unnamed.stderr
    refused = run("models", "add", other, "--as", "stub")
    assert refused.exit_code == 2
    assert "--accept-unknown" in refused.stderr
    assert run("models", "add", other, "--as", "stub", "--accept-unknown").exit_code == 0
    assert "your own file" in run("models", "list").stdout


def test_a_file_whose_checksum_an_installed_model_names_is_added_without_a_flag(
    model_folder: Path, publisher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_manifest(monkeypatch, url_weights(publisher, sha256=None, size=None, md5="0" * 32))
    assert run("models", "add", publisher).exit_code == 2
    run("models", "add", model_folder)
    assert run("models", "add", publisher).exit_code == 0


def test_json_output_is_json(model_folder: Path, publisher: Path) -> None:
    run("models", "add", model_folder)
    listed = json.loads(run("models", "list", "--json").stdout)
    assert "tiny-test" in [entry["name"] for entry in listed["models"]]
    assert listed["base_weights"][0]["state"] == "missing"
    assert json.loads(run("models", "show", "tiny-test", "--json").stdout)["structure"] == "kidney"
    assert json.loads(run("models", "show", "stub", "--json").stdout)["sha256"] == sha256(CONTENT)


@pytest.mark.parametrize(("doubts", "code"), [([], 0), (["Nothing was segmented."], 6)])
def test_a_demo_that_must_be_looked_at_says_so_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubts: list[str], code: int
) -> None:
    done = Mock()
    done.outcome.result.doubts = doubts
    for name in ("describe", "dice_with", "fetch_base_weights", "run_segmentation"):
        monkeypatch.setattr(app_module, name, Mock(return_value=done if name == "run_segmentation" else 0.5))
    assert run("demo", "--output", tmp_path / "demo").exit_code == code


def test_the_version_is_shown() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"spdsegment {__version__}\n")


def test_wrong_usage_is_exit_code_2(publisher: Path) -> None:
    assert run("models", "fetch").exit_code == 2
    assert run("nonsense").exit_code == 2


def app_that_raises(error: BaseException) -> typer.Typer:
    """A program whose command ``fail`` raises ``error``."""
    app = typer.Typer(cls=FailureReportingGroup, pretty_exceptions_enable=False)
    app.callback()(app_module._general_options)

    @app.command("fail")
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BadInput("The image is empty.", "Use another."), 2, "The image is empty. Use another."),
        (ModelCorrupt("Broken."), 2, "Broken."),
        (ModelMissing("Not here."), 3, "Not here."),
        (DependencyMissing("No torch."), 3, "No torch."),
        (OutOfMemory("Too large."), 4, "Too large."),
        (WorkerDied("Gone."), 5, "Gone."),
        (Cancelled(), 130, "Cancelled."),
        (KeyboardInterrupt(), 130, "Cancelled."),
        (MemoryError(), 4, "not enough memory"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            3,
            "pip install 'torch>=2.6' 'segment-anything>=1.0' 'peft>=0.11'",
        ),
        (
            ModuleNotFoundError("No module named 'peft.x'", name="peft.x"),
            3,
            "pip install 'torch>=2.6' 'segment-anything>=1.0' 'peft>=0.11'",
        ),
        (OSError(28, "No space left on device", "out.nii"), 2, "The disk is full (out.nii)."),
        (PermissionError(13, "Permission denied", "out.nii"), 2, "Permission denied (out.nii)."),
        (ValueError("what?\nsecond line"), 1, "(ValueError: what?)"),
    ],
)
def test_every_failure_is_a_sentence_and_an_exit_code(error: BaseException, code: int, text: str) -> None:
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_details_are_shown_only_on_request() -> None:
    app = app_that_raises(BadInput("The image is empty.", details="bytes 3 to 7"))
    assert "bytes 3 to 7" not in CliRunner().invoke(app, ["fail"]).stderr
    shown = CliRunner().invoke(app, ["--debug", "fail"]).stderr
    assert "bytes 3 to 7" in shown
    assert "Traceback" in shown


def test_torch_running_out_of_memory_is_known_without_importing_torch() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    assert isinstance(as_spd_error(OutOfMemoryError("CUDA out of memory")), OutOfMemory)
    assert isinstance(as_spd_error(RuntimeError("DefaultCPUAllocator: can't allocate memory")), OutOfMemory)
    assert type(as_spd_error(RuntimeError("other"))) is SPDError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_is_known_whatever_limits_it(number: int) -> None:
    failure = as_spd_error(OSError(number, os.strerror(number), "/data/x"))
    assert isinstance(failure, BadInput) and "/data/x" in failure.message and failure.remedy


def test_a_bad_argument_of_a_command_keeps_typers_own_message() -> None:
    def choose(value: int) -> None:
        """Take a number."""

    app = typer.Typer(cls=FailureReportingGroup)
    app.callback()(app_module._general_options)
    app.command("choose")(choose)
    result = CliRunner().invoke(app, ["choose", "many"])
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("start", [["-m", "SPDSegmentLib"], ["-c", "from SPDSegmentLib.cli.app import main; main()"]])
def test_the_program_starts_as_a_module_and_lists_its_commands(start: list[str], repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert {"segment", "models", "demo"} <= set(re.findall(r"\w+", done.stdout))


def test_a_closed_pipe_is_no_error(publisher: Path, tmp_path: Path, repository: Path) -> None:
    command = f"'{sys.executable}' -m SPDSegmentLib models list --json | true"
    done = subprocess.run(["sh", "-c", command], cwd=repository, capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr
