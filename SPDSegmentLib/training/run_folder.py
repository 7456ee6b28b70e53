"""Whose a run's folder is: the configuration that started it, and checkpoints that can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import write_json
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.joint_config import JointConfig

Settings = TrainingConfig | JointConfig
CONFIG_NAME = "config.json"
SHOWN_DIFFERENCES = 3
_NO_MATTER = ("bundle.", "checkpoint_seconds")
"""Settings that change nothing of what is computed."""


def claim(run_folder: Path, config: Settings) -> None:
    """Write the configuration into the run's folder, or check that it is the one that started the run.

    Raises:
        BadInput: the folder belongs to another configuration, or what is written there cannot be read.
    """
    path = run_folder / CONFIG_NAME
    if path.exists():
        _check_same(path, config)
        return
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    values.pop("checkpoint_seconds")
    write_json(path, values, "configuration", indent=1)


def run_key(config: Settings) -> str:
    """A digest of all settings that change what is computed and differ from their defaults."""
    settings = _settings(json.loads(json.dumps(dataclasses.asdict(config))))
    defaults = _settings(_defaults(type(config)))
    telling = {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}
    return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:16]


def _check_same(path: Path, config: Settings) -> None:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError("no table")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}, which says how this run was started, is damaged.",
            "Delete that file to go on with this configuration (the checkpoints are compared with it), or choose "
            "another run folder.",
            repr(error),
        ) from error
    defaults = _settings(_defaults(type(config)))
    before = defaults | _settings(there)
    now = defaults | _settings(json.loads(json.dumps(dataclasses.asdict(config))))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if not differing:
        return
    shown = ", ".join(
        f"{name} {_text(before.get(name))} there and {_text(now.get(name))} here"
        for name in differing[:SHOWN_DIFFERENCES]
    )
    more = f", and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
    raise BadInput(
        f"{path.parent} holds a run with another configuration ({shown}{more}).",
        "Choose another run folder, or remove this one to start again.",
    )


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that matter by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return {name: value for name, value in flat.items() if not name.startswith(_NO_MATTER)}


def _defaults(cls: type) -> dict[str, Any]:
    """Defaults of a tree of settings; those without one are left out."""
    values: dict[str, Any] = {}
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[field.name]):
            values[field.name] = _defaults(kinds[field.name])
        elif field.default is not dataclasses.MISSING:
            values[field.name] = json.loads(json.dumps(field.default))
    return values
