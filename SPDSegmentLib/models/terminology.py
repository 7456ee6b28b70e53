"""DICOM codes of structures, as 3D Slicer writes them in a segment's tag ``TerminologyEntry``."""

from __future__ import annotations

CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
ANATOMICAL_STRUCTURE = "SCT^123037004^Anatomical Structure"
NOTHING = "^^"

STRUCTURES = {
    "esophagus": ("32849002", "Esophagus"),
    "hippocampus": ("5366008", "Hippocampus"),
    "kidney": ("64033007", "Kidney"),
}
"""SNOMED CT codes and meanings of DICOM PS3.16 (CID 7140, CID 4031), by lower-case name."""


def terminology_entry(structure: str) -> str:
    """Return the entry of a structure that is known here, empty for any other.

    Its parts, between tildes: context, category, type, modifier of the type, context of the region, region, modifier of
    the region; each code is scheme^value^meaning.
    """
    known = STRUCTURES.get(structure.strip().lower())
    if known is None:
        return ""
    code, meaning = known
    kind = f"SCT^{code}^{meaning}"
    return "~".join((CONTEXT, ANATOMICAL_STRUCTURE, kind, NOTHING, ANATOMIC_CONTEXT, NOTHING, NOTHING))
