"""Optuna's TPE under Ray Tune, drawing trials of ours one by one (Bergstra et al. 2011; Akiba et al. 2019).

Each trial is recorded as it is drawn. What was evaluated before a restart is fed to the study again from the
sweep's own history; no study is ever stored.
"""

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from tailsweep.orchestrator.config.distributions import Distribution, Point, key_of, substitute
from tailsweep.orchestrator.config.errors import find_issues
from tailsweep.orchestrator.config.search_space import settings
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.two_phase import drawn_distributions, drawn_tree
from tailsweep.orchestrator.runs.trials import Records, TrialRecord, record_of
from tailsweep.orchestrator.search.state import SweepState
from tailsweep.trainables.config.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SCORE = "score"  # the study's name of a trial's score
MAX_REPEATS = 20  # of settings that were drawn before, until one is drawn at random


class AdaptiveSearch(Searcher):  # type: ignore[misc]
    """Tune's search algorithm: draws each trial with TPE when Tune asks for the next one.

    Args:
        sweep: The sweep.
        records: Its records so far.
        unfinished: Trials drawn before, which run first.
        state: Records every new trial.
        tune_config_of: Returns the Tune config of a trial.
    """

    def __init__(
        self,
        sweep: Sweep,
        records: Records,
        unfinished: Sequence[TrialRecord],
        state: SweepState,
        tune_config_of: Callable[[TrialRecord], Mapping[str, object]],
    ) -> None:
        super().__init__(metric=sweep.config.metric, mode="max")
        self.sweep = sweep
        self.records = records
        self.state = state
        self.tune_config_of = tune_config_of
        self.tree = drawn_tree(sweep.config)  # in two phases: without stage two, which has no part in the score
        self.distributions = drawn_distributions(sweep.config)
        self.study = self._study()
        self._waiting = deque(unfinished)
        self._started: dict[str, tuple[str, str | None]] = {}  # trial id -> trial, and the study's own id of it
        self._drawn = {key_of(trial.values) for trial in records.trials}

    def suggest(self, trial_id: str) -> "dict[str, object] | str":
        """Return the Tune config of the next trial, or that there is none."""
        if self._waiting:
            trial, study_id = self._waiting.popleft(), None
        elif len(self.records.trials) == self.sweep.num_trials:
            return str(Searcher.FINISHED)
        else:
            values, study_id = self._draw(trial_id)
            trial = self._record(values)
        self._started[trial_id] = (trial.name, study_id)
        return {"trial": self.tune_config_of(trial)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False) -> None:
        """Report the trial's best score, or that it has failed, to the study."""
        name, study_id = self._started.pop(trial_id)
        error = error or name in self.state.failures
        score = self._score(name)
        if study_id is not None:
            self._tell(study_id, None if error else score)
        elif score is not None and not error:
            values = self.records.trial(name).values
            self.study.add_evaluated_point(self._indices(values), score)

    def __getstate__(self) -> dict[str, object]:
        """Return nothing: Tune pickles its searcher into a file that nothing here reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the history holds all of it, and Tune would pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search is created from the history."""
        raise AssertionError("a search is created anew from the history")

    def _study(self) -> OptunaSearch:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = [c for c in self.records.trials if c.name in self.records.outcomes]
        # Resumed, the study draws other numbers than at its start, or it would draw the same trials again.
        entropy = [self.sweep.config.seed, len(self.records.trials)]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        study = OptunaSearch(_space(self.distributions), metric=SCORE, mode="max", seed=seed)
        for trial in known:
            score = self._score(trial.name)
            if score is not None:
                study.add_evaluated_point(self._indices(trial.values), score)
        return study

    def _draw(self, trial_id: str) -> tuple[Tree, str | None]:
        """Return valid settings that no trial has, and the study's id of them if it drew them."""
        number = len(self.records.trials)
        points = self.sweep.config.point_values
        tree = self.tree
        if number < len(points):  # as in a random search
            values = settings(tree, search="random", num_trials=number + 1, seed=self._seed, points=points)[-1]
            return values, None
        for repeat in range(MAX_REPEATS):
            study_id = f"{trial_id}-{repeat}"
            suggested = self.study.suggest(study_id)
            values = {field: self._value(field, suggested[field]) for field in self.distributions}
            if key_of(values) not in self._drawn and not find_issues(TrialConfig, substitute(tree, values)):
                return values, study_id
            self._tell(study_id, None)
        at_random = (
            settings(tree, search="random", num_trials=count, seed=self._seed)[-1] for count in itertools.count(1)
        )
        return next(values for values in at_random if key_of(values) not in self._drawn), None

    @property
    def _seed(self) -> int:
        return self.sweep.config.seed

    def _record(self, values: Point) -> TrialRecord:
        self._drawn.add(key_of(values))
        trial = self.sweep.trial(len(self.records.trials), values)
        record = record_of(trial)
        self.state.draw(record)
        return record

    def _tell(self, study_id: str, score: float | None) -> None:
        """Report a trial to the study; without a score, as failed."""
        self.study.on_trial_complete(study_id, None if score is None else {SCORE: score}, error=score is None)

    def _score(self, name: str) -> float | None:
        best = self.records.judged(name, self.sweep.config.metric)
        return None if best is None else float(best[self.sweep.config.metric])

    def _indices(self, values: Point) -> Tree:
        """Return settings as the study knows them: the index of each value of a list."""
        return {
            field: distribution.values.index(values[field]) if distribution.kind == "choice" else values[field]
            for field, distribution in self.distributions.items()
        }

    def _value(self, field: str, suggested: int | float) -> object:
        distribution = self.distributions[field]
        return distribution.values[int(suggested)] if distribution.kind == "choice" else suggested


def _space(distributions: Mapping[str, Distribution]) -> "dict[str, BaseDistribution]":
    """Return Optuna's distributions. Of a choice it draws the index: it refuses values that are mappings."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for field, distribution in distributions.items():
        if distribution.kind == "choice":
            space[field] = CategoricalDistribution(tuple(range(len(distribution.values))))
        elif distribution.kind == "randint":
            first, end = distribution.whole_bounds
            space[field] = IntDistribution(first, end - 1)
        else:
            low, high = distribution.bounds
            space[field] = FloatDistribution(float(low), float(high), log=distribution.kind == "loguniform")
    return space
