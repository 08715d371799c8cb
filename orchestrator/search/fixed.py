"""Candidates of a list under Ray Tune, started only while a budget of seconds lasts."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Records
from tailsweep.orchestrator.search.state import SweepState


@dataclass(frozen=True)
class SecondsBudget:
    """Wall seconds of a sweep that keeps all its slots busy: its candidates' own seconds over their number at once.

    So it follows from the records, and an interrupted sweep goes on with what is left of it.
    """

    seconds: float
    at_once: int
    bookkeeping: SweepState

    @property
    def spent(self) -> bool:
        return self.bookkeeping.seconds / self.at_once >= self.seconds


class ListedSearch(Searcher):  # type: ignore[misc]
    """What Tune asks for the next candidate.

    Args:
        candidates: in the order of their start. One that has reported before goes on whatever the budget.
        of_tune: a candidate -> what its trial is given.
    """

    def __init__(
        self,
        candidates: Sequence[CandidateRecord],
        records: Records,
        of_tune: Callable[[CandidateRecord], Mapping[str, Any]],
        budget: SecondsBudget,
    ) -> None:
        super().__init__()
        self.records = records
        self.of_tune = of_tune
        self.budget = budget
        self._waiting = deque(candidates)

    def suggest(self, trial_id: str) -> Any:
        while self._waiting:
            candidate = self._waiting.popleft()
            if not self.budget.spent or self.records.history_of(candidate.name):
                return {"of": self.of_tune(candidate)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the list is what it is."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that nothing here reads: give it nothing."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is made anew from the records")
