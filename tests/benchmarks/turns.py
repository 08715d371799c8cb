"""Measures several ways of doing the same work, one after the other, round after round.

A machine that slows down for a while then slows all of them; ratios are taken within a round.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Side:
    """One way of doing the work, which comes in units (a batch, say) of equally many rows."""

    name: str
    work: Callable[[int, int], object]  # does the units from the first number to before the second
    units: int  # that there are
    unit_rows: int


@dataclass(frozen=True)
class Timing:
    """Seconds per row, one number for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timing") -> float:
        """The median over the rounds of the ratio within a round; both were measured in the same rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def alternate(sides: Sequence[Side], rounds: int, turn_seconds: float, device: torch.device) -> dict[str, Timing]:
    """Each side's turn in every round: as many units as take about ``turn_seconds``, one at least.

    All sides begin a round at the same unit, the rounds spread over all of them.
    """
    counts = {
        side.name: min(side.units, max(1, round(turn_seconds / _unit_seconds(side, turn_seconds, device))))
        for side in sides
    }
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            count = counts[side.name]
            first = min(number * side.units // rounds, side.units - count)
            taken[side.name].append(timed(side, first, first + count, device) / (count * side.unit_rows))
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def _unit_seconds(side: Side, turn_seconds: float, device: torch.device) -> float:
    """Of one unit, after another to warm up; where that takes a turn or longer, it will do."""
    first = timed(side, 0, 1, device)
    return first if first >= turn_seconds else timed(side, side.units - 1, side.units, device)


def timed(side: Side, first: int, stop: int, device: torch.device) -> float:
    """Seconds that these units take, the device's own work included."""
    _wait_for(device)
    began = time.perf_counter()
    side.work(first, stop)
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
