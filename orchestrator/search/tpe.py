"""Optuna's TPE under Ray Tune, drawing candidates of ours one by one (Bergstra et al. 2011; Akiba et al. 2019).

Each candidate is recorded as it is drawn. What was evaluated before a restart is fed to the study again from the
sweep's own history; no study is ever stored.
"""

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from tailsweep.orchestrator.config.errors import find_mistakes
from tailsweep.orchestrator.config.search_space import Distribution, find_distributions, key_of, settings, substitute
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Records, best_epoch, record_of
from tailsweep.orchestrator.search.state import SweepState
from tailsweep.trainables.config.trial import TrialConfig

SCORE = "score"  # of a candidate, as the study is told
MAX_REPEATS = 20  # of settings that were drawn before, until one is drawn at random


class AdaptiveSearch(Searcher):  # type: ignore[misc]
    """What Tune asks for the next candidate.

    Args:
        unfinished: candidates drawn before, which run first.
        bookkeeping: told of every new candidate.
        of_tune: a candidate -> what its trial is given.
    """

    def __init__(
        self,
        sweep: Sweep,
        records: Records,
        unfinished: Sequence[CandidateRecord],
        bookkeeping: SweepState,
        of_tune: Callable[[CandidateRecord], Mapping[str, Any]],
    ) -> None:
        super().__init__(metric=sweep.config.metric, mode="max")
        self.sweep = sweep
        self.records = records
        self.bookkeeping = bookkeeping
        self.of_tune = of_tune
        self.distributions = find_distributions(sweep.config.trial_tree)
        self.study = self._study()
        self._waiting = deque(unfinished)
        self._asked: dict[str, tuple[str, str | None]] = {}  # trial id -> candidate, and the study's own id of it
        self._drawn = {key_of(candidate.values) for candidate in records.candidates}

    def suggest(self, trial_id: str) -> Any:
        if self._waiting:
            candidate, study_id = self._waiting.popleft(), None
        elif len(self.records.candidates) == self.sweep.num_candidates:
            return Searcher.FINISHED
        else:
            values, study_id = self._draw(trial_id)
            candidate = self._record(values)
        self._asked[trial_id] = (candidate.name, study_id)
        return {"of": self.of_tune(candidate)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        name, study_id = self._asked.pop(trial_id)
        error = error or name in self.bookkeeping.failures
        score = self._score(name)
        if study_id is not None:
            self._tell(study_id, None if error else score)
        elif score is not None and not error:
            values = self.records.candidate(name).values
            self.study.add_evaluated_point(self._indices(values), score)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that nothing here reads: give it nothing."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the history holds all of it, and Tune would pickle."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is made anew from the history")

    def _study(self) -> OptunaSearch:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = [c for c in self.records.candidates if c.name in self.records.outcomes]
        # Gone on with, the study draws other numbers than at its start, or it would draw the same candidates again.
        entropy = [self.sweep.config.seed, len(self.records.candidates)]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        study = OptunaSearch(_space(self.distributions), metric=SCORE, mode="max", seed=seed)
        for candidate in known:
            score = self._score(candidate.name)
            if score is not None:
                study.add_evaluated_point(self._indices(candidate.values), score)
        return study

    def _draw(self, trial_id: str) -> tuple[dict[str, Any], str | None]:
        """Settings that no candidate has, and that make a trial."""
        number = len(self.records.candidates)
        points = self.sweep.config.point_values
        tree = self.sweep.config.trial_tree
        if number < len(points):  # as in a random search
            values = settings(tree, search="random", num_candidates=number + 1, seed=self._seed, points=points)[-1]
            return values, None
        for repeat in range(MAX_REPEATS):
            study_id = f"{trial_id}-{repeat}"
            found = self.study.suggest(study_id)
            values = {field: self._value(field, found) for field in self.distributions}
            if key_of(values) not in self._drawn and not find_mistakes(TrialConfig, substitute(tree, values)):
                return values, study_id
            self._tell(study_id, None)
        at_random = (
            settings(tree, search="random", num_candidates=count, seed=self._seed)[-1] for count in itertools.count(1)
        )
        return next(values for values in at_random if key_of(values) not in self._drawn), None

    @property
    def _seed(self) -> int:
        return self.sweep.config.seed

    def _record(self, values: dict[str, Any]) -> CandidateRecord:
        self._drawn.add(key_of(values))
        candidate = self.sweep.candidate(len(self.records.candidates), values)
        record = record_of(candidate)
        self.bookkeeping.draw(record)
        return record

    def _tell(self, study_id: str, score: float | None) -> None:
        """None: nothing is known of it."""
        self.study.on_trial_complete(study_id, None if score is None else {SCORE: score}, error=score is None)

    def _score(self, name: str) -> float | None:
        best = best_epoch(self.records.history_of(name), self.sweep.config.metric)
        return None if best is None else float(best[self.sweep.config.metric])

    def _indices(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as the study has them: of a list, the place."""
        return {
            field: distribution.values.index(values[field]) if distribution.kind == "choice" else values[field]
            for field, distribution in self.distributions.items()
        }

    def _value(self, field: str, found: Mapping[str, Any]) -> Any:
        distribution = self.distributions[field]
        return distribution.values[found[field]] if distribution.kind == "choice" else found[field]


def _space(distributions: Mapping[str, Distribution]) -> dict[str, Any]:
    """Ours as Optuna's. A choice is one of its places: its values may be mappings, which Optuna does not take."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for field, distribution in distributions.items():
        low, high = distribution.values[0], distribution.values[-1]
        if distribution.kind == "choice":
            space[field] = CategoricalDistribution(tuple(range(len(distribution.values))))
        elif distribution.kind == "randint":
            space[field] = IntDistribution(low, high - 1)
        else:
            space[field] = FloatDistribution(float(low), float(high), log=distribution.kind == "loguniform")
    return space
