"""US spelling and plain words in all text of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

BRITISH = re.compile(
    r"centr(?:e|ed|es|ing)\b|centreline|colour|neighbour|behaviour|favour|honour|labour|labell(?:ed|ing)|modell(?:ed|ing)|travell(?:ed|ing)|licenc"
    r"|\bgrey|metre|litre|fibre|catalogue|tumour|oesophag|haemo|anaesth|paediatric|judgement|artefact|aluminium"
    r"|analys(?:e|ed|ing)\b|whilst|learnt\b|spelt\b|towards\b|afterwards\b|practis|fulfil\b|signall|dialogue\b"
    r"|(?:organ|recogn|initial|normal|minim|maxim|optim|serial|summar|visual|standard|general|local|special|character"
    r"|categor|real|util|random|parametr|regular|quant|discret|raster|vector|binar|token|custom|priorit|final|equal|memor"
    r"|author|penal|linear)is(?:e|ed|er|ers|es|ing|ation|ations)\b|synthesis(?:e|ed|ing)\b|emphasis(?:e|ed|ing)\b",
    re.IGNORECASE,
)
"""`cancelled` is not among them: it is how Python's own futures and tasks spell it."""
ODD = re.compile(r"\b(?:anew|without a word|in vain|betimes|forthwith|heretofore|whereupon)\b", re.IGNORECASE)
NAMES_OF_OTHERS = re.compile(r"ctkColorPickerButton|hideLabelLayer")
STORED = (
    *(f"Resources/Models/{name}/model.json" for name in ("kidney-mr", "hippocampus-mr", "esophagus-ct")),
    "SPDSegmentLib/training/",
    "SPDSegmentLib/models/bundle_info.py",
    "Testing/Python/test_init.py",
    "Testing/Python/test_shi",
    "Testing/Python/test_training.py",
)
"""Where the key `licence` is stored or read: of bundles and configurations up to 0.1.0, and of a dataset.json."""
TEXT = {".py", ".md", ".toml", ".txt", ".cff", ".yml", ".yaml", ".json", ".ui", ".svg", ".sh", ".cmake", ""}


def texts(repository: Path) -> list[Path]:
    """All text files that git knows; the test itself is left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this tree is no git checkout")
    files = [repository / name for name in listed.stdout.split("\0") if name and "results/" not in name]
    return [file for file in files if file.suffix in TEXT and file.is_file() and file != Path(__file__)]


def test_words_are_spelled_as_in_the_united_states(repository: Path) -> None:
    found = []
    for file in texts(repository):
        name = file.relative_to(repository).as_posix()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            line = NAMES_OF_OTHERS.sub("", line)
            words = [word for word in BRITISH.findall(line) if not (word == "licenc" and name.startswith(STORED))]
            found += [f"{name}:{number}: {word}" for word in words]
    assert found == []


def test_words_are_plain(repository: Path) -> None:
    found = [
        f"{file.relative_to(repository)}: {match[0]}"
        for file in texts(repository)
        for match in ODD.finditer(file.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize("word", ["normalised", "Neighbouring", "millimetres", "labelled", "synthesise"])
def test_a_british_word_would_be_found(word: str) -> None:
    assert BRITISH.search(f"the {word} thing")
