"""A loaded bundle that opens volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import check_values
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.acceleration import batch_for, batch_for_cores, keep_to_own_cores
from SPDSegmentLib.inference.adaptation import Lesson, learn
from SPDSegmentLib.inference.engine import CACHE_BYTES, Engine, ModelOnDevice, choose_device, choose_precision
from SPDSegmentLib.inference.features import SliceFeatures
from SPDSegmentLib.inference.next_click import Suggestion, suggest
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.networks.backbones import load_adapter
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.distillation import PromptConfig

if TYPE_CHECKING:
    from SPDSegmentLib.models.bundle import Bundle


class Predictor(ModelOnDevice):
    """A loaded model that opens volumes."""

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> Predictor:
        """Load a bundle and its base weights.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
            precision: ``auto``, ``bfloat16`` or ``float32``.
            batch_size: slices per encoder call, 0 for what suits the device and its free memory.
            cache_bytes: embeddings of a volume that are kept between calls.

        Raises:
            ModelMissing, ModelCorrupt, DependencyMissing, DeviceUnavailable, BadInput.
        """
        from SPDSegmentLib.models.bundle import base_weights_for

        info = bundle.info
        try:
            network = NetworkConfig.from_dict(
                {**info.network, "backbone": info.backbone, "image_size": info.image_size}
            )
            prompts = PromptConfig.from_dict(info.prompts)
        except BadInput as error:
            raise ModelCorrupt(f"{bundle.folder}: {error.message}", "Get a fresh copy of the bundle.") from error
        intensity = bundle.intensity()
        weights = base_weights_for(bundle)
        chosen = choose_device(device)
        keep_to_own_cores()
        model = SPDModel(network, weights, adapters=False)
        try:
            model.merge_adapter_state(load_adapter(bundle, model.state_dict() if weights is not None else {}))
        except ModelCorrupt as error:
            raise ModelCorrupt(
                f"The adapter in {bundle.folder} was not made for {info.backbone} as its model.json describes it: "
                f"{error.message}",
                "Get a fresh copy of the bundle.",
                error.details,
            ) from error
        bundle.check_settings()
        engine = Engine(
            model,
            chosen,
            choose_precision(precision, chosen),
            batch_size or (batch_for_cores() if chosen.type == "cpu" else batch_for(chosen, network.image_size)),
            cache_bytes,
        )
        identity = {
            "name": info.name,
            "title": info.title,
            "backbone": info.backbone,
            "adapter_sha256": info.adapter_sha256,
            "digest": info.digest(),
            "precision": str(engine.precision).removeprefix("torch."),
        }
        return cls(engine, prompts, intensity, info.fov_mm, info.slicing_axis, identity, info)

    def with_prompts(self, prompts: PromptConfig) -> Predictor:
        """The same network with other prompt settings; what it sees of a volume can be shared."""
        return replace(self, prompts=prompts)

    def suggest(self, session: Session, clicks: Clicks, count: int = 1, call: Call | None = None) -> list[Suggestion]:
        """Where ``count`` more clicks would help most; see :func:`SPDSegmentLib.inference.next_click.suggest`."""
        return suggest(session, clicks, count, call)

    def learn(
        self,
        session: Session,
        clicks: Clicks,
        corrected: Mapping[int, np.ndarray],
        prompts: str = "consensus",
        **options: Any,
    ) -> Lesson:
        """Learn from corrected slices, for a volume; see :func:`SPDSegmentLib.inference.adaptation.learn`."""
        return learn(session, clicks, corrected, prompts, **options)

    def open(self, stack: SliceStack, features: SliceFeatures | None = None) -> Session:
        """Start working on a volume; nothing is computed yet unless ``features`` of another session are shared.

        Raises:
            BadInput: the volume's values are not of the model's kind.
        """
        if features is None:
            check_values(stack.array, self.intensity, stack.volume.name)
        return Session(self, stack, features)
