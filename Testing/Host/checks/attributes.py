"""Check of Python code: every use of a widget of a .ui file must exist in Slicer."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..widget_api import VERSIONS, WidgetApi
from .members import Members
from .ui_file import widget_classes

_HOLDERS = ("ui", "_ui")


def check_widget_attributes(
    python_files: Iterable[Path | str],
    ui_file: Path | str,
    api: WidgetApi,
    versions: Sequence[str] = VERSIONS,
) -> list[str]:
    """Return one sentence for every wrong use of `self.ui.<widget>.<member>`; empty if all is well.

    A name within a function that stands for a widget (`box = self.ui.box`, `for box in (ui.a, ui.b)`) is followed.
    Wrong are: a widget that the .ui file lacks, a member that a version lacks, a property that is called, a
    method or a read-only property that is assigned, and a connection to a signal that does not exist.
    """
    classes = widget_classes(ui_file)
    faults: list[str] = []
    for path in python_files:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        visitor = _Visitor(classes, api, versions, Path(path).name)
        visitor.visit(tree)
        faults.extend(visitor.faults)
    return faults


class _Visitor(ast.NodeVisitor):
    """Collects the faults of one file."""

    def __init__(self, classes: dict[str, str], api: WidgetApi, versions: Sequence[str], file: str) -> None:
        self._classes = classes
        self._api = api
        self._versions = versions
        self._file = file
        self._aliases: dict[str, list[str]] = {}
        self.faults: list[str] = []

    def visit_Call(self, node: ast.Call) -> None:
        """Look at calls: of properties, and of connect."""
        for widget, member in self._widget_members(node.func):
            members = self._members(widget)
            if members is not None and members.property_writable(member) is not None:
                self._fault(node, f"{widget}.{member} is a property of {members.name}, it is not called")
            if members is not None and member in ("connect", "disconnect"):
                self._check_signal(node, widget, members)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Look at assignments."""
        for target in node.targets:
            for used in self._widget_members(target):
                self._check_assignment(node, *used)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Look at a function with the names that it gives to widgets: by assignment, or in a loop over some."""
        outer = self._aliases
        self._aliases = outer | self._names_of_widgets(node)
        self.generic_visit(node)
        self._aliases = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Look at every use of a widget's member."""
        used = self._widget_members(node)
        for widget, member in used:
            self.faults.extend(self._check_member(node, widget, member))
        is_widget = not used and self._is_holder(node.value)
        if is_widget and node.attr not in self._classes and not node.attr.startswith("__"):
            self._fault(node, f"the .ui file has no widget '{node.attr}'")
        self.generic_visit(node)

    def _check_member(self, node: ast.AST, widget: str, member: str) -> Iterator[str]:
        members = self._members(widget)
        if members is None:
            return
        if not members.has(member):
            yield self._sentence(node, f"{members.name} ({widget}) has no member '{member}'")
        for version in members.lacking_versions(member, self._versions):
            yield self._sentence(node, f"{members.name} ({widget}) has no '{member}' in Slicer {version}")

    def _check_assignment(self, node: ast.AST, widget: str, member: str) -> None:
        members = self._members(widget)
        if members is None or not members.has(member):
            return
        writable = members.property_writable(member)
        if writable is None:
            self._fault(node, f"'{member}' of {members.name} ({widget}) is no property and cannot be assigned")
        elif not writable:
            self._fault(node, f"property '{member}' of {members.name} ({widget}) cannot be set")

    def _check_signal(self, node: ast.Call, widget: str, members: Members) -> None:
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and not members.has_signal(first.value):
            self._fault(node, f"{members.name} ({widget}) has no signal '{first.value}'")

    def _members(self, widget: str) -> Members | None:
        cls = self._classes.get(widget)
        return Members(self._api, cls) if cls is not None else None

    def _widget_members(self, node: ast.AST) -> list[tuple[str, str]]:
        """Return widget and member of `<...>.ui.<widget>.<member>`, or of a name that stands for widgets."""
        if not isinstance(node, ast.Attribute):
            return []
        if isinstance(node.value, ast.Name):
            return [(widget, node.attr) for widget in self._aliases.get(node.value.id, ())]
        return [(widget, node.attr) for widget in self._widgets(node.value)]

    def _widgets(self, node: ast.AST) -> list[str]:
        """Return the widget of `<...>.ui.<widget>`, or those of a tuple or list of such."""
        if isinstance(node, (ast.Tuple, ast.List)):
            every = [self._widgets(element) for element in node.elts]
            return [widget for one in every for widget in one] if all(every) else []
        return [node.attr] if isinstance(node, ast.Attribute) and self._is_holder(node.value) else []

    def _names_of_widgets(self, function: ast.FunctionDef) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, value = node.targets[0], node.value
            elif isinstance(node, ast.For):
                target, value = node.target, node.iter
            else:
                continue
            if isinstance(target, ast.Name):
                found[target.id] = found.get(target.id, []) + self._widgets(value)
        return found

    def _is_holder(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in _HOLDERS
        return isinstance(node, ast.Attribute) and node.attr in _HOLDERS

    def _fault(self, node: ast.AST, text: str) -> None:
        self.faults.append(self._sentence(node, text))

    def _sentence(self, node: ast.AST, text: str) -> str:
        return f"{self._file}:{getattr(node, 'lineno', 0)}: {text}."
