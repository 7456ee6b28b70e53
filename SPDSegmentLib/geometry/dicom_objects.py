"""Masks as DICOM objects beside their series: SEG (through highdicom) and RTSTRUCT, read back before they are kept."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, import_package, require_package
from SPDSegmentLib.files import write_whole
from SPDSegmentLib.geometry.dicom import source_frames
from SPDSegmentLib.geometry.dicom_frames import Frame
from SPDSegmentLib.geometry.formats import is_dicom
from SPDSegmentLib.geometry.labelmap import inside, keyholes, outlines
from SPDSegmentLib.geometry.volume import Volume

Code = tuple[str, str, str]
"""Scheme, value, meaning."""
TISSUE: Code = ("SCT", "85756007", "Tissue")
ANATOMICAL_STRUCTURE: Code = ("SCT", "123037004", "Anatomical Structure")
RIGHT: Code = ("SCT", "24028007", "Right")
LEFT: Code = ("SCT", "7771000", "Left")
BOTH: Code = ("SCT", "51440002", "Right and left")
MIDLINE_MM = 10.0
WHOLE_WIDTH_MM = 120.0
SIDE_SHARE = 0.1
_RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_EXPLICIT_LITTLE_ENDIAN, _IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_LONGEST_EXPLICIT = 0xFFFE
"""Bytes of the longest text that the explicit encoding has room for."""
_MAKER = "SPDSegment"
_REMEDY = "Export the series again from the archive, or leave out --dicom-seg and --rtstruct."
_one_at_a_time = threading.Lock()
_MAY_BE_EMPTY = {
    "PatientName": "PN", "PatientID": "LO", "PatientBirthDate": "DA", "PatientSex": "CS", "StudyDate": "DA",
    "StudyTime": "TM", "StudyID": "SH", "AccessionNumber": "SH",
}  # fmt: skip
"""What a segmentation takes from its series and may be empty, each with its kind."""
_SEXES = ("", "M", "F", "O")
_OF_THE_PATIENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "SpecificCharacterSet",
)  # fmt: skip


@dataclass(frozen=True)
class Structure:
    """What a mask shows, and what drew it.

    Attributes:
        name: of the segment or region.
        category, kind: codes of what it is; by default tissue of no special kind.
        laterality: code of the side, for organs of which there are two.
        color: red, green, blue in [0, 1].
        model: name of the model, with its version if it has one.
    """

    name: str
    category: Code = TISSUE
    kind: Code = TISSUE
    laterality: Code | None = None
    color: tuple[float, float, float] = (0.87, 0.56, 0.35)
    model: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def side_of(mask_kji: np.ndarray, volume: Volume) -> Code | None:
    """The side of the body on which a mask lies: right, left, both; None where that is not known.

    The body's middle is taken to be that of the field of view, so one that is no wider than a crop
    (``WHOLE_WIDTH_MM``) tells nothing, nor does a mask within ``MIDLINE_MM`` of the middle.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.shape_ijk])).reshape(3, -1).T
    right = volume.to_ras(corners)[:, 0]
    filled = np.argwhere(mask_kji)[:, ::-1]
    if not len(filled) or np.ptp(right) < WHOLE_WIDTH_MM:
        return None
    off = volume.to_ras(filled)[:, 0] - (right.min() + right.max()) / 2
    shares = (off > MIDLINE_MM).mean(), (off < -MIDLINE_MM).mean()
    if min(shares) > SIDE_SHARE:
        return BOTH
    if abs(off.mean()) <= MIDLINE_MM:
        return None
    return RIGHT if off.mean() > 0 else LEFT


def source_of(image: Path, series: str | None, with_highdicom: bool = False, number: int | None = None) -> list[Frame]:
    """The frames that DICOM objects of an image refer to, in the order of its volume; found before the work.

    Raises:
        BadInput: the image is not of a DICOM series, or a file of it cannot be referred to.
        DependencyMissing: highdicom is not installed, and is needed.
    """
    if with_highdicom:
        require_package("highdicom")
    if not image.exists() or not (image.is_dir() or is_dicom(image)):
        raise BadInput(
            f"The image {image} is not of a DICOM series, so no DICOM object can refer to it.",
            "Give the folder of its series, or leave out --dicom-seg and --rtstruct.",
        )
    frames = source_frames(image, series, number)
    for frame in frames:
        for name in ("SOPClassUID", "SOPInstanceUID"):
            said = frame.header.get(name) or frame.header.file_meta.get(f"MediaStorage{name}")
            if not said:
                raise BadInput(f"The DICOM file {frame.file} has no {name}, so that nothing can refer to it.", _REMEDY)
            setattr(frame.header, name, said)
        for name, missing in (
            ("FrameOfReferenceUID", not frame.header.get("FrameOfReferenceUID")),
            ("StudyInstanceUID", "StudyInstanceUID" not in frame.header),
        ):
            if missing:
                raise BadInput(f"The DICOM file {frame.file} has no {name}, so that nothing can refer to it.", _REMEDY)
    return frames


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep what pydicom and highdicom warn of, with the patient's name, out of terminals and logs."""
    logger = logging.getLogger("pydicom")
    with _one_at_a_time, warnings.catch_warnings():  # which is of the whole process
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


@_without_warnings()
def write_dicom_seg(
    path: Path, mask_kji: np.ndarray, volume: Volume, source: Sequence[Frame], structure: Structure
) -> None:
    """Write a mask as a DICOM segmentation (binary, one segment) of the series that the volume was read from.

    Args:
        source: of :func:`source_of`.

    Raises:
        BadInput: the mask is empty or not on the grid of the series, or as :func:`SPDSegmentLib.files.write_whole`.
        DependencyMissing: highdicom is not installed.
    """
    highdicom = import_package("highdicom")
    _check_mask(path, mask_kji, volume, source)
    headers = {frame.file: frame.header for frame in source}
    files = list(headers)
    planes = sorted(range(len(source)), key=lambda k: (files.index(source[k].file), source[k].index))
    first = source[0].header
    algorithm = highdicom.AlgorithmIdentificationSequence(
        _MAKER,
        highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        __version__,
        source="SPD, arXiv 2604.23314",
        parameters={name: text for name, text in {"model": structure.model, **structure.settings}.items() if text},
    )
    segment = highdicom.seg.SegmentDescription(
        1,
        structure.name[:64],
        _concept(structure.category),
        _concept(structure.kind),
        highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=structure.name[:64],
        display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in structure.color)),
    )
    if structure.laterality is not None:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(structure.laterality)]
    images = [_completed(header) for header in headers.values()]
    for image in images:
        if "SpacingBetweenSlices" in image:  # which is often wrong; the slices' places are not
            image.SpacingBetweenSlices = f"{np.linalg.norm(volume.ijk_to_ras[:3, 2]):.8g}"
    make = functools.partial(
        highdicom.seg.Segmentation,
        source_images=images,
        pixel_array=mask_kji[planes].astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=highdicom.UID(),
        series_number=_series_number(first, 1),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=__version__,
        device_serial_number="0",
        content_label="SPD",
        content_description=structure.name[:64],
        series_description=f"SPD {structure.name}"[:64],
    )
    try:
        made = make()
    except (AttributeError, TypeError, ValueError) as error:
        why = "a value of its header is not valid"  # which the patient may be known by
        if isinstance(error, AttributeError):
            why = (str(error).splitlines() or ["an element"])[0].rstrip(".")
        raise BadInput(
            f"The series of {source[0].file.parent} lacks what a DICOM SEG needs: {why}.", _REMEDY, repr(error)
        ) from error
    write_whole(path, made.save_as, lambda part: _seg_holds(part, mask_kji, source), "DICOM SEG file")


def _completed(header: Any) -> Any:
    """A copy with all that may be empty, and empty what those who take names away have left without a meaning."""
    from pydicom.valuerep import DA, TM

    missing = []
    for name, kind in _MAY_BE_EMPTY.items():
        text = str(header.get(name) or "")
        try:
            {"DA": DA, "TM": TM}.get(kind, str)(text)
        except ValueError:
            text = ""
        if name not in header or text != str(header[name].value or "") or (kind == "CS" and text not in _SEXES):
            missing.append(name)
    made = copy.deepcopy(header) if missing else copy.copy(header)
    for name in missing:
        made.add_new(name, _MAY_BE_EMPTY[name], "")
    return made


@_without_warnings()
def write_rtstruct(
    path: Path, mask_kji: np.ndarray, volume: Volume, source: Sequence[Frame], structure: Structure
) -> None:
    """Write a mask as a DICOM RT structure set: on each slice the outlines of its pixels.

    The outline of a hole is joined to the one around it by a line that is drawn twice (keyhole, DICOM PS3.3 C.8.8.6.3).

    Raises:
        BadInput: as :func:`write_dicom_seg`.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import generate_uid

    _check_mask(path, mask_kji, volume, source)
    headers = {frame.file: frame.header for frame in source}
    first, now = source[0].header, datetime.now()
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = _RTSTRUCT_CLASS  # type: ignore[assignment]
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid(None)
    for name in _OF_THE_PATIENT:
        if name in first:
            made[name] = first[name]
    made.SeriesInstanceUID, made.SeriesNumber = generate_uid(None), _series_number(first, 2)
    made.Modality, made.Manufacturer, made.ManufacturerModelName = "RTSTRUCT", _MAKER, _MAKER
    made.SoftwareVersions, made.SeriesDescription = __version__, f"SPD {structure.name}"[:64]
    made.InstanceNumber, made.StructureSetLabel, made.OperatorsName = 1, "SPD", ""
    made.StructureSetDate = made.SeriesDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.StructureSetTime = made.SeriesTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    made.ApprovalStatus = "UNAPPROVED"
    frame_of_reference = str(first.get("FrameOfReferenceUID") or "")
    series_item = _item(
        SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=[_reference(h) for h in headers.values()]
    )
    study_item = _item(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series_item],
    )
    made.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=frame_of_reference, RTReferencedStudySequence=[study_item])
    ]
    made.StructureSetROISequence = [
        _item(
            ROINumber=1,
            ReferencedFrameOfReferenceUID=frame_of_reference,
            ROIName=structure.name[:64],
            ROIGenerationAlgorithm="SEMIAUTOMATIC",
            ROIGenerationDescription=f"SPD {__version__} {structure.model}"[:64].strip(),
        )
    ]
    contours, longest = [], 0
    for k in np.flatnonzero(mask_kji.any(axis=(1, 2))).tolist():
        for loop in keyholes(outlines(mask_kji[k])):
            points = volume.to_ras(np.column_stack((loop, np.full(len(loop), k)))) * (-1, -1, 1)
            data = [f"{value:.10g}" for value in points.ravel()]
            longest = max(longest, len("\\".join(data)))
            contours.append(
                _item(
                    ContourImageSequence=[_reference(source[k].header, source[k].index)],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=data,
                )
            )
    syntax = _EXPLICIT_LITTLE_ENDIAN if longest <= _LONGEST_EXPLICIT else _IMPLICIT_LITTLE_ENDIAN
    made.file_meta.TransferSyntaxUID = syntax  # type: ignore[assignment]
    made.ROIContourSequence = [
        _item(
            ReferencedROINumber=1,
            ROIDisplayColor=[round(255 * part) for part in structure.color],
            ContourSequence=contours,
        )
    ]
    observed = _item(
        ObservationNumber=1,
        ReferencedROINumber=1,
        RTROIInterpretedType="ORGAN",
        ROIInterpreter="",
        RTROIIdentificationCodeSequence=[_code_item(structure.kind)],
    )
    if structure.laterality is not None:
        (kind,) = observed.RTROIIdentificationCodeSequence
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code_item(structure.laterality)]
    made.RTROIObservationsSequence = [observed]
    write_whole(
        path,
        lambda part: made.save_as(part, enforce_file_format=True),
        lambda part: _rtstruct_holds(part, mask_kji, volume),
        "RTSTRUCT file",
    )


def _check_mask(path: Path, mask_kji: np.ndarray, volume: Volume, source: Sequence[Frame]) -> None:
    if mask_kji.shape != volume.array.shape or len(source) != len(mask_kji):
        raise BadInput(f"The mask for {path} is not on the grid of its series.")
    if not mask_kji.any():
        raise BadInput(f"Nothing was segmented, so {path} is not written.", "Click the structure closer.")


def _series_number(source: Any, number: int) -> int:
    try:
        return 1000 * max(0, int(source.get("SeriesNumber") or 0)) + number
    except (TypeError, ValueError):
        return number


def _concept(code: Code) -> Any:
    import highdicom

    scheme, value, meaning = code
    return highdicom.sr.CodedConcept(value, scheme, meaning)


def _code_item(code: Code) -> Any:
    scheme, value, meaning = code
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**fields: Any) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _reference(source: Any, frame: int = 0) -> Any:
    made = _item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
    if int(source.get("NumberOfFrames") or 1) > 1:
        made.ReferencedFrameNumber = frame + 1
    return made


def _seg_holds(path: Path, mask_kji: np.ndarray, frames: Sequence[Frame]) -> bool:
    """Whether a file, read back, has a mask's voxels at its planes."""
    import pydicom

    read = pydicom.dcmread(path)
    planes = np.atleast_3d(read.pixel_array.T).T
    normal = np.cross(frames[0].directions[:3], frames[0].directions[3:])
    depth = np.array([frame.position @ normal for frame in frames])
    found = np.zeros(mask_kji.shape, dtype=bool)
    for item, plane in zip(read.PerFrameFunctionalGroupsSequence, planes, strict=True):
        place = np.array(item.PlanePositionSequence[0].ImagePositionPatient, dtype=float) @ normal
        found[int(np.argmin(abs(depth - place)))] |= plane > 0
    return np.array_equal(found, mask_kji > 0)


def _rtstruct_holds(path: Path, mask_kji: np.ndarray, volume: Volume) -> bool:
    """Whether a file, read back, outlines a mask's voxels."""
    import pydicom

    loops: dict[int, list[np.ndarray]] = {}
    for contour in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        ras = np.array(contour.ContourData, dtype=float).reshape(-1, 3) * (-1, -1, 1)
        ijk = volume.to_ijk(ras)
        loops.setdefault(round(float(ijk[0, 2])), []).append(np.round(2 * ijk[:, :2]) / 2)
    found = np.zeros(mask_kji.shape, dtype=bool)
    for k, outline in loops.items():
        found[k] = inside(outline, (mask_kji.shape[1], mask_kji.shape[2]))
    return np.array_equal(found, mask_kji > 0)
