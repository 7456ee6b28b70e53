"""DICOM folders through SimpleITK's GDCM reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from SPDSegmentLib.errors import BadInput

if TYPE_CHECKING:
    import SimpleITK


def read_dicom_folder(folder: Path, series: str | None = None) -> SimpleITK.Image:
    """Read the image series of a folder.

    Args:
        series: the end of the wanted series' UID when the folder holds several.

    Raises:
        BadInput: no image series, several without a choice, or one that cannot be read.
    """
    import SimpleITK as sitk

    found = _image_series(folder)
    if series is not None:
        found = {uid: files for uid, files in found.items() if uid.endswith(series)}
    if not found:
        wanted = f" with a UID that ends in {series}" if series else ""
        raise BadInput(f"The folder {folder} holds no DICOM image series{wanted}.", "Check the path.")
    if len(found) > 1:
        listed = "; ".join(f"{uid} ({len(files)} files)" for uid, files in found.items())
        raise BadInput(
            f"The folder {folder} holds {len(found)} DICOM image series.",
            "Give a folder with one of them, or choose by the end of the series UID.",
            listed,
        )
    (files,) = found.values()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise BadInput(
            f"The DICOM series in {folder} cannot be read as one volume.",
            "Check that all its slices are there and of one size.",
            str(error),
        ) from error


def _image_series(folder: Path) -> dict[str, list[str]]:
    """Files by series UID, without series that hold no pixels (RTSTRUCT, reports)."""
    import SimpleITK as sitk

    found = {}
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[0])
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue
        if min(reader.GetSize()[:2]) > 1:
            found[uid] = files
    return found
