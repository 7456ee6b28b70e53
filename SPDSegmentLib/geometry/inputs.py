"""Images and points in any form in which a caller of the library may have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import LIST, ControlPoint, Markup, read_markups
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume, volume_from_image

if TYPE_CHECKING:
    import SimpleITK
    from numpy.typing import ArrayLike

    Image = str | Path | np.ndarray | Volume | SimpleITK.Image
    Points = str | Path | Sequence[Markup] | ArrayLike

FRAMES = ("RAS", "LPS", "IJK")


def volume_of(image: Image, ijk_to_ras: ArrayLike | None, series: str | None) -> Volume:
    """The volume of whatever a caller calls an image, checked."""
    if isinstance(image, str | Path):
        volume = read_volume(image, series)
    elif isinstance(image, Volume):
        volume = image
    elif hasattr(image, "GetPixelID"):
        volume = volume_from_image(cast("SimpleITK.Image", image), "")
    else:
        array = np.asarray(image)
        if ijk_to_ras is None:
            raise BadInput(
                "An image given as an array needs ijk_to_ras, the matrix (4, 4) from its voxel indexes to patient mm.",
                "Give it, or give the image's file.",
            )
        if array.ndim != 3:
            raise BadInput(f"The image is an array of shape {array.shape}.", "Give one of shape (K, J, I).")
        volume = Volume(array, np.asarray(ijk_to_ras, dtype=float))
    check_image(volume)
    return volume


def are_numbers(points: Points) -> bool:
    """Whether points are numbers, neither a file nor markups."""
    return not isinstance(points, str | Path) and not all(isinstance(p, Markup) for p in points)  # type: ignore[union-attr]


def markups_of(points: Points) -> list[Markup]:
    """Markups of a file, or those that were given."""
    return read_markups(points) if isinstance(points, str | Path) else list(points)  # type: ignore[arg-type]


def list_of(points: Points, frame: str, volume: Volume) -> Markup:
    """Points (N, 3) as a list in RAS mm with the ids 1 to N."""
    try:
        array = np.asarray(points, dtype=float)
    except (TypeError, ValueError) as error:
        raise BadInput("The points are no numbers.", "Give an array (N, 3) or a markups file.", str(error)) from error
    if array.ndim != 2 or array.shape[1] != 3:
        raise BadInput(f"The points are an array of shape {array.shape}.", "Give one of shape (N, 3).")
    if frame not in FRAMES:
        raise BadInput(f"Unknown frame '{frame}'.", f"Use {', '.join(FRAMES)}.")
    if frame == "LPS":
        array = array * (-1, -1, 1)
    elif frame == "IJK":
        array = volume.to_ras(array)
    named = [ControlPoint(str(n), str(n), (r, a, s)) for n, (r, a, s) in enumerate(array.tolist(), start=1)]
    return Markup("the points", LIST, tuple(named))
