"""Distributions: what may stand in place of a value, how it is written, and which fields of a tree have one.

A distribution is a mapping with one key, ``{loguniform: [1e-5, 1e-2]}``, and is named by the dotted field it is written
at. Works on plain trees; ``search_space.py`` draws trials from them.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard

import numpy as np
from tailsweep.orchestrator.config.errors import ConfigIssue, FieldPath, did_you_mean, show
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.trainables.report_keys import STAGE_TWO

Search = Literal["random", "grid", "optuna"]
Point = Mapping[str, object]  # dotted field -> value
INTERVALS = ("loguniform", "uniform", "randint")  # [low, high]; randint's high is left out, as in Ray and numpy
LISTS = ("choice", "grid")  # the values themselves, mappings included
KINDS = (*INTERVALS, *LISTS)


@dataclass(frozen=True)
class Distribution:
    """What a swept field's values are drawn from: the two bounds of an interval, or a list of values."""

    kind: str  # one of KINDS
    values: tuple[object, ...]

    @property
    def whole_bounds(self) -> tuple[int, int]:
        """Return low and high of ``randint``; high is never drawn."""
        low, high = self.values
        assert isinstance(low, int)
        assert isinstance(high, int)
        return low, high

    @property
    def bounds(self) -> tuple[float, float]:
        """Return low and high of ``uniform`` or ``loguniform``."""
        low, high = self.values
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        return low, high

    def probes(self) -> list[tuple[object, str]]:
        """Return the values that show whether the field takes this distribution, each with a description."""
        if self.kind in LISTS:
            return [(value, f"value {number} of {self.kind}") for number, value in enumerate(self.values, start=1)]
        if self.kind == "randint":
            first, end = self.whole_bounds
            return [(first, "the lower bound of randint"), (end - 1, "the largest value of randint")]
        low, high = self.bounds
        return [(float(low), f"the lower bound of {self.kind}"), (float(high), f"the upper bound of {self.kind}")]

    def holds(self, value: object) -> bool:
        """Return whether ``value`` may be drawn."""
        if self.kind in LISTS:
            return any(key_of(value) == key_of(listed) for listed in self.values)
        if not _is_number(value):
            return False
        low, high = self.bounds
        return isinstance(value, int) and low <= value < high if self.kind == "randint" else low <= value <= high

    def num_values(self) -> int | None:
        """Return the number of different values; None for a continuum."""
        if self.kind in LISTS:
            return len({key_of(value) for value in self.values})
        if self.kind != "randint":
            return None
        low, high = self.whole_bounds
        return high - low

    def draw(self, generator: np.random.Generator) -> object:
        """Draw one value, equal to the bit to Ray Tune's draw from the same generator.

        Arrays of one element, as in ``ray/tune/search/sample.py``: numpy's scalar functions may round differently.
        """
        if self.kind in LISTS:
            return self.values[int(generator.integers(0, len(self.values), size=1)[0])]
        if self.kind == "randint":
            return int(generator.integers(*self.whole_bounds, size=1)[0])
        low, high = self.bounds
        if self.kind == "uniform":
            return float(generator.uniform(low, high, size=1)[0])
        return float(np.exp(generator.uniform(np.log(low), np.log(high), size=1))[0])


def find_distributions(tree: Tree) -> dict[str, Distribution]:
    """Return every well-formed distribution in ``tree`` by its dotted field, in the order written."""
    return {
        ".".join(path): Distribution(kind, tuple(values))
        for path, written in _written(tree)
        if _form_issue(written) is None
        for kind, values in written.items()
        if isinstance(values, list)
    }


def stage_two_distributions(tree: Tree) -> dict[str, Distribution]:
    """Return the distributions below ``stage_two`` by dotted field."""
    everywhere = find_distributions(tree)
    return {field: everywhere[field] for field in everywhere if field.startswith(f"{STAGE_TWO}.")}


def is_distribution(value: object) -> bool:
    """Return whether ``value`` is a distribution or meant as one: ``{logunifrom: [1e-5, 1e-2]}`` is, and is wrong."""
    if not isinstance(value, dict):
        return False
    if any(kind in value for kind in KINDS):
        return True
    # No field of ours holds a list alone under a name near those of the distributions.
    ((name, inner),) = value.items() if len(value) == 1 else [("", None)]
    return isinstance(inner, list) and bool(difflib.get_close_matches(name, KINDS))


def num_different(distributions: Mapping[str, Distribution]) -> int | None:
    """Return how many different trials there can be; None for a continuum."""
    counts = [distribution.num_values() for distribution in distributions.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def substitute(tree: Tree, values: Point) -> Tree:
    """Return a copy of ``tree`` with the values at their dotted fields."""
    return {section: _substitute(below, (section,), values) for section, below in tree.items()}


def key_of(value: object) -> str:
    """Return a text that is equal for equal settings."""
    return json.dumps(value, sort_keys=True)


def distribution_issues(tree: Tree, search: Search | None) -> list[ConfigIssue]:
    """Return the issues of distributions: where none may stand, of their form, and that do not go with ``search``.

    Args:
        tree: The whole sweep.
        search: Its search; None: not known.
    """
    issues = []
    for path, written in _written(tree):
        text = _place_issue(path) or _form_issue(written) or _search_issue(written, search)
        if text:
            issues.append(ConfigIssue(path, text))
    return issues


def _written(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Yield every mapping that is, or is meant as, a distribution, but none inside another."""
    for name, value in tree.items():
        path = (*above, name)
        if isinstance(value, dict):
            if is_distribution(value):
                yield path, value
            else:
                yield from _written(value, path)


def _substitute(value: object, path: tuple[str, ...], values: Point) -> object:
    if (field := ".".join(path)) in values:
        return _substitute(values[field], (), {})  # a copy
    if isinstance(value, dict):
        return {name: _substitute(inner, (*path, name), values) for name, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def _place_issue(path: FieldPath) -> str | None:
    if path[0] in ("model", "stage_one", "stage_two"):
        return f"cannot be swept as a whole: sweep the fields of {path[0]}" if len(path) == 1 else None
    if path == ("data", "max_length"):
        return None
    if path[0] == "data":
        return "cannot be swept: a sweep compares its trials on the same rows (of data, only max_length can)"
    if path[0] == "seed":
        return "cannot be swept: trials differ in settings, not in luck; run the sweep again with another seed"
    if path[0] == "method":
        return (
            "cannot be swept: a method fills both stages; run one sweep per method, or sweep the fields of the stages"
        )
    return "cannot be swept: all trials share it; below model, stage_one and stage_two any field can be"


def _form_issue(written: Tree) -> str | None:
    if len(written) != 1:
        return f"a distribution is a mapping with one key, but this has {', '.join(written)}"
    ((kind, values),) = written.items()
    if kind not in KINDS:
        return f'there is no distribution "{kind}"{did_you_mean(kind, KINDS)}'
    if kind in LISTS:
        return _list_issue(kind, values)
    if not isinstance(values, list) or len(values) != 2 or not all(_is_number(value) for value in values):
        return f"{kind} is {show(values)}, but must be two numbers, [low, high]"
    low, high = values
    if kind == "randint":
        if not (isinstance(low, int) and isinstance(high, int)):
            return f"randint is {show(values)}, but its bounds must be whole numbers"
        return None if low < high else f"randint is {show(values)}, but low must be below high (which is left out)"
    if kind == "loguniform" and low <= 0:
        return f"the lower bound of loguniform is {low}, but must be a number > 0"
    # Bounds next to each other would leave no room for different trials.
    if low >= high or math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-300):
        return f"{kind} is {show(values)}, but low must be below high"
    return None if math.isfinite(high - low) else f"{kind} is {show(values)}, but that is too wide"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_issue(kind: str, values: object) -> str | None:
    if not isinstance(values, list) or not values:
        return f"{kind} is {show(values)}, but must be a list of at least one value"
    if any(True for _ in _written({str(place): value for place, value in enumerate(values)})):
        return f"{kind} holds another distribution, but must hold plain values: list the combinations"
    return None


def _search_issue(written: Tree, search: Search | None) -> str | None:
    (kind,) = written
    if search in ("random", "optuna") and kind == "grid":
        return "grid goes with search: grid; say {choice: [...]} here, or search: grid above"
    if search == "grid" and kind in INTERVALS:
        return f"search: grid goes through lists, but {kind} is none; say {{grid: [...]}} here, or search: random above"
    return None
