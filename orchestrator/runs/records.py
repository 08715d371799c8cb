"""A sweep's own records: everything ``resume`` and ``report`` need, in a run directory on any pyarrow filesystem.

Nothing here is ever changed once written, and every file appears whole or not at all: the candidates' settings (once,
before the start), one part of history per report, one outcome per candidate that has ended. What can be derived from
these is not stored: a candidate with history and no outcome was running; ASHA's rungs are the history replayed.
"""

from tailsweep.orchestrator.runs.candidates import CandidateRecord, Outcome, Records, _check_name
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tailsweep.orchestrator.config.sweep import Sweep, SweepConfig, SweepConfigError
from tailsweep.orchestrator.config.errors import find_mistakes, show
from tailsweep.orchestrator.runs.directory import CANDIDATES_FILE, DRAWN_FOLDER, HISTORY_FOLDER, OUTCOMES_FOLDER, SWEEP_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.config.search_space import Candidate
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.early_stopping import stage_is_over
from tailsweep.trainables.storage.retry import first_line

CHECKSUM = "checksum"  # key of a record in its file













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
        if row[report_keys.STAGE] not in report_keys.STAGES:
            raise RunDirectoryError(
                f"the records of {run.location} name a stage {show(row[report_keys.STAGE])}: there is none"
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








