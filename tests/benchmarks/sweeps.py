"""Trials per minute under Ray: phase one of a two-phase sweep against single-phase mode, and how it grows.

    python tests/benchmarks/sweeps.py [--write] [--quick]

Both train the same heads (the longer sweep begins with the shorter one's trials) on the same features, made before;
the single-phase sweep has no stage two, so that only stage one is compared. Two CPUs, one for each trial.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
import yaml
from benchmark_rows import make_rows
from machine import as_list, describe_cpu
from tables import Line, Table, as_json, as_markdown, write_section
from tailsweep.orchestrator.cli.main import main as tailsweep
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.event_log import read_events
from tailsweep.orchestrator.runs.records import EventKind
from tailsweep.trainables import report_keys
from tailsweep.trainables.models.hub import PACKAGED_MODEL, resolve

PAGE = Path(__file__).parents[2] / "BENCHMARKS.md"
ROWS, EPOCHS, CPUS = 2_000, 5, 2
SINGLE_PHASE = "single-phase mode"
HEAD_ONLY = "head only"
SCOPES = {HEAD_ONLY: ("head", {"pooling": "mean"}), "top layer, pooler and head": ({"top_layers": 1}, "native")}
FEWER = {"top layer, pooler and head": 8}  # times fewer trials: each takes far longer


@dataclass(frozen=True)
class StageOneTime:
    """The time that stage one of a sweep took."""

    trials: int
    seconds: float  # from the sweep's start to the end of its last trial's stage one, starting processes included
    overhead: float  # seconds of a CPU per trial beyond its epochs, for those after the first of each process

    @property
    def per_minute(self) -> float:
        return 60 * self.trials / self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    import ray

    with tempfile.TemporaryDirectory(prefix="tailsweep-bench-") as temporary:
        folder = Path(temporary)
        rows = write_rows(folder)
        ray.init(
            address="local", num_cpus=CPUS, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False
        )
        tables_of = {scope: [rate(scope, rows, folder, options)] for scope in options.scopes}
        if options.growth and HEAD_ONLY in tables_of:
            tables_of[HEAD_ONLY].append(growth(rows, folder, options.growth))
        ray.shutdown()
    machine = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python tests/benchmarks/sweeps.py", *sys.argv[1:]]),
        "CPU": describe_cpu(),
        "threads": "1 of each trial",
        "versions": f"ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    for scope, tables in tables_of.items():
        heading = f"## Under Ray: all-MiniLM-L6-v2, {scope}, {CPUS} CPUs\n"
        text = "\n".join([heading, as_list(machine), *map(as_markdown, tables)])
        print(f"\n{text}")
        if options.write:
            write_section(PAGE, f"sweeps, {scope}", text)
    result = {"machine": machine, "tables": [as_json(table) for tables in tables_of.values() for table in tables]}
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of a two-phase sweep (default: %(default)s)")
    parser.add_argument("--single-phase", type=int, default=8, help="of a single-phase sweep (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both (default: %(default)s)")
    parser.add_argument("--scopes", nargs="+", choices=list(SCOPES), default=list(SCOPES))
    parser.add_argument(
        "--growth", nargs="*", type=int, default=[10, 100, 1000], help="two-phase sweeps of so many trials, too"
    )
    parser.add_argument("--quick", action="store_true", help="does it run at all: a few trials, once")
    parser.add_argument("--json", type=Path, default=Path("bench-sweeps.json"))
    parser.add_argument("--write", action="store_true", help="write the tables into BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.quick:
        if options.write:
            parser.error("--write is not for the numbers of --quick")
        options.trials, options.single_phase, options.rounds, options.growth = 4, 1, 1, []
    return options


def write_rows(folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(PACKAGED_MODEL))
    examples = make_rows(ROWS + ROWS // 4, tokenizer)
    path = folder / "rows.parquet"
    pd.DataFrame({"text": examples.texts, "label": examples.data.train.labels.astype(str)}).to_parquet(path)
    return path


def rate(scope: str, rows: Path, folder: Path, options: argparse.Namespace) -> Table:
    run_one(scope, rows, folder, "warm-up", 2, two_phase=True)  # makes the features
    trials = max(2, options.trials // FEWER.get(scope, 1))
    turns = [
        (
            run_one(scope, rows, folder, f"two_phase-{turn}", trials, two_phase=True),
            run_one(scope, rows, folder, f"single-phase-{turn}", options.single_phase, two_phase=False),
        )
        for turn in range(options.rounds)
    ]
    two_phases, single_phases = zip(*turns, strict=True)
    times = {SINGLE_PHASE: statistics.median(t.per_minute / i.per_minute for t, i in turns)}
    overheads = [statistics.median(t.overhead for t in sweeps) for sweeps in (two_phases, single_phases)]
    return Table(
        f"Trials per minute of stage one, {scope}",
        "trials/min",
        f"{ROWS:,} SST-2-like rows, {EPOCHS} epochs, batches of 16, ASHA on, features made before. "
        f"{trials} trials in phase one of a two-phase sweep, the first {options.single_phase} of them in single-phase "
        "mode. From the sweep's start: starting Ray's processes is inside on both sides.",
        [
            _line(
                f"two-phase sweep, {times[SINGLE_PHASE]:.0f} times single-phase mode",
                [t.per_minute for t in two_phases],
            ),
            _line(SINGLE_PHASE, [i.per_minute for i in single_phases]),
        ],
        f"Beyond its epochs a trial took {overheads[0]:.2f} s of a CPU's time in the two-phase sweep and "
        f"{overheads[1]:.2f} s in single-phase mode, once the processes were up.",
    )


def growth(rows: Path, folder: Path, counts: Sequence[int]) -> Table:
    lines = []
    for count in counts:
        measured = run_one(HEAD_ONLY, rows, folder, f"growth-{count}", count, two_phase=True)
        lines.append(_line(f"{count:,} trials, {measured.seconds:.0f} s", [measured.per_minute]))
    return Table("How phase one grows, head only", "trials/min", "One run each, otherwise as above.", lines)


def run_one(scope: str, rows: Path, folder: Path, name: str, trials: int, two_phase: bool) -> StageOneTime:
    """Run one sweep to its end and read the time of stage one from its files."""
    trainable, head = SCOPES[scope]
    tree: dict[str, Any] = {
        "num_trials": trials,
        "data": {"train": str(rows), "validation": 0.1, "test": 0.1},
        "model": {"name": PACKAGED_MODEL, "head": head},
        "stage_one": {
            "trainable": trainable,
            "loss": {"name": "ldam"},
            "learning_rate": {"loguniform": [1e-5, 1e-1]},
            "epochs": EPOCHS,
            "batch_size": 16,
        },
        "stage_two": {"trainable": "head", "epochs": 1 if two_phase else 0, "learning_rate": 1e-5, "batch_size": 32},
        **({"promote": 1} if two_phase else {}),
    }
    sweep = folder / f"{name}.yaml"
    sweep.write_text(yaml.safe_dump(tree))
    name = f"{scope.split(',')[0].replace(' ', '-')}-{name}"
    status = tailsweep(["run", str(sweep), "--storage", str(folder), "--set", f"name={name}"])
    assert status == 0, f"sweep {name} ended with {status}"
    return read(folder / name, trials)


def read(run: Path, trials: int) -> StageOneTime:
    """Return the time of stage one, from the times in the run directory's records."""
    events, _ = read_events(RunDirectory(str(run)))
    reports = [(event.time, event.record) for event in events if event.kind == EventKind.REPORT]
    reports = [(when, report) for when, report in reports if report[report_keys.STAGE] == report_keys.STAGE_ONE]
    first, last = reports[0][0], max(when for when, _ in reports)
    arithmetic = sum(report[report_keys.SECONDS] for _, report in reports[CPUS:])
    overhead = ((last - first) * CPUS - arithmetic) / max(1, trials - CPUS)
    return StageOneTime(trials, last - (run / "state/trials.json").stat().st_mtime, overhead)


def _line(name: str, values: Sequence[float]) -> Line:
    return Line(name, statistics.median(values), min(values), max(values))


if __name__ == "__main__":
    main()
