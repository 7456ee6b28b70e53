"""What trainings on a GPU leave: one file of records, and tensors of all plans in few files of bounded size.

Machines that are lent give back few and small files. A finished plan leaves its adapter, as a bundle stores it; a
stopped one leaves what it goes on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from SPDSegmentLib.files import write_bytes, write_json
from SPDSegmentLib.models.storage import from_changes, to_changes
from SPDSegmentLib.networks.backbones import load_state_dict

RECORDS, ADAPTERS, STOPPED = "records.json", "adapters", "stopped"
LARGEST = 15 << 20
"""Bytes of tensors in one file."""


class Trained:
    """A folder of records and tensors; one process at a time writes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def records(self) -> dict[str, dict[str, Any]]:
        """What is known of every plan, by its name."""
        path = self.folder / RECORDS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def tensors(self, kind: str, name: str) -> dict[str, Tensor]:
        """What :meth:`put` was given, empty where nothing is left."""
        mark = f"{name}/"
        return {key.removeprefix(mark): t for key, t in self._all(kind).items() if key.startswith(mark)}

    def put(
        self, name: str, record: Mapping[str, Any], adapter: Mapping[str, Tensor], stopped: Mapping[str, Tensor]
    ) -> None:
        """Replace what is known of a plan; killed in between, the plan goes on, or begins again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if adapter:
            self._write(ADAPTERS, name, adapter)
        write_json(self.folder / RECORDS, {**self.records(), name: record}, indent=None)
        self._write(STOPPED, name, stopped)

    def sizes(self) -> list[int]:
        """Bytes of every file."""
        return [path.stat().st_size for path in self.folder.iterdir()] if self.folder.is_dir() else []

    def _all(self, kind: str) -> dict[str, Tensor]:
        return {key: tensor for path in self._files(kind) for key, tensor in load_file(path).items()}

    def _files(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-??.safetensors"))

    def _write(self, kind: str, name: str, tensors: Mapping[str, Tensor]) -> None:
        kept = {key: tensor for key, tensor in self._all(kind).items() if not key.startswith(f"{name}/")}
        parts: list[dict[str, Tensor]] = [{}]
        room = LARGEST
        for key, tensor in {**kept, **{f"{name}/{key}": tensor for key, tensor in tensors.items()}}.items():
            if tensor.nbytes > room and parts[-1]:
                parts.append({})
                room = LARGEST
            parts[-1][key] = tensor.detach().cpu().contiguous()
            room -= tensor.nbytes
        parts = [part for part in parts if part]
        for number, part in enumerate(parts):  # tensors only move to earlier files, so that a kill loses none
            write_bytes(self.folder / f"{kind}-{number:02d}.safetensors", save(part))
        for path in self._files(kind)[len(parts) :]:
            path.unlink()


def half_base(path: Path | None) -> dict[str, Tensor]:
    """Base weights in half precision, as they are packed; empty without any."""
    weights = {} if path is None else load_state_dict(path)
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in weights.items()}


def stored(state: Mapping[str, Tensor], base: Path | None) -> dict[str, Tensor]:
    """An adapter as a bundle stores it, on base weights in half precision."""
    return to_changes(state, half_base(base))


def adapter_of(folders: Sequence[Path], name: str, base: Path | None) -> dict[str, Tensor]:
    """The adapter of :func:`stored` from the last of the folders that has it, empty where none has."""
    found = [tensors for folder in folders if (tensors := Trained(folder).tensors(ADAPTERS, name))]
    return from_changes(found[-1], half_base(base)) if found else {}
