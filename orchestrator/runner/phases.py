"""A sweep under Tune: one phase of both stages, or in a two-phase sweep one for each stage, with promotion between."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from tailsweep.orchestrator.config.two_phase import TwoPhase
from tailsweep.orchestrator.planning.plan import SweepPlan
from tailsweep.orchestrator.planning.resources import placement, trial_slots
from tailsweep.orchestrator.planning.stacks import TrialStack, arrange_stacks, write_trial_checkpoints
from tailsweep.orchestrator.runner.publish_features import Entry, publish_features
from tailsweep.orchestrator.runner.tune_run import Phase, TuneRequest, TuneRunner
from tailsweep.orchestrator.runs.directory import FEATURES_FOLDER
from tailsweep.orchestrator.runs.trials import TrialRecord, TrialState, record_of
from tailsweep.orchestrator.search.promotion import stage_one_end, stage_one_ranking
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.settings import FeatureSource

logger = logging.getLogger(__name__)


class SweepRunner:
    """Run what is left of a sweep.

    Args:
        plan: the sweep.
        tune: runs Tune for it.
        console: shows progress.
    """

    def __init__(self, plan: SweepPlan, tune: TuneRunner, console: Console) -> None:
        self.plan = plan
        self.sweep = plan.sweep
        self.tune = tune
        self.run_directory = tune.run_directory
        self.environment = tune.environment
        self.records = tune.records
        self.callback = tune.callback
        self.console = console

    @property
    def finished(self) -> bool:
        """Whether every trial of the sweep has ended."""
        return self.records.finished and len(self.records.root_trials) == self.sweep.num_trials

    @property
    def unfinished(self) -> list[TrialRecord]:
        """The trials that have not ended."""
        return [trial for trial in self.records.trials if trial.name not in self.records.outcomes]

    def run(self) -> None:
        """Run every phase. Returns with unfinished trials where Tune was interrupted."""
        features = self._publish_features()
        in_stage_two = placement(self.sweep, report_keys.STAGE_TWO)
        if self.plan.is_single_phase:
            self.run_phase(TuneRequest(Phase.BOTH_STAGES, self.unfinished, in_stage_two, features, may_draw=True))
        elif self._run_phase_one(features):
            self._promote()
            remaining = self.unfinished
            promoted = [trial for trial in remaining if self._has_phase_one(trial)]
            logger.info(f"promoted: {', '.join(trial.name for trial in promoted)}")
            began = time.monotonic()
            self.run_phase(TuneRequest(Phase.BOTH_STAGES, remaining, in_stage_two, features))
            logger.info(f"phase two: {len(remaining)} trials in {time.monotonic() - began:.0f} s")

    def run_phase(self, request: TuneRequest) -> None:
        """Run trials, and once more those that Tune gives up before they begin, as often as there are retries."""
        given_up = self.callback.given_up
        for _ in range(1 + self.sweep.config.retries):
            given_up.clear()
            self.tune.run(request)
            if not given_up or self._is_cut_short(request):
                return
            trials = [trial for trial in self.unfinished if trial.name in given_up]
            request = replace(request, trials=trials, stacks=_stacks_with(request.stacks, trials))
        for trial in request.trials:
            self.callback.end(trial.name, TrialState.FAILED, given_up[trial.name])

    def remove_published_features(self) -> None:
        """Delete the features from the run directory: every node that needs them has a copy."""
        self.run_directory.delete_folder(FEATURES_FOLDER)

    def _run_phase_one(self, features: dict[str, FeatureSource]) -> bool:
        """Run stage one of every trial; returns whether all of them are through it."""
        began = time.monotonic()
        in_stage_one = placement(self.sweep, report_keys.STAGE_ONE)
        in_phase_one = [trial for trial in self.unfinished if self._has_phase_one(trial)]
        unstarted = [trial for trial in in_phase_one if not self._has_done_stage_one(trial)]
        on_features = [trial for trial in unstarted if self.environment.inputs_of(trial.config).features is not None]
        live = [trial for trial in unstarted if trial not in on_features]
        all_on_features = all(inputs.features is not None for inputs in self.environment.inputs.values())
        stacks: Sequence[TrialStack] = ()
        if self.sweep.config.search != "optuna":  # which learns from one trial for the next
            slots = self.tune.slots(Phase.STAGE_ONE_STACKED, in_stage_one)
            stacks, on_features = arrange_stacks(self.run_directory, on_features, self.environment, slots)
        stacked = [trial for stack in stacks for trial in stack.trials]
        self.run_phase(TuneRequest(Phase.STAGE_ONE_STACKED, stacked, in_stage_one, features, stacks))
        reused = TuneRequest(Phase.STAGE_ONE_REUSED, on_features, in_stage_one, features, may_draw=all_on_features)
        self.run_phase(reused)
        self.run_phase(TuneRequest(Phase.STAGE_ONE_RUN, live, in_stage_one, features, may_draw=not all_on_features))
        if len(self.records.root_trials) < self.sweep.num_trials:
            return False
        if not all(self._has_done_stage_one(trial) for trial in self.unfinished if self._has_phase_one(trial)):
            return False
        if unstarted:
            num_in_phase_one = sum(map(self._has_phase_one, self.records.root_trials))
            logger.info(f"phase one: {num_in_phase_one} trials in {time.monotonic() - began:.0f} s")
        return True

    def _promote(self) -> None:
        """End every trial that is not among the best of its method's phase one, and expand those that are.

        A promoted trial becomes as many as there are settings of stage two to try, where that is more than one.
        """
        for method, sweep in self.sweep.methods.items() or [("", self.sweep)]:
            if sweep.two_phase is not None:
                trials = [trial for trial in self.records.root_trials if self.sweep.method_sweep(trial.values) is sweep]
                self._promote_the_best(sweep.two_phase, trials, f" of {method}" if method else "")

    def _promote_the_best(self, two_phase: TwoPhase, trials: Sequence[TrialRecord], where: str) -> None:
        records, metric = self.records, self.sweep.config.metric
        ranking = stage_one_ranking(records, metric, trials)
        write_trial_checkpoints(self.run_directory, set(ranking[: two_phase.promoted]) - records.outcomes.keys())
        among = f"of {len(ranking)}{where} by {metric} after stage one"
        places = {name: f"rank {rank} {among}" for rank, name in enumerate(ranking, start=1)}
        others = [name for name in ranking[two_phase.promoted :] if name not in records.outcomes]
        why = f"the best {two_phase.promoted} continue"
        self.callback.end_all([(name, TrialState.NOT_PROMOTED, f"{places[name]}; {why}") for name in others])
        for name in ranking[: two_phase.promoted]:
            if name not in records.outcomes and two_phase.settings > 1:
                children = self.sweep.expand_promoted(name, records.trial(name).values)
                for child in children:
                    if child.name not in records:  # a killed sweep may have drawn some
                        self.callback.draw(record_of(child, parent=name))
                names = ", ".join(child.name for child in children)
                self.callback.end(name, TrialState.PROMOTED, f"{places[name]}; continues as {names}")

    def _has_phase_one(self, trial: TrialRecord) -> bool:
        return self.sweep.method_sweep(trial.values).two_phase is not None

    def _is_cut_short(self, request: TuneRequest) -> bool:
        """Whether Tune has ended before its trials: by Ctrl-C, say."""
        ended = self.records.outcomes.keys() | self.callback.given_up.keys()
        remaining = [trial for trial in request.trials if trial.name not in ended]
        if request.phase != Phase.BOTH_STAGES:
            remaining = [trial for trial in remaining if not self._has_done_stage_one(trial)]
        return self.callback.stopped is not None or bool(remaining)

    def _has_done_stage_one(self, trial: TrialRecord) -> bool:
        return stage_one_end(self.records, trial.name, self.sweep.config.metric) is not None

    def _publish_features(self) -> dict[str, FeatureSource]:
        """Make the features of the trials that have stage one before them; returns where trials find them."""
        began = time.monotonic()
        in_one, in_two = (placement(self.sweep, stage) for stage in report_keys.STAGES)
        # The whole trunk is work for a GPU, where stage two has one, though stage one's heads may need none.
        use_stage_two = self.plan.is_single_phase or (in_two.gpus_per_worker and not in_one.gpus_per_worker)
        asked = in_two if use_stage_two else in_one
        slots = trial_slots(asked.model_copy(update={"workers": 1, "min_workers": 1}))
        cache_dir = self.sweep.config.features.dir
        features = publish_features(self.run_directory, self._entries(), asked, slots, cache_dir, self.console)
        if features:
            logger.info(f"features ready after {time.monotonic() - began:.0f} s")
        return features

    def _entries(self) -> Sequence[Entry]:
        """Return the features of the trials that have stage one before them, drawn already or to be drawn."""
        entries: dict[str, Entry] = {}
        configs = [trial.config for trial in self.unfinished if not self._has_done_stage_one(trial)]
        if self.sweep.config.search == "optuna" and len(self.records.root_trials) < self.sweep.num_trials:
            configs += [trial_config.model_dump(mode="json") for trial_config in self.sweep.representative_trials()]
        for trial_config in configs:
            inputs = self.environment.inputs_of(trial_config)
            if inputs.features is not None:
                plan = self.environment.features[inputs.features]
                data = self.environment.data_source(self.run_directory, inputs.data)
                weights = self.environment.weights.get(trial_config["model"]["name"])
                entries.setdefault(inputs.features, Entry(plan, trial_config, data, weights))
        return list(entries.values())


def _stacks_with(stacks: Sequence[TrialStack], trials: Sequence[TrialRecord]) -> Sequence[TrialStack]:
    """Return the stacks of which some of the trials are, with these alone."""
    names = {trial.name for trial in trials}
    parts = [replace(stack, trials=tuple(trial for trial in stack.trials if trial.name in names)) for stack in stacks]
    return [part for part in parts if part.trials]
