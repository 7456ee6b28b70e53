"""Segmenting one case from files to files: :func:`SPDSegmentLib.api.segment`, and the report and picture beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from SPDSegmentLib.api import Segmentation, segment
from SPDSegmentLib.cli.failures import as_spd_error
from SPDSegmentLib.cli.paths import LABELMAP_SUFFIXES, require_device, require_input, require_output
from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.files import write_json, write_png

if TYPE_CHECKING:
    from SPDSegmentLib.errors import SPDError
    from SPDSegmentLib.inference.results import SegmentationProgress


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


def run_segmentation(
    request: SegmentRequest,
    on_progress: Callable[[SegmentationProgress], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Segmentation:
    """Segment one case and write the mask, then report and preview.

    Args:
        on_note: told, before anything is computed, why the image may not be of the model's kind.

    Raises:
        SPDError: each kind, see :mod:`SPDSegmentLib.errors`; where it says that the mask is written, it is.
    """
    request.check()
    if request.preview is not None:
        from SPDSegmentLib.cli.preview import require_drawing

        require_drawing()
    outcome = segment(
        request.image,
        request.points,
        request.model,
        request.output,
        series=request.series,
        axis=request.axis,
        prompts=request.prompts,
        saliency_only=request.saliency_only,
        insist=request.insist,
        device=request.device,
        on_progress=on_progress,
        on_note=on_note,
    )
    _write_beside(request, outcome)
    return outcome


def _write_beside(request: SegmentRequest, outcome: Segmentation) -> None:
    """Write what goes with the mask: where that fails, the mask stays and is named."""
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


def _write_report(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    write_json(path, outcome.report(request.full_paths, dataclasses.asdict(request)), "report")


def _write_picture(path: Path, request: SegmentRequest, outcome: Segmentation) -> None:
    write_png(path, lambda part: _write_preview(part, outcome), "preview")


def _write_preview(path: Path, outcome: Segmentation) -> None:
    from SPDSegmentLib.cli.preview import PreviewText, write_preview
    from SPDSegmentLib.geometry.intensity import IntensityConfig, intensity_range

    info = outcome.bundle.info
    limits = intensity_range(outcome.stack.array, IntensityConfig.from_dict(info.normalization))
    text = PreviewText(info.title, info.name, outcome.volume_ml)
    write_preview(path, outcome.stack, outcome.result, limits, text, info.color)
