"""Figures that the paper prints (arXiv 2604.23314), and why ours can or cannot be put beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's tables; the unit of its HD95 is not stated."""

    data: str
    metric: str
    spd: str
    best_other: str
    other: str


PAPER_ROWS = (
    PaperRow("TI, terminal ileum, MR, real clicks, private", "DSC", "73.58", "62.50", "SAM-Tuning"),
    PaperRow("TI", "HD95", "23.94", "30.22", "nnU-Net"),
    PaperRow("Scar, LGE MR, private", "DSC", "76.42", "70.05", "SAM-Tuning"),
    PaperRow("Scar", "HD95", "12.91", "15.75", "nnU-Net"),
    PaperRow("FUMPE, CT, public", "DSC", "90.84", "84.26", "nnU-Net"),
    PaperRow("KiTS, CT, public", "DSC", "91.16", "89.64", "nnU-Net"),
    PaperRow("KiTS", "HD95", "10.12", "11.38", "nnU-Net"),
)

COMPARABLE = """\
**What can be compared.** Differences between two rows of one table: SPD against SAM-Tuning, consensus points against
raw points in a frozen model, a step of the ablation against the step before. They answer the same question on the same
images, in the paper and here, and their signs and rough sizes should agree.

**What cannot.**

- *Absolute figures.* The paper's TI and Scar are private, and its FUMPE and KiTS are CT sets that are not among ours. A
  kidney on T2 MR is easier than a terminal ileum.
- *The noise.* TI has clicks of radiologists; the paper's simulator for the other sets is not published. Ours is
  described in `SPDSegmentLib/prompts/noise.py`, its version is part of every result, and a curve over severity says
  more than one point of it.
- *The network.* Ours is LiteMedSAM's TinyViT (5.7 M parameters) on fields of view of a few hundred pixels, for a CPU;
  the paper's is a SAM at 512 x 512. LiteMedSAM never saw clicks when it was trained, so its decoder is tuned as a whole
  unless a row says otherwise.
- *HD95.* The paper gives no unit. Ours is in mm, per volume, and a missed structure costs the image's diagonal.
- *Training.* Loss weights, LoRA rank, schedule and splits of the paper are unknown. Ours are in the configurations.
"""
