"""Whether the chosen settings lie at the edge of what was tried, so that better ones may lie beyond it."""

import math
from collections.abc import Iterator, Mapping

from tailsweep.orchestrator.config.distributions import INTERVALS, Distribution, Point
from tailsweep.orchestrator.config.errors import show

NEAR = 0.05  # of an interval's length, in logarithms for loguniform


def edge_notes(values: Point, distributions: Mapping[str, Distribution]) -> Iterator[str]:
    """Yield a line for each setting that is the smallest or largest of several numbers that were tried.

    Args:
        values: The chosen settings, by dotted field.
        distributions: What they were drawn from.

    Example:
        >>> rates = Distribution("choice", (1e-4, 3e-4, 1e-3))
        >>> list(edge_notes({"stage_two.learning_rate": 1e-3}, {"stage_two.learning_rate": rates}))
        ['stage_two.learning_rate 0.001 is the largest that was tried: larger ones may do better']
    """
    for field, distribution in distributions.items():
        side = _side(values.get(field), distribution)
        if side is not None:
            yield f"{field} {show(values[field])} is the {side}est that was tried: {side}er ones may do better"


def _side(value: object, distribution: Distribution) -> str | None:
    numbers = [number for number in distribution.values if isinstance(number, int | float)]
    if not isinstance(value, int | float) or isinstance(value, bool) or len(set(numbers)) < 2:
        return None
    low, high = min(numbers), max(numbers)
    if distribution.kind == "randint":
        high -= 1  # is never drawn
    if distribution.kind in INTERVALS and distribution.kind != "randint":
        scale = math.log if distribution.kind == "loguniform" else float
        place = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return "larg" if place >= 1 - NEAR else "small" if place <= NEAR else None
    if value == high:
        return "larg"
    return "small" if value == low and value not in (0, 1) else None  # nothing is below one epoch, or no decay
