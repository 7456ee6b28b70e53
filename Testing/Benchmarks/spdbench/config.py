"""The benchmark's TOML file as frozen dataclasses that check themselves.

Tables: ``[dataset.<name>]``, ``[method.<name>]``, ``[sweep.<name>]`` (one method per value of a setting),
``[[claim]]`` (what the figures must show) and ``[quick]`` (what ``--quick`` changes); ``extends`` as in trainings.

Labels of click noise: a severity (``clinic``, ``1.5``) or one kind of noise alone (``drift_share:clinic``).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from spdbench.comparators.protocol import Budget
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.noise import NoiseConfig, noise_config, single_noise
from SPDSegmentLib.settings import build_settings
from SPDSegmentLib.training.config import read_toml

CLEAN = "clean"
PARTS = tuple(field.name for field in fields(NoiseConfig))
PART_TITLES = {
    "jitter": "jitter",
    "drift_share": "drift",
    "over_run": "over-run",
    "dropout": "dropout",
    "off_slice": "slice slip",
}


def parse_noise(label: str) -> NoiseConfig:
    """The noise that a label stands for.

    Raises:
        BadInput: unknown severity or part.
    """
    part, colon, severity = label.partition(":")
    if colon:
        return single_noise(part, _severity(severity))
    return noise_config(_severity(label))


def is_clean(label: str) -> bool:
    """Whether the clicks are free of noise, and so alike for all seeds."""
    return not any(astuple(parse_noise(label)))


def part_labels(parts: Iterable[str], levels: Iterable[str]) -> list[str]:
    """Labels of each part alone at each level; those without any noise are left out (clean stands for them)."""
    labels = [f"{part}:{level}" for part in parts for level in levels]
    return [label for label in labels if not is_clean(label)]


def _severity(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def check_labels(labels: Iterable[str], where: str) -> None:
    """Raise :class:`BadInput`, naming the setting, where a label means nothing."""
    for label in labels:
        try:
            parse_noise(label)
        except BadInput as error:
            raise BadInput(f"{where}: {error.message}", error.remedy) from error


KINDS = ("bundle", "joint", "frozen", "comparator")
LEARNS = ("own", "all", "other-structures", "untested-structures")
CLICKS = ("noisy", "clean", "oracle", "shuffled")
GROUPS = ("main", "control", "frozen", "learned", "classic", "ablation")


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        config: training configuration (.toml) beside the benchmark's file; it names files, targets, split, network
            input and how our own models are trained.
        folds: 0 for the configuration's own split, else all its cases are dealt into so many folds by patient.
        box_margin_mm: see :class:`InputSettings`.
        train: whether our own models are trained here where there is no bundle (always with folds).
        limit: at most so many test patients, 0 for all.
        seeds: click sets per target and noise, 0 for the benchmark's number.
        parts: whether the kinds of noise are also measured alone here.
        methods: name patterns of the rows for it.
        headline: whether the first table and figure show it.
        note: what a reader must know about it, one sentence.
    """

    name: str
    title: str
    config: str
    folds: int = 0
    box_margin_mm: float = 10.0
    train: bool = False
    limit: int = 0
    seeds: int = 0
    parts: bool = True
    methods: tuple[str, ...] = ("*",)
    headline: bool = True
    note: str = ""

    def takes(self, method: MethodSpec) -> bool:
        """Whether the row exists for it."""
        return method.runs_on(self.name) and any(fnmatch.fnmatch(method.name, pattern) for pattern in self.methods)


@dataclass(frozen=True)
class MethodSpec:
    """One row of the tables.

    Attributes:
        title: as printed.
        group: the table that it belongs to, one of :data:`GROUPS`.
        kind: ``bundle`` (a model of ours), ``joint`` (one that is trained on several data sets at once), ``frozen`` (a
            SAM that was not adapted) or ``comparator`` (the registry).
        bundle: name or path of a bundle, with ``{dataset}`` in it; of a frozen row, the one whose saliency is asked.
        prompts: strategy of a bundle row, or ``saliency-only``; of a frozen row ``raw``, ``random`` or ``consensus``.
        overrides: prompt settings that replace the bundle's.
        clicks: ``noisy``, ``clean``, ``oracle`` (noisy ones inside the target, and its deepest point in slices that
            have none) or ``shuffled`` (another patient's).
        comparator: name in the registry, by default the method's own.
        settings: keyword arguments of a comparator or a frozen row.
        joint: joint training configuration (.toml) of a joint row, beside the benchmark's file; ``{dataset}`` as above.
        learns: what a joint row learns from: ``own`` (the tested structures), ``all``, ``other-structures``, or
            ``untested-structures`` (tested on no data set of the row).
        train: changes of the data set's training configuration, for a model that is trained when there is no bundle.
        stage1_from: the method whose stage I a trained model takes over.
        train_patients: at most so many training patients, 0 for all.
        datasets: name patterns of the data sets that the row is for.
        noises: labels of noise that the row is measured on; empty for all severities.
        parts: whether each noise part alone is measured too.
        note: printed below the table.
    """

    name: str
    title: str
    group: str = "main"
    kind: str = "bundle"
    bundle: str = ""
    prompts: str = "consensus"
    overrides: dict[str, Any] = field(default_factory=dict)
    clicks: str = "noisy"
    comparator: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    joint: str = ""
    learns: str = "all"
    train: dict[str, Any] = field(default_factory=dict)
    stage1_from: str = ""
    train_patients: int = 0
    datasets: tuple[str, ...] = ("*",)
    noises: tuple[str, ...] = ()
    parts: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        named = (("kind", self.kind, KINDS), ("clicks", self.clicks, CLICKS), ("learns", self.learns, LEARNS))
        for name, value, known in named:
            if value not in known:
                raise BadInput(f"{name} '{value}' of method {self.name} is unknown.", f"Choose {', '.join(known)}.")
        if self.group not in GROUPS:
            raise BadInput(f"group '{self.group}' of method {self.name} is unknown.", f"Choose {', '.join(GROUPS)}.")
        if self.kind == "bundle" and not self.bundle:
            raise BadInput(f"Method {self.name} names no bundle.", "Set bundle, for example to '{dataset}'.")
        if self.kind == "joint" and not self.joint:
            raise BadInput(f"Method {self.name} names no joint configuration.", "Set joint to a file with [sets.NAME].")
        check_labels(self.noises, f"noises of method {self.name}")

    def runs_on(self, dataset: str) -> bool:
        """Whether the row is meant for a data set."""
        return any(fnmatch.fnmatch(dataset, pattern) for pattern in self.datasets)


@dataclass(frozen=True)
class ClaimSpec:
    """A difference of two rows that the evidence must show: ``first`` - ``second`` >= ``at_least`` (DSC, 0 to 1).

    Attributes:
        lower_hd95: whether HD95 must be lower as well.
        bound: nothing is wanted of it; it is a figure to read another claim by.
        paper: the paper's figure for the same step, as text.
    """

    text: str
    first: str
    second: str
    noise: str = "clinic"
    at_least: float = 0.0
    lower_hd95: bool = False
    bound: bool = False
    paper: str = ""
    datasets: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class BenchmarkConfig:
    """A whole benchmark.

    Attributes:
        name: of its folder below ``Testing/Benchmarks/results``.
        folder: where the TOML file lies; paths in it are relative to this.
        seeds, first_seed: click sets per target and noise.
        severities: noise labels of the main tables and curves, in order.
        parts, part_levels: the kinds of noise that are also measured alone, and how strong.
        headline: the severity of the first table.
        reference: the method that all others are tested against.
        key_methods: rows of the first table and lines of its figure, by default the main group.
        budget: of every trained comparator; our own models follow their configuration.
        limit: at most so many test patients per data set, 0 for all.
        training: whether models are trained; if not, rows whose training is missing say so.
        report: where the report goes; empty for the results folder.
        notes: Markdown file with what people add to the report.
    """

    name: str
    folder: Path
    datasets: dict[str, DatasetSpec]
    methods: dict[str, MethodSpec]
    claims: tuple[ClaimSpec, ...] = ()
    seeds: int = 3
    first_seed: int = 1000
    severities: tuple[str, ...] = ("clean", "mild", "clinic", "severe")
    parts: tuple[str, ...] = PARTS
    part_levels: tuple[str, ...] = ("mild", "clinic", "severe")
    headline: str = "clinic"
    reference: str = "spd"
    key_methods: tuple[str, ...] = ()
    budget: Budget = field(default_factory=lambda: Budget(1000))
    limit: int = 0
    training: bool = True
    report: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        check_labels(self.severities, "severities")
        check_labels(part_labels(self.parts, self.part_levels), "parts")
        if self.seeds < 1:
            raise BadInput("At least one seed is needed.", "Set seeds to 1 or more.")
        if self.headline not in self.severities:
            raise BadInput(f"headline '{self.headline}' is not one of the severities.", "Choose one that is measured.")
        named = [self.reference, *self.key_methods, *(m.stage1_from for m in self.methods.values() if m.stage1_from)]
        named += [name for claim in self.claims for name in (claim.first, claim.second)]
        for name in named:
            if name not in self.methods:
                raise BadInput(f"There is no method '{name}'.", f"Known: {', '.join(self.methods)}.")

    def seeds_of(self, dataset: DatasetSpec) -> range:
        """Seeds of the click sets of one noise."""
        return range(self.first_seed, self.first_seed + (dataset.seeds or self.seeds))

    def noises_of(self, method: MethodSpec, dataset: DatasetSpec) -> list[str]:
        """Labels that a method is measured on, in order."""
        labels = list(method.noises or self.severities)
        return labels + (part_labels(self.parts, self.part_levels) if method.parts and dataset.parts else [])


def read_benchmark_config(path: str | Path, quick: bool = False) -> BenchmarkConfig:
    """Read and check a TOML file.

    Args:
        quick: apply its ``[quick]`` table, and write to a folder of its own.

    Raises:
        BadInput: naming the setting that is missing, unknown or wrong.
    """
    path = Path(path)
    values = read_toml(path)
    changes, claimed = values.pop("quick", {}), values.pop("claim", [])
    for key, value, kind in (("[quick]", changes, dict), ("[[claim]]", claimed, list)):
        if not isinstance(value, kind):
            raise BadInput(f"{key} in {path} is not a table.", f"Write {key} above its settings.")
    methods: dict[str, MethodSpec] = _named_tables(MethodSpec, values, "method", path)
    for name, table in _tables(values, "sweep", path).items():
        methods |= _sweep(name, dict(table), methods, path)
    datasets: dict[str, DatasetSpec] = _named_tables(DatasetSpec, values, "dataset", path)
    if not datasets or not methods:
        raise BadInput(f"{path} names no data set or no method.", "Add a [dataset.NAME] and a [method.NAME] table.")
    if quick:
        datasets = _named(datasets, changes.pop("datasets", list(datasets)), "data set")
        methods = _named(methods, changes.pop("methods", list(methods)), "method")
        values |= {"name": f"{values.get('name', path.stem)}-quick", "report": "", **changes}
        kept = set(methods)
        values["key_methods"] = [name for name in values.get("key_methods", []) if name in kept]
        claimed = [c for c in claimed if {c.get("first"), c.get("second")} <= kept]
    claims = tuple(build_settings(ClaimSpec, table, f"{path} [[claim]] {i + 1}") for i, table in enumerate(claimed))
    main = [name for name, method in methods.items() if method.group == "main"]
    values = {"name": path.stem, "key_methods": main, **values}
    values |= {"folder": path.parent, "datasets": datasets, "methods": methods, "claims": claims}
    config: BenchmarkConfig = build_settings(BenchmarkConfig, values, str(path))
    return config


def _tables(values: dict[str, Any], key: str, path: Path) -> dict[str, dict[str, Any]]:
    """Take the tables ``[key.NAME]`` out of a file."""
    tables = values.pop(key, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise BadInput(f"{key} in {path} is not a group of tables.", f"Write [{key}.NAME] above the settings of each.")
    return tables


def _named_tables(cls: type, values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    return {
        name: build_settings(cls, {"name": name, **table}, f"{path} [{key}.{name}]")
        for name, table in _tables(values, key, path).items()
    }


def _sweep(name: str, table: dict[str, Any], methods: dict[str, MethodSpec], path: Path) -> dict[str, MethodSpec]:
    """One method per value; ``prompt``, ``training`` or ``method`` names the setting, dots lead into tables."""
    where = f"{path} [sweep.{name}]"
    try:
        base, title, values = methods[table.pop("base")], table.pop("title"), table.pop("values")
    except KeyError as error:
        raise BadInput(f"{where} lacks {error} or names a method that is not there.") from error
    if not isinstance(values, list) or not isinstance(title, str):
        raise BadInput(f"title or values of {where} is of the wrong kind.", "Give a text, and a list of values.")
    targets = [(kind, table.pop(kind)) for kind in ("prompt", "training", "method") if kind in table]
    if len(targets) != 1:
        raise BadInput(f"{where} must name one setting.", "Set one of prompt, training and method.")
    kind, setting = targets[0]
    made = {}
    for value in values:
        changes: dict[str, Any] = {"name": f"{name}-{value}", "title": f"{title} = {value}", "group": "ablation"}
        if kind == "prompt":
            changes["overrides"] = {**base.overrides, setting: value}
        elif kind == "training":
            changes |= {"train": merge_setting(base.train, setting, value), "bundle": f"{base.bundle}-{name}-{value}"}
        else:
            changes |= {setting: value}
            if setting == "train_patients":
                changes["bundle"] = f"{base.bundle}-{name}-{value}"
        settings = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        method: MethodSpec = build_settings(MethodSpec, settings | changes | table | {"parts": False}, where)
        made[method.name] = method
    return made


def merge_setting(table: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of nested tables with one more setting; ``network.lora_rank`` leads into ``network``."""
    first, dot, rest = dotted.partition(".")
    return {**table, first: merge_setting(table.get(first, {}), rest, value) if dot else value}


def _named(table: dict[str, Any], names: list[str], what: str) -> dict[str, Any]:
    for name in names:
        if name not in table:
            raise BadInput(f"[quick] names the {what} '{name}', which is not there.", f"Known: {', '.join(table)}.")
    return {name: table[name] for name in table if name in names}
