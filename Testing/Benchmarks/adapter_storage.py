"""What storing an adapter as changes of its base weights does to masks, to the size on disk and to loading.

python Testing/Benchmarks/adapter_storage.py FOLDER ... [--patients N] [--like NAME]: FOLDER is a bundle in half
precision, as the shipped ones were up to commit 5fefcb9; of one volume of each validation patient of its configuration
(or that of the bundle NAME) the masks of both kinds of storage at clinic clicks. Rows go to
``results/adapter-storage.json``, those of the bundles named are replaced. With ``--shrink`` the bundles are rewritten
as changes and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shipped import data_of, first_of_each_patient
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, load_targets
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.files import write_json
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import Bundle, base_weights_for, read_bundle, write_bundle
from SPDSegmentLib.models.storage import changed_names, to_changes
from SPDSegmentLib.networks.backbones import load_state_dict

RESULTS = Path(__file__).resolve().parent / "results" / "adapter-storage.json"
SEVERITY, SEED = "clinic", 9000
LOADS = 3
LOADING = """
import resource, sys, time
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import read_bundle
began = time.perf_counter()
Predictor.load(read_bundle(sys.argv[1]), "cpu")
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def shrink(bundle: Bundle, folder: Path) -> Bundle:
    """Write a bundle into ``folder`` (it may be its own) with its adapter as changes of the base weights."""
    tensors, weights = load_state_dict(bundle.adapter_path), base_weights_for(bundle)
    if changed_names(tensors) or weights is None:
        raise SystemExit(f"{bundle.folder} holds no adapter in half precision of known base weights.")
    return write_bundle(folder, bundle.info, to_changes(tensors, load_state_dict(weights)), bundle.card)


def row_of(pair: list[Predictor], target: EvaluationTarget) -> dict[str, Any]:
    """Agreement of both storages on one target, and of each with the reference."""
    session, (clicks, _) = pair[0].open(target.stack), target.clicks(SEVERITY, SEED)
    masks = [session.segment(clicks).mask]
    # What the encoder gives is the same bits in both.
    masks.append(pair[1].open(target.stack, session.features.adapted(pair[1].engine)).segment(clicks).mask)
    row = {
        "case": target.case,
        "target": target.name,
        "agreement": _rounded(*masks),
        "half": _rounded(masks[0], target.mask),
        "changes": _rounded(masks[1], target.mask),
        "other_voxels": int((masks[0] != masks[1]).sum()),
    }
    print(row, flush=True)
    return row


def _rounded(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(dice(a, b) or 0.0), 6)


def loading(folder: Path) -> tuple[float, float]:
    """Seconds and highest memory in MiB of loading a bundle in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(folder)], capture_output=True, text=True, check=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def measured(half: Bundle, like: str, patients: int) -> dict[str, Any]:
    """Sizes, loading and agreement of one bundle."""
    with tempfile.TemporaryDirectory() as place:
        small = shrink(half, Path(place) / half.info.name)
        both = {"half": half, "changes": small}
        loads: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
        for _ in range(LOADS):
            for name, bundle in both.items():
                loads[name].append(loading(bundle.folder))
        pair = [Predictor.load(bundle, "cpu") for bundle in both.values()]
        targets = load_targets(*data_of(like), first_of_each_patient(like)[:patients])
        rows = [row_of(pair, target) for target in targets]
        return {
            "bytes": {name: bundle.adapter_path.stat().st_size for name, bundle in both.items()},
            "load_s": {name: round(float(np.median([s for s, _ in found])), 3) for name, found in loads.items()},
            "load_peak_mib": {name: round(float(np.median([m for _, m in found]))) for name, found in loads.items()},
            "precision": pair[0].identity["precision"],
            "rows": rows,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--like", default="")
    parser.add_argument("--shrink", action="store_true")
    options = parser.parse_args()
    for folder in options.folders:
        bundle = read_bundle(folder)
        if options.shrink:
            before, after = (
                bundle.adapter_path.stat().st_size,
                shrink(bundle, bundle.folder).adapter_path.stat().st_size,
            )
            print(f"{folder}: {before / 1e6:.2f} MB, now {after / 1e6:.2f} MB")
            continue
        found = measured(bundle, options.like or bundle.info.name, options.patients)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[bundle.info.name] = found
        write_json(RESULTS, results)
        agreement = [row["agreement"] for row in found["rows"]]
        means = " and ".join(f"{np.mean([row[kind] for row in found['rows']]):.4f}" for kind in ("half", "changes"))
        print(f"{folder.name}: {len(agreement)} targets, agreement {np.mean(agreement):.5f}, ", end="")
        print(f"least {min(agreement):.5f}; with the reference {means}")


if __name__ == "__main__":
    main()
