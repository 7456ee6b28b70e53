"""DICOM codes of structures, as 3D Slicer writes them in a segment's tag ``TerminologyEntry``."""

from __future__ import annotations

from SPDSegmentLib.errors import BadInput

CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
ANATOMICAL_STRUCTURE = "SCT^123037004^Anatomical Structure"
NOTHING = "^^"

STRUCTURES = {
    "adrenal gland": ("23451007", "Adrenal gland"),
    "aorta": ("15825003", "Aorta"),
    "brain": ("12738006", "Brain"),
    "colon": ("71854001", "Colon"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "gallbladder": ("28231008", "Gallbladder"),
    "heart": ("80891009", "Heart"),
    "hippocampus": ("5366008", "Hippocampus"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "larynx": ("4596009", "Larynx"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "mandible": ("91609006", "Mandible"),
    "pancreas": ("15776009", "Pancreas"),
    "parotid gland": ("45289007", "Parotid gland"),
    "prostate": ("41216001", "Prostate"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "rectum": ("34402009", "Rectum"),
    "small intestine": ("30315005", "Small Intestine"),
    "spinal cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "stomach": ("69695003", "Stomach"),
    "thyroid gland": ("69748006", "Thyroid gland"),
    "trachea": ("44567001", "Trachea"),
    "urinary bladder": ("89837001", "Urinary bladder"),
}
"""SNOMED CT codes and meanings of DICOM PS3.16 (CID 7140, CID 4031), by lower-case name."""

OF_EACH_SIDE = {"23451007", "5366008", "64033007", "39607008", "45289007"}
"""Codes of what a body has on its right and on its left."""


def terminology_entry(structure: str, code: str = "") -> str:
    """Return the entry of a structure that is known here or has a code of its own, empty for any other.

    Its parts, between tildes: context, category, type, modifier of the type, context of the region, region, modifier of
    the region; each code is scheme^value^meaning.

    Args:
        code: "SCHEME VALUE MEANING", for example "SCT 71341001 Femur".

    Raises:
        BadInput: a code without these three parts.
    """
    parts = code.split(maxsplit=2)
    if code and (len(parts) < 3 or set(code) & set("~^")):
        raise BadInput(
            f"The code '{code}' of the structure {structure} has not the three parts SCHEME VALUE MEANING.",
            'Write it as in code = "SCT 71341001 Femur".',
        )
    known = STRUCTURES.get(structure.strip().lower())
    if not parts and known is None:
        return ""
    kind = "^".join(parts or ("SCT", *(known or ())))
    return "~".join((CONTEXT, ANATOMICAL_STRUCTURE, kind, NOTHING, ANATOMIC_CONTEXT, NOTHING, NOTHING))


def codes_of(entry: str) -> list[tuple[str, str, str]]:
    """Category, type, and if there is one modifier of the type of an entry, each as (scheme, value, meaning)."""
    found = []
    for part in entry.split("~")[1:4]:
        scheme, value, meaning = [*part.split("^"), "", "", ""][:3]
        if scheme and value and meaning:
            found.append((scheme, value, meaning))
    return found if len(found) >= 2 else []
