"""Model bundles as choices; no tensor is opened here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slicer.i18n import tr as _

from SPDSegmentLib.errors import ModelMissing, SPDError
from SPDSegmentLib.models.bundle import Bundle, find_bundle, list_bundles, origin_note
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.models.terminology import terminology_entry

DEFAULT_COLOR = (0.87, 0.56, 0.35)
CT_BELOW = -200


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be chosen.

    Attributes:
        key: what the worker is told: a folder, or a name that a remote worker knows.
        name: short name, kept in scenes.
        title: for people.
        structure: name of the segment.
        color: of the segment, 0 to 1.
        terminology: of the segment, or empty.
        axis: slicing axis that it was trained on.
        card: Markdown of the model card.
        modality: CT, MR or another DICOM modality, or empty.
    """

    key: str
    name: str
    title: str
    structure: str
    color: tuple[float, float, float] = DEFAULT_COLOR
    terminology: str = ""
    axis: str = "auto"
    card: str = ""
    modality: str = ""


def listModels() -> list[ModelEntry]:
    """Return the usable bundles, shipped ones and the user's."""
    return [_entry(bundle) for bundle in list_bundles()]


def findModel(name: str, *, remote: bool = False) -> ModelEntry:
    """Return a model by name or folder; with ``remote`` an unknown name is left to the worker.

    Raises:
        ModelMissing: no name was given, or there is no such bundle here.
        ModelCorrupt: the bundle is damaged.
    """
    if not name:
        raise ModelMissing(_("No model was chosen."), _("Choose a model; Set-up shows how to get one."))
    try:
        return _entry(find_bundle(name))
    except SPDError:
        if not remote:
            raise
        return ModelEntry(name, name, name, name.partition("?")[0])


def likelyModel(models: Sequence[ModelEntry], names: Iterable[str], lowestValue: float | None) -> int | None:
    """Return the index of the one model whose structure the scene names, None where it names none or several.

    Args:
        models: to choose from.
        names: of the volume and the clicks.
        lowestValue: of the volume; air in CT lies near -1000, which decides between models of one structure. None where
            there is no volume.
    """
    words = set(_words(" ".join(names)))
    named = [n for n, model in enumerate(models) if (own := _words(model.structure)) and words.issuperset(own)]
    if len(named) > 1 and lowestValue is not None and len({models[n].structure.lower() for n in named}) == 1:
        isCt = lowestValue < CT_BELOW
        named = [n for n in named if (models[n].modality == "CT") == isCt]
    return named[0] if len(named) == 1 else None


def _words(text: str) -> list[str]:
    """Words in small letters, of several things as of one: kidneys count as kidney."""
    return [word.removesuffix("s") for word in re.findall(r"[^\W\d_]+", text.lower())]


def _entry(bundle: Bundle) -> ModelEntry:
    info: BundleInfo = bundle.info
    red, green, blue = info.color
    return ModelEntry(
        str(bundle.folder),
        info.name,
        _("{title} (yours)").format(title=info.title) if origin_note(bundle) else info.title,
        info.structure,
        (float(red), float(green), float(blue)),
        info.terminology or terminology_entry(info.structure),
        info.slicing_axis,
        bundle.card,
        info.modality,
    )
