"""How bimodal is the saliency? Histogram of S over validation volumes (paper: the threshold matters little).

.venv/bin/python Testing/Benchmarks/saliency_histogram.py Testing/Benchmarks/Configs/kidney-mr.toml --model kidney-mr
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from SPDSegmentLib.evaluation.cases import CaseFiles, load_targets
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.training.config import read_training_config

BINS = 20


def main() -> None:
    """Write ``saliency-histogram.json`` and ``.png``, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--limit", type=int, default=2)
    options = parser.parse_args()
    data = read_training_config(options.config).data
    folder = (options.config.parent / data.folder).resolve()
    files = CaseFiles(folder, data.image, data.label, data.targets, data.plane, data.patient_pattern)
    predictor = Predictor.load(find_bundle(options.model))
    counts = np.zeros(BINS)
    for target in load_targets(files, data.validation[: options.limit]):
        session = predictor.open(target.stack)
        clicks, _ = target.clicks("clean", 0)
        session.segment(clicks, prompts="sampled")
        for t in np.flatnonzero(target.mask.any(axis=(1, 2))):
            counts += np.histogram(session.saliency(int(t)), BINS, (0, 1))[0]
    salient = counts.copy()
    salient[0] = 0  # the background
    between = salient[2 : BINS - 2].sum() / counts.sum()
    report = {
        "model": options.model,
        "bin_edges": np.linspace(0, 1, BINS + 1).round(3).tolist(),
        "pixels": counts.astype(int).tolist(),
        "share_between_0.1_and_0.9": round(float(between), 5),
        "share_above_0.9": round(float(salient[BINS - 2 :].sum() / counts.sum()), 5),
    }
    (options.output / "saliency-histogram.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _draw(options.output / "saliency-histogram.png", counts, options.model)
    print(json.dumps(report, indent=1))


def _draw(path: Path, counts: np.ndarray, model: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar((np.arange(BINS) + 0.5) / BINS, counts / counts.sum(), width=0.9 / BINS)
    axes.set_yscale("log")
    axes.set_xlabel("saliency")
    axes.set_ylabel("share of pixels")
    axes.set_title(f"{model}: slices that hold the target", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
