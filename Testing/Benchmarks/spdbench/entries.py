"""From a method of the TOML file to a comparator on one fold of a data set, and the key of its results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdbench.comparators.bundle_row import BundleRow, distillation_identity
from spdbench.comparators.frozen_sam import FrozenSam
from spdbench.comparators.joint_training import JointTraining, TestedPatients, sets_to_learn
from spdbench.comparators.own_training import OwnTraining, changed_config
from spdbench.comparators.protocol import Comparator, InputSettings, NotRun, make_comparator
from spdbench.config import BenchmarkConfig, MethodSpec
from spdbench.datasets import Dataset, Fold
from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.models.bundle import Bundle, find_bundle, read_bundle
from SPDSegmentLib.prompts.noise import NOISE_VERSION
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.joint_config import read_joint_config

METHODS_VERSION = 1
"""Raised when prompting, decoding or metrics change what a bundle gives; every row is then measured again."""


@dataclass
class Entry:
    """A method on one fold, ready to be prepared.

    Attributes:
        key: of everything that its results depend on; whole_key: the same with what :meth:`Dataset.definition` leaves
            out, which rows stand under as well.
        make: builds the comparator (raises :class:`NotRun`); nothing is loaded yet.
        train_patients: at most so many training patients, 0 for all.
        shares: entries with the same value rest on the same bundle and are run together, case by case.
        not_run: why it cannot run at all, empty when it can.
        model: of our own trainings, what stands for the model; rows with the same one train it once.
        steps: of our own trainings, how many their configuration promises; 0 where nothing is promised.
        shared: whether rows of other data sets may rest on the same model.
    """

    method: MethodSpec
    dataset: Dataset
    fold: Fold
    key: str
    make: Callable[[], Comparator]
    train_patients: int = 0
    shares: str = ""
    not_run: str = ""
    model: str = ""
    shared: bool = False
    steps: int = 0
    whole_key: str = ""

    def folder(self, work: Path) -> Path:
        """Where a training of this entry is kept."""
        name = f"model-{self.model[:10]}" if self.model else f"{self.method.name}-{self.key[:10]}"
        if self.shared:
            return work / "joint" / name
        return work / self.dataset.name / f"fold{self.fold.name}" / name


@dataclass(frozen=True)
class _Source:
    """A bundle that a row leans on: what stands for it in keys, and the bundle once it is needed."""

    identity: str
    get: Callable[[], Bundle]


class EntryMaker:
    """Makes entries; knows where bundles and trainings lie.

    Args:
        work: folder of trainings.
        device: for every comparator.
    """

    def __init__(self, config: BenchmarkConfig, work: Path, device: str = "auto") -> None:
        self.config = config
        self.work = work
        self.device = device
        self._made: dict[tuple[str, str, str], Entry] = {}
        self._bundles: dict[str, Bundle | None] = {}
        self._datasets: dict[str, Dataset] = {}
        self._whole_keys: dict[str, str] = {}

    def entry(self, name: str, dataset: Dataset, fold: Fold) -> Entry:
        """The entry of a method; made once."""
        place = (name, dataset.name, fold.name)
        if place not in self._made:
            method = self.config.methods[name]
            try:
                self._made[place] = self._make(method, dataset, fold)
            except NotRun as reason:
                key = self._key(method, dataset, fold, {"not run": reason.reason})
                self._made[place] = Entry(method, dataset, fold, key, _never, not_run=reason.reason)
            self._made[place].whole_key = self._whole_keys[self._made[place].key]
        return self._made[place]

    def _make(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> Entry:
        inputs = dataclasses.replace(dataset.inputs, device=self.device)
        if method.kind == "bundle":
            bundle = self._bundle(method, dataset, fold)
            if bundle is None:
                return self._own_training(method, dataset, fold, inputs)
            row = BundleRow(inputs, bundle=bundle, prompts=method.prompts, overrides=method.overrides, name=method.name)
            key = self._key(method, dataset, fold, row.describe())
            return Entry(method, dataset, fold, key, lambda: row, shares=bundle.info.adapter_sha256)
        if method.kind == "joint":
            return self._joint(method, dataset, fold, inputs)
        if method.kind == "frozen":
            return self._frozen(method, dataset, fold, inputs)
        return self._comparator(method, dataset, fold, inputs)

    def _comparator(self, method: MethodSpec, dataset: Dataset, fold: Fold, inputs: InputSettings) -> Entry:
        name = method.comparator or method.name
        source = self._source(method, dataset, fold) if method.bundle else None
        described = {
            "comparator": name,
            "settings": method.settings,
            "train": dataset.training_names(fold, method.train_patients),
            "budget": dataclasses.asdict(self.config.budget),
            "bundle": source.identity if source else "",
        }

        def make() -> Comparator:
            settings = {**method.settings, **({"bundle": source.get()} if source else {})}
            return make_comparator(name, inputs, **settings)

        key = self._key(method, dataset, fold, described)
        return Entry(method, dataset, fold, key, make, method.train_patients, f"comparator {method.name}")

    def _frozen(self, method: MethodSpec, dataset: Dataset, fold: Fold, inputs: InputSettings) -> Entry:
        source = None if method.prompts == "raw" else self._source(method, dataset, fold)
        settings = {"prompts": method.prompts, "overrides": method.overrides, "name": method.name, **method.settings}

        def make() -> Comparator:
            return FrozenSam(inputs, bundle=source.get() if source else None, **settings)

        chosen = {} if method.prompts == "raw" else distillation_identity("consensus")
        described = {**settings, "bundle": source.identity if source else "", **chosen}
        key = self._key(method, dataset, fold, described)
        backbone = method.settings.get("backbone", "lite_medsam")
        return Entry(method, dataset, fold, key, make, shares=f"frozen {backbone}")

    def _own_training(self, method: MethodSpec, dataset: Dataset, fold: Fold, inputs: InputSettings) -> Entry:
        if not dataset.trains:
            raise NotRun(f"no bundle '{method.bundle.format(dataset=dataset.name)}'")
        config = self._training_config(method, dataset, fold)
        stage1, identity = self._stage1(method, dataset, fold)
        trained = OwnTraining(
            inputs,
            config=config,
            data_folder=dataset.data_folder,
            stage1=stage1,
            stage1_identity=identity,
            prompts=method.prompts,
            overrides=method.overrides,
            name=method.name,
        )
        model = _digest(trained.describe_model())
        key = self._key(method, dataset, fold, trained.describe())
        shares = f"trained {model}"
        patients, steps = method.train_patients, trained.steps
        return Entry(method, dataset, fold, key, lambda: trained, patients, shares, model=model, steps=steps)

    def _joint(self, method: MethodSpec, dataset: Dataset, fold: Fold, inputs: InputSettings) -> Entry:
        """A row on several data sets; the model for a fold knows nobody who is tested in it on any of them."""
        path = self.config.folder / method.joint.format(dataset=dataset.name)
        config = read_joint_config(path)
        own = _tested(dataset, fold)
        shared = method.learns in ("all", "untested-structures")
        others = self._tested_elsewhere(method, dataset, fold) if shared else []
        sets = sets_to_learn(config, path.parent, method.learns, own, others)
        stage1, identity = self._stage1(method, dataset, fold)
        trained = JointTraining(
            inputs,
            config=dataclasses.replace(config, sets=sets),
            root=path.parent,
            changes=method.train,
            fov_mm=own.fov_mm,
            stage1=stage1,
            stage1_identity=identity,
            prompts=method.prompts,
            overrides=method.overrides,
            name=method.name,
        )
        model = _digest(trained.describe_model())
        key = self._key(method, dataset, fold, trained.describe())
        shares, steps = f"trained {model}", trained.steps
        return Entry(method, dataset, fold, key, lambda: trained, shares=shares, model=model, shared=True, steps=steps)

    def _tested_elsewhere(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> list[TestedPatients]:
        """Test patients of the like-named fold of every other data set that has the row."""
        found = []
        for spec in self.config.datasets.values():
            if spec.name != dataset.name and spec.takes(method):
                if spec.name not in self._datasets:
                    self._datasets[spec.name] = Dataset(spec, self.config.folder)
                other = self._datasets[spec.name]
                found += [_tested(other, of) for of in other.folds if of.name == fold.name]
        return found

    def _stage1(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> tuple[Path | None, str]:
        """Folder of the bundle whose stage I a training takes over, and what stands for it."""
        if not method.stage1_from:
            return None, ""
        source = self.config.methods[method.stage1_from]
        bundle = self._bundle(source, dataset, fold) if source.kind == "bundle" else None
        if bundle is not None:
            return bundle.folder, bundle.info.adapter_sha256
        entry = self.entry(source.name, dataset, fold)
        return entry.folder(self.work) / "bundle", entry.model

    def _training_config(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> TrainingConfig:
        """The configuration for a fold; no checkpoint is chosen, as that would be by who is tested."""
        config = changed_config(dataset.training, method.train)
        name = f"{dataset.name}-fold{fold.name}"
        return dataclasses.replace(
            config,
            bundle=dataclasses.replace(config.bundle, name=name, title=f"{dataset.spec.title}, fold {fold.name}"),
            data=dataclasses.replace(
                config.data, train=dataset.training_names(fold, method.train_patients), validation=fold.test, test=()
            ),
            stage2=dataclasses.replace(config.stage2, validate_every=0, patience=0),
            initialize_from="",
        )

    def _bundle(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> Bundle | None:
        """The bundle that a method names, if it is here; of a data set with folds, none is.

        Raises:
            NotRun: it learned from a patient of the test, or is damaged.
        """
        if dataset.cross_validated:
            return None
        wanted = method.bundle.format(dataset=dataset.name)
        if wanted not in self._bundles:
            beside = self.config.folder / wanted
            try:
                self._bundles[wanted] = find_bundle(beside if beside.is_dir() else wanted)
            except SPDError:
                self._bundles[wanted] = None
        bundle = self._bundles[wanted]
        learned = {dataset.patient(case) for case in (bundle.info.training.get("patients", []) if bundle else [])}
        both = sorted(learned & {dataset.patient(case) for case in fold.test})
        if both:
            raise NotRun(f"the bundle learned from the test patient {both[0]}")
        return bundle

    def _source(self, method: MethodSpec, dataset: Dataset, fold: Fold) -> _Source:
        """The bundle that a row asks for its saliency; with folds, the one that the reference method is trained to.

        Raises:
            NotRun: there is none, and none is trained.
        """
        bundle = self._bundle(method, dataset, fold)
        if bundle is not None:
            return _Source(bundle.info.adapter_sha256, lambda: bundle)
        if not dataset.trains:
            raise NotRun(f"no bundle '{method.bundle.format(dataset=dataset.name)}'")
        reference = self.entry(self.config.reference, dataset, fold)

        def trained() -> Bundle:
            folder = reference.folder(self.work) / "bundle"
            if not folder.is_dir():
                raise NotRun(f"the model of {self.config.reference} is not trained on this fold")
            return read_bundle(folder)

        return _Source(reference.key, trained)

    def _key(self, method: MethodSpec, dataset: Dataset, fold: Fold, described: Mapping[str, Any]) -> str:
        content = {
            "versions": [NOISE_VERSION, METHODS_VERSION],
            "dataset": dataset.definition(),
            "clicks": method.clicks,
            "others": [f.test for f in dataset.folds] if method.clicks == "shuffled" else [],
            "described": described,
        }
        key = _digest(content)
        self._whole_keys[key] = _digest({**content, "dataset": dataset.definition(whole=True)})
        return key


def _tested(dataset: Dataset, fold: Fold) -> TestedPatients:
    patients = frozenset(dataset.patient(case) for case in fold.test)
    targets, fov_mm = dataset.training.data.targets, dataset.training.fov_mm
    return TestedPatients(dataset.data_folder, patients, dataset.patient, targets, fov_mm)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _never() -> Comparator:
    raise NotRun("cannot run here")
