"""The picture of a result: slices with the mask's contour and the clicks colored by their fate (matplotlib)."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.prompts.fates import SIGNS, Fate, PointFate, SliceStatus

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.geometry.straighten import Straightened
    from SPDSegmentLib.inference.results import SegmentationResult

MAX_PANELS = 12
COLUMNS = 4
MARGIN_MM = 15.0
MIN_SIDE_MM = 40.0
FAR_MM = 25.0
BACKGROUND = "#101418"
TEXT = "#e6e9ec"
QUIET = "#9aa4ad"

# left, right, top, bottom of a slice in canonical orientation
_EDGES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "x"}
FILLED = (Fate.KEPT, Fate.INSISTED)
NOTES = {
    SliceStatus.SYNTHESIZED: ", point added by the model",
    SliceStatus.ABSTAINED: ", left empty",
    SliceStatus.LOCKED: ", edited by you",
}
MARK_SIZE = 28


@dataclass(frozen=True)
class PreviewText:
    """What the title says; ``volume_ml`` in milliliters."""

    title: str
    model: str
    volume_ml: float


@dataclass(frozen=True)
class CropBox:
    """Part of a slice that is shown: rows ``top:bottom``, columns ``left:right``, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


def require_drawing() -> None:
    """Import what a picture needs, so that a missing part shows before the work; raises ImportError."""
    for name in ("backends.backend_agg", "figure", "lines", "patheffects"):
        importlib.import_module(f"matplotlib.{name}")


def write_preview(
    path: Path,
    stack: SliceStack,
    result: SegmentationResult,
    limits: tuple[float, float],
    text: PreviewText,
    color: tuple[float, float, float],
) -> None:
    """Draw up to twelve slices, cropped round mask and clicks, and save them as PNG.

    Args:
        limits: intensities shown black and white.
        color: of the contour, red, green, blue in [0, 1].

    Raises:
        ImportError: matplotlib is not installed.
        OSError: ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [point for point in result.fates if point.fate in SIGNS and point.fate != Fate.OUTSIDE]
    shown = choose_slices(result.mask, points)
    box = crop_box(result.mask, [p for p in points if p.slice_index in shown], stack.pixel_mm)
    n_columns = min(COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    height_mm = (box.bottom - box.top) * stack.pixel_mm[0]
    width_mm = (box.right - box.left) * stack.pixel_mm[1]
    side = 2.9
    panel = (side * min(1.0, width_mm / height_mm), side * min(1.0, height_mm / width_mm) + 0.24)
    width = max(n_columns * (panel[0] + 0.08), 6.6)
    header, footer = 0.62, 0.56
    height = n_rows * (panel[1] + 0.06) + header + footer

    figure = Figure(figsize=(width, height), dpi=130, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    figure.subplots_adjust(
        left=0.012, right=0.988, top=1 - header / height, bottom=footer / height, wspace=0.03,
        hspace=0.24 / panel[1],
    )  # fmt: skip
    status = {part.slice_index: part.status for part in result.slices}
    for axes, t in zip(grid.flat, shown, strict=False):
        _draw_slice(axes, stack, t, result.mask[t], box, limits, color)
        _draw_points(axes, [p for p in points if p.slice_index == t], stack.pixel_mm)
        caption = f"slice {stack.slice_number(t)}{NOTES.get(status[t], '')}"
        axes.set_title(caption, color=QUIET, fontsize=8, pad=3, loc="left")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    _scale_bar(grid.flat[0], box, stack.pixel_mm)
    _title(figure, stack, result.mask, text, len(shown), height)
    _legend(figure, points, color, height)
    figure.savefig(path, facecolor=BACKGROUND, format="png")


def write_straightened(
    path: Path, found: Straightened, limits: tuple[float, float], text: PreviewText, color: tuple[float, float, float]
) -> None:
    """Draw the two planes of the straightened centerline with the mask's contour, and diameters along it, as PNG.

    Args:
        limits, color: as for :func:`write_preview`.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 6.4), dpi=130, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.1))
    figure.subplots_adjust(left=0.07, right=0.93, top=0.88, bottom=0.09, hspace=0.10)
    middle, at = found.masks.shape[1] // 2, found.position_mm
    across = (np.arange(found.masks.shape[1]) - middle) * found.pixel_mm
    step = found.centerline_mm / len(at)
    extent = (0.0, found.centerline_mm, across[-1] + found.pixel_mm / 2, across[0] - found.pixel_mm / 2)
    for axes, n in zip(rows[:2], (0, 1), strict=True):
        mask = found.masks.take(middle, axis=2 - n).T
        axes.set_facecolor("black")
        if found.image is not None:
            axes.imshow(found.image.take(middle, axis=2 - n).T, cmap="gray", vmin=limits[0], vmax=limits[1],
                        extent=extent, aspect="auto", interpolation="bilinear")  # fmt: skip
        padded = np.pad(mask, ((0, 0), (1, 1)))
        places = np.concatenate(([at[0] - step], at, [at[-1] + step]))
        if mask.any():
            axes.contour(places, across, padded, levels=[0.5], colors=[color], linewidths=1.4)
        axes.axhline(0.0, color=TEXT, linewidth=0.6, linestyle=(0, (6, 6)), alpha=0.6)
        axes.set_ylabel(("rows", "columns")[n] + " across (mm)", color=QUIET, fontsize=8)
    plot = rows[2]
    plot.set_facecolor(BACKGROUND)
    plot.fill_between(at, found.feret_min_mm, found.feret_max_mm, color=color, alpha=0.25, linewidth=0,
                      label="Feret, least to greatest")  # fmt: skip
    plot.plot(at, found.diameter_mm, color=color, linewidth=1.6, label="circle of the same area")
    plot.set_ylabel("diameter (mm)", color=QUIET, fontsize=8)
    plot.set_xlabel("along the centerline from the end on the lowest slice (mm)", color=QUIET, fontsize=8)
    plot.set_ylim(0, 1.15 * max(float(found.feret_max_mm.max()), 1e-3))
    areas = plot.twinx()
    areas.plot(at, found.area_mm2, color=TEXT, linewidth=1.0, linestyle=":", label="area (right)")
    areas.set_ylim(0, 1.15 * max(float(found.area_mm2.max()), 1e-3))
    areas.set_ylabel("area (mm\u00b2)", color=QUIET, fontsize=8)
    handles = [*plot.get_legend_handles_labels()[0], *areas.get_legend_handles_labels()[0]]
    areas.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8, labelcolor=TEXT)
    for axes in (*rows, areas):
        axes.set_xlim(0, found.centerline_mm)
        axes.tick_params(colors=QUIET, labelsize=7)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.text(0.07, 0.965, text.title, color=TEXT, fontsize=13, weight="bold", va="top")
    figure.text(0.93, 0.965, f"{text.volume_ml:.1f} ml", color=TEXT, fontsize=13, weight="bold", va="top", ha="right")
    figure.text(0.07, 0.918, f"{found.sentence()}  |  model {text.model}  |  research use only", color=QUIET,
                fontsize=8, va="top")  # fmt: skip
    figure.savefig(path, facecolor=BACKGROUND, format="png")


def choose_slices(mask: np.ndarray, points: Iterable[PointFate], limit: int = MAX_PANELS) -> list[int]:
    """Slices to show: those with mask or points, evenly thinned out to ``limit``; the middle one where there are none.

    Args:
        mask: (T, H, W) bool.
    """
    wanted = set(np.flatnonzero(mask.any(axis=(1, 2))).tolist())
    wanted |= {point.slice_index for point in points if 0 <= point.slice_index < len(mask)}
    ordered = sorted(wanted) or [len(mask) // 2]
    if len(ordered) <= limit:
        return ordered
    return [ordered[round(i)] for i in np.linspace(0, len(ordered) - 1, limit)]


def crop_box(mask: np.ndarray, points: Iterable[PointFate], pixel_mm: tuple[float, float]) -> CropBox:
    """The box round mask (T, H, W) and points with a margin, as near to a square in millimeters as the slice allows."""
    rows, columns = np.nonzero(mask.any(axis=0))
    xy = np.array([point.xy for point in points], dtype=float).reshape(-1, 2)
    row_mm = _with_near(rows * pixel_mm[0], xy[:, 1] * pixel_mm[0])
    column_mm = _with_near(columns * pixel_mm[1], xy[:, 0] * pixel_mm[1])
    height, width = mask.shape[1:]
    if row_mm.size == 0:
        return CropBox(0, height, 0, width)
    side = max(MIN_SIDE_MM, np.ptp(row_mm) + 2 * MARGIN_MM, np.ptp(column_mm) + 2 * MARGIN_MM)
    top, bottom = _span(row_mm, side, pixel_mm[0], height)
    left, right = _span(column_mm, side, pixel_mm[1], width)
    return CropBox(top, bottom, left, right)


def _with_near(mask_mm: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Positions of mask and points together; points far from the mask count as if they were nearer."""
    if mask_mm.size:
        points_mm = points_mm.clip(mask_mm.min() - FAR_MM, mask_mm.max() + FAR_MM)
    return np.concatenate([mask_mm, points_mm])


def _span(positions_mm: np.ndarray, side_mm: float, spacing: float, length: int) -> tuple[int, int]:
    """Pixels of one axis that ``side_mm`` round the middle of the positions covers, shifted into the slice."""
    pixels = min(length, round(side_mm / spacing) + 1)
    middle = (positions_mm.min() + positions_mm.max()) / 2 / spacing
    start = min(max(0, round(middle - (pixels - 1) / 2)), length - pixels)
    return start, start + pixels


def _draw_slice(
    axes: Any,
    stack: SliceStack,
    t: int,
    mask: np.ndarray,
    box: CropBox,
    limits: tuple[float, float],
    color: tuple[float, float, float],
) -> None:
    from matplotlib.patheffects import withStroke

    row_mm, column_mm = stack.pixel_mm
    image = stack.array[t, box.top : box.bottom, box.left : box.right]
    extent = (
        (box.left - 0.5) * column_mm, (box.right - 0.5) * column_mm,
        (box.bottom - 0.5) * row_mm, (box.top - 0.5) * row_mm,
    )  # fmt: skip
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation="bicubic")
    part = np.pad(mask[box.top : box.bottom, box.left : box.right], 1)
    if part.any():
        x = np.arange(box.left - 1, box.right + 1) * column_mm
        y = np.arange(box.top - 1, box.bottom + 1) * row_mm
        axes.contourf(x, y, part, levels=[0.5, 1.5], colors=[color], alpha=0.10)
        axes.contour(x, y, part, levels=[0.5], colors=[color], linewidths=1.4)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    outline = [withStroke(linewidth=2.0, foreground=BACKGROUND)]
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
              (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))  # fmt: skip
    for letter, (x0, y0, horizontal, vertical) in zip(_EDGES.get(stack.plane, ""), places, strict=False):
        axes.text(
            x0, y0, letter, transform=axes.transAxes, color=TEXT, fontsize=7, ha=horizontal, va=vertical,
            path_effects=outline,
        )  # fmt: skip


def _draw_points(axes: Any, points: Iterable[PointFate], pixel_mm: tuple[float, float]) -> None:
    for point in points:
        sign = SIGNS[point.fate]
        x, y = point.xy[0] * pixel_mm[1], point.xy[1] * pixel_mm[0]
        shape: dict[str, Any] = {"s": MARK_SIZE, "marker": MARKERS[sign.shape]}
        if sign.shape == "cross":
            axes.scatter(x, y, color="black", linewidths=3.0, zorder=3, alpha=0.6, **shape)
            axes.scatter(x, y, color=sign.color, linewidths=1.6, zorder=4, **shape)
        else:
            face = sign.color if point.fate in FILLED else "none"
            axes.scatter(x, y, facecolors="none", edgecolors="black", linewidths=2.8, zorder=3, alpha=0.6, **shape)
            axes.scatter(x, y, facecolors=face, edgecolors=sign.color, linewidths=1.4, zorder=4, **shape)


def _scale_bar(axes: Any, box: CropBox, pixel_mm: tuple[float, float]) -> None:
    width_mm = (box.right - box.left) * pixel_mm[1]
    length = next((mm for mm in (50, 20, 10, 5) if mm < width_mm * 0.4), 2)
    end = length / width_mm
    axes.plot([0.05, 0.05 + end], [0.07, 0.07], color=TEXT, linewidth=1.6, transform=axes.transAxes)
    axes.text(0.05 + end / 2, 0.085, f"{length} mm", color=TEXT, fontsize=7, ha="center", va="bottom",
              transform=axes.transAxes)  # fmt: skip


def _title(figure: Any, stack: SliceStack, mask: np.ndarray, text: PreviewText, n_shown: int, height: float) -> None:
    segmented = int(mask.any(axis=(1, 2)).sum())
    bold = {"color": TEXT, "fontsize": 13, "weight": "bold", "va": "top"}
    figure.text(0.012, 1 - 0.10 / height, text.title, **bold)
    figure.text(0.988, 1 - 0.13 / height, f"{text.volume_ml:.1f} ml", ha="right", **bold)
    detail = f"{segmented} {stack.plane} slices segmented, {n_shown} shown  |  model {text.model}  |  research use only"
    figure.text(0.012, 1 - 0.34 / height, detail, color=QUIET, fontsize=8, va="top")


def _legend(figure: Any, points: Iterable[PointFate], color: tuple[float, float, float], height: float) -> None:
    from matplotlib.lines import Line2D

    counts = Counter(point.fate for point in points)
    handles = [Line2D([], [], color=color, linewidth=1.8, label="segmentation")]
    for fate, sign in SIGNS.items():
        if fate is Fate.OUTSIDE or (fate is Fate.PAST_END and not counts[fate]):
            continue
        face, label = sign.color if fate in FILLED else "none", f"{sign.words} ({counts[fate]})"
        handles.append(
            Line2D([], [], linestyle="none", marker=MARKERS[sign.shape], markersize=5.5, markeredgewidth=1.4,
                   markeredgecolor=sign.color, markerfacecolor=face, label=label)
        )  # fmt: skip
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.006, 0.04 / height), ncols=len(handles), frameon=False,
        fontsize=8, labelcolor=TEXT, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip
