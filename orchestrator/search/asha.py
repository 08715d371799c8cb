"""ASHA over the epochs of one stage (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

:class:`Rungs` is the rule, as a conversation: report, report, should it stop? It decides as Ray's
``AsyncHyperBandScheduler`` does with ``stop_last_trials=False`` (a test holds the two together); it is ours because
Ray's forgets its rungs when a sweep is resumed, draws brackets from numpy's global generator and cannot say why a trial
was stopped. :class:`StageASHA` puts it under Tune: over stage one, and in a tournament's second round over stage two,
where that is asked for.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from tailsweep.trainables import report_keys


@dataclass(frozen=True)
class Decision:
    """What the rule says to one report."""

    stop: bool
    rung: int | None = None  # the rung the report was recorded in, from 0; None: it reached no new rung
    cutoff: float | None = None  # the score that had to be reached there; None: first in its rung


class Rungs:
    """Asynchronous successive halving over the epochs of a stage; larger scores are better.

    Epochs may be fractions: two that agree to ``keys.EPOCH_DECIMALS`` are the same, so that 0.333 is a third.

    Args:
        grace_epochs: the first rung's epoch (the paper's r).
        max_epochs: the most epochs of the stage a candidate may have (R).
        reduction_factor: eta; a candidate goes on from a rung if it is at least as good as the best 1/eta there.
        brackets: candidates are spread over this many sets of rungs, each starting eta times later (s = 0, 1, ...).
        seed: of the draw of a candidate's bracket.
    """

    def __init__(
        self, grace_epochs: float, max_epochs: float, reduction_factor: int, brackets: int = 1, seed: int = 0
    ) -> None:
        self.reduction_factor = reduction_factor
        self.seed = seed
        # Per bracket, the epochs of its rungs, ascending. Counted, since Ray's logarithms lose the last rung of
        # 243 epochs and factor 3.
        self.milestones: list[list[float]] = []
        for offset in range(brackets):
            epochs = (grace_epochs * reduction_factor**rung for rung in itertools.count(offset))
            self.milestones.append(list(itertools.takewhile(lambda epoch: _reaches(max_epochs, epoch), epochs)))
        self._recorded: dict[tuple[int, int], dict[str, float]] = {}  # (bracket, rung) -> candidate -> score

    def report(self, candidate: str, epoch: float, score: float) -> Decision:
        """Record a report in the highest rung it has reached, and decide. A rung hears each candidate once."""
        assert math.isfinite(score), "a trial with a score that is no number fails before it reports"
        bracket = self.bracket(candidate)
        reached = [rung for rung, milestone in enumerate(self.milestones[bracket]) if _reaches(epoch, milestone)]
        if not reached:
            return Decision(stop=False)
        rung = reached[-1]
        recorded = self._recorded.setdefault((bracket, rung), {})
        if candidate in recorded:
            return Decision(stop=False)
        cutoff = (
            float(np.percentile(list(recorded.values()), (1 - 1 / self.reduction_factor) * 100)) if recorded else None
        )
        recorded[candidate] = score
        return Decision(stop=cutoff is not None and score < cutoff, rung=rung, cutoff=cutoff)

    def bracket(self, candidate: str) -> int:
        """The candidate's bracket, drawn with weights exp(number of rungs) as Ray does, from (seed, candidate)."""
        if len(self.milestones) == 1:
            return 0
        sizes = np.array([len(milestones) for milestones in self.milestones])
        weights = np.exp(sizes - sizes.max())
        generator = np.random.default_rng([self.seed, *candidate.encode()])
        return int(generator.choice(len(sizes), p=weights / weights.sum()))

    def occupancy(self) -> list[tuple[float, int]]:
        """(epoch, how many candidates have reached it) of every rung, ascending, all brackets together."""
        counts: dict[float, int] = {}
        for bracket, milestones in enumerate(self.milestones):
            for rung, milestone in enumerate(milestones):
                counts[milestone] = counts.get(milestone, 0) + len(self._recorded.get((bracket, rung), {}))
        return sorted(counts.items())


class StageASHA(FIFOScheduler):  # type: ignore[misc]
    """Tune's scheduler: asks a stage's :class:`Rungs` about its reports, and lets a stage without any run to its end.

    Args:
        rungs: by stage; each hears the reports of its own stage alone.
        metric: the key of the score.
    """

    def __init__(self, rungs: Mapping[str, Rungs], metric: str) -> None:
        super().__init__()
        self.rungs = dict(rungs)
        self._metric = metric
        self.decisions: dict[str, Decision] = {}  # per candidate, of the last rung it reached

    @property
    def metric(self) -> str:
        return self._metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        if report_keys.STAGE not in result:  # words, not scores
            return str(TrialScheduler.CONTINUE)
        decision = self.hear(trial.config["of"]["candidate"], result)
        return str(TrialScheduler.STOP if decision is not None and decision.stop else TrialScheduler.CONTINUE)

    def hear(self, candidate: str, report: Mapping[str, Any]) -> Decision | None:
        """The decision on one report; None where its stage has no rungs."""
        rungs = self.rungs.get(report[report_keys.STAGE])
        if rungs is None:
            return None
        decision = rungs.report(candidate, report[report_keys.EPOCH], float(report[self._metric]))
        if decision.rung is not None:
            self.decisions[candidate] = decision
        return decision

    def replay(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Hear a sweep's history again, in its order: the rungs are then as they were, decisions included."""
        for row in history:
            self.hear(row["candidate"], row)


def _reaches(epoch: float, milestone: float) -> bool:
    return round(epoch, report_keys.EPOCH_DECIMALS) >= round(milestone, report_keys.EPOCH_DECIMALS)


def describe(decision: Decision, metric: str, report: Mapping[str, Any]) -> str:
    """Why a candidate was stopped, in words."""
    assert decision.cutoff is not None
    return (
        f"{metric} {float(report[metric]):.4f} after epoch {report_keys.shown_epochs(report[report_keys.EPOCH])} of "
        f"{_words(report)} is below the {decision.cutoff:.4f} that rung {decision.rung} asked for"
    )


def _words(report: Mapping[str, Any]) -> str:
    return str(report[report_keys.STAGE]).replace("_", " ")
