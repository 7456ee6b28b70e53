"""What a folder of images and labels holds: which belong together, what is wrong with each, and what a plan needs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.dicom_series import DRAWN, NOT_IMAGES, files_of, folders_of, person_of
from SPDSegmentLib.geometry.intensity import looks_like_ct
from SPDSegmentLib.geometry.labelmap import filled_part
from SPDSegmentLib.geometry.labels import case_expression, read_labeled
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LABEL_WORDS = {"label", "labels", "labelstr", "lbl", "seg", "segmentation", "segmentations", "mask", "masks", "gt",
               "groundtruth", "annotation", "annotations"}  # fmt: skip
IMAGE_WORDS = {"image", "images", "imagestr", "img", "volume", "scan", "0000"}
ASIDE = {"imagests", "labelsts", "predictions", "results"}
"""Folders that hold nothing to learn from."""
MAX_FILES = 1_000_000
MAX_VALUES = 64
"""What has more values than this is an image where most voxels differ from the next one."""
FEW_SLICES = 3
SAMPLE = 20_000


@dataclass(frozen=True)
class FoundCases:
    """Pairs of files.

    Attributes:
        image, label: their names below the folder with ``{case}`` in place of the case's name.
        cases: names, sorted.
        unpaired: images without a label; others: further patterns that as many images have.
        series, segments: what is chosen of DICOM, see :class:`SPDSegmentLib.training.config.DataConfig`.
    """

    image: str
    label: str
    cases: tuple[str, ...]
    unpaired: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    series: str = ""
    segments: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class StructureFacts:
    """One structure of one case: how it lies along R, A, S and on the slices of each plane.

    Attributes:
        extent_mm: (3,) of its box; slices, fov_mm: by plane, how many slices it is on and the longer side of its box.
        intensities: of its voxels, (N,), a sample.
    """

    extent_mm: np.ndarray
    slices: dict[str, int]
    fov_mm: dict[str, float]
    intensities: np.ndarray


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """One case that can be used.

    Attributes:
        shape, spacing_mm: (3,) along I, J, K; coarse: plane of its slices where they are thick, else empty.
        values: number of voxels of each label value; structures: by their label values.
        is_ct: by its intensities; below_zero: share of its voxels; digest: of them.
        person: number of the patient in its DICOM files, else empty.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: np.ndarray
    coarse: str
    values: dict[int, int]
    structures: dict[tuple[int, ...], StructureFacts]
    pixel_mm: dict[str, float]
    is_ct: bool
    below_zero: float
    digest: str
    person: str = ""


@dataclass
class Survey:
    """All cases of a folder.

    Attributes:
        facts: of the cases that can be used; unusable: (case, sentence) of the others; notes: sentences.
        names: of label values and modality: as ``dataset.json`` says, else empty.
    """

    found: FoundCases
    facts: list[CaseFacts] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    modality: str = ""
    title: str = ""
    license: str = ""


def find_cases(
    folder: Path, image: str = "", label: str = "", series: str = "", segments: Sequence[str] = ()
) -> FoundCases:
    """Find images and labels of one naming: beside each other, in two folders, or in a folder a case.

    A folder with DICOM files, or with such folders, is an image or a label as these files are; both, where it has both.

    Args:
        image, label: names with ``{case}``, where they are known.
        series, segments: what is chosen of DICOM.

    Raises:
        BadInput: nothing that belongs together, or labels of several namings.
    """
    files = _files(folder)
    masks = {name for name in files if _words(name) & LABEL_WORDS}
    own = folders_of(folder, MAX_FILES)
    all_images, all_labels, above = [f for f in files if f not in masks], sorted(masks), set()
    for place, modalities in sorted(own.items()):
        places = [place, *(parent.as_posix() for parent in PurePosixPath(place).parents)]
        all_images += [p for p in places if modalities - NOT_IMAGES and p not in (".", *all_images)]
        all_labels += [p for p in places if modalities.intersection(DRAWN) and p not in (".", *all_labels)]
        above.update(places[1:])
    readings = {p: _matching([*files, *own_], p) for p, own_ in ((label, all_labels), (image, all_images)) if p}
    wide = bool(readings) and _read_with_folders(list(readings.values()))
    labels = {label: readings[label][wide]} if label else _patterns(all_labels, LABEL_WORDS)
    images = {image: readings[image][wide]} if image else _patterns(all_images, set())
    ranked = sorted(
        ((len(of_label.keys() & images[i].keys()), not above.intersection([*images[i].values(), *of_label.values()]),
          len(_words(i) & IMAGE_WORDS), len(os.path.commonprefix([i, k])), -len(i), i, k)
         for k, of_label in labels.items() for i in images), reverse=True,
    )  # fmt: skip
    if not ranked or ranked[0][0] == 0:
        listed = ", ".join((*files, *own)[:4]) or "no NIfTI, NRRD, MetaImage or DICOM file"
        more = ", ..." if len(files) + len(own) > 4 else ""
        raise BadInput(
            f"No image of {folder} has a label of the same case; found: {listed}{more}.",
            "Name them as in p1_image.nii.gz and p1_label.nii.gz, or say how they are named: --image "
            "'{case}.nii.gz' --label '{case}_mask.nii.gz'.",
        )
    count, *_, image, label = ranked[0]
    cases = sorted(images[image].keys() & labels[label].keys())
    namings = {frozenset(labels[label].values()): label}
    for n, *_, i, k in ranked:
        taken = frozenset().union(*namings).union(above)
        if i == image and 2 * n > count and not taken.intersection(labels[k].values()):
            namings[frozenset(labels[k].values())] = k
    if len(namings) > 1:
        named = sorted(namings.values())
        raise BadInput(
            f"The cases of {folder} have labels of {len(named)} kinds of names: {some_of(named, 8)}.",
            f"Say which are to be learned, as in --label '{named[0]}'; where all are, let {{case}} stand for folders "
            "too, as in --image '{case}_T1w.nii.gz' --label 'labels/{case}_seg.nii.gz'.",
        )
    others = dict.fromkeys(i for n, *_, i, k in ranked if n == count and k == label and i != image)
    distinct = [
        i
        for i in others
        if {images[i][c] for c in cases} != {images[image][c] for c in cases}
        and not above.intersection(images[i].values())
    ]
    missing = sorted(images[image].keys() - labels[label].keys())
    return FoundCases(image, label, tuple(cases), tuple(missing), tuple(distinct), series, tuple(segments))


def _files(folder: Path) -> list[str]:
    """Images and labels at or below a folder, or where links lead to, as paths from there."""
    names = (path.relative_to(folder) for path in files_of(folder, True, MAX_FILES))
    aside = (name.as_posix() for name in names if not ASIDE.intersection(part.lower() for part in name.parts))
    return sorted(name for name in aside if name.lower().endswith(SUFFIXES))


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def _matching(files: Sequence[str], pattern: str) -> tuple[dict[str, str], dict[str, str]]:
    """Files that are named as a pattern says, by case: where that is a name, and where it may have folders too."""
    if "{case}" not in pattern:
        raise BadInput(f"The pattern '{pattern}' has no {{case}} in it.", "Write it as in '{case}_image.nii.gz'.")
    expression = case_expression(pattern, ".+")
    found = {match["case"]: name for name in files if (match := expression.fullmatch(name))}
    if not found:
        raise BadInput(f"No file is named '{pattern}'.", "Check the pattern; folders count from the one given.")
    return {case: name for case, name in found.items() if "/" not in case}, found


def _read_with_folders(readings: Sequence[tuple[dict[str, str], dict[str, str]]]) -> bool:
    """Whether ``{case}`` stands for folders too: one pattern cannot be read otherwise, or two share few cases so."""
    shared = [set.intersection(*(set(reading[n]) for reading in readings)) for n in (0, 1)]
    return not shared[0] if len(readings) == 1 else 2 * len(shared[0]) < len(shared[1])


def _patterns(files: Sequence[str], dropped: set[str]) -> dict[str, dict[str, str]]:
    """Every way to read a case's name from files: pattern, then case, to file."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in files:
        suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
        stem = name[: len(name) - len(suffix)]
        *folders, last = stem.split("/")
        parts = re.split(r"([-_. ])", last)
        candidates = {"".join(parts[:n]) for n in range(1, len(parts) + 1, 2)} | set(folders)
        candidates |= {"".join(parts[n:]) for n in range(2, len(parts), 2)}
        for case in candidates:
            if case and not (_words(case) & dropped):
                pattern = re.sub(rf"(?<![A-Za-z0-9]){re.escape(case)}(?![A-Za-z0-9])", "{case}", stem)
                if "{case}" in pattern and not re.search(r"[{}]", pattern.replace("{case}", "")):
                    found[pattern + name[len(stem) :]].setdefault(case, name)
    return found


def survey(
    folder: Path,
    found: FoundCases,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    targets: Sequence[tuple[int, ...]] = (),
) -> Survey:
    """Read every file once; what cannot be used is a sentence and stops nothing.

    Args:
        targets: label values of structures that are looked at beside those of one value.

    Raises:
        BadInput: no case can be used.
    """
    result = Survey(found, names=dict(enumerate(found.segments, start=1)))
    _read_description(folder, result)
    for done, name in enumerate(found.cases, start=1):
        try:
            result.facts.append(_facts(folder, name, found, targets))
        except (BadInput, GeometryUnsupported) as error:
            result.unusable.append((name, error.sentence))
        on_case(done, len(found.cases))
    if not any(facts.values for facts in result.facts):
        why = result.unusable[0][1] if result.unusable else "Their labels are all empty."
        raise BadInput(f"None of the {len(found.cases)} cases of {folder} can be used. {why}", "Mend the files.")
    _note_oddities(result)
    return result


def _read_description(folder: Path, result: Survey) -> None:
    """What a ``dataset.json`` (nnU-Net, Medical Segmentation Decathlon) says; one that cannot be read says nothing."""
    try:
        values = json.loads((folder / "dataset.json").read_text(encoding="utf-8-sig"))
        labels, channels = values.get("labels") or {}, values.get("channel_names") or values.get("modality") or {}
        for key, value in labels.items():
            number, name = (value, key) if isinstance(value, int) else (int(key), value)
            if number:
                result.names[number] = str(name)
        first = str(next(iter(channels.values()), "")).upper() if isinstance(channels, dict) else ""
        result.modality = "CT" if "CT" in first else "MR" if "MR" in first else ""
        result.title, result.license = (str(values.get(key) or "") for key in ("name", "licence"))
    except (OSError, ValueError, AttributeError, TypeError):
        return


def _facts(folder: Path, name: str, found: FoundCases, targets: Sequence[tuple[int, ...]]) -> CaseFacts:
    volume, labels = read_labeled(folder, found, name)
    label_file = folder / found.label.format(case=name)
    numbers, counts = np.unique(labels, return_counts=True)
    many = len(numbers) > MAX_VALUES
    if numbers[0] < 0 or (many and _differ(labels)):
        raise BadInput(
            f"{label_file} holds {len(numbers)} values from {numbers[0]} to {numbers[-1]}: it is no label map.",
            "Give labels from 0 up, one number a structure; --label says how their files are named.",
        )
    values = {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n}
    structures = list(targets) if many and targets else [*((value,) for value in values), *targets]
    spacing = volume.spacing_mm
    coarse = SliceStack(volume).plane if spacing.max() > 1.5 * float(np.median(spacing)) else ""
    digest = hashlib.sha256(np.ascontiguousarray(volume.array).data).hexdigest()
    planes = {plane: SliceStack(volume, plane) for plane in ("axial", "coronal", "sagittal")}
    return CaseFacts(
        name,
        volume.shape_ijk,
        spacing,
        coarse,
        values,
        {t: _structure(np.isin(labels, t), volume, planes) for t in structures if values.keys() & set(t)},
        {plane: min(stack.pixel_mm) for plane, stack in planes.items()},
        looks_like_ct(volume.array),
        float(np.count_nonzero(volume.array < 0) / volume.array.size),
        digest,
        person_of(folder / found.image.format(case=name)),
    )


def _differ(labels: np.ndarray) -> bool:
    """Whether most voxels that are not 0 have another value than the next one."""
    inside = labels[..., :-1] != 0
    same = np.count_nonzero(inside & (labels[..., :-1] == labels[..., 1:]))
    return bool(2 * same < np.count_nonzero(inside))


def _structure(mask: np.ndarray, volume: Volume, planes: dict[str, SliceStack]) -> StructureFacts:
    lengths = [part.stop - part.start for part in filled_part(mask) or (slice(0, 0),) * 3]
    extent, slices, fov = np.zeros(3), {}, {}
    for row, (plane, stack) in enumerate((p, planes[p]) for p in ("sagittal", "coronal", "axial")):
        cut, down, across = stack.order
        slices[plane] = lengths[cut]
        fov[plane] = float(max(lengths[down] * stack.pixel_mm[0], lengths[across] * stack.pixel_mm[1]))
        extent[row] = slices[plane] * stack.slice_mm
    inside = volume.array[mask]
    return StructureFacts(extent, slices, fov, inside[:: max(1, inside.size // SAMPLE)].astype(np.float32))


def _note_oddities(result: Survey) -> None:
    """Sentences about cases that can be used and are odd all the same; a copy of another is left out."""
    say, found = result.notes.append, result.found
    if found.unpaired:
        say(f"{len(found.unpaired)} images have no label and are left out: {some_of(found.unpaired)}.")
    if found.others:
        say(f"The cases have further images ({some_of(found.others)}); taken is {found.image}: --image takes another.")
    for name, why in result.unusable:
        say(f"Case {name} is left out: {why}")
    first: dict[str, str] = {}
    for facts in list(result.facts):
        if facts.digest in first:
            result.facts.remove(facts)
            say(f"Case {facts.name} is left out: its image is that of {first[facts.digest]}.")
        first.setdefault(facts.digest, facts.name)
    empty = [facts.name for facts in result.facts if not facts.values]
    if empty:
        say(f"{len(empty)} cases have no label but 0 and serve as background: {some_of(empty)}.")
    usual = {value for value, n in Counter(v for f in result.facts for v in f.values).items()
             if 2 * n >= len(result.facts) - len(empty)}  # fmt: skip
    for facts in result.facts:
        if odd := sorted(facts.values.keys() - usual):
            say(f"Case {facts.name} has the label values {some_of([*map(str, odd)])}, which most have not.")
        thin = ["+".join(map(str, t)) for t, s in facts.structures.items() if min(s.slices.values()) < FEW_SLICES]
        if thin:
            say(f"Case {facts.name} has the label {some_of(thin)} on fewer than {FEW_SLICES} slices.")
    kinds = {facts.is_ct for facts in result.facts}
    if len(kinds) > 1:
        ct = [facts.name for facts in result.facts if facts.is_ct]
        say(f"{len(ct)} of {len(result.facts)} images look like CT, the others do not: {some_of(ct)}.")


def some_of(names: Sequence[str], shown: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def shared_numbers(cases: Sequence[str], pattern: str) -> str:
    """A sentence where several patients of a pattern have the same first number in their names, else empty."""
    from SPDSegmentLib.training.config import patient_of

    people: dict[str, list[str]] = defaultdict(list)
    for patient in sorted({patient_of(case, pattern) for case in cases}):
        people[next(iter(re.findall(r"\d+", patient)), "")].append(patient)
    shared = next((names for number, names in people.items() if number and len(names) > 1), [])
    if len(people) < 2 or not shared:
        return ""
    what, wanted = "first number", r"(\D*\d+|.*)" if "" in people else r"(\D*\d+)"
    if all("/" in name for name in shared):
        what, wanted = "first folder", "([^/]+)"
    return (
        f"{some_of(shared)} count as {len(shared)} patients; if their {what} is the patient, so that none trains "
        f"and validates, give --patient '{wanted}'."
    )


def split_patients(
    facts: Sequence[CaseFacts], pattern: str, wanted: Sequence[int], seed: int = 0
) -> tuple[list[str], list[str], list[str]]:
    """Names of cases to train on, to choose the best checkpoint by and to measure with; no patient in two of them.

    A fifth of the patients validates; with ten or more another fifth is kept for the measurement.
    """
    from SPDSegmentLib.training.config import patient_of

    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        groups[patient_of(fact.name, pattern)].append(fact)
    has = [p for p, cases in sorted(groups.items()) if any(set(f.values) & set(wanted) for f in cases)]
    order = np.random.default_rng(seed).permutation(len(has))
    fifth = max(1, len(has) // 5) if len(has) > 1 else 0
    validation = {has[i] for i in order[:fifth]}
    test = {has[i] for i in order[fifth : 2 * fifth]} if len(has) >= 10 else set()

    def of(people: set[str]) -> list[str]:
        return sorted(fact.name for p in people for fact in groups[p])

    return of(groups.keys() - validation - test), of(validation), of(test)
