"""Candidates per minute under Ray: a tournament's first round against inline mode, and how it grows.

    python tests/benchmarks/sweeps.py [--write] [--quick]

Both train the same heads (the longer sweep begins with the shorter one's candidates) on the same features, made before;
inline with no stage two, so that only stage one is compared. Two CPUs, one for each candidate.
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
from tailsweep.trainables import report_keys
from tailsweep.trainables.models.hub import PACKAGED_MODEL, resolve

PAGE = Path(__file__).parents[2] / "BENCHMARKS.md"
ROWS, EPOCHS, CPUS = 2_000, 5, 2
INLINE = "inline mode"
HEAD_ONLY = "head only"
CUTS = {HEAD_ONLY: ("head", {"pooling": "mean"}), "top layer, pooler and head": ({"top_layers": 1}, "native")}
FEWER = {"top layer, pooler and head": 8}  # times fewer candidates: each takes far longer


@dataclass(frozen=True)
class Played:
    """What one sweep's stage one took."""

    candidates: int
    seconds: float  # from the sweep's start to the end of its last candidate's stage one, starting processes included
    overhead: float  # seconds of a CPU per candidate beyond its epochs, once the processes are up

    @property
    def per_minute(self) -> float:
        return 60 * self.candidates / self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    import ray

    with tempfile.TemporaryDirectory(prefix="tailsweep-bench-") as temporary:
        folder = Path(temporary)
        rows = write_rows(folder)
        ray.init(
            address="local", num_cpus=CPUS, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False
        )
        of_cuts = {cut: [rate(cut, rows, folder, options)] for cut in options.cuts}
        if options.growth and HEAD_ONLY in of_cuts:
            of_cuts[HEAD_ONLY].append(growth(rows, folder, options.growth))
        ray.shutdown()
    machine = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python tests/benchmarks/sweeps.py", *sys.argv[1:]]),
        "CPU": describe_cpu(),
        "threads": "1 of each candidate",
        "versions": f"ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    for cut, tables in of_cuts.items():
        heading = f"## Under Ray: all-MiniLM-L6-v2, {cut}, {CPUS} CPUs\n"
        text = "\n".join([heading, as_list(machine), *map(as_markdown, tables)])
        print(f"\n{text}")
        if options.write:
            write_section(PAGE, f"sweeps, {cut}", text)
    result = {"machine": machine, "tables": [as_json(table) for tables in of_cuts.values() for table in tables]}
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=200, help="of a tournament (default: %(default)s)")
    parser.add_argument("--inline", type=int, default=4, help="of an inline sweep (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both (default: %(default)s)")
    parser.add_argument("--cuts", nargs="+", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--growth", nargs="*", type=int, default=[10, 100, 1000], help="tournaments of so many, too")
    parser.add_argument("--quick", action="store_true", help="does it run at all: a few candidates, once")
    parser.add_argument("--json", type=Path, default=Path("bench-sweeps.json"))
    parser.add_argument("--write", action="store_true", help="write the tables into BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.quick:
        if options.write:
            parser.error("--write is not for the numbers of --quick")
        options.candidates, options.inline, options.rounds, options.growth = 4, 1, 1, []
    return options


def write_rows(folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(PACKAGED_MODEL))
    made = make_rows(ROWS + ROWS // 4, tokenizer)
    path = folder / "rows.parquet"
    pd.DataFrame({"text": made.texts, "label": made.data.train.labels.astype(str)}).to_parquet(path)
    return path


def rate(cut: str, rows: Path, folder: Path, options: argparse.Namespace) -> Table:
    play(cut, rows, folder, "warm-up", 2, tournament=True)  # makes the features
    candidates = max(2, options.candidates // FEWER.get(cut, 1))
    turns = [
        (
            play(cut, rows, folder, f"tournament-{turn}", candidates, tournament=True),
            play(cut, rows, folder, f"inline-{turn}", options.inline, tournament=False),
        )
        for turn in range(options.rounds)
    ]
    tournaments, inline = zip(*turns, strict=True)
    times = {INLINE: statistics.median(t.per_minute / i.per_minute for t, i in turns)}
    overhead = statistics.median(t.overhead for t in tournaments)
    return Table(
        f"Candidates per minute of stage one, {cut}",
        "candidates/min",
        f"{ROWS:,} SST-2-like rows, {EPOCHS} epochs, batches of 16, ASHA on, features made before. "
        f"{candidates} candidates in a tournament's first round, the first {options.inline} of them inline. "
        "From the sweep's start: starting Ray's processes is inside on both sides.",
        [
            _line(f"tournament, {times[INLINE]:.0f} times inline", [t.per_minute for t in tournaments]),
            _line(INLINE, [i.per_minute for i in inline]),
        ],
        f"Beyond its epochs a candidate of the tournament cost {overhead:.2f} s of a CPU, once the processes were up.",
    )


def growth(rows: Path, folder: Path, counts: Sequence[int]) -> Table:
    lines = []
    for count in counts:
        played = play(HEAD_ONLY, rows, folder, f"growth-{count}", count, tournament=True)
        lines.append(_line(f"{count:,} candidates, {played.seconds:.0f} s", [played.per_minute]))
    return Table("How a first round grows, head only", "candidates/min", "One run each, otherwise as above.", lines)


def play(cut: str, rows: Path, folder: Path, name: str, candidates: int, tournament: bool) -> Played:
    """Run one sweep to its end and read from its files what stage one took."""
    trains, head = CUTS[cut]
    tree: dict[str, Any] = {
        "num_candidates": candidates,
        "data": {"train": str(rows), "validation": 0.1, "test": 0.1},
        "model": {"name": PACKAGED_MODEL, "head": head},
        "stage_one": {
            "trains": trains,
            "loss": {"name": "ldam"},
            "learning_rate": {"loguniform": [1e-5, 1e-1]},
            "epochs": EPOCHS,
            "batch_size": 16,
        },
        "stage_two": {"trains": "head", "epochs": 1 if tournament else 0, "learning_rate": 1e-5, "batch_size": 32},
        **({"promote": 1} if tournament else {}),
    }
    sweep = folder / f"{name}.yaml"
    sweep.write_text(yaml.safe_dump(tree))
    name = f"{cut.split(',')[0].replace(' ', '-')}-{name}"
    status = tailsweep(["run", str(sweep), "--storage", str(folder), "--set", f"name={name}"])
    assert status == 0, f"sweep {name} ended with {status}"
    return read(folder / name, candidates)


def read(run: Path, candidates: int) -> Played:
    """Times are those of the files: the candidates', a part of history per report, an outcome per candidate."""
    reports = [
        (path.stat().st_mtime, json.loads(path.read_text())) for path in sorted((run / "state/history").iterdir())
    ]
    reports = [(when, report) for when, report in reports if report[report_keys.STAGE] == report_keys.STAGE_ONE]
    first, last = reports[0][0], max(when for when, _ in reports)
    arithmetic = sum(report[report_keys.SECONDS] for _, report in reports[CPUS:])
    overhead = ((last - first) * CPUS - arithmetic) / candidates
    return Played(candidates, last - (run / "state/candidates.json").stat().st_mtime, overhead)


def _line(name: str, values: Sequence[float]) -> Line:
    return Line(name, statistics.median(values), min(values), max(values))


if __name__ == "__main__":
    main()
