"""Segmenting one case from files to files; everything cheap is checked before torch is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.cli.failures import as_spd_error
from SPDSegmentLib.cli.paths import LABELMAP_SUFFIXES, require_device, require_input, require_output
from SPDSegmentLib.errors import Cancelled, well_formed
from SPDSegmentLib.files import write_json, write_png
from SPDSegmentLib.models.bundle import Bundle, base_weights_for, find_bundle
from SPDSegmentLib.models.fit import doubts_of_image

if TYPE_CHECKING:
    from SPDSegmentLib.errors import SPDError
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.geometry.volume import Volume
    from SPDSegmentLib.inference.results import Progress, SegmentationResult


@dataclass(frozen=True)
class SegmentRequest:
    """What ``spdsegment segment`` was asked for.

    Attributes:
        model: name or folder of a bundle.
        prompts: strategy of the predictor.
        insist: ids of clicks that prompt whatever the model believes.
        axis: ``auto``, ``i``, ``j``, ``k``, ``axial``, ``coronal`` or ``sagittal``; None for the model's own plane.
        series: end of the UID of the wanted series in a DICOM folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        full_paths: name files in the report with their folders.
    """

    image: Path
    points: Path
    model: str
    output: Path
    report: Path | None = None
    preview: Path | None = None
    prompts: str = "consensus"
    saliency_only: bool = False
    insist: tuple[str, ...] = ()
    axis: str | None = None
    series: str | None = None
    device: str = "auto"
    full_paths: bool = False

    def check(self) -> None:
        """Raise :class:`BadInput` for paths and settings that cannot work."""
        require_input(self.image, "image")
        require_input(self.points, "points file")
        taken = [self.image, self.points]
        outputs = [("output", self.output, LABELMAP_SUFFIXES), ("report", self.report, (".json",)),
                   ("preview", self.preview, (".png",))]  # fmt: skip
        for what, path, suffixes in outputs:
            if path is not None:
                require_output(path, what, suffixes, taken)
                taken.append(path)
        require_device(self.device)


@dataclass(frozen=True, eq=False)
class SegmentOutcome:
    """What was segmented; ``mask_kji`` lies on the volume's own grid, ``said_before`` are notes that were said."""

    bundle: Bundle
    stack: SliceStack
    result: SegmentationResult
    mask_kji: np.ndarray
    volume_ml: float
    said_before: tuple[str, ...] = ()


def run_segmentation(
    request: SegmentRequest,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> SegmentOutcome:
    """Segment one case and write the mask, then report and preview.

    Args:
        on_note: told, before anything is computed, why the image may not be of the model's kind.

    Raises:
        SPDError: each kind, see :mod:`SPDSegmentLib.errors`; where it says that the mask is written, it is.
    """
    request.check()
    from SPDSegmentLib.geometry.markups import insist_on, read_markups

    markups = insist_on(read_markups(request.points), request.insist)
    bundle = find_bundle(request.model)
    base_weights_for(bundle)
    if request.preview is not None:
        from SPDSegmentLib.cli.preview import require_drawing

        require_drawing()

    from SPDSegmentLib.geometry.centerline import clicks_from_markups
    from SPDSegmentLib.geometry.labelmap import check_mask_output
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.geometry.volume import check_image, read_volume

    volume = read_volume(request.image, request.series)
    check_image(volume)
    check_mask_output(request.output, volume)
    stack = SliceStack(volume, request.axis or bundle.info.slicing_axis)
    clicks = clicks_from_markups(markups, stack)
    doubts = tuple(doubts_of_image(bundle.info, stack, clicks))
    for doubt in doubts:
        on_note(doubt)

    from SPDSegmentLib.inference.predictor import Predictor

    session = Predictor.load(bundle, request.device).open(stack)
    result = session.segment(
        clicks, prompts=request.prompts, saliency_only=request.saliency_only, on_progress=on_progress
    )
    mask = stack.to_volume(result.mask.astype(np.uint8))
    voxel_ml = abs(float(np.linalg.det(volume.ijk_to_ras[:3, :3]))) / 1000
    outcome = SegmentOutcome(bundle, stack, result, mask, float(mask.sum()) * voxel_ml, doubts)
    _write(request, outcome, volume)
    return outcome


def _write(request: SegmentRequest, outcome: SegmentOutcome, volume: Volume) -> None:
    """Write the mask, then what goes with it: where that fails, the mask stays and is named."""
    from SPDSegmentLib.geometry.labelmap import write_labelmap

    info = outcome.bundle.info
    write_labelmap(
        request.output,
        outcome.mask_kji,
        volume,
        segment_names=(info.structure,),
        colors=(info.color,),
        terminology=(info.terminology,) if info.terminology else None,
    )
    missing: list[SPDError] = []
    for path, write in ((request.report, _write_report), (request.preview, _write_picture)):
        if path is None:
            continue
        try:
            write(path, request, outcome)
        except KeyboardInterrupt as error:
            raise Cancelled(f"Cancelled; the mask is written to {request.output}.") from error
        except Exception as error:
            missing.append(as_spd_error(error))
    if missing:
        said = " ".join(failure.message for failure in missing)
        details = "\n".join(failure.details for failure in missing)
        raise type(missing[0])(f"The mask is written to {request.output}, but: {said}", missing[0].remedy, details)


def _write_report(path: Path, request: SegmentRequest, outcome: SegmentOutcome) -> None:
    write_json(path, build_report(request, outcome), "report")


def _write_picture(path: Path, request: SegmentRequest, outcome: SegmentOutcome) -> None:
    write_png(path, lambda part: _write_preview(part, outcome), "preview")


def _write_preview(path: Path, outcome: SegmentOutcome) -> None:
    from SPDSegmentLib.cli.preview import PreviewText, write_preview
    from SPDSegmentLib.geometry.intensity import IntensityConfig, intensity_range

    info = outcome.bundle.info
    limits = intensity_range(outcome.stack.array, IntensityConfig.from_dict(info.normalization))
    text = PreviewText(info.title, info.name, outcome.volume_ml)
    write_preview(path, outcome.stack, outcome.result, limits, text, info.color)


def build_report(request: SegmentRequest, outcome: SegmentOutcome) -> dict[str, Any]:
    """The JSON report: what was asked, the measured volume, and the predictor's own report.

    Files are named without their folders, which may name a patient, unless ``full_paths`` was asked for. Slices are
    counted in the stack (``slice``) and as the image file numbers them (``slice_number``).
    """
    stack = outcome.stack
    report = outcome.result.report()
    for entry in [*report.get("slices", []), *report.get("points", [])]:
        if 0 <= entry["slice"] < stack.n_slices:
            entry["slice_number"] = stack.slice_number(entry["slice"])
    settings = {
        name: _shown(value, request.full_paths) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(request).items()
    }
    settings["model"] = _shown(Path(request.model), request.full_paths)
    return {
        "spdsegment": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": settings,
        "slicing": {"axis": "IJK"[stack.axis], "plane": stack.plane, "slices": stack.n_slices},
        "volume_ml": round(outcome.volume_ml, 3),
        **report,
    }


def _shown(path: Path, full: bool) -> str:
    return well_formed(str(path) if full else path.name)
