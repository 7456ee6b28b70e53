"""The benchmark as one call: plan, measure, write tables, figures and the report, and the record of the machine."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from spdbench import tables
from spdbench.cells import write_text
from spdbench.config import BenchmarkConfig, read_benchmark_config
from spdbench.entries import EntryMaker
from spdbench.figures import measure_histograms
from spdbench.plan import Plan, make_plan
from spdbench.report import ReportInput, draw_figures, report_text
from spdbench.runner import OnProgress, Runner, RunnerOptions
from spdbench.summary import check_claims, collect

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "scikit-image", "peft", "segment-anything", "nnunetv2", "sam2")


def describe_machine(device: str, repository: Path) -> dict[str, Any]:
    """Processor, accelerator, versions, and the commit of the code."""
    import torch

    from SPDSegmentLib import __version__
    from SPDSegmentLib.inference.engine import choose_device, choose_precision
    from SPDSegmentLib.prompts.noise import NOISE_VERSION

    chosen = choose_device(device)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu",
        "precision": str(choose_precision("auto", chosen)).removeprefix("torch."),
        "python": sys.version.split()[0],
        "library_version": __version__,
        "noise_version": NOISE_VERSION,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit_of(repository),
    }


def short_name(machine: dict[str, Any]) -> str:
    """One line: what a row was measured on."""
    what = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    return f"{what}, {machine['precision']}, torch {machine['versions'].get('torch', '?')}"


def commit_of(repository: Path) -> str:
    """The commit of the working tree, ``+changes`` where the library differs from it; empty outside git."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return ""
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "SPDSegmentLib") else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@dataclass
class BenchmarkOptions:
    """What the command line says.

    Attributes:
        config: the TOML file.
        quick: its ``[quick]`` profile.
        only: patterns of ``data-set/method``.
        output: results folder, by default ``results/<name>`` beside the file.
        work: folder of trainings.
        report_only: measure nothing.
        threads: of torch, 0 for its default.
        training: train what must be trained; else rows without a training say so.
    """

    config: Path
    quick: bool = False
    only: tuple[str, ...] = ()
    output: Path | None = None
    work: Path | None = None
    device: str = "auto"
    report_only: bool = False
    threads: int = 0
    training: bool = True
    on_progress: OnProgress = lambda *args: None
    cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Outcome:
    """Where things lie, the first table, and a line for every row that gave nothing."""

    folder: Path
    report: Path
    headline: str
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What the command prints at its end."""
        problems = ["", "Without a result:", *self.problems] if self.problems else []
        return "\n".join([self.headline, *problems, "", f"Report: {self.report}"])


def results_folder(options: BenchmarkOptions, config: BenchmarkConfig) -> Path:
    """Where a benchmark's results lie."""
    return options.output or config.folder / "results" / config.name


def plan_of(options: BenchmarkOptions) -> Plan:
    """Read the file and look at what is done.

    Raises:
        BadInput: the file, a configuration that it names, or ``only`` is wrong.
    """
    config = read_benchmark_config(options.config, options.quick)
    if not options.training:
        config = dataclasses.replace(config, training=False)
    work = options.work or Path("runs") / "benchmark"
    return make_plan(config, results_folder(options, config), EntryMaker(config, work, options.device), options.only)


def run_benchmark(options: BenchmarkOptions) -> Outcome:
    """Measure what is missing and write everything again.

    Raises:
        BadInput: as :func:`plan_of`.
        Cancelled: the user stopped; what was measured is kept, and the report is written the next time.
    """
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    plan = plan_of(options)
    folder = results_folder(options, plan.config)
    if not options.report_only:
        machine = describe_machine(options.device, options.config.resolve().parent)
        work = options.work or Path("runs") / "benchmark"
        runner = Runner(plan, RunnerOptions(folder, work, short_name(machine), options.on_progress, options.cancelled))
        if runner.remaining():
            _remember_machine(folder, machine)
        runner.run()
        measure_histograms(plan, folder, work)
    everything = plan if not options.only else plan_of(_all_cells(options))
    return write_outcome(everything, folder, options)


def write_outcome(plan: Plan, folder: Path, options: BenchmarkOptions) -> Outcome:
    """Tables, figures and the report of what a plan's cells hold."""
    config = plan.config
    datasets = collect(plan)
    claims = check_claims(config.claims, datasets)
    records = tables.summary_records(datasets, config)
    write_text(folder / "summary.csv", tables.csv_text(records))
    write_text(folder / "summary.json", tables.json_text(records, config, datasets))
    headline = tables.headline_table(datasets, config)
    sections = [f"# {config.name}", headline]
    for dataset in datasets:
        shown = [tables.method_table(dataset, g, config) for g in tables.TABLE_GROUPS if dataset.of_group(*g)]
        sections += [f"## {dataset.title}", *shown, tables.parts_table(dataset, config)]
    write_text(folder / "tables.md", "\n\n".join(s for s in sections if s) + "\n")
    draw_figures(folder, datasets, config)
    notes = config.folder / config.notes if config.notes else None
    given = ReportInput(
        config,
        datasets,
        claims,
        folder,
        _machines(folder),
        f"PYTHONPATH=Testing/Benchmarks python -m spdbench {options.config.as_posix()}"
        + (" --quick" if options.quick else ""),
        notes.read_text(encoding="utf-8") if notes is not None and notes.is_file() else "",
    )
    place = Path(os.path.normpath(config.folder / config.report)) if config.report else folder / "report.md"
    write_text(place, report_text(given, place.resolve()))
    problems = [f"{d.name}/{r.method.name}: {r.state}" for d in datasets for r in d.methods.values() if ": " in r.state]
    return Outcome(folder, place, headline, tuple(problems))


def list_cells(plan: Plan) -> list[str]:
    """One line per cell: its name, how much of it is measured, and what kept it from running."""
    lines = []
    for planned in plan.cells:
        done, wanted = len(plan.rows(planned)), plan.wanted(planned)
        reasons = [entry.not_run for entry in planned.entries if entry.not_run]
        reasons += [f"{state}: {reason}" for state, reason in planned.cell.states.values()]
        why = f"  ({'; '.join(dict.fromkeys(reasons))})" if reasons and done < wanted else ""
        lines.append(f"{planned.label:<48} {done:>6} / {wanted}{why}")
    return lines


def _all_cells(options: BenchmarkOptions) -> BenchmarkOptions:
    return dataclasses.replace(options, only=())


def _machines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "machines.json"
    if not path.is_file():
        return []
    machines: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return machines


def _remember_machine(folder: Path, machine: dict[str, Any]) -> None:
    """Put a machine with its versions and commit on record, once."""
    known = _machines(folder)
    if machine not in known:
        write_text(folder / "machines.json", json.dumps([*known, machine], indent=1) + "\n")
