"""What a run directory is resumed with: its own records, and what the person says now."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tailsweep.orchestrator.config.changes import ChangedSweep, change_sweep
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, override_sweep, to_yaml
from tailsweep.orchestrator.config.yaml_io import split_override
from tailsweep.orchestrator.planning.environment import (
    Environment,
    read_environment,
    write_environment,
)
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.runs.directory import DATA_FOLDER, SWEEP_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.grants import refuse_grants, refuse_unlisted_grants, sign
from tailsweep.orchestrator.runs.records import RecordWriter, check_settings, read_records, read_sweep
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, TrialState, record_of
from tailsweep.trainables import report_keys
from tailsweep.trainables.models.hub import check_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What the person says of a run that has begun."""

    sweep: Sweep | None = None  # their own file; None: the run directory alone
    overrides: Sequence[str] = ()  # ``dotted.field=value`` of the command line, where there is no file


@dataclass(frozen=True)
class Reopened:
    """A run directory that is to be resumed."""

    sweep: Sweep
    environment: Environment
    records: Records


def reopen(run: RunDirectory, wanted: Wanted) -> Reopened:
    """Read a run directory, which the caller has locked, and take up what the person says of it now.

    Raises:
        RunDirectoryError: Records are missing or damaged, or settings ask for what a run directory cannot grant.
        SweepConfigError: A setting has changed that results depend on.
    """
    recorded = read_sweep(run)
    records = read_records(run, recorded.config.metric)
    environment = read_environment(run)
    check_settings(run, recorded)
    changed = _changed(run, recorded, wanted)
    settings = changed.sweep.config.model_dump()
    refuse_unlisted_grants(run, settings, ((trial.name, trial.config) for trial in records.trials))
    # Only now: what a run directory names is not even read before it is granted.
    for name in sorted({trial.config["model"]["name"] for trial in records.trials}):
        check_weights(name, environment.weights.get(name))
    _refuse_late_extension(run, changed, records)
    for change in changed.changes:
        logger.info(f"note: {change}")
    if changed.changes:
        run.write_text(SWEEP_FILE, to_yaml(changed.sweep))
        sign(run, SWEEP_FILE)
    _extend(run, changed, records)
    return Reopened(changed.sweep, _complete(run, changed.sweep, records, environment), records)


def _changed(run: RunDirectory, recorded: Sweep, wanted: Wanted) -> ChangedSweep:
    if wanted.sweep is not None:
        return change_sweep(recorded, wanted.sweep, run.location)
    asked = override_sweep(recorded, wanted.overrides, run.uri(SWEEP_FILE))
    said = [".".join(split_override(override)[0]) for override in wanted.overrides]
    refuse_grants(run, asked.config.model_dump(), said, SWEEP_FILE, run.resume_command)
    return change_sweep(recorded, asked, run.location)


def _refuse_late_extension(run: RunDirectory, changed: ChangedSweep, records: Records) -> None:
    """Refuse more trials for a phase one that is over: who is promoted has been decided among those there were."""
    extended = any(change.field == "num_trials" for change in changed.changes)
    ends = {outcome.state for outcome in records.outcomes.values()}
    in_stage_two = any(row[report_keys.STAGE] == report_keys.STAGE_TWO for row in records.history)
    if (
        extended
        and changed.sweep.two_phase is not None
        and (in_stage_two or ends & {TrialState.NOT_PROMOTED, TrialState.PROMOTED})
    ):
        raise SweepConfigError(
            run.location,
            ["num_trials: more trials cannot join a sweep whose phase one is over: start another run (--set name=...)"],
        )


def _extend(run: RunDirectory, changed: ChangedSweep, records: Records) -> None:
    """Record the trials that an extension adds, and open again those that a budget of seconds had ended."""
    writer = RecordWriter(run, records.log_end)
    if changed.has_more_seconds:
        for name in [name for name, outcome in records.outcomes.items() if outcome.never_started]:
            writer.reopen(name)
            del records.outcomes[name]
    if changed.sweep.config.search != "optuna":  # which draws them while the sweep runs
        for trial in _undrawn(run, changed.sweep, records):
            writer.draw(trial)
            records.draw(trial)
    records.log_end = writer.log.end


def _undrawn(run: RunDirectory, sweep: Sweep, records: Records) -> list[TrialRecord]:
    """Return the sweep's trials that are not in the records."""
    missing = sweep.num_trials - len(records.root_trials)
    if missing <= 0:
        return []
    drawn = [record_of(trial) for trial in sweep.trials()]
    for trial, recorded in zip(drawn, records.root_trials, strict=False):
        if (trial.name, trial.values) != (recorded.name, recorded.values):
            raise RunDirectoryError(
                f"{run.location} cannot have more trials: {recorded.name} would be drawn with other settings"
            )
    return drawn[-missing:]


def _complete(run: RunDirectory, sweep: Sweep, records: Records, environment: Environment) -> Environment:
    """Prepare the inputs of trials for which that was not done yet."""
    lacking = [trial.config for trial in records.trials if environment.lacks(trial.config)]
    if not lacking:
        return environment
    config = sweep.config
    prepared = prepare_trials(lacking, config.metric, config.features, config.postprocess)
    for key, data in prepared.data.items():
        if key not in environment.data:
            run.upload(data.folder, f"{DATA_FOLDER}/{key}")
    environment = environment.extended(prepared)
    write_environment(run, environment)
    return environment
