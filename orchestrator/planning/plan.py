"""Everything about a sweep that is settled before its trials start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tailsweep.orchestrator.config.errors import printable
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes, Forecast, forecast
from tailsweep.orchestrator.planning.environment import Environment
from tailsweep.orchestrator.planning.preparation import PreparedTrials, prepare_trials
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.runs.text import aligned
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, record_of
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.report_keys import Stage

Table = Sequence[tuple[str, ...]]

MOST_CLASSES = 40  # in the table of the classes


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with its trials, the inputs they share, the resources they request and the disk space they take.

    It is computed once, by :func:`plan_sweep` or :func:`plan_resumed_sweep`, and handed to the checks before the start,
    to the runner and to the records.
    """

    sweep: Sweep
    trials: tuple[TrialRecord, ...]  # those known before the start
    trial_configs: tuple[Mapping[str, Any], ...]  # dumped; of all trials, or of those that represent what may be drawn
    prepared: PreparedTrials | None  # None: the sweep resumes, or its inputs cannot be prepared
    disk: Forecast | None  # None: nothing is known

    @property
    def placements(self) -> dict[Stage, Placement]:
        """The resources of one trial, by the stages whose resources this sweep requests."""
        stages = [Stage.TWO] if self.is_single_phase else list(Stage)
        return {stage: placement(self.sweep, stage) for stage in stages}

    @property
    def is_single_phase(self) -> bool:
        """Whether every trial does both stages at a stretch."""
        return self.sweep.two_phase is None

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the pretrained models, each once."""
        return tuple(dict.fromkeys(trial_config["model"]["name"] for trial_config in self.trial_configs))

    @property
    def notes(self) -> list[str]:
        """What the user should know before the start."""
        return [*self.sweep.notes, *(self.prepared.notes if self.prepared is not None else ())]

    @property
    def class_tables(self) -> list[Table]:
        """What the examples of each class are, a table for each of the sweep's data, its header first."""
        prepared = self.prepared.data.values() if self.prepared is not None else ()
        return [data.class_table for data in prepared if data.class_table]


def format_class_table(table: Table) -> str:
    """Format the examples of each class, the rarest last; of many classes only the rarest.

    Example:
        >>> print(format_class_table([("class", "train"), ("rare", "2"), ("common", "40")]))
        class   train
        ------  -----
        common     40
        rare        2
    """
    header, *classes = (tuple(map(printable, row)) for row in table)
    classes.sort(key=lambda row: -int(row[1]))
    left_out = len(classes) - MOST_CLASSES
    rows = classes if left_out <= 0 else classes[-MOST_CLASSES:]
    text = aligned([list(header), *map(list, rows)])
    return text if left_out <= 0 else f"{text}\nand {left_out:,} larger classes"


def plan_sweep(sweep: Sweep, trials: Sequence[Trial] | None = None) -> SweepPlan:
    """Draw a sweep's trials, and prepare and check their inputs. Needs no cluster.

    Args:
        sweep: the sweep.
        trials: in place of those that ``sweep`` draws.

    Raises:
        DataError: the data cannot be used, or cannot define the metric.
        ModelError: a model cannot be found, or cannot train as a stage asks.
    """
    plan = plan_unprepared(sweep, trials)
    config = sweep.config
    prepared = prepare_trials(plan.trial_configs, config.metric, config.features, config.postprocess)
    tokens = {key: sum(file.stat().st_size for file in data.folder.iterdir()) for key, data in prepared.data.items()}
    features = {key: feature_plan.num_bytes for key, feature_plan in prepared.plans.items()}
    disk = forecast(
        _in_phase_two(sweep), sweep.num_trials, tokens, features, _with_members(sweep, prepared.checkpoints)
    )
    return SweepPlan(sweep, plan.trials, plan.trial_configs, prepared, disk)


def plan_unprepared(sweep: Sweep, trials: Sequence[Trial] | None = None) -> SweepPlan:
    """Draw a sweep's trials, and prepare nothing."""
    drawn = tuple(record_of(trial) for trial in trials or sweep.trials())
    return SweepPlan(sweep, drawn, _trial_configs(sweep, drawn), None, None)


def plan_resumed_sweep(sweep: Sweep, records: Records, environment: Environment) -> SweepPlan:
    """Plan what is left of a sweep, from its own records."""
    unfinished = sweep.num_trials - len(records.root_trials)
    unfinished += sum(trial.name not in records.outcomes for trial in records.trials)
    features = {key: feature_plan.num_bytes for key, feature_plan in environment.features.items()}
    sizes = _with_members(sweep, environment.checkpoint_bytes)
    disk = forecast(_in_phase_two(sweep), unfinished, {}, features, sizes, published=True)
    trials = tuple(records.trials)
    return SweepPlan(sweep, trials, _trial_configs(sweep, trials), None, disk)


def _in_phase_two(sweep: Sweep) -> int | None:
    return None if sweep.two_phase is None else sweep.num_in_phase_two


def _with_members(sweep: Sweep, sizes: CheckpointBytes) -> CheckpointBytes:
    """Return the sizes where the exported model may be an ensemble, with a folder and a refit for each member."""
    selection = sweep.config.selection
    members = min(selection.max_members, sweep.num_in_phase_two)
    refitted = members * sizes.completed * ((selection.folds or 0) + 1) if selection.trains_again else 0
    return replace(sizes, model=sizes.model * members + refitted)


def _trial_configs(sweep: Sweep, trials: Sequence[TrialRecord]) -> tuple[Mapping[str, Any], ...]:
    drawn = tuple(trial.config for trial in trials)
    return drawn or tuple(trial_config.model_dump(mode="json") for trial_config in sweep.representative_trials())
