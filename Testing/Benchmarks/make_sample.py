"""Make the shipped sample from a validation case of CHAOS: image, label of one kidney, noisy clicks.

.venv/bin/python Testing/Benchmarks/make_sample.py ../shared/data/chaos_t2spir
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from SPDSegmentLib.geometry.labelmap import read_labelmap, write_labelmap
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import read_volume
from SPDSegmentLib.prompts.noise import simulate_clicks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))
from points_files import write_markups

CASE, LABEL, SEVERITY, SEED = "chaos_20", 2, "clinic", 7
ATTRIBUTION = """# Sample: kidney on MR

Abdominal T2-SPIR MR of one patient, with the right kidney as drawn by an expert, from the CHAOS challenge:
A. E. Kavur, M. A. Selver, O. Dicle, M. Baris, N. S. Gezer: CHAOS - Combined (CT-MR) Healthy Abdominal Organ
Segmentation Challenge Data, 2019, https://doi.org/10.5281/zenodo.3362844

License of image and label: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
Changes: intensities normalized by a third party; the label reduced to one kidney.

The clicks are simulated (severity {severity}, seed {seed}): {outside} of {count} lie outside the kidney. No bundle was
trained on this patient. Made by `Testing/Benchmarks/make_sample.py`.
"""


def main(folder: Path) -> None:
    """Write the sample into ``Resources/SampleData/kidney-mr``."""
    target = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "kidney-mr"
    target.mkdir(parents=True, exist_ok=True)
    source = folder / f"{CASE}_image.nii.gz"
    (target / "image.nii.gz").write_bytes(source.read_bytes())
    volume = read_volume(source)
    labels = read_labelmap(folder / f"{CASE}_label.nii.gz")
    kidney = labels.array == LABEL
    write_labelmap(target / "label.nii.gz", kidney.astype(np.uint8), volume)
    stack = SliceStack(volume, "axial")
    mask = np.ascontiguousarray(stack.from_volume(kidney))
    clicks = simulate_clicks(mask, stack.pixel_mm, stack.slice_mm, SEVERITY, SEED)
    points = stack.to_ras(clicks.slice_index, clicks.xy)
    control_points = tuple(
        ControlPoint(str(i + 1), f"C-{i + 1}", (float(p[0]), float(p[1]), float(p[2]))) for i, p in enumerate(points)
    )
    write_markups(target / "clicks.mrk.json", [Markup("Rough centerline", "Fiducial", control_points)])
    outside = int((~clicks.inside_target).sum())
    text = ATTRIBUTION.format(severity=SEVERITY, seed=SEED, outside=outside, count=len(points))
    (target / "ATTRIBUTION.md").write_text(text, encoding="utf-8")
    print(f"{target}: {len(points)} clicks, {outside} outside")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
