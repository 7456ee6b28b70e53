"""What a benchmark cost: seconds per segmentation and per training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spdbench.summary import DatasetResult, MethodResult


def cost_table(datasets: Sequence[DatasetResult]) -> str:
    """One line per data set and method that has rows."""
    lines = [
        "| data set | method | segmentations | s each (median) | s in all | trainings | steps each | s in all "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total = 0.0
    for dataset in datasets:
        for result in dataset.methods.values():
            if result.rows:
                seconds = [row.seconds for row in result.rows]
                total += sum(seconds)
                cells = [f"{len(seconds)}", f"{np.median(seconds):.2f}", f"{sum(seconds):.0f}", *_training(result)]
                lines.append(f"| {dataset.title} | {result.method.title} | " + " | ".join(cells) + " |")
    text = (
        f"All segmentations together: {total / 3600:.1f} h. A segmentation's time leaves out what is kept from earlier "
        "clicks on the same volume (embeddings). Rows that share a model share its training."
    )
    return "\n".join([*lines, "", text])


def _training(result: MethodResult) -> list[str]:
    records = [record for record in result.training.values() if record]
    if not records:
        return ["", "", "", ""]
    steps = sorted({str(record.get("steps", "?")) for record in records})
    parameters = sorted({str(record.get("parameters", "?")) for record in records})
    seconds = sum(float(record.get("seconds", 0)) for record in records)
    return [str(len(records)), "/".join(steps), f"{seconds:.0f}", "/".join(parameters)]
