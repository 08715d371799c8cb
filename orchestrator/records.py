"""A sweep's own records: everything ``resume`` and ``report`` need, in a run directory on any pyarrow filesystem.

Nothing here is ever changed once written, and every file appears whole or not at all: the candidates' settings (once,
before the start), one part of history per report, one outcome per candidate that has ended. What can be derived from
these is not stored: a candidate with history and no outcome was running; ASHA's rungs are the history replayed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.config import Sweep, SweepConfig, SweepConfigError
from orchestrator.mistakes import find_mistakes, show
from orchestrator.run_directory import (
    CANDIDATES_FILE,
    DRAWN_FOLDER,
    HISTORY_FOLDER,
    OUTCOMES_FOLDER,
    SWEEP_FILE,
    RunDirectory,
    RunDirectoryError,
)
from orchestrator.search_space import Candidate
from orchestrator.sweep_file import parse_yaml
from trainables import keys
from trainables.early_stopping import stage_is_over
from trainables.locations import first_line

CHECKSUM = "checksum"  # key of a record in its file

# "promoted" is the end of a candidate that goes on as several, each with other settings of stage two.
EndState = Literal["pruned", "not_promoted", "promoted", "completed", "failed"]


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate's settings: ``trial`` is the dumped TrialConfig, ``values`` what the sweep varied in it.

    ``parent`` names the candidate whose stage one it has; None: its own.
    """

    name: str
    values: dict[str, Any]
    trial: dict[str, Any]
    parent: str | None = None

    def __post_init__(self) -> None:
        for name in (self.name, self.parent):
            if name is not None:
                _check_name(name)

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

    def __post_init__(self) -> None:
        _check_name(self.candidate)


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

    def has_heard(self, name: str, report: Mapping[str, Any]) -> bool:
        """Whether this report of a candidate is in the history: a trial that is started again makes some again."""
        place = (report[keys.STAGE], report[keys.EPOCH])
        return any((row[keys.STAGE], row[keys.EPOCH]) == place for row in self.history_of(name))

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
    run.write_text(CANDIDATES_FILE, json.dumps([_sealed(asdict(c)) for c in candidates], indent=1) + "\n")


class HistoryWriter:
    """Appends reports, one immutable part each; parts sort in the order they were heard."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.next_part = max((int(name.split(".")[0]) + 1 for name in run.list(HISTORY_FOLDER)), default=0)

    def append(self, row: Mapping[str, Any]) -> None:
        _write_sealed(self.run, f"{HISTORY_FOLDER}/{self.next_part:08d}.json", row)
        self.next_part += 1


def write_drawn(run: RunDirectory, candidate: CandidateRecord) -> None:
    """Record a candidate that was drawn while the sweep runs, before anything is done with it."""
    _write_sealed(run, f"{DRAWN_FOLDER}/{candidate.name}.json", asdict(candidate))


def write_outcome(run: RunDirectory, outcome: Outcome) -> None:
    _write_sealed(run, f"{OUTCOMES_FOLDER}/{outcome.candidate}.json", asdict(outcome))


def read_records(run: RunDirectory) -> Records:
    """Everything written so far; a sweep may go on writing meanwhile.

    Raises:
        RunDirectoryError: a file is not as it was written.
    """
    with _damage(run, CANDIDATES_FILE):
        candidates = [CandidateRecord(**_unsealed(read)) for read in json.loads(run.read_text(CANDIDATES_FILE))]
    drawn = [CandidateRecord(**read) for read in _read_sealed(run, DRAWN_FOLDER)]
    candidates += sorted(drawn, key=lambda candidate: (candidate.parent is not None, candidate.number))
    outcomes = [Outcome(**read) for read in _read_sealed(run, OUTCOMES_FOLDER)]
    history = list(_read_sealed(run, HISTORY_FOLDER))
    for row in history:
        _check_name(row["candidate"])
        if row[keys.STAGE] not in keys.STAGES:
            raise RunDirectoryError(
                f"the records of {run.location} name a stage {show(row[keys.STAGE])}: there is none"
            )
    return Records(candidates, history, {outcome.candidate: outcome for outcome in outcomes})


def _write_sealed(run: RunDirectory, relative: str, record: Mapping[str, Any]) -> None:
    run.write_text(relative, json.dumps(_sealed(record)) + "\n")


def _read_sealed(run: RunDirectory, folder: str) -> Iterator[dict[str, Any]]:
    """The records of a folder, in the order of their names."""
    for name, content in run.read_files(folder):
        with _damage(run, f"{folder}/{name}"):
            record = _unsealed(json.loads(str(content, "utf-8")))
        yield record


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """With a checksum of its own: a file may be valid JSON and yet not what was written."""
    return {**record, CHECKSUM: _checksum(record)}


def _unsealed(read: dict[str, Any]) -> dict[str, Any]:
    record = dict(read)
    if record.pop(CHECKSUM, None) != _checksum(record):
        raise ValueError("its checksum is of other content")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _damage(run: RunDirectory, relative: str) -> Iterator[None]:
    try:
        yield
    except RunDirectoryError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "restore it from a copy"
        if relative != CANDIDATES_FILE:
            remedy += ", or remove it: what it said of a candidate that has not ended is found out again"
        raise RunDirectoryError(f"{run.uri(relative)} is damaged ({first_line(error)}): {remedy}") from None


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


def _check_name(name: str) -> None:
    """Candidates' names are folders' names, too."""
    if not re.fullmatch(r"c[0-9]+(\.[0-9]+)?", name):
        raise RunDirectoryError(f'the records name a candidate {show(name)}, but must name them as "c017" or "c017.2"')
