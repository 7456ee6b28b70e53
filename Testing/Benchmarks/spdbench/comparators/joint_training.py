"""Rows that are trained on several data sets at once: conditioned, generalist, leave-one-structure-out, SAM-Tuning.

One joint configuration (``[sets.NAME]``) serves them all, so that data and budget are the same; a row says what of it
is learned from, and what else differs. Patients that are tested are never learned from, and neither is an adapter that
may have seen them: a training begins with the base weights, or with stage I of a row that does not know them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from spdbench.comparators.own_training import TrainedRow, base_weights, changed_config, stage1_state
from spdbench.comparators.protocol import InputSettings, NotRun
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.models.bundle import Bundle, read_bundle, write_bundle
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint import joint_bundle_info, train_joint
from SPDSegmentLib.training.joint_cases import case_names
from SPDSegmentLib.training.joint_config import JointConfig, SetConfig
from SPDSegmentLib.training.loop import join_processes
from SPDSegmentLib.training.result import adapter_tensors, model_card
from SPDSegmentLib.training.run import RunHooks


@dataclasses.dataclass(frozen=True)
class TestedPatients:
    """Who is tested on one data set, and how its cases tell patients.

    Attributes:
        folder: where the cases lie; targets: label values of each structure that is tested.
        fov_mm: field of view of the data set's own configuration.
    """

    __test__ = False

    folder: Path
    patients: frozenset[str]
    patient_of: Callable[[str], str]
    targets: tuple[tuple[int, ...], ...]
    fov_mm: float


def sets_to_learn(
    config: JointConfig, root: Path, learns: str, own: TestedPatients, others: Iterable[TestedPatients] = ()
) -> dict[str, SetConfig]:
    """What of a joint configuration a row learns from; tested patients are excluded.

    Args:
        root: what the folders of the sets are relative to.
        learns: ``own``: the tested structures of the tested data set; ``all``: every structure of every set;
            ``other-structures``: all but those that have the name of a tested one; ``untested-structures``: all but
            those that are tested on any data set of the row, so that one model serves all of them.
        own: the data set that the row is tested on; others: further ones whose test patients are kept out too.

    Raises:
        NotRun: the configuration has no such structure, or a folder of it is not here.
    """
    tested = [own, *others]
    at_home = {name for name, spec in config.sets.items() if _folder(root, spec) == own.folder}
    names = {
        structure
        for of in (tested if learns == "untested-structures" else [own])
        for spec in config.sets.values()
        if _folder(root, spec) == of.folder
        for structure, values in spec.structures.items()
        if tuple(values) in of.targets
    }
    if learns != "all" and not names:
        raise NotRun("the joint configuration does not name the tested structure")
    chosen = {}
    for name, spec in config.sets.items():
        if learns == "own" and name not in at_home:
            continue
        structures = {
            structure: values
            for structure, values in spec.structures.items()
            if learns == "all" or (structure in names) == (learns == "own")
        }
        if structures:
            chosen[name] = _without_tested(
                dataclasses.replace(spec, structures=structures), _folder(root, spec), tested
            )
    if not chosen:
        raise NotRun("the joint configuration has nothing else to learn from")
    return chosen


class JointTraining(TrainedRow):
    """A joint training of the benchmark.

    Args:
        config: joint configuration whose sets are those of :func:`sets_to_learn`; root: what their folders are
            relative to.
        changes: settings that differ; ``sets = { "*" = {...} }`` changes all of them.
        fov_mm: field of view of a model without a saliency of its own (objective ``prompted``).
        stage1, stage1_identity: the bundle that the training starts from, which knows none of the tested patients, and
            what stands for it, as of :class:`~spdbench.comparators.own_training.OwnTraining`.
        prompts, overrides, name: as for a bundle's row.

    Raises:
        BadInput: unknown setting, or one of another kind.
    """

    def __init__(
        self,
        inputs: InputSettings,
        *,
        config: JointConfig,
        root: Path,
        changes: Mapping[str, Any],
        fov_mm: float,
        stage1: Path | None = None,
        stage1_identity: str = "",
        prompts: str = "consensus",
        overrides: Mapping[str, Any] | None = None,
        name: str = "generalist",
    ) -> None:
        super().__init__(inputs, prompts=prompts, overrides=overrides, name=name)
        changed = changed_config(dataclasses.replace(config, initialize_from=""), changes)
        if changed.initialize_from:
            raise BadInput(f"Method {name} starts from a model that may know the tested patients.", "Leave it out.")
        if prompts in ("raw", "interpolated") and changed.stage.objective != "prompted":
            raise BadInput(
                f"Method {name} prompts with {prompts} clicks a model that was not trained on them.",
                'Set stage.objective = "prompted" in its train table.',
            )
        self.config: JointConfig = changed
        self.root = root
        self._fov_mm = fov_mm
        self._stage1 = stage1
        self._stage1_identity = stage1_identity

    @property
    def steps(self) -> int:
        """See the base class."""
        return self.config.stage.steps

    def train_bundle(self, folder: Path, hooks: RunHooks) -> int:
        """See the base class."""
        weights = base_weights(self.config.network.backbone)
        start = stage1_state(self._stage1)
        processes = join_processes(self._inputs.device)
        model = train_joint(self.config, self.root, folder / "run", weights, processes, hooks, start)
        return self.write_bundle(model, weights, folder)

    def write_bundle(self, model: SPDModel, weights: Path | None, folder: Path) -> int:
        """Write ``folder/bundle`` of a trained model; returns the number of parameters that learned."""
        info = joint_bundle_info(self.config, "benchmark", self.root)
        parameters = sum(p.numel() for p in model.encoder_lora_parameters() + model.stage2_parameters())
        if self._prompted:
            model = plain_sam(model, weights)
            network = dataclasses.asdict(model.config)
            for part in ("backbone", "image_size"):
                network.pop(part)
            info = dataclasses.replace(info, network=network)
        write_bundle(folder / "bundle", info, adapter_tensors(model), model_card(info))
        return parameters

    def describe_model(self) -> dict[str, Any]:
        """What the trained model depends on, JSON-ready."""
        config = dataclasses.asdict(dataclasses.replace(self.config, checkpoint_seconds=0.0))
        for spec in config["sets"].values():
            spec["folder"] = Path(spec["folder"]).name
        started = {"stage1": self._stage1_identity} if self._stage1_identity else {}
        return {"joint": config, **started}

    def describe(self) -> dict[str, Any]:
        """See the base class; the field of view is none of the trained model's."""
        info = joint_bundle_info(self.config, "benchmark", self.root)
        return {**super().describe(), "fov_mm": self._fov_mm if self._prompted else info.fov_mm}

    def trained_bundle(self, folder: Path) -> Bundle:
        """See the base class; of a model on raw clicks a copy for the data set's field of view."""
        bundle = super().trained_bundle(folder)
        if not self._prompted:
            return bundle
        place = folder / f"bundle-{self._fov_mm:g}-mm"
        if place.is_dir():
            return read_bundle(place)
        info = dataclasses.replace(bundle.info, fov_mm=self._fov_mm)
        return write_bundle(place, info, load_state_dict(bundle.adapter_path), model_card(info))

    @property
    def _prompted(self) -> bool:
        return self.config.stage.objective == "prompted"


def plain_sam(model: SPDModel, weights: Path | None) -> SPDModel:
    """A model that was trained on raw clicks as the SAM that it is: without conditioning and without a saliency.

    Its conditioning was left out of the training and adds nothing; the saliency head is a random one that nobody asks.
    """
    config = dataclasses.replace(
        model.config, saliency="image", saliency_slice_context=False, dense_saliency_prompt=False
    )
    plain = SPDModel(config, weights)
    trained = {name: tensor for name, tensor in model.adapter_state().items() if not name.startswith("conditioning.")}
    plain.load_state_dict(trained, strict=False)
    return plain


def _without_tested(spec: SetConfig, folder: Path, tested: Iterable[TestedPatients]) -> SetConfig:
    try:
        names = case_names(dataclasses.replace(spec, max_cases=0), folder)
    except BadInput as error:
        raise NotRun(f"the data of {folder.name} are not here") from error
    excluded = {
        name for other in tested if other.folder == folder for name in names if other.patient_of(name) in other.patients
    }
    if len(excluded) == len(names):
        raise NotRun(f"every patient of {folder.name} is tested")
    return dataclasses.replace(spec, exclude=tuple(sorted({*spec.exclude, *excluded})))


def _folder(root: Path, spec: SetConfig) -> Path:
    return (root / spec.folder).resolve()
