"""Imports point down the layers, and what Slicer's process or a cheap command loads is free of torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "SPDSegmentLib"
LAYERS = {
    "errors": 0,
    "settings": 1,
    "staging": 1,
    "files": 2,
    "geometry": 3,
    "models": 4,
    "prompts": 5,
    "networks": 6,
    "inference": 7,
    "api": 8,
    "interactive": 9,
    "training": 8,
    "evaluation": 8,
    "worker": 9,
    "batch": 10,
    "gui": 11,
    "cli": 11,
}
"""Height of every part (docs/architecture.md); a part may import lower ones, itself, and its equals where listed."""
GUI_ROOMS = ("scene", "run", "setup", "panel")
"""Rooms of ``gui``, the lowest first; each may import those before it and itself."""
SIGNAL = "currentNodeChanged(vtkMRMLNode*)"
"""Of Slicer's selectors of nodes."""
EQUALS = {("training", "evaluation"), ("evaluation", "training")}
HEAVY = ("torch", "torchvision", "peft", "segment_anything", "transformers")
SLICER = {"slicer", "qt", "ctk", "vtk"}
TORCH_FREE = (
    "api",
    "interactive",
    "errors",
    "settings",
    "staging",
    "files",
    "geometry",
    "models",
    "prompts.fates",
    "batch",
    "cli",
    "worker.client",
    "worker.connection",
    "worker.messages",
    "worker.payloads",
    "worker.pipes",
    "worker.protocol",
    "worker.requests",
    "worker.health",
    "worker.transports",
)
"""Parts whose import alone may not load torch; ``gui`` imports these and Slicer's own packages only."""


def sources(repository: Path) -> list[Path]:
    """Python files of the library."""
    return sorted((repository / PACKAGE).rglob("*.py"))


def benchmark_sources(repository: Path) -> list[Path]:
    """Python files of the benchmark, which stands beside the library."""
    return sorted((repository / "Testing" / "Benchmarks" / "spdbench").rglob("*.py"))


def module_name(repository: Path, path: Path) -> str:
    """Dotted name, without ``__init__``."""
    parts = path.relative_to(repository).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file as a syntax tree; every file is parsed once."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imported_names(repository: Path, path: Path) -> tuple[tuple[str, bool], ...]:
    """Dotted names that a file imports, and whether that happens as soon as the file is imported."""
    return tuple(_imports(tree_of(path), repository, path))


def _imports(tree: ast.Module, repository: Path, path: Path) -> Iterator[tuple[str, bool]]:
    package = module_name(repository, path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    late = {id(inner) for node in ast.walk(tree) if _is_late(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        early = id(node) not in late
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, early
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", early


def _is_late(node: ast.AST) -> bool:
    """Bodies of functions, and what only type checkers see."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def part_of(name: str) -> str | None:
    """The part of the library that a dotted name belongs to."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == PACKAGE and len(pieces) > 1 and pieces[1] in LAYERS else None


def test_every_part_of_the_library_has_its_place_in_the_layers(repository: Path) -> None:
    parts = {path.name for path in (repository / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts <= set(LAYERS)


def test_imports_point_down_the_layers(repository: Path) -> None:
    upward = [
        f"{path.relative_to(repository)} imports {name}"
        for path in sources(repository)
        if (part := part_of(module_name(repository, path))) is not None
        for name, _ in imported_names(repository, path)
        if (other := part_of(name)) is not None
        if other != part and LAYERS[other] >= LAYERS[part] and (part, other) not in EQUALS
    ]
    assert upward == []


def test_rooms_of_the_gui_import_downward_only(repository: Path) -> None:
    upward = []
    for path in sorted((repository / PACKAGE / "gui").rglob("*.py")):
        own = path.relative_to(repository / PACKAGE / "gui").parts[0]
        for name, _ in imported_names(repository, path):
            room = name.split(".")[2] if name.startswith(f"{PACKAGE}.gui.") else own
            if own in GUI_ROOMS and GUI_ROOMS.index(room) > GUI_ROOMS.index(own):
                upward.append(f"{path.name} of {own} imports {name}")
    folders = {path.name for path in (repository / PACKAGE / "gui").iterdir() if path.is_dir()}
    assert upward == [] and folders - {"__pycache__"} == set(GUI_ROOMS)
    assert [path.name for path in (repository / PACKAGE / "gui").glob("*.py")] == ["__init__.py"]


def test_what_runs_sets_up_and_shows_leaves_the_nodes_of_the_scene_to_the_lowest_room(repository: Path) -> None:
    touching = [
        f"{path.parent.name}/{path.name}"
        for room in ("run", "setup", "panel")
        for path in sorted((repository / PACKAGE / "gui" / room).glob("*.py"))
        if any(word in path.read_text(encoding="utf-8").replace(SIGNAL, "") for word in ("mrmlScene", "vtkMRML"))
    ]
    assert touching == ["panel/about.py", "panel/panel.py"], "the panel hears when the scene is closed or imported"


def rests_on_itself(repository: Path) -> dict[str, set[str]]:
    """Modules that import each other, even through others, and those that rest on them, with what they import."""
    modules = {module_name(repository, path): path for path in sources(repository)}
    asked: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for name, _ in imported_names(repository, path)}
        known = {name if name in modules else name.rpartition(".")[0] for name in names}
        asked[module] = (known & set(modules)) - {module, PACKAGE}
    while free := {module for module, needed in asked.items() if not needed}:
        asked = {module: needed - free for module, needed in asked.items() if module not in free}
    return asked


def names_of_two_classes(repository: Path) -> dict[str, list[str]]:
    """Names that more than one class has, with the files."""
    places: dict[str, list[str]] = {}
    for path in sources(repository):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(repository)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_modules_import_each_other_even_through_others(repository: Path) -> None:
    assert rests_on_itself(repository) == {}, "these import each other, or rest on modules that do"


def test_a_class_name_means_one_thing(repository: Path) -> None:
    assert names_of_two_classes(repository) == {}


def test_a_circle_and_a_name_of_two_classes_are_found(repository: Path, tmp_path: Path) -> None:
    assert len(sources(repository)) > 100
    texts = {"a": "from .worker import b", "worker/b": "import SPDSegmentLib.c", "c": "def late():\n  from . import a"}
    for name, text in texts.items():
        path = tmp_path / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\nclass Job: pass\n", encoding="utf-8")
    assert set(rests_on_itself(tmp_path)) == {f"{PACKAGE}.{name.replace('/', '.')}" for name in texts}
    assert len(names_of_two_classes(tmp_path)["Job"]) == 3


def test_no_file_is_longer_than_four_hundred_lines(repository: Path) -> None:
    written = [*sources(repository), *benchmark_sources(repository), *(repository / "Testing/Python").glob("*.py")]
    long = {str(path): n for path in written if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_only_the_gui_imports_slicer_and_qt(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)} imports {name}"
        for path in [*sources(repository), *benchmark_sources(repository)]
        if part_of(module_name(repository, path)) != "gui"
        for name, _ in imported_names(repository, path)
        if name.split(".")[0] in SLICER
    ]
    assert found == []


def test_the_library_imports_nothing_of_the_benchmark(repository: Path) -> None:
    product = [*sources(repository), *(repository / "SPDSegment").rglob("*.py")]
    found = [
        f"{path.relative_to(repository)} imports {name}"
        for path in product
        for name, _ in imported_names(repository, path)
        if name.split(".")[0] in {"spdbench", "Testing"}
    ]
    assert found == []


def test_nothing_unpickles(repository: Path) -> None:
    files = [*sources(repository), *benchmark_sources(repository)]
    found = [
        f"{path.relative_to(repository)} imports {name}"
        for path in files
        for name, _ in imported_names(repository, path)
        if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    ]
    assert found == []
    loads = [
        f"{path.relative_to(repository)}:{node.lineno}"
        for path in files
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        if not any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
    ]
    assert loads == []
    allowing = [
        f"{path.relative_to(repository)}:{node.lineno}"
        for path in files
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and any(k.arg == "allow_pickle" for k in node.keywords)
        if not ast.unparse(node).endswith("allow_pickle=False)")
    ]
    assert allowing == []


def test_the_gui_asks_only_for_parts_that_are_free_of_torch(repository: Path) -> None:
    allowed = {f"{PACKAGE}.{part}" for part in TORCH_FREE} | {f"{PACKAGE}.gui"}
    found = [
        f"{path.relative_to(repository)} imports {name}"
        for path in sources(repository)
        if part_of(module_name(repository, path)) == "gui"
        for name, _ in imported_names(repository, path)
        if part_of(name) is not None or name.split(".")[0] in HEAVY
        if not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    ]
    assert found == []


def torch_free_modules(repository: Path) -> list[str]:
    """Names of all modules that must not load torch."""
    prefixes = tuple(f"{PACKAGE}.{part}" for part in TORCH_FREE)
    names = [module_name(repository, path) for path in sources(repository)]
    return [name for name in names if any(name == p or name.startswith(p + ".") for p in prefixes)]


def test_torch_free_modules_load_without_torch(repository: Path) -> None:
    modules = torch_free_modules(repository)
    assert f"{PACKAGE}.models.bundle" in modules
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[2].split():\n"
        "    importlib.import_module(name)\n"
        "    loaded = [heavy for heavy in sys.argv[1].split() if heavy in sys.modules]\n"
        "    if loaded:\n"
        "        sys.exit(f'{name} loads {loaded}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(HEAVY), " ".join(modules)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", ["errors", "staging", "files", "models", "geometry"])
def test_the_lowest_parts_load_with_numpy_alone(repository: Path, part: str) -> None:
    modules = [name for name in torch_free_modules(repository) if name.startswith(f"{PACKAGE}.{part}")]
    code = (
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'typer', 'rich', 'SimpleITK', 'matplotlib', 'safetensors', 'torch'}:\n"
        "            raise ModuleNotFoundError(f'{name} is kept away', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "for name in sys.argv[1].split():\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(modules)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
