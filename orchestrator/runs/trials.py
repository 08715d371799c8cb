"""One trial as its run directory records it, and how it ended."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tailsweep.orchestrator.config.errors import show
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.runs.directory import RunDirectoryError
from tailsweep.orchestrator.runs.event_log import LogEnd
from tailsweep.trainables import report_keys
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.training.early_stopping import stage_is_over

Row = dict[str, Any]  # of a table: one report, or the results of one trial, by column
Dump = Mapping[str, Any]  # a TrialConfig as `model_dump` returns it


class TrialState(StrEnum):
    """The state of a trial. Files, tables and W&B have its value, a plain string.

    Example:
        >>> [str(state) for state in TrialState if not state.has_ended]
        ['pending', 'running']
    """

    PENDING = "pending"
    RUNNING = "running"
    PRUNED = "pruned"
    NOT_PROMOTED = "not_promoted"
    PROMOTED = "promoted"  # continues as several trials, each with other settings of stage two
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def has_ended(self) -> bool:
        """Return whether the trial has nothing more to do."""
        return self not in (TrialState.PENDING, TrialState.RUNNING)


END_STATES = tuple(state for state in TrialState if state.has_ended)


@dataclass(frozen=True)
class TrialRecord:
    """The settings of one trial."""

    name: str
    values: Tree  # of the swept fields, by dotted field
    config: dict[str, Any]  # the dumped TrialConfig
    parent: str | None = None  # the trial whose stage one it has; None: its own

    def __post_init__(self) -> None:
        for name in (self.name, self.parent):
            if name is not None:
                check_name(name)

    @property
    def number(self) -> tuple[int, ...]:
        """Return the key that trials are ordered by: (17,) for ``t017``, (17, 2) for ``t017.2``."""
        return tuple(int(part) for part in self.name.removeprefix("t").split("."))


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, why, and the wall seconds from its start to its end."""

    trial: str
    state: TrialState
    reason: str
    seconds: float
    num_reports: int = 0  # of its own
    never_started: bool = False  # the budget of seconds was spent before

    def __post_init__(self) -> None:
        """Check the fields, which may be read from a file, where the state is a string."""
        check_name(self.trial)
        if self.state not in END_STATES:
            states = ", ".join(END_STATES)
            raise RunDirectoryError(
                f"the records end {self.trial} as {show(self.state)}, but must end it as one of {states}"
            )
        object.__setattr__(self, "state", TrialState(self.state))


@dataclass
class Records:
    """The trials of a sweep, their reports and their outcomes."""

    trials: list[TrialRecord]  # in the order they were drawn
    history: list[Row] = field(default_factory=list)  # the reports, in the order they came; see `add_report`
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by trial, of those that have ended
    log_end: LogEnd = field(default_factory=LogEnd, compare=False)  # where the log ended when they were read

    def __post_init__(self) -> None:
        self._by_trial: dict[str, list[Row]] = {}
        for row in self.history:
            self._by_trial.setdefault(row["trial"], []).append(row)
        self._by_name = {trial.name: trial for trial in self.trials}

    @property
    def root_trials(self) -> list[TrialRecord]:
        """Return the trials that the sweep began with or drew: those with a stage one of their own."""
        return [trial for trial in self.trials if trial.parent is None]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def trial(self, name: str) -> TrialRecord:
        """Return the trial of that name."""
        return self._by_name[name]

    def draw(self, trial: TrialRecord) -> None:
        """Add a trial."""
        self.trials.append(trial)
        self._by_name[trial.name] = trial

    def add_report(self, row: Row) -> None:
        """Add a report."""
        self.history.append(row)
        self._by_trial.setdefault(row["trial"], []).append(row)

    def num_reports(self, name: str) -> int:
        """Return how many reports a trial has, without those of its parent."""
        return len(self._by_trial.get(name, []))

    def has_report(self, name: str, report: Mapping[str, object]) -> bool:
        """Return whether this report of a trial is in the history: a restarted trial repeats some."""
        place = (report[report_keys.STAGE], report[report_keys.EPOCH])
        return any((row[report_keys.STAGE], row[report_keys.EPOCH]) == place for row in self.history_of(name))

    @property
    def finished(self) -> bool:
        """Return whether every trial has ended."""
        return len(self.outcomes) == len(self.trials)

    def judged(self, name: str, metric: str) -> Row | None:
        """Return the report a trial is judged by, see :func:`judged_report`."""
        return judged_report(self.trial(name).config, self.history_of(name), metric)

    def history_of(self, name: str) -> list[Row]:
        """Return a trial's reports in order, its parent's of stage one before its own. Read-only."""
        own, parent = self._by_trial.get(name, []), self._by_name[name].parent
        return own if parent is None else self.history_of(parent) + own


def record_of(trial: Trial, parent: str | None = None) -> TrialRecord:
    """Return the record of a trial that was drawn."""
    return TrialRecord(trial.name, dict(trial.values), trial.config.model_dump(mode="json"), parent)


def inputs_key(trial_config: Dump) -> str:
    """Return a key of all settings that a trial's examples and features depend on."""
    stage = trial_config[report_keys.STAGE_ONE]
    inputs = [
        trial_config["data"],
        trial_config["model"],
        stage["trainable"],
        stage["frozen_dropout"],
        stage["epochs"] > 0,
    ]
    if augmented := [stage for stage in report_keys.STAGES if trial_config[stage]["sampling"] == "augmented"]:
        inputs.append(augmented)
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def last_stage(trial_config: Dump) -> Stage:
    """Return the stage after which a trial is complete."""
    return Stage.TWO if trial_config[Stage.TWO]["epochs"] > 0 else Stage.ONE


def is_over(trial_config: Dump, stage: Stage, history: Iterable[Row], metric: str) -> bool:
    """Return whether a trial with this history has finished a stage."""
    described = trial_config[stage]
    return stage_is_over(stage, history, metric, described["epochs"], described.get("patience"))


def judged_report(config: Mapping[str, Any], rows: Sequence[Row], metric: str) -> Row | None:
    """Return the report a trial is judged by, or None without reports.

    It is of the last stage reached: a checkpoint of stage two always outranks one of stage one, since the trial is the
    two-stage model. Of that stage it is the best, the earlier one in a tie, or with ``keep: last`` the last.

    Args:
        config: the trial's, dumped.
        rows: its reports, in order.
        metric: the score.
    """
    if not rows:
        return None
    stage = max((row[report_keys.STAGE] for row in rows), key=report_keys.STAGES.index)
    reports = [row for row in rows if row[report_keys.STAGE] == stage]
    described = config.get(stage, {})
    if described.get("keep") == "last" and described.get("patience") is None:
        return reports[-1]
    return max(reports, key=lambda row: row[metric])  # the first of equals


def check_name(name: str) -> None:
    """Check the name of a trial, which is also that of a folder."""
    if not re.fullmatch(r"t[0-9]+(\.[0-9]+)?", name):
        raise RunDirectoryError(f'the records name a trial {show(name)}, but must name them as "t017" or "t017.2"')
