"""Embeddings of augmented targets, computed once: everything before the decoder is frozen after stage I.

An entry holds the slices around one target in one random view. Entries lie as safetensors files in the run's folder, so
a stopped run goes on without computing them again. Each names what it was made of; one that is damaged, or was made of
another image or encoder, is computed again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.files import write_bytes
from SPDSegmentLib.inference.engine import autocast, choose_precision
from SPDSegmentLib.networks.adapters import adjoining
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.cases import AugmentedView, Case, TargetMask, apply_view, draw_view
from SPDSegmentLib.training.config import TrainingConfig


@dataclass(frozen=True, eq=False)
class BankEntry:
    """One target in one view.

    Attributes:
        first: slice index of the entry's first slice in its case.
        view: maps clicks.
        path: file with ``embeddings`` (R, C, h, w) bfloat16, ``mask`` and ``salient`` (R, S, S) uint8.
    """

    target: TargetMask
    first: int
    last: int
    view: AugmentedView
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        """Read the entry's file."""
        from safetensors.torch import load_file

        return load_file(self.path)


class EmbeddingBank:
    """All entries of a run, and their saliency once the head is frozen."""

    def __init__(self, entries: Sequence[BankEntry]) -> None:
        self.entries = list(entries)
        self.saliency: list[np.ndarray] = []

    @torch.no_grad()
    def compute_saliency(self, model: SPDModel, device: torch.device) -> None:
        """S of every entry, (R, S, S) float16."""
        self.saliency = []
        precision = choose_precision("auto", device)
        for entry in self.entries:
            embeddings = entry.tensors()["embeddings"].to(device).float()
            with autocast(device, precision):
                logits = model.saliency_logits(embeddings, *adjoining(embeddings))
            self.saliency.append(logits[:, 0].sigmoid().half().cpu().numpy())


def build_bank(
    model: SPDModel,
    cases: Sequence[Case],
    config: TrainingConfig,
    folder: Path,
    device: torch.device,
    on_entry: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    say: Callable[[int], None] = lambda _: None,
    may_compute: bool = True,
) -> EmbeddingBank:
    """Compute (or find) ``stage2.entries`` views, going round the targets of ``cases`` in shuffled order.

    Args:
        say: told the size of all entries, in bytes, once something has to be computed.
        may_compute: False takes the entries as another process has made them.

    Raises:
        BadInput: there is no room for them.
        Cancelled: the user stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [(case, target) for case in cases for target in case.targets]
    order = np.random.default_rng([config.seed, 5]).permutation(len(targets))
    jobs = [targets[order[k % len(order)]] for k in range(config.stage2.entries)]
    entries = [_entry(case, target, k, config, folder) for k, (case, target) in enumerate(jobs)]
    encoder = encoder_digest(model) if may_compute else ""
    announced = not may_compute
    for k, ((case, _), entry) in enumerate(zip(jobs, entries, strict=True)):
        key = _key(encoder, case, entry) if may_compute else ""
        if may_compute and not is_made_of(entry.path, key):
            _compute(model, case, entry, device, key)
            if not announced:
                announced = True
                slices = [other.last - other.first + 1 for other in entries]
                size = entry.path.stat().st_size / slices[k]
                say(round(size * sum(slices)))
                check_room(folder, size * sum(slices[k + 1 :]))
        on_entry(k + 1, len(jobs))
        if cancelled():
            raise Cancelled("Training was cancelled; its state is kept.", "Run the same command to go on.")
    return EmbeddingBank(entries)


def _entry(case: Case, target: TargetMask, k: int, config: TrainingConfig, folder: Path) -> BankEntry:
    rng = np.random.default_rng([config.seed, 2, k])
    view = draw_view(rng, case, target, config)
    first = max(0, target.first - config.stage2.margin)
    last = min(len(case.images) - 1, target.last + config.stage2.margin)
    name = re.sub(r"[^\w.-]", "-", target.name.replace(":", "_"))  # of a case name with a folder in it, too
    return BankEntry(target, first, last, view, folder / f"{k:05d}_{name}.safetensors")


def encoder_digest(model: SPDModel) -> str:
    """Digest of the encoder's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(encoder: str, case: Case, entry: BankEntry) -> str:
    """Digest of everything that an entry is made of."""
    part, view = slice(entry.first, entry.last + 1), entry.view
    digest = hashlib.blake2b(encoder.encode(), digest_size=16)
    digest.update(repr((view.size, view.gamma, view.noise, view.noise_seed, entry.first, entry.last)).encode())
    if max(view.coarseness) > 1:  # entries of a version that did not blur are of another image
        digest.update(repr(view.coarseness).encode())
    for array in (view.matrix, view.offset, view.field, case.images[part], entry.target.mask[part], case.salient[part]):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_made_of(path: Path, key: str) -> bool:
    """Whether a file is there, whole, and made of what the key stands for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("key") == key)
    except (OSError, SafetensorError):
        return False


def check_room(folder: Path, size: float, table: str = "stage2") -> None:
    """Raise :class:`BadInput` where a folder's disk has no place for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BadInput(
            f"The embeddings in {folder} need {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there.",
            f"Free some space, choose another run folder, or lower entries in [{table}].",
        )


@torch.no_grad()
def _compute(model: SPDModel, case: Case, entry: BankEntry, device: torch.device, key: str) -> None:
    part = slice(entry.first, entry.last + 1)
    images = apply_view(case.images[part], entry.view, image=True)
    embeddings = []
    precision = choose_precision("auto", device)
    for batch in images.split(4):
        with autocast(device, precision):
            embeddings.append(model.encode(batch.to(device)).to(torch.bfloat16).cpu())
    tensors = {
        "embeddings": torch.cat(embeddings).contiguous(),
        "mask": (apply_view(entry.target.mask[part], entry.view, image=False)[:, 0] > 0.5).to(torch.uint8),
        "salient": (apply_view(case.salient[part], entry.view, image=False)[:, 0] > 0.5).to(torch.uint8),
    }
    write_tensors(entry.path, tensors, key)


def write_tensors(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    """Write kept tensors with the key of what they are made of.

    Raises:
        BadInput: the file cannot be written.
    """
    from safetensors.torch import save

    try:
        write_bytes(path, save(tensors, {"key": key}), "embeddings file")
    except BadInput as error:
        error.remedy += " Then run the same command: it goes on."
        raise


def remove_entries(folder: Path) -> None:
    """Delete kept embeddings of a run, also in ``folder/validation``, and what is empty then; all else stays."""
    for place in (folder / "validation", folder):
        for path in place.glob("[0-9][0-9][0-9][0-9][0-9]*.safetensors"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            place.rmdir()
