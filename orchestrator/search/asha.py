"""ASHA over the epochs of one stage (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

:class:`Rungs` is the rule: it takes one report after another and decides whether the trial stops. It decides as Ray's
``AsyncHyperBandScheduler`` does with ``stop_last_trials=False`` (a test compares the two). It is ours because Ray's
loses its rungs when a sweep is resumed, draws brackets from numpy's global generator and gives no reason for a stop.
:class:`StageASHA` is the scheduler for Tune: over stage one, and over stage two if ``stage_two_search.asha`` is set.
"""

import itertools
import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from tailsweep.orchestrator.runs.trials import Row
from tailsweep.trainables import report_keys


@dataclass(frozen=True)
class Decision:
    """The decision on one report."""

    stop: bool
    rung: int | None = None  # the rung the report was recorded in, from 0; None: it reached no new rung
    cutoff: float | None = None  # the score that had to be reached there; None: first in its rung


class Rungs:
    """Asynchronous successive halving over the epochs of a stage; larger scores are better.

    Epochs may be fractions: two that agree to ``report_keys.EPOCH_DECIMALS`` are the same, so that 0.333 is a third.

    Args:
        grace_epochs: The first rung's epoch (the paper's r).
        max_epochs: The most epochs of the stage a trial may have (R).
        reduction_factor: Eta; a trial continues from a rung if it is at least as good as the best 1/eta there.
        brackets: Trials are spread over this many sets of rungs, each starting eta times later (s = 0, 1, ...).
        seed: Of the draw of a trial's bracket.
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
        self._rungs: dict[tuple[int, int], Rung] = {}  # by bracket and number

    def without_reports(self) -> "Rungs":
        """Return the same rungs, in which nothing is recorded."""
        same = copy(self)
        same._rungs = {}
        return same

    def report(self, trial: str, epoch: float, score: float) -> Decision:
        """Record a report in the highest rung it has reached, and decide. A rung records each trial once."""
        assert math.isfinite(score), "a trial with a score that is no number fails before it reports"
        bracket = self.bracket(trial)
        reached = [rung for rung, milestone in enumerate(self.milestones[bracket]) if _reaches(epoch, milestone)]
        if not reached:
            return Decision(stop=False)
        rung = reached[-1]
        recorded = self._rungs.setdefault((bracket, rung), Rung())
        if trial in recorded.trials:
            return Decision(stop=False)
        cutoff = recorded.percentile((1 - 1 / self.reduction_factor) * 100)
        recorded.add(trial, score)
        return Decision(stop=cutoff is not None and score < cutoff, rung=rung, cutoff=cutoff)

    def bracket(self, trial: str) -> int:
        """Return the trial's bracket, drawn from seed and name with weights exp(number of rungs), as Ray does."""
        if len(self.milestones) == 1:
            return 0
        sizes = np.array([len(milestones) for milestones in self.milestones])
        weights = np.exp(sizes - sizes.max())
        # By its number, after the letter that trials had before they had `t`: a sweep's brackets stay what they were.
        generator = np.random.default_rng([self.seed, *f"c{trial[1:]}".encode()])
        return int(generator.choice(len(sizes), p=weights / weights.sum()))

    def occupancy(self) -> list[tuple[float, int]]:
        """Return (epoch, number of trials that have reached it) of every rung of all brackets, ascending."""
        counts: dict[float, int] = {}
        for bracket, milestones in enumerate(self.milestones):
            for rung, milestone in enumerate(milestones):
                recorded = self._rungs.get((bracket, rung))
                counts[milestone] = counts.get(milestone, 0) + (0 if recorded is None else len(recorded.trials))
        return sorted(counts.items())


class Rung:
    """The trials that have reached a rung, and their scores in order."""

    def __init__(self) -> None:
        self.trials: set[str] = set()
        self._scores: list[float] = []

    def add(self, trial: str, score: float) -> None:
        """Record a trial's score."""
        self.trials.add(trial)
        insort(self._scores, score)

    def percentile(self, percent: float) -> float | None:
        """Return what ``np.percentile`` does of the scores, to the bit, in a time that hardly grows; None without any.

        Example:
            >>> rung = Rung()
            >>> for trial, score in {"t000": 0.5, "t001": 0.9, "t002": 0.6}.items():
            ...     rung.add(trial, score)
            >>> rung.percentile(50)
            0.6
        """
        if not self._scores:
            return None
        place = (len(self._scores) - 1) * (percent / 100)
        below = math.floor(place)
        low, high = self._scores[below], self._scores[min(below + 1, len(self._scores) - 1)]
        share = place - below
        return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


class StageASHA(FIFOScheduler):  # type: ignore[misc]
    """Tune's scheduler: applies a stage's :class:`Rungs` to its reports. A stage without rungs runs to its end.

    Args:
        rungs: By stage; each records the reports of its own stage alone.
        metric: The key of the score.
        clocks: For a stage whose rungs are shares of it: a function of a trial's name that returns its own epochs.
        groups: For a stage in which trials are compared within groups alone: a function of a trial's name that returns
            its group.
    """

    def __init__(
        self,
        rungs: Mapping[str, Rungs],
        metric: str,
        clocks: Mapping[str, Callable[[str], float]] | None = None,
        groups: Mapping[str, Callable[[str], str]] | None = None,
    ) -> None:
        super().__init__()
        self.rungs = dict(rungs)
        self._clocks = dict(clocks or {})
        self._groups = dict(groups or {})
        self._grouped: dict[tuple[str, str], Rungs] = {}
        self._metric = metric
        self.decisions: dict[str, Decision] = {}  # per trial, of the last rung it reached

    @property
    def metric(self) -> str:
        """Return the key of the score."""
        return self._metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: object) -> bool:
        """Accept Tune's metric and mode; the constructor has set the metric."""
        return True

    def on_trial_result(self, tune_controller: object, trial: Trial, result: Row) -> str:
        """Return Tune's decision on a report."""
        if report_keys.STAGE not in result:  # a message, not scores
            return str(TrialScheduler.CONTINUE)
        decision = self.add_report(trial.config["trial"]["name"], result)
        return str(TrialScheduler.STOP if decision is not None and decision.stop else TrialScheduler.CONTINUE)

    def add_report(self, trial: str, report: Row) -> Decision | None:
        """Return the decision on one report; None where its stage has no rungs."""
        rungs = self.rungs_of(report[report_keys.STAGE], trial)
        if rungs is None:
            return None
        clock = self._clocks.get(report[report_keys.STAGE])
        epoch = report[report_keys.EPOCH] / (1 if clock is None else clock(trial))
        decision = rungs.report(trial, epoch, float(report[self._metric]))
        if decision.rung is not None:
            self.decisions[trial] = decision
        return decision

    def rungs_of(self, stage: str, trial: str) -> Rungs | None:
        """Return the rungs that record a trial's reports of a stage; None where it has none."""
        rungs, group = self.rungs.get(stage), self._groups.get(stage)
        if rungs is None or group is None:
            return rungs
        return self._grouped.setdefault((stage, group(trial)), rungs.without_reports())

    def replay(self, history: Iterable[Row]) -> None:
        """Record a sweep's history again, in its order: the rungs are then as they were, decisions included."""
        for row in history:
            self.add_report(row["trial"], row)


def _reaches(epoch: float, milestone: float) -> bool:
    return round(epoch, report_keys.EPOCH_DECIMALS) >= round(milestone, report_keys.EPOCH_DECIMALS)


def describe(decision: Decision, metric: str, report: Row) -> str:
    """Describe why a trial was stopped."""
    assert decision.cutoff is not None
    return (
        f"{metric} {float(report[metric]):.4f} after epoch {report_keys.shown_epochs(report[report_keys.EPOCH])} of "
        f"{_words(report)} is below the {decision.cutoff:.4f} that rung {decision.rung} asked for"
    )


def _words(report: Row) -> str:
    return str(report[report_keys.STAGE]).replace("_", " ")
