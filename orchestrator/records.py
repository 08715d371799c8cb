"""A sweep's own records: everything ``resume`` and ``report`` need, in a run directory on any pyarrow filesystem.

Nothing here is ever changed once written, and every file appears whole or not at all: the candidates' settings (once,
before the start), one part of history per report, one outcome per candidate that has ended. What can be derived from
these is not stored: a candidate with history and no outcome was running; ASHA's rungs are the history replayed.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs

from orchestrator.config import Sweep, SweepConfig, SweepConfigError
from orchestrator.mistakes import find_mistakes
from orchestrator.search_space import Candidate
from orchestrator.sweep_file import parse_yaml
from trainables import keys
from trainables.early_stopping import stage_is_over
from trainables.errors import InputError
from trainables.locations import open_location

SWEEP_FILE = "sweep.yaml"
COMPARISON_FILE = "comparison.yaml"  # of a comparison, whose sweeps have run directories below its own
ENVIRONMENT_FILE = "environment.json"
RESULTS_FILE = "results.parquet"
HISTORY_FILE = "history.parquet"
REPORT_FILE = "report.html"
BEST_FOLDER = "best"
METRICS_FILE = "best/metrics.json"
WANDB_FOLDER = "wandb"
CHECKPOINTS_FOLDER = "state/checkpoints"  # one folder per candidate, written by its Ray Train run
FEATURES_FOLDER = "state/features"  # parts of features, while the sweep runs
DATA_FOLDER = "state/data"  # the tokenised rows, for nodes that lack them
CANDIDATES_FILE = "state/candidates.json"  # those known before the start
DRAWN_FOLDER = "state/drawn"  # those drawn since, by an adaptive search or at promotion, a file each
HISTORY_FOLDER = "state/history"
OUTCOMES_FOLDER = "state/outcomes"

# "promoted" is the end of a candidate that goes on as several, each with other settings of stage two.
EndState = Literal["pruned", "not_promoted", "promoted", "completed", "failed"]


class RunDirectoryError(InputError):
    """A run directory that is not there, is there already, or cannot be used; says which and what to do."""


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate's settings: ``trial`` is the dumped TrialConfig, ``values`` what the sweep varied in it.

    ``parent`` names the candidate whose stage one it has; None: its own.
    """

    name: str
    values: dict[str, Any]
    trial: dict[str, Any]
    parent: str | None = None

    @property
    def number(self) -> tuple[int, ...]:
        """By which candidates are ordered: (17,) of ``c017``, (17, 2) of ``c017.2``."""
        return tuple(int(part) for part in self.name.removeprefix("c").split("."))


@dataclass(frozen=True)
class Outcome:
    """How a candidate ended, with the reason in words and the wall seconds from its start to its end."""

    candidate: str
    state: EndState
    reason: str
    seconds: float


@dataclass
class Records:
    """All that is known of a sweep."""

    candidates: list[CandidateRecord]  # in the order they were drawn
    history: list[dict[str, Any]] = field(default_factory=list)  # in the order the reports were heard; see `hear`
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by candidate, of those that have ended

    def __post_init__(self) -> None:
        self._by_candidate: dict[str, list[dict[str, Any]]] = {}
        for row in self.history:
            self._by_candidate.setdefault(row["candidate"], []).append(row)
        self._by_name = {candidate.name: candidate for candidate in self.candidates}

    @property
    def entered(self) -> list[CandidateRecord]:
        """The candidates that the sweep began with or drew: those with a stage one of their own."""
        return [candidate for candidate in self.candidates if candidate.parent is None]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def candidate(self, name: str) -> CandidateRecord:
        return self._by_name[name]

    def draw(self, candidate: CandidateRecord) -> None:
        """Add a candidate."""
        self.candidates.append(candidate)
        self._by_name[candidate.name] = candidate

    def hear(self, row: dict[str, Any]) -> None:
        """Add a report."""
        self.history.append(row)
        self._by_candidate.setdefault(row["candidate"], []).append(row)

    @property
    def finished(self) -> bool:
        """Whether every candidate is at its end."""
        return len(self.outcomes) == len(self.candidates)

    def history_of(self, name: str) -> list[dict[str, Any]]:
        """One candidate's reports in order, its parent's of stage one before its own; not to be changed."""
        own, parent = self._by_candidate.get(name, []), self._by_name[name].parent
        return own if parent is None else self.history_of(parent) + own


def record_of(candidate: Candidate, parent: str | None = None) -> CandidateRecord:
    return CandidateRecord(candidate.name, dict(candidate.values), candidate.trial.model_dump(mode="json"), parent)


def made_of(trial: Mapping[str, Any]) -> str:
    """A key of all in a dumped TrialConfig that its rows and its features depend on."""
    one = trial[keys.STAGE_ONE]
    about = [trial["data"], trial["model"], one["trains"], one["frozen_dropout"], one["epochs"] > 0]
    if on_made := [stage for stage in keys.STAGES if trial[stage]["rows"] == "augmented"]:
        about.append(on_made)
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


class RunDirectory:
    """A run directory: ``<storage>/<name>`` on a local folder or any filesystem pyarrow opens by URI."""

    def __init__(self, location: str) -> None:
        try:
            self.filesystem, self.path = open_location(location.rstrip("/"))
        except (ValueError, OSError) as error:
            raise RunDirectoryError(f'storage "{location}" cannot be used: {_first_line(error)}') from None
        self.location = location.rstrip("/") if "://" in location else self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The folder itself where storage is local, else None."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    def uri(self, relative: str) -> str:
        return f"{self.location}/{relative}"

    def exists(self, relative: str = "") -> bool:
        info = self.filesystem.get_file_info(self._at(relative))
        return bool(info.type != pafs.FileType.NotFound)

    def refuse_existing(self) -> None:
        """Raise :class:`RunDirectoryError` if the directory is there."""
        if self.exists():
            raise RunDirectoryError(
                f"the run directory {self.location} is there already: go on with it by `tailsweep resume "
                f"{self.location}`, or choose another name (`--set name=...`)"
            )

    def create(self) -> None:
        """Make the directory, which must not be there.

        Raises:
            RunDirectoryError: it is there already, or storage refuses a file.
        """
        self.refuse_existing()
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            self.write_text("state/.writable", "")
            self.filesystem.delete_file(self._at("state/.writable"))
        except OSError as error:
            raise RunDirectoryError(f"storage {self.location} cannot be written: {_first_line(error)}") from None

    def read_text(self, relative: str) -> str:
        with self.filesystem.open_input_stream(self._at(relative)) as stream:
            return str(stream.read(), "utf-8")

    def write_text(self, relative: str, text: str) -> None:
        self.write_bytes(relative, text.encode("utf-8"))

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file whole or not at all: an object store does so anyway, a disk by writing aside and renaming."""
        target = self._at(relative)
        if self.local is None:
            self._write(target, content)
            return
        self.filesystem.create_dir(os.path.dirname(target), recursive=True)
        aside = f"{target}.{uuid.uuid4().hex}.tmp"
        self._write(aside, content)
        os.replace(aside, target)

    def list(self, relative: str) -> list[str]:
        """Names of the finished files directly in a folder, sorted; empty where there is no such folder."""
        selector = pafs.FileSelector(self._at(relative), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if not info.base_name.endswith(".tmp"))

    def delete_folder(self, relative: str) -> None:
        if self.exists(relative):
            self.filesystem.delete_dir(self._at(relative))

    def upload(self, folder: Path, relative: str) -> None:
        """Copy a local folder's files below ``relative``; on local storage the folder appears whole."""
        if self.local is None:
            pafs.copy_files(str(folder), self._at(relative), destination_filesystem=self.filesystem)
            return
        target = self.local / relative
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        shutil.copytree(folder, aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)

    def download(self, relative: str, folder: Path) -> None:
        """Copy everything below ``relative`` into a local folder."""
        folder.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(self._at(relative), str(folder), source_filesystem=self.filesystem)

    def _at(self, relative: str) -> str:
        return f"{self.path}/{relative}" if relative else self.path

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)


def open_run(location: str) -> RunDirectory:
    """The run directory of an existing sweep.

    Raises:
        RunDirectoryError: there is none, or the sweep in it never started.
    """
    run = RunDirectory(location)
    if not run.exists(SWEEP_FILE) or not run.exists(CANDIDATES_FILE):
        raise RunDirectoryError(
            f"{run.location} is not a run directory: it has no {SWEEP_FILE} and {CANDIDATES_FILE}; give the folder "
            "that `tailsweep run` printed, e.g. runs/demo-20260131-120000"
        )
    return run


def read_sweep(run: RunDirectory) -> Sweep:
    """The sweep as it was resolved when the run began. Draws no candidates: those of the run are in its records.

    Raises:
        SweepConfigError: the file is not as it was written.
    """
    try:
        tree = parse_yaml(run.read_text(SWEEP_FILE))
        mistakes = [str(mistake) for mistake in find_mistakes(SweepConfig, tree)]
    except ValueError as error:
        mistakes = [str(error)]
    if mistakes:
        raise SweepConfigError(run.uri(SWEEP_FILE), mistakes)
    return Sweep(SweepConfig.model_validate(tree), notes=[])


def write_candidates(run: RunDirectory, candidates: Iterable[CandidateRecord]) -> None:
    run.write_text(CANDIDATES_FILE, json.dumps([asdict(c) for c in candidates], indent=1) + "\n")


class HistoryWriter:
    """Appends reports, one immutable part each; parts sort in the order they were heard."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.next_part = len(run.list(HISTORY_FOLDER))

    def append(self, row: Mapping[str, Any]) -> None:
        self.run.write_text(f"{HISTORY_FOLDER}/{self.next_part:08d}.json", json.dumps(row) + "\n")
        self.next_part += 1


def write_drawn(run: RunDirectory, candidate: CandidateRecord) -> None:
    """Record a candidate that was drawn while the sweep runs, before anything is done with it."""
    run.write_text(f"{DRAWN_FOLDER}/{candidate.name}.json", json.dumps(asdict(candidate)) + "\n")


def write_outcome(run: RunDirectory, outcome: Outcome) -> None:
    run.write_text(f"{OUTCOMES_FOLDER}/{outcome.candidate}.json", json.dumps(asdict(outcome)) + "\n")


def read_records(run: RunDirectory) -> Records:
    """Everything written so far; a sweep may go on writing meanwhile."""
    candidates = [CandidateRecord(**read) for read in json.loads(run.read_text(CANDIDATES_FILE))]
    drawn = [CandidateRecord(**json.loads(run.read_text(f"{DRAWN_FOLDER}/{name}"))) for name in run.list(DRAWN_FOLDER)]
    candidates += sorted(drawn, key=lambda candidate: (candidate.parent is not None, candidate.number))
    history = [json.loads(run.read_text(f"{HISTORY_FOLDER}/{name}")) for name in run.list(HISTORY_FOLDER)]
    outcomes = [Outcome(**json.loads(run.read_text(f"{OUTCOMES_FOLDER}/{name}"))) for name in run.list(OUTCOMES_FOLDER)]
    return Records(candidates, history, {outcome.candidate: outcome for outcome in outcomes})


def last_stage(trial: Mapping[str, Any]) -> str:
    """With which a candidate is complete, of its dumped TrialConfig."""
    return keys.STAGE_TWO if trial[keys.STAGE_TWO]["epochs"] > 0 else keys.STAGE_ONE


def is_over(trial: Mapping[str, Any], stage: str, history: Iterable[Mapping[str, Any]], metric: str) -> bool:
    """Whether a candidate with this history has nothing left to train in a stage of its dumped TrialConfig."""
    described = trial[stage]
    return stage_is_over(stage, history, metric, described["epochs"], described.get("patience"))


def best_epoch(rows: Iterable[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The report a candidate is judged by: the best of its last stage reached, the earlier one in a tie.

    A checkpoint of stage two always outranks one of stage one: the candidate is the two-stage model, and its stage
    one alone is not a candidate. None without reports.
    """
    best: Mapping[str, Any] | None = None
    for row in rows:
        rank = (keys.STAGES.index(row[keys.STAGE]), row[metric])
        if best is None or rank > (keys.STAGES.index(best[keys.STAGE]), best[metric]):
            best = row
    return best


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
