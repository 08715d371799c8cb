"""The records of a sweep: everything ``resume`` and ``report`` need, in a run directory on any pyarrow filesystem.

No file changes once written, and every file appears whole or not at all: the trials' settings (once,
before the start), one part of history per report, one outcome per trial that has ended. What can be derived from
these is not stored: a trial with history and no outcome was running; ASHA's rungs are the history replayed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from tailsweep.orchestrator.config.errors import find_issues, show
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfig, SweepConfigError
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.runs.directory import (
    DRAWN_FOLDER,
    HISTORY_FOLDER,
    OUTCOMES_FOLDER,
    SWEEP_FILE,
    TRIALS_FILE,
    RunDirectory,
    RunDirectoryError,
)
from tailsweep.orchestrator.runs.trials import Outcome, Records, Row, TrialRecord, check_name
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import describe_error

CHECKSUM = "checksum"  # key of a record in its file


def read_sweep(run: RunDirectory) -> Sweep:
    """Return the sweep as it was resolved when the run began. Draws no trials: those of the run are in its records.

    Raises:
        SweepConfigError: The file is not as it was written.
    """
    try:
        tree = parse_yaml(run.read_text(SWEEP_FILE))
        issues = [str(issue) for issue in find_issues(SweepConfig, tree)]
    except ValueError as error:
        issues = [str(error)]
    if issues:
        raise SweepConfigError(run.uri(SWEEP_FILE), issues)
    config = SweepConfig.model_validate(tree)
    if config.name is None or config.num_trials is None:
        raise SweepConfigError(
            run.uri(SWEEP_FILE), ["name and num_trials must be set: the file is not of a resolved sweep"]
        )
    return Sweep.resolved(config, config.name, config.num_trials)


def write_trials(run: RunDirectory, trials: Iterable[TrialRecord]) -> None:
    """Write the trials known before the start."""
    run.write_text(TRIALS_FILE, json.dumps([with_checksum(asdict(c)) for c in trials], indent=1) + "\n")


class HistoryWriter:
    """A writer of reports, one immutable part each; parts sort in the order the reports came."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.next_part = max((int(name.split(".")[0]) + 1 for name in run.list(HISTORY_FOLDER)), default=0)

    def append(self, row: Row) -> None:
        """Write the next report."""
        _write_with_checksum(self.run, f"{HISTORY_FOLDER}/{self.next_part:08d}.json", row)
        self.next_part += 1


def write_drawn(run: RunDirectory, trial: TrialRecord) -> None:
    """Record a trial that was drawn while the sweep runs, before anything is done with it."""
    _write_with_checksum(run, f"{DRAWN_FOLDER}/{trial.name}.json", asdict(trial))


def write_outcome(run: RunDirectory, outcome: Outcome) -> None:
    """Write how a trial has ended."""
    _write_with_checksum(run, f"{OUTCOMES_FOLDER}/{outcome.trial}.json", asdict(outcome))


def read_records(run: RunDirectory) -> Records:
    """Read everything written so far; a sweep may continue writing meanwhile.

    Raises:
        RunDirectoryError: A file is not as it was written.
    """
    with _damage(run, TRIALS_FILE):
        trials = [TrialRecord(**verify_checksum(read)) for read in json.loads(run.read_text(TRIALS_FILE))]
    drawn = [TrialRecord(**read) for read in _read_verified(run, DRAWN_FOLDER)]
    trials += sorted(drawn, key=lambda trial: (trial.parent is not None, trial.number))
    outcomes = [Outcome(**read) for read in _read_verified(run, OUTCOMES_FOLDER)]
    history = list(_read_verified(run, HISTORY_FOLDER))
    for row in history:
        check_name(row["trial"])
        if row[report_keys.STAGE] not in report_keys.STAGES:
            raise RunDirectoryError(
                f"the records of {run.location} name a stage {show(row[report_keys.STAGE])}: there is none"
            )
    return Records(trials, history, {outcome.trial: outcome for outcome in outcomes})


def _write_with_checksum(run: RunDirectory, relative: str, record: Mapping[str, object]) -> None:
    run.write_text(relative, json.dumps(with_checksum(record)) + "\n")


def _read_verified(run: RunDirectory, folder: str) -> Iterator[Row]:
    """Yield the records of a folder, in the order of their names."""
    for name, content in run.read_files(folder):
        with _damage(run, f"{folder}/{name}"):
            record = verify_checksum(json.loads(str(content, "utf-8")))
        yield record


def with_checksum(record: Mapping[str, object]) -> Tree:
    """Return a record with its checksum: a file may be valid JSON and yet not what was written."""
    return {**record, CHECKSUM: _checksum(record)}


def verify_checksum(read: Row) -> Row:
    """Return a record without its checksum.

    Raises:
        ValueError: The checksum does not match.
    """
    record = dict(read)
    if record.pop(CHECKSUM, None) != _checksum(record):
        raise ValueError("its checksum is of other content")
    return record


def _checksum(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _damage(run: RunDirectory, relative: str) -> Iterator[None]:
    try:
        yield
    except RunDirectoryError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        hint = "restore it from a copy"
        if relative != TRIALS_FILE:
            hint += ", or remove it: what it said of a trial that has not ended is found out again"
        raise RunDirectoryError(f"{run.uri(relative)} is damaged ({describe_error(error)}): {hint}") from None
