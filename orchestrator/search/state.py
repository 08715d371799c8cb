"""The part of a running sweep that a search needs."""

from typing import Protocol

from tailsweep.orchestrator.runs.trials import TrialRecord


class SweepState(Protocol):
    """The part of a running sweep that the searchers see; `runner.callback` has the whole."""

    failures: dict[str, str]

    @property
    def seconds(self) -> float:
        """Return the wall seconds of all trials so far, summed."""

    def draw(self, trial: TrialRecord) -> None:
        """Record a trial that was drawn while the sweep runs."""
