"""`pip install .` into a fresh environment: the wheel, the program without torch, advice that works; the Dockerfile."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import REQUIREMENTS

requirements = pytest.importorskip("packaging.requirements")


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A wheel of the tree in an environment of its own, which sees the other packages of this one."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(repository / name, source)
    for name in ("SPDSegmentLib", "Resources"):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "Screenshots"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    how = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *how, "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    place = folder / "venv"
    venv.create(place, symlinks=True, with_pip=False)
    bin_folder = place / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / Path(sys.executable).name
    paths = sysconfig.get_paths(vars={"base": str(place), "platbase": str(place)})
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", wheel], check=True)
    others = "".join(f"{entry}\n" for entry in sys.path if entry.endswith("-packages"))
    (Path(paths["purelib"]) / "others.pth").write_text(others, encoding="utf-8")
    absent = folder / "absent"  # packages that cannot be imported, in front of those that can
    for name in ("torch", "matplotlib"):
        (absent / name).mkdir(parents=True)
        fails = f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})\n'
        (absent / name / "__init__.py").write_text(fails, encoding="utf-8")
    return SimpleNamespace(folder=folder, wheel=wheel, python=python, program=bin_folder / "spdsegment", absent=absent)


def run(installed: SimpleNamespace, *words: object, without: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the installed program, far from the tree; with ``without`` there is neither torch nor matplotlib."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPDSEGMENT"))}
    environment["SPDSEGMENT_HOME"] = str(installed.folder / "home")
    if without:
        environment["PYTHONPATH"] = str(installed.absent)
    command = [str(installed.program), *map(str, words)]
    return subprocess.run(
        command, cwd=installed.folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_the_wheel_holds_the_library_models_and_sample_and_nothing_of_slicer(installed: SimpleNamespace) -> None:
    import zipfile

    names = zipfile.ZipFile(installed.wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"SPDSegmentLib", f"spdsegment-{__version__}.dist-info"}
    parts = {name.split("/")[1] for name in names if name.startswith("SPDSegmentLib/")}
    assert {"cli", "geometry", "worker", "Resources"} <= parts and "gui" not in parts
    for wanted in ("Resources/Models/kidney-mr/adapter.safetensors", "Resources/SampleData/kidney-mr/image.nii.gz"):
        assert f"SPDSegmentLib/{wanted}" in names


def test_the_program_runs_without_torch(installed: SimpleNamespace) -> None:
    shown = run(installed, "--version", without=True)
    assert (shown.returncode, shown.stdout.strip()) == (0, f"spdsegment {__version__}"), shown.stderr
    for words in (["--help"], ["segment", "--help"], ["models", "list"], ["models", "show", "kidney-mr"]):
        said = run(installed, *words, without=True)
        assert said.returncode == 0, said.stderr
        assert "kidney-mr" in said.stdout or "segment" in said.stdout


@pytest.mark.parametrize("words", [[], ["--preview", "a.png"]], ids=["torch", "matplotlib"])
def test_what_is_said_of_a_missing_package_is_a_command_that_installs_it_here(
    installed: SimpleNamespace, repository: Path, lite_medsam: Path, words: list[str]
) -> None:
    # given
    weights = installed.folder / "home" / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    shutil.copy(lite_medsam, weights)
    sample = repository / "Resources" / "SampleData" / "kidney-mr"
    # when
    said = run(
        installed, "segment", "-i", sample / "image.nii.gz", "-p", sample / "clicks.mrk.json", "-m", "kidney-mr",
        "-o", "mask.nii.gz", *words, without=True,
    )  # fmt: skip
    # then: the command is pip of this very environment, and asks for what is declared and can be had
    assert said.returncode == 3, said.stdout + said.stderr
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", said.stderr).split())
    assert f"The Python package {'matplotlib' if words else 'torch'} is needed here" in text
    python, *rest = shlex.split(text.partition("Run: ")[2])
    assert Path(python) == installed.python and rest[:3] == ["-m", "pip", "install"]
    asked = [requirements.Requirement(word) for word in rest[3:]]
    assert asked and all(str(one) in REQUIREMENTS.values() for one in asked)
    for one in asked:
        assert importlib.metadata.version(one.name) in one.specifier
    assert not (installed.folder / "mask.nii.gz").exists()


def test_commands_that_the_pages_give_name_extras_that_there_are(repository: Path) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    given = 0
    for page in (repository / "README.md", repository / "Dockerfile", *(repository / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert "pip install 'spdsegment" not in text and 'pip install "spdsegment' not in text, "it is on no index"
        for found in re.findall(r"""["']\.\[([a-z,]+)\]["']""", text):
            given += 1
            assert set(found.split(",")) <= extras.keys(), page
    assert given >= 3


def copy_of_makefile(repository: Path, folder: Path) -> None:
    """Put what `make setup` reads into a folder; the test is skipped where there is no make."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, folder)


def test_another_torch_for_an_environment_that_is_there_is_refused_with_what_helps(
    repository: Path, tmp_path: Path
) -> None:
    copy_of_makefile(repository, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".torch").write_text("torch==2.13.0\n", encoding="utf-8")
    (tmp_path / ".venv" / ".installed").touch()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "TORCH"}

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "setup", *words], cwd=tmp_path, env=plain, capture_output=True, text=True, encoding="utf-8"
        )

    assert make().returncode == 0 and make("TORCH=torch==2.13.0").returncode == 0
    other = make("TORCH=torch --index-url https://example.org/whl")
    assert other.returncode != 0 and 'made with TORCH="torch==2.13.0": run `make clean`' in other.stdout


def test_a_named_torch_is_known_from_its_installation_on_and_refused_beside_one_of_unknown_origin(
    repository: Path, tmp_path: Path
) -> None:
    copy_of_makefile(repository, tmp_path)
    python, recorded = tmp_path / ".venv" / "bin" / "python", tmp_path / ".venv" / ".torch"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *--constraint*) exit 1;; esac\n', encoding="utf-8")  # ends after torch
    python.chmod(0o755)

    def make(torch: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "setup", "PYTHON=python3", f"TORCH={torch}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")

    assert make("torch --index-url cpu").returncode != 0
    assert recorded.read_text(encoding="utf-8") == "torch --index-url cpu\n"
    assert 'made with TORCH="torch --index-url cpu": run `make clean`' in make("torch").stdout
    recorded.unlink()
    (tmp_path / ".venv" / "lib" / "python3.12" / "site-packages" / "torch").mkdir(parents=True)
    other = make("torch")
    assert other.returncode != 0 and "a torch that make did not install: run `make clean`" in other.stdout
    assert not recorded.exists()


def test_the_dockerfile_is_sound_and_copies_what_the_build_needs(repository: Path) -> None:
    text = (repository / "Dockerfile").read_text(encoding="utf-8")
    ignored = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    joined = re.sub(r"\\\n\s*", " ", text)
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", joined, re.MULTILINE) for word in line.split()]
    assert {"pyproject.toml", "constraints.txt", "SPDSegmentLib", "Resources", "LICENSE.txt"} <= set(copied)
    for name in copied:
        assert (repository / name).exists() and f"!{name}" in ignored
    assert ignored[0] == "*" and re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000"]
    assert not re.search(r"^EXPOSE", text, re.MULTILINE), "no port is opened"
    assert text.rstrip().endswith('ENTRYPOINT ["spdsegment"]\nCMD ["worker"]')


def test_the_dockerfile_passes_its_linter(repository: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint is not installed here (extra dev, on Linux)")
    done = subprocess.run([hadolint, repository / "Dockerfile"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout
