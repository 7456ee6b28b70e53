"""Dialogs that a test answers: nothing waits for a person who is not there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6 import QtGui, QtWidgets

from ..errors import UnexpectedDialog

DialogHandler = Callable[[QtWidgets.QDialog], int]


@dataclass(frozen=True)
class Message:
    """One message or question that a user would have seen: kind, text, detailed text and the answer given."""

    kind: str
    text: str
    details: str = ""
    answer: Any = None


class Dialogs:
    """Records messages and gives the answers that a test has prepared."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._answers: deque[bool] = deque()
        self._paths: deque[str] = deque()
        self._handlers: deque[DialogHandler] = deque()

    def reset(self) -> None:
        """Forget messages and prepared answers."""
        self.messages.clear()
        self._answers.clear()
        self._paths.clear()
        self._handlers.clear()

    def answer(self, *answers: bool) -> None:
        """Prepare answers of the next confirmations; without one, a confirmation is refused."""
        self._answers.extend(answers)

    def choose_file(self, *paths: str) -> None:
        """Prepare what the next file dialogs return; an empty string is Cancel."""
        self._paths.extend(str(path) for path in paths)

    def on_next_dialog(self, handler: DialogHandler) -> None:
        """Prepare what happens when a modal dialog opens; the handler returns the dialog's result."""
        self._handlers.append(handler)

    def texts(self, kind: str | None = None) -> list[str]:
        """Return the texts of the messages so far, of one kind or of all."""
        return [message.text for message in self.messages if kind in (None, message.kind)]

    def show(self, kind: str, text: str, details: str = "") -> None:
        """Record a message that needs no answer."""
        self.messages.append(Message(kind, text, details))

    def confirm(self, text: str, details: str = "") -> bool:
        """Record a question and return the prepared answer."""
        answer = self._answers.popleft() if self._answers else False
        self.messages.append(Message("confirm", text, details, answer))
        return answer

    def next_path(self, title: str) -> str:
        """Return the prepared path for a file dialog; UnexpectedDialog if there is none."""
        if not self._paths:
            raise UnexpectedDialog(f"A file dialog '{title}' opened and the test has no path for it.")
        return self._paths.popleft()

    def execute(self, dialog: QtWidgets.QDialog) -> int:
        """Stand in for the event loop of a modal dialog."""
        text = getattr(dialog, "text", "")
        self.messages.append(Message("dialog", text if isinstance(text, str) else "", str(dialog.windowTitle)))
        if not self._handlers:
            raise UnexpectedDialog(f"A modal {type(dialog).__name__} '{dialog.windowTitle}' opened: {text}")
        return self._handlers.popleft()(dialog)


dialogs = Dialogs()


def install_dialogs() -> None:
    """Replace modal loops and static dialogs of Qt."""
    dialog: Any = QtWidgets.QDialog
    dialog.exec = dialog.exec_ = lambda self: dialogs.execute(self)
    files: Any = QtWidgets.QFileDialog
    files.exec = files.exec_ = lambda self: dialogs.execute(self)
    for name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
        setattr(files, name, staticmethod(_one_path))
    files.getOpenFileNames = staticmethod(lambda *arguments: [p for p in _one_path(*arguments).split(";") if p])
    box: Any = QtWidgets.QMessageBox
    box.exec = box.exec_ = lambda self: dialogs.execute(self)
    for kind in ("information", "warning", "critical", "about"):
        setattr(box, kind, staticmethod(_message(kind)))
    box.question = staticmethod(_question)
    for cls, names in _ASKING.items():
        for name in names:
            setattr(getattr(QtWidgets, cls), name, staticmethod(_refuse(f"{cls}.{name}")))
    services: Any = QtGui.QDesktopServices
    services.openUrl = staticmethod(_open_url)
    menu: Any = QtWidgets.QMenu
    menu.exec = menu.exec_ = _no_menu


_ASKING = {
    "QInputDialog": ("getText", "getMultiLineText", "getInt", "getDouble", "getItem"),
    "QColorDialog": ("getColor",),
    "QFontDialog": ("getFont",),
}


def _refuse(name: str) -> Callable[..., None]:
    def refuse(*_arguments: Any) -> None:
        raise UnexpectedDialog(f"{name} opened; it would wait for a person.")

    return refuse


def _open_url(url: Any) -> bool:
    dialogs.show("openUrl", str(url.toString()))
    return True


def _one_path(parent: Any = None, title: str = "", *_arguments: Any) -> str:
    return dialogs.next_path(title)


def _message(kind: str) -> Callable[..., int]:
    def show(parent: Any, title: str, text: str, *_arguments: Any) -> int:
        dialogs.show(kind, text, title)
        return int(QtWidgets.QMessageBox.StandardButton.Ok)

    return show


def _question(parent: Any, title: str, text: str, *_arguments: Any) -> int:
    buttons = QtWidgets.QMessageBox.StandardButton
    return int(buttons.Yes if dialogs.confirm(text, title) else buttons.No)


def _no_menu(*_arguments: Any) -> None:
    raise UnexpectedDialog("A menu opened with exec(): use the actions of the menu in a test.")
