"""The tree for the Extensions Index: one commit, addresses from one setting, and a sentence for whatever fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from Testing.publish_tree import CHECKOUT_BYTES, SETTING, cmake_settings, filled_in, main, problems_of

ADDRESS = "https://github.com/someone/SlicerSPDSegment"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def source(tmp_path: Path, repository: Path) -> Path:
    """A small repository of two commits, laid out as this one is, with its CMakeLists.txt."""
    root = tmp_path / "source"
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    start = text.index("set(SPDSEGMENT_SCRIPTS")
    lists = (
        "set(SPDSEGMENT_SCRIPTS\n  SPDSegmentLib/__init__.py\n  )\n"
        "set(SPDSEGMENT_RESOURCES\n  Resources/Icons/SPDSegment.png\n  )\n"
    )
    files = {
        "CMakeLists.txt": text[:start] + lists,
        "SPDSegment/CMakeLists.txt": "set(MODULE_NAME SPDSegment)\n",
        "SPDSegment/SPDSegment.py": "",
        "SPDSegmentLib/__init__.py": '__version__ = "9.8.7"\n',
        "LICENSE.txt": (repository / "LICENSE.txt").read_text(encoding="utf-8"),
        "README.md": "![The result](Resources/Screenshots/slicer-2-result.png)\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    for name in ("Icons/SPDSegment.png", "Screenshots/slicer-2-result.png", "Screenshots/slicer-3-review.png"):
        path = root / "Resources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((repository / "Resources" / name).read_bytes())
    git(root, "init", "--quiet")
    (root / "old.bin").write_bytes(b"history")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    git(root, "rm", "-q", "old.bin")
    git(root, "commit", "-qm", "second")
    return root


def publish(source: Path, output: Path, address: str = ADDRESS) -> int:
    return main(["--repository", address, "--output", str(output)], source)


def test_the_tree_is_one_commit_of_what_was_committed_and_passes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "never-added.txt").write_text("private")
    output = tmp_path / "out" / "tree"
    assert publish(source, output) == 0, capsys.readouterr().out
    assert git(output, "rev-list", "--all", "--count") == "1"
    assert git(output, "log", "-1", "--format=%an %s") == "A Person SPDSegment 9.8.7"
    assert git(output, "status", "--porcelain") == ""
    tracked = git(output, "ls-files").splitlines()
    assert sorted(tracked) == sorted(git(source, "ls-files").splitlines())
    assert not (output / "never-added.txt").exists() and not (output / "old.bin").exists()
    entry = json.loads((tmp_path / "out" / "SPDSegment.json").read_text(encoding="utf-8"))
    assert entry["scm_url"] == f"{ADDRESS}.git" and entry["category"] == "Segmentation"
    assert entry["build_dependencies"] == ["PyTorch"]


def test_every_address_follows_from_one_setting_and_is_written_out(source: Path, tmp_path: Path) -> None:
    publish(source, tmp_path / "tree")
    text = (tmp_path / "tree" / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f'set(EXTENSION_HOMEPAGE "{ADDRESS}")' in text
    assert f'set(EXTENSION_ICONURL "{ADDRESS}/raw/main/Resources/Icons/SPDSegment.png")' in text
    shots = cmake_settings(text)["EXTENSION_SCREENSHOTURLS"].split()
    assert len(shots) == 2 and all(shot.startswith(f"{ADDRESS}/raw/main/Resources/Screenshots/") for shot in shots)


def test_publishing_again_replaces_the_tree(source: Path, tmp_path: Path) -> None:
    assert publish(source, tmp_path / "tree") == publish(source, tmp_path / "tree") == 0
    assert git(tmp_path / "tree", "rev-list", "--all", "--count") == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SPDSegment.json", "source", "tree"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", f"{SETTING} is empty: set it in CMakeLists.txt or give --repository."),
        ("http://github.com/someone/SlicerSPDSegment", "is not an address like https://"),
        ("https://github.com/someone/SlicerSPDSegment.git", "is not an address like https://"),
        ("https://github.com/someone/segment", "The repository's name 'segment' must contain 'Slicer'"),
    ],
)
def test_an_address_that_the_index_would_refuse_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, said: str
) -> None:
    assert publish(source, tmp_path / "tree", address) == 1
    assert f"FAILS: {said}" in (out := capsys.readouterr().out) or f"which {said}" in out


def test_everything_that_fails_is_said_at_once(source: Path, tmp_path: Path) -> None:
    publish(source, tmp_path / "tree")
    tree = tmp_path / "tree"
    (tree / "LICENSE.txt").unlink()
    (tree / "SPDSegmentLib" / "new.py").write_text("")
    (tree / "Resources" / "Screenshots" / "slicer-2-result.png").write_bytes(b"no picture")
    icon = tree / "Resources" / "Icons" / "SPDSegment.png"
    icon.write_bytes(icon.read_bytes()[:19] + b"\x01" + icon.read_bytes()[20:])
    (tree / "README.md").write_text("![Gone](Resources/gone.png)")
    (tree / "large.bin").write_bytes(b"")
    with (tree / "large.bin").open("r+b") as file:
        file.truncate(120_000_000)
    cmake = tree / "CMakeLists.txt"
    cmake.write_text(
        cmake.read_text(encoding="utf-8").replace('EXTENSION_DESCRIPTION "', 'EXTENSION_DESCRIPTION "" # "', 1)
    )
    text = "\n".join(problems_of(tree))
    for said in (
        "LICENSE.txt at the top of the tree is not the Apache License",
        "SPDSegmentLib/new.py is not listed in SPDSEGMENT_SCRIPTS",
        "slicer-2-result.png, which CMakeLists.txt names, is not a PNG file",
        "The icon Resources/Icons/SPDSegment.png is 1 x",
        "README.md shows Resources/gone.png, which is not in the tree.",
        "large.bin is 120 MB; a file may have 50.",
        "The files take 12",
        "The tree with .git take",
        "EXTENSION_DESCRIPTION is empty in CMakeLists.txt.",
    ):
        assert said in text, said


def test_changes_that_are_not_committed_are_not_published(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "README.md").write_text("changed")
    assert publish(source, tmp_path / "tree") == 2
    assert "not committed" in capsys.readouterr().err and not (tmp_path / "tree").exists()


def test_a_folder_with_other_files_is_left_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("work")
    assert publish(source, tmp_path / "mine") == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "mine" / "work.txt").read_text(encoding="utf-8") == "work"


def test_a_repository_that_a_person_works_in_is_left_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "tree"
    for folder in (source, tmp_path):  # what is published, and what it lies in
        assert publish(source, folder) == 2 and "holds other files or commits" in capsys.readouterr().err
    git(tmp_path, "clone", "-q", str(source), str(tmp_path / "foreign"))
    git(tmp_path / "foreign", "rm", "-rq", "SPDSegmentLib")
    assert publish(source, tmp_path / "foreign") == 2 and "holds other files or commits" in capsys.readouterr().err
    for change in ("a clone", "a file", "an ignored file", "a commit", "a stash"):
        assert publish(source, written) == 0
        if change == "a clone":
            git(tmp_path, "clone", "-q", str(source), str(tmp_path / "clone"))
        elif change == "an ignored file":
            (written / ".git" / "info" / "exclude").write_text("*.bin\n")
            (written / "model.bin").write_bytes(b"days of training")
        elif change == "a file":
            (written / "notes.txt").write_text("work")
        else:
            (written / "README.md").write_text("work")
            git(written, *(["stash", "-q"] if change == "a stash" else ["commit", "-qam", "SPDSegment 9.8.7"]))
        folder = tmp_path / "clone" if change == "a clone" else written
        before = sorted(folder.rglob("*"))
        assert publish(source, folder) == 2, change
        assert "holds other files or commits" in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before, change
        shutil.rmtree(folder)
    assert (source / "README.md").is_file()


def test_this_tree_would_pass_with_an_address(repository: Path, tmp_path: Path) -> None:
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "${" not in "".join(v for k, v in cmake_settings(filled_in(text, ADDRESS)).items() if "EXTENSION" in k)
    listed = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    paths = [repository / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < CHECKOUT_BYTES
