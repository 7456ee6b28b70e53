"""DICOM folders through SimpleITK's GDCM reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported

if TYPE_CHECKING:
    import SimpleITK

NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "REG", "SR", "PR", "KO", "FID", "DOC"}
"""Modalities that are made from images; some hold pixels, none is the image that the user means."""
POSITION_TOLERANCE = 0.05
"""Deviation of a slice from its place on a regular grid that is accepted, in slice distances."""


def read_dicom_folder(folder: Path, series: str | None = None) -> SimpleITK.Image:
    """Read the image series of a folder; its subfolders are not searched.

    Args:
        series: the end of the wanted series' UID when the folder holds several.

    Raises:
        BadInput: no image series, several without a choice, or one that cannot be read.
        GeometryUnsupported: slices are missing, doubled, or shifted against each other (gantry tilt).
    """
    import SimpleITK as sitk

    found = _image_series(folder)
    if series is not None:
        found = {uid: files for uid, files in found.items() if uid.endswith(series)}
    if not found:
        wanted = f" with a UID that ends in {series}" if series else ""
        raise BadInput(
            f"The folder {folder} holds no DICOM image series{wanted}.",
            "Give the folder with the files themselves; its subfolders are not searched.",
        )
    if len(found) > 1:
        listed = "; ".join(f"{uid} ({len(files)} files)" for uid, files in found.items())
        raise BadInput(
            f"The folder {folder} holds {len(found)} DICOM image series: {listed}.",
            "Give a folder with one of them, or choose by the end of the series UID.",
        )
    (files,) = found.values()
    _check_positions(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise BadInput(
            f"The DICOM series in {folder} cannot be read as one volume.",
            "Check that all its files are complete and its slices of one size.",
            str(error),
        ) from error


def _image_series(folder: Path) -> dict[str, list[str]]:
    """Files by series UID, without series that are no images."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # "No Series were found" becomes an error of ours
    try:
        uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    found = {}
    for uid in uids:
        files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        reader = _header(files[0])
        if reader is None or min(reader.GetSize()[:2]) < 2:
            continue
        modality = reader.GetMetaData("0008|0060").strip() if reader.HasMetaDataKey("0008|0060") else ""
        if modality not in NOT_IMAGES:
            found[uid] = files
    return found


def _check_positions(folder: Path, files: list[str]) -> None:
    """Refuse a series whose slices are not equally spaced along the normal of its first one."""
    headers = [_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if header is None:
            raise BadInput(f"The DICOM file {file} cannot be read.", "Copy the series again.")
    read = [header for header in headers if header is not None]
    if len(read) < 2:
        return
    origins = np.array([header.GetOrigin() for header in read])
    directions = np.array([header.GetDirection() for header in read])
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise GeometryUnsupported(
            f"The slices of the DICOM series in {folder} do not all face the same way.",
            "Give a series of parallel slices.",
        )
    normal = directions[0].reshape(3, 3)[:, 2]
    depth = origins @ normal
    step = float(np.median(np.diff(depth)))
    if abs(step) < 1e-6 or (np.abs(np.diff(depth)) < POSITION_TOLERANCE * abs(step)).any():
        raise GeometryUnsupported(
            f"The DICOM series in {folder} has several slices at one position.",
            "Give a series with one image per position (one phase, one echo).",
        )
    uneven = np.flatnonzero(np.abs(np.diff(depth) / step - 1) > POSITION_TOLERANCE)
    if uneven.size:
        raise GeometryUnsupported(
            f"The slices of the DICOM series in {folder} are not equally spaced, first after slice {uneven[0] + 1}"
            f" of {len(files)} ({abs(depth[uneven[0] + 1] - depth[uneven[0]]):.3g} mm instead of {abs(step):.3g} mm).",
            "Add the missing slices or resample the series.",
        )
    aside = origins - origins[0] - np.outer(depth - depth[0], normal)
    if np.linalg.norm(np.diff(aside, axis=0), axis=1).max() > POSITION_TOLERANCE * abs(step):
        raise GeometryUnsupported(
            f"The slices of the DICOM series in {folder} are shifted against each other (gantry tilt).",
            "Resample it to a regular grid first.",
        )


def _header(file: str) -> SimpleITK.ImageFileReader | None:
    """Reader with the information of a file, or None if it is no image."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader
