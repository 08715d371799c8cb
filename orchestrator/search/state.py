"""What a search needs to know of the sweep that it draws trials for."""

from typing import Protocol

from tailsweep.orchestrator.runs.candidates import CandidateRecord


class SweepState(Protocol):
    """The part of a running sweep that the searchers see; `runner.callback` has the whole."""

    failures: dict[str, str]

    @property
    def seconds(self) -> float:
        """Wall seconds of all trials so far, summed."""

    def draw(self, candidate: CandidateRecord) -> None:
        """Record a trial that was drawn while the sweep runs."""
