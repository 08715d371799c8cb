"""The records of a sweep: everything ``resume`` and ``report`` need, in a run directory on any pyarrow filesystem.

The trials known before the start are written once, as one list. What happens afterwards is a log of three kinds of
record: a trial drawn, a report, an outcome. What can be derived from these is not stored: a trial with reports and no
outcome was running; ASHA's rungs are the reports replayed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum

from tailsweep.orchestrator.config.changes import settings_digest
from tailsweep.orchestrator.config.errors import find_issues, show
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfig, SweepConfigError
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.yaml_io import parse_yaml
from tailsweep.orchestrator.runs.directory import (
    ENVIRONMENT_FILE,
    EVENTS_FOLDER,
    SWEEP_FILE,
    TRIALS_FILE,
    RunDirectory,
    RunDirectoryError,
)
from tailsweep.orchestrator.runs.event_log import RESTORE, Event, EventLog, LogEnd, read_events
from tailsweep.orchestrator.runs.trials import Outcome, Records, Row, TrialRecord, check_name
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.storage.json_text import parse_json

CHECKSUM = "checksum"  # key of a record in its file


class EventKind(StrEnum):
    """What a record of the log is of."""

    DRAWN = "drawn"
    REPORT = "report"
    OUTCOME = "outcome"
    REOPENED = "reopened"


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


def check_settings(run: RunDirectory, sweep: Sweep) -> None:
    """Check that the sweep's file has the settings that the run began with, as far as results depend on them.

    Raises:
        RunDirectoryError: It has others, or ``environment.json``, which knows their digest, is missing or damaged.
    """
    with _damage(run, ENVIRONMENT_FILE, "restore it from a copy"):
        began_with = verify_checksum(parse_json(run.read_text(ENVIRONMENT_FILE)))["settings_digest"]
    if began_with != settings_digest(sweep):
        raise RunDirectoryError(
            f"{run.uri(SWEEP_FILE)} is not as it was when the run began: restore it; to change a setting, use "
            f"`{run.resume_command} --set ...`, which says what can be changed"
        )


def write_trials(run: RunDirectory, trials: Iterable[TrialRecord]) -> None:
    """Write the trials known before the start, sealed as a whole."""
    listed = {"trials": [asdict(trial) for trial in trials]}
    run.write_text(TRIALS_FILE, json.dumps(with_checksum(listed), indent=1) + "\n")


class RecordWriter:
    """A writer of what happens to the trials of a run, in its order.

    Args:
        run: the run directory.
        end: where its log ends, as :func:`read_records` found it.
    """

    def __init__(self, run: RunDirectory, end: LogEnd | None = None) -> None:
        self.log = EventLog(run, end or LogEnd())

    def draw(self, trial: TrialRecord) -> None:
        """Write a trial that was drawn while the sweep runs, before anything is done with it."""
        self.log.append(EventKind.DRAWN, asdict(trial))

    def report(self, *rows: Row) -> None:
        """Write reports, all or none."""
        self.log.append_all(EventKind.REPORT, rows)

    def end_trials(self, outcomes: Iterable[Outcome]) -> None:
        """Write how trials have ended, all or none."""
        self.log.append_all(EventKind.OUTCOME, [asdict(outcome) for outcome in outcomes])

    def reopen(self, name: str) -> None:
        """Write that a trial's end is void: there are more seconds for it."""
        self.log.append(EventKind.REOPENED, {"trial": name})

    def seal(self) -> None:
        """Write how many records there are: at the end of a process."""
        self.log.seal()


def read_records(run: RunDirectory, metric: str | None = None) -> Records:
    """Read everything written so far; a sweep may continue writing meanwhile.

    Args:
        run: The run directory.
        metric: What every report must have a number of; None: it does not matter.

    Raises:
        RunDirectoryError: A record is missing, or not as it was written.
    """
    with _damage(run, TRIALS_FILE):
        listed = verify_checksum(parse_json(run.read_text(TRIALS_FILE)))
        trials = [TrialRecord(**read) for read in listed["trials"]]
    events, end = read_events(run)
    records = Records(trials, log_end=end)
    with _damage(run, EVENTS_FOLDER):
        for event in events:
            _apply(run, records, event)
    records.trials.sort(key=lambda trial: (trial.parent is not None, trial.number))
    _check_counts(run, records)
    _check_reports(run, records, [report_keys.EPOCH, report_keys.SECONDS, *([metric] if metric else [])])
    return records


def _apply(run: RunDirectory, records: Records, event: Event) -> None:
    """Take up what the log says next."""
    match EventKind(event.kind):
        case EventKind.DRAWN:
            records.draw(TrialRecord(**event.record))
        case EventKind.REPORT:
            check_name(event.record["trial"])
            if event.record[report_keys.STAGE] not in report_keys.STAGES:
                raise RunDirectoryError(
                    f"the records of {run.location} name a stage {show(event.record[report_keys.STAGE])}: there is none"
                )
            records.add_report(event.record)
        case EventKind.OUTCOME:
            outcome = Outcome(**event.record)
            records.outcomes[outcome.trial] = outcome
        case EventKind.REOPENED:
            del records.outcomes[event.record["trial"]]


def _check_counts(run: RunDirectory, records: Records) -> None:
    """Check what the records say of each other.

    Raises:
        RunDirectoryError: A record is of a trial that there is not, or a trial has not the reports that its end counts.
    """
    counts = Counter(row["trial"] for row in records.history)
    for name in (*counts, *records.outcomes):
        if name not in records:
            raise RunDirectoryError(f"the records of {run.location} are of a trial {name} that they do not list")
    for name, outcome in records.outcomes.items():
        if counts[name] != outcome.num_reports:
            raise RunDirectoryError(
                f"the records of {run.location} have {counts[name]} reports of {name}, but it ended with "
                f"{outcome.num_reports}: {RESTORE}"
            )


def _check_reports(run: RunDirectory, records: Records, keys: Sequence[str]) -> None:
    """Check that every report has a number of what trials are judged by.

    Raises:
        RunDirectoryError: One has not.
    """
    for row in records.history:
        for key in keys:
            if not isinstance(row.get(key), int | float):
                raise RunDirectoryError(
                    f"the records of {run.location} have a report of {row['trial']} with {key}: {show(row.get(key))}, "
                    "which must be a number: they are not those of this sweep"
                )


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
def _damage(run: RunDirectory, relative: str, fix: str = RESTORE) -> Iterator[None]:
    try:
        yield
    except RunDirectoryError:
        raise
    except FileNotFoundError:
        raise RunDirectoryError(f"{run.uri(relative)} is missing: {fix}") from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise RunDirectoryError(f"{run.uri(relative)} is damaged ({describe_error(error)}): {fix}") from None
