"""Trials of a list under Ray Tune, in their order, perhaps only while a budget of seconds lasts.

Tune's own way to run a list, a grid search over it, copies the whole list for each of its trials: with 10,000 trials
none had begun after half an hour (Ray 2.60).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.tune.search import Searcher
from tailsweep.orchestrator.runs.trials import Records, TrialRecord
from tailsweep.orchestrator.search.state import SweepState


@dataclass(frozen=True)
class SecondsBudget:
    """Wall seconds of a sweep that keeps all its slots busy: its trials' own seconds over their number at once.

    It follows from the records, so that a resumed sweep has what remains of it.
    """

    seconds: float
    at_once: int
    state: SweepState

    @property
    def spent(self) -> bool:
        """Return whether the budget is used up."""
        return self.state.seconds / self.at_once >= self.seconds


class ListedSearch(Searcher):  # type: ignore[misc]
    """Tune's search algorithm: the trials of a list, in their order, one by one or several together.

    Args:
        trials: Those that start together, in the order of their start. One that has reported before continues whatever
            the budget.
        records: The records of the sweep.
        tune_config_of: Returns what Tune passes to trials that start together.
        budget: The seconds in which trials are started; None: without a limit.
    """

    def __init__(
        self,
        trials: Sequence[Sequence[TrialRecord]],
        records: Records,
        tune_config_of: Callable[[Sequence[TrialRecord]], dict[str, object]],
        budget: SecondsBudget | None,
    ) -> None:
        super().__init__()
        self.records = records
        self.tune_config_of = tune_config_of
        self.budget = budget
        self._waiting = deque(trials)

    def suggest(self, trial_id: str) -> dict[str, object] | str:
        """Return what Tune passes to the next trials, or that there are none."""
        while self._waiting:
            starting = [trial for trial in self._waiting.popleft() if self._may_start(trial)]
            if starting:
                return self.tune_config_of(starting)
        return str(Searcher.FINISHED)

    def _may_start(self, trial: TrialRecord) -> bool:
        return self.budget is None or not self.budget.spent or bool(self.records.history_of(trial.name))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False) -> None:
        """Do nothing: the list does not depend on results."""

    def __getstate__(self) -> dict[str, object]:
        """Return nothing: Tune pickles its searcher into a file that nothing here reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, for the same reason."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search is created from the records."""
        raise AssertionError("a search is created anew from the records")
