"""What the command line shows: every word of its help, and progress that fits 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from inspect import signature
from typing import get_type_hints

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from SPDSegmentLib.cli import app, terminal
from SPDSegmentLib.cli.batch_command import batch
from SPDSegmentLib.cli.segment_command import segment
from SPDSegmentLib.inference.results import SegmentationProgress


def commands(command: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command with the words that call it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app.build_app())))  # type: ignore[arg-type]


def words(text: str) -> str:
    """A text without its line breaks, as a terminal may have broken it anywhere."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_every_word_that_was_written(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app.build_app(), [*path, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    for parameter in COMMANDS[path].params:  # type: ignore[attr-defined]
        assert words(getattr(parameter, "help", None) or "") in words(shown.output), parameter.name
    assert words(COMMANDS[path].help or "") in words(shown.output)  # type: ignore[attr-defined]
    assert max(map(len, shown.output.splitlines())) <= 80


def test_words_in_brackets_are_in_the_help_of_evaluate() -> None:
    assert "whose [data] names the cases" in CliRunner().invoke(app.build_app(), ["evaluate", "--help"]).output


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is shown on 80 columns, in a terminal or in a pipe."""
    shown = io.StringIO()
    settings = {"force_terminal": True, "color_system": None, "width": 80} if request.param else {"width": 80}
    monkeypatch.setattr(terminal, "stderr_console", lambda: Console(file=shown, highlight=False, **settings))
    return shown


def lines(shown: io.StringIO) -> list[str]:
    """Lines as a person sees them, without the control codes between."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_the_progress_of_a_training_fits_80_columns(screen: io.StringIO) -> None:
    names = ("total", "segmentation", "psc", "quality", "dsc", "dice_loss", "focal_loss")
    with terminal.show_training(True) as bar:
        for what in ("stage1", "computing embeddings", "evaluating a-model-with-quite-a-[long]-name"):
            bar.advance(what, 12345, 12345, 123456.0, dict.fromkeys(names, 12.3456))
    assert all(len(line) <= 80 for line in lines(screen)), lines(screen)
    text = "\n".join(lines(screen))
    assert "total 12.346  dsc 12.346" in text and "12345/12345" in text and "evaluating a-model" in text


def test_the_progress_of_slices_and_bytes_fits_80_columns(screen: io.StringIO) -> None:
    with terminal.show_slices() as advance:
        advance(SegmentationProgress("decoding", 1234, 12345))
    with terminal.show_bytes("a-backbone-with-a-long-name-of-many-words") as show:
        show(123_456_789, 2_345_678_901)
    assert all(len(line) <= 80 for line in lines(screen)), lines(screen)
    assert not lines(screen) or "2.3 GB" in screen.getvalue()


def test_what_is_said_is_never_read_as_markup(screen: io.StringIO) -> None:
    with terminal.show_training(True) as bar:
        bar.say("in /data/[red]/[bold]x")
    assert any("in /data/[red]/[bold]x" in line for line in lines(screen))


def test_what_is_said_holds_nothing_that_a_terminal_would_obey(screen: io.StringIO) -> None:
    with terminal.show_training(True) as bar:
        bar.say("a case named \x1b]0;mine\x07")
    assert "a case named \ufffd]0;mine\ufffd" in screen.getvalue()


@pytest.mark.parametrize("path", [(), ("models",)], ids=["spdsegment", "models"])
def test_the_list_of_commands_cuts_no_sentence(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app.build_app(), [*path, "--help"], env={"COLUMNS": "80"}).output
    assert "..." not in shown.replace("[ARGS]...", "")


def test_batch_takes_every_option_of_segment_that_says_how() -> None:
    def options(command: Callable[..., None]) -> dict[str, tuple[object, object, object]]:
        kinds = get_type_hints(command, include_extras=True)
        told = {name: [vars(info) for info in kind.__metadata__] for name, kind in kinds.items()}
        defaults = {name: option.default for name, option in signature(command).parameters.items()}
        return {name: (kinds[name].__origin__, told[name], default) for name, default in defaults.items()}

    one, many = options(segment), options(batch)
    of_one_case = {
        "image",
        "points",
        "point",
        "output",
        "report",
        "preview",
        "dicom_seg",
        "rtstruct",
        "measure",
    }  # columns of the table, and files of the folder
    assert {name: many.get(name) for name in one if name not in of_one_case} == {
        name: said for name, said in one.items() if name not in of_one_case
    }
