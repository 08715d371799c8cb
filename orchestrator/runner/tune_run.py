"""Runs of Ray Tune over lists of trials."""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tailsweep.orchestrator.planning.environment import Environment
from tailsweep.orchestrator.planning.plan import SweepPlan
from tailsweep.orchestrator.planning.ray_compat import quiet_tune, signal_handlers_kept
from tailsweep.orchestrator.planning.resources import driver_bundle, driver_slots, trial_slots
from tailsweep.orchestrator.planning.stacks import TrialStack
from tailsweep.orchestrator.runner.callback import StopWhenAsked, SweepCallback
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, SLOTS_FOLDER, STACKS_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, TrialState
from tailsweep.orchestrator.search.asha import StageASHA
from tailsweep.orchestrator.search.fixed import ListedSearch, SecondsBudget
from tailsweep.orchestrator.search.tpe import AdaptiveSearch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed.report_queue import ReportQueue, StackVerdicts
from tailsweep.trainables.distributed.settings import (
    FeatureSource,
    Placement,
    StackConfig,
    TrialSetup,
    TuneTrialConfig,
    WorkerConfig,
)
from tailsweep.trainables.distributed.stack_actor import run_stack
from tailsweep.trainables.distributed.tune_trainables import run_stage_one, run_trial
from tailsweep.trainables.report_keys import Stage

if TYPE_CHECKING:
    from ray.actor import ActorHandle

WAITING_IN_QUEUE = 100_000  # threads of trials and workers, at most


class Phase(StrEnum):
    """What the trials of one run of Tune train, and where."""

    BOTH_STAGES = "both_stages"  # a Ray Train run of all that a trial has left
    STAGE_ONE_STACKED = "stage_one_stacked"  # phase one of heads that train together, in Tune's own reused actors
    STAGE_ONE_REUSED = "stage_one_reused"  # phase one on cached features, one by one in such actors
    STAGE_ONE_RUN = "stage_one_run"  # phase one as a Ray Train run, where the trunk is run live

    @property
    def in_tunes_actors(self) -> bool:
        """Whether Tune's own actors train, and not the workers of Ray Train."""
        return self in (Phase.STAGE_ONE_STACKED, Phase.STAGE_ONE_REUSED)


@dataclass(frozen=True)
class TuneRequest:
    """One run of Tune."""

    phase: Phase
    trials: Sequence[TrialRecord]  # in the order of their start
    placement: Placement  # the resources of one trial
    features: Mapping[str, FeatureSource] = field(default_factory=dict)  # by their keys
    stacks: Sequence[TrialStack] = ()  # all of the trials, where they train together
    may_draw: bool = False  # whether an adaptive search draws new trials in this run


class TuneRunner:
    """Run Ray Tune for one sweep.

    Args:
        run: the run directory.
        plan: the sweep.
        environment: the inputs of its trials.
        records: what is known of the trials; the callback updates it.
        scheduler: prunes trials; None: nothing is pruned.
        callback: writes what happens.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: SweepPlan,
        environment: Environment,
        records: Records,
        scheduler: StageASHA | None,
        callback: SweepCallback,
    ) -> None:
        self.run_directory = run
        self.sweep = plan.sweep
        self.config = plan.sweep.config
        self.is_single_phase = plan.is_single_phase
        self.environment = environment
        self.records = records
        self.scheduler = scheduler
        self.callback = callback

    def run(self, request: TuneRequest) -> None:
        """Run trials until Tune is done with them, or until it is interrupted."""
        undrawn = self.sweep.num_trials - len(self.records.root_trials)
        to_draw = undrawn if request.may_draw and self.config.search == "optuna" else None
        if not request.trials and not to_draw:
            return
        slots = self.slots(request.phase, request.placement)
        budget = self._budget(request.phase, slots)
        trials = list(request.trials)
        if budget is not None and budget.spent:  # a resumed sweep: only what had begun continues
            self._end_those_never_started(trials)
            trials = [trial for trial in trials if trial.name not in self.records.outcomes]
            if not trials:
                return
        queue = None if request.phase.in_tunes_actors else _start_next_to_driver(ReportQueue)
        verdicts = self.callback.verdicts = _start_next_to_driver(StackVerdicts) if request.stacks else None
        # Tune's own folder is of no use to anybody: pickles, from which nothing is resumed. Were it in the run
        # directory, an object store would have to take it all the time, and Tune (2.60) fails where it does not.
        with (
            tempfile.TemporaryDirectory(prefix="tailsweep-tune-", ignore_cleanup_errors=True) as folder,
            quiet_tune(slots),
        ):
            tuner = tune.Tuner(
                self._trainable(request, queue, verdicts),
                **self._search(request, trials, to_draw, budget, slots),
                run_config=tune.RunConfig(
                    name=f"tune-{request.phase}",
                    storage_path=folder,
                    callbacks=[self.callback],
                    stop=StopWhenAsked(self.callback),
                    # Of processes that died; a trial's own errors are not raised, see run_trial.
                    failure_config=tune.FailureConfig(max_failures=self.config.retries),
                    verbose=0,
                ),
            )
            try:
                with self.callback.progress, signal_handlers_kept():
                    tuner.fit()
            finally:
                for actor in filter(None, (queue, verdicts)):
                    ray.kill(actor)  # Tune keeps its trainable, and so the handle
                self.run_directory.delete_folder(SLOTS_FOLDER)
        if budget is not None and budget.spent:
            self._end_those_never_started(trials)

    def tune_config(self, phase: Phase, features: Mapping[str, FeatureSource], trial: TrialRecord) -> TuneTrialConfig:
        """Return what Tune passes to a trial."""
        trial_config = TrialConfig.model_validate(trial.config)
        if phase == Phase.STAGE_ONE_RUN:
            stage_two = trial_config.stage_two.model_copy(update={"epochs": 0})
            trial_config = trial_config.model_copy(update={"stage_two": stage_two})
        inputs = self.environment.inputs_of(trial.config)
        uri = self.run_directory.uri
        worker = WorkerConfig(
            trial=trial_config,
            metric=self.config.metric,
            data=self.environment.data_source(self.run_directory, inputs.data),
            features=None if inputs.features is None else features.get(inputs.features),
            weights=self.environment.weights.get(trial_config.model.name),
            resume_from=tuple(uri(f"{CHECKPOINTS_FOLDER}/{name}") for name in (trial.name, trial.parent) if name),
        )
        history = self.records.history_of(trial.name)
        reported = tuple((Stage(row[report_keys.STAGE]), row[report_keys.EPOCH]) for row in history)
        return TuneTrialConfig(name=trial.name, worker=worker, reported=reported)

    def slots(self, phase: Phase, placement: Placement) -> int:
        """Return how many trials, or stacks, run at once."""
        slots = trial_slots(placement)
        if self.config.max_concurrent != "auto":
            slots = min(slots, self.config.max_concurrent)
        return slots if phase.in_tunes_actors else int(min(slots, driver_slots()))

    def _budget(self, phase: Phase, slots: int) -> SecondsBudget | None:
        """Return the seconds that this run may start trials in; None: without a limit."""
        is_first = self.is_single_phase or phase != Phase.BOTH_STAGES
        if self.config.max_wallclock_seconds is None or not is_first:
            return None
        return SecondsBudget(self.config.max_wallclock_seconds, slots, self.callback)

    def stack_config(
        self, features: Mapping[str, FeatureSource], stack: TrialStack, trials: Sequence[TrialRecord]
    ) -> StackConfig:
        """Return what Tune passes to a stack, of which these trials start."""
        source = stack.resume_from
        return StackConfig(
            name=stack.name,
            members=tuple(self.tune_config(Phase.STAGE_ONE_STACKED, features, trial) for trial in trials),
            resume_from=None if source is None else self.run_directory.uri(f"{STACKS_FOLDER}/{source}"),
        )

    def _trainable(self, request: TuneRequest, queue: "ActorHandle | None", verdicts: "ActorHandle | None") -> Any:
        """Return Tune's trainable, with its resources."""
        setup = TrialSetup(
            checkpoints_uri=self.run_directory.uri(CHECKPOINTS_FOLDER),
            slots_uri=self.run_directory.uri(SLOTS_FOLDER),
            stacks_uri=self.run_directory.uri(STACKS_FOLDER),
            placement=request.placement,
            report_queue=queue,
            retries=self.config.retries,
            verdicts=verdicts,
        )
        bundle = driver_bundle()
        if request.phase.in_tunes_actors:
            requested = {"CPU": request.placement.cpus_per_worker, "GPU": request.placement.gpus_per_worker}
            bundle = {kind: amount for kind, amount in requested.items() if amount}
        functions: dict[Phase, Callable[..., None]] = {
            Phase.STAGE_ONE_STACKED: run_stack,
            Phase.STAGE_ONE_REUSED: run_stage_one,
        }
        function = functions.get(request.phase, run_trial)
        return tune.with_resources(functools.partial(function, setup=setup), tune.PlacementGroupFactory([bundle]))

    def _search(
        self,
        request: TuneRequest,
        trials: Sequence[TrialRecord],
        to_draw: int | None,
        budget: SecondsBudget | None,
        slots: int,
    ) -> dict[str, object]:
        """Return the parameters of ``Tuner`` that say which trials run, in which order and how many at once."""

        def tune_config_of(trial: TrialRecord) -> dict[str, object]:
            return self.tune_config(request.phase, request.features, trial).dump()

        stack_of = {trial.name: stack for stack in request.stacks for trial in stack.trials}

        def stack_config_of(starting: Sequence[TrialRecord]) -> dict[str, object]:
            return {"stack": self.stack_config(request.features, stack_of[starting[0].name], starting).dump()}

        search: Searcher
        num_samples = len(trials) + (to_draw or 0)
        if to_draw is not None:
            search = AdaptiveSearch(self.sweep, self.records, trials, self.callback, tune_config_of)
        elif request.stacks:
            search = ListedSearch([stack.trials for stack in request.stacks], self.records, stack_config_of, budget)
            num_samples = len(request.stacks)
        else:
            one_by_one = [[trial] for trial in trials]
            search = ListedSearch(one_by_one, self.records, lambda only: {"trial": tune_config_of(*only)}, budget)
        return {
            "tune_config": tune.TuneConfig(
                metric=self.config.metric,
                mode="max",
                scheduler=self.scheduler,
                search_alg=search,
                num_samples=num_samples,
                max_concurrent_trials=slots,
                reuse_actors=True,  # a process spends seconds importing Ray Train, torch and transformers
                trial_dirname_creator=lambda trial: str(next(iter(trial.config.values()))["name"]),
            ),
        }

    def _end_those_never_started(self, trials: Sequence[TrialRecord]) -> None:
        """End the trials that the budget of seconds does not pay for."""
        reason = f"never started: the {self.config.max_wallclock_seconds:g} s of max_wallclock_seconds were spent"
        for trial in trials:
            if trial.name not in self.records.outcomes and not self.records.history_of(trial.name):
                self.callback.end(trial.name, TrialState.PRUNED, reason, never_started=True)


def _start_next_to_driver(actor: type) -> "ActorHandle":
    """Start an actor next to the driver, whose node must live anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": WAITING_IN_QUEUE}
    return ray.remote(**options)(actor).remote()
