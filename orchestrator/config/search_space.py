"""The search space: which settings are distributions, what may be one, and the trials drawn from them.

A distribution stands in place of a value, ``{loguniform: [1e-5, 1e-2]}``, and is named by the dotted field it is
written at. Works on the plain tree of a trial's sections; knows nothing of files, scheduling or where trials run.
"""

import difflib
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

import numpy as np
from tailsweep.orchestrator.config.errors import ConfigIssue, FieldPath, alternatives, did_you_mean, find_issues, show
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import STAGE_TWO

Search = Literal["random", "grid", "optuna"]
Point = Mapping[str, object]  # dotted field -> value

SECTIONS = ("data", "model", "stage_one", "stage_two")  # of a trial, in the order trials are numbered by
INTERVALS = ("loguniform", "uniform", "randint")  # [low, high]; randint's high is left out, as in Ray and numpy
LISTS = ("choice", "grid")  # the values themselves, mappings included
KINDS = (*INTERVALS, *LISTS)
MAX_TRIALS = 10_000
# Of fields that were renamed. The draws of a sweep follow from these, so that a seed gives the trials it always gave.
FIRST_NAMES = {
    "trainable": "trains",
    "sampling": "rows",
    "warmup_fraction": "warmup",
    "reweight_after": "defer",
}


@dataclass(frozen=True)
class Trial:
    """One point of the search space. Trials share the sweep's seed: they differ in settings, not in luck."""

    number: int  # from 0
    name: str  # "t000"
    values: Point  # of the swept fields
    config: TrialConfig


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


def trials(tree: Tree, *, search: Search, num_trials: int, seed: int, points: Sequence[Point] = ()) -> list[Trial]:
    """Return the trials known before the start; an adaptive search has none.

    A longer random sweep begins with the trials of a shorter one of the same seed. ``tree`` holds the four sections
    of a trial, already checked.
    """
    if search == "optuna":
        return []
    drawn = settings(tree, search=search, num_trials=num_trials, seed=seed, points=points)
    return [trial(tree, number, values, seed) for number, values in enumerate(drawn)]


def trial(tree: Tree, number: int, values: Point, seed: int) -> Trial:
    """Return the trial of that number with these settings."""
    trial_config = TrialConfig.model_validate(substitute(tree, values) | {"seed": seed})
    return Trial(number, f"t{number:03d}", values, trial_config)


def expand_promoted(
    tree: Tree, parent: str, values: Point, *, search: Search, num_settings: int, seed: int
) -> list[Trial]:
    """Return a promoted trial once for each of several settings of stage two; all else is the parent's.

    Its own settings come first, then others from the same distributions, drawn from (seed, number); of a grid all, in
    their order. Settings that make no trial are left out.

    Args:
        tree: The sections of a trial.
        parent: The name of the promoted trial, ``t017``.
        values: The settings of the promoted trial.
        search: The search of the sweep.
        num_settings: How many settings of stage two to draw.
        seed: The seed of the sweep.
    """
    number = int(parent.removeprefix("t"))
    stage_two = stage_two_distributions(tree)
    fixed = {field: value for field, value in values.items() if field not in stage_two}
    own = {field: value for field, value in values.items() if field in stage_two}
    entropy = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    how: Search = "grid" if search == "grid" else "random"
    drawn = settings(substitute(tree, fixed), search=how, num_trials=num_settings, seed=entropy, points=[own])
    expanded = []
    for place, stage_two_values in enumerate(drawn, start=1):
        all_values = {field: (fixed | stage_two_values)[field] for field in find_distributions(tree)}
        trial_config = substitute(tree, all_values) | {"seed": seed}
        if not find_issues(TrialConfig, trial_config):
            expanded.append(Trial(number, f"{parent}.{place}", all_values, TrialConfig.model_validate(trial_config)))
    return expanded


def stage_two_distributions(tree: Tree) -> dict[str, Distribution]:
    """Return the distributions below ``stage_two`` by dotted field."""
    everywhere = find_distributions(tree)
    return {field: everywhere[field] for field in everywhere if field.startswith(f"{STAGE_TWO}.")}


def settings(tree: Tree, *, search: Search, num_trials: int, seed: int, points: Sequence[Point] = ()) -> list[Tree]:
    """Return what each trial sets, by dotted field, without checking that it makes a trial.

    Args:
        tree: The sections of a trial.
        search: How the settings are drawn.
        num_trials: How many to draw; a grid is drawn whole.
        seed: Of the draws.
        points: Settings of the first trials. A field that a point does not state is drawn.
    """
    distributions = find_distributions(tree)
    if search == "grid":  # the last field written varies fastest
        values = (distribution.values for distribution in distributions.values())
        return [dict(zip(distributions, point, strict=True)) for point in itertools.product(*values)]
    different = num_different(distributions)
    assert different is None or num_trials <= different, "more trials than can differ: drawing would not end"
    return list(itertools.islice(_draws(distributions, seed, points), num_trials))


def point_values(point: Tree, distributions: Mapping[str, Distribution]) -> tuple[Tree, list[FieldPath]]:
    """Return the values of swept fields by dotted field, and the paths of all else, in a nested point."""
    values: Tree = {}
    others: list[FieldPath] = []

    def walk(value: object, path: tuple[str, ...]) -> None:
        if ".".join(path) in distributions:
            values[".".join(path)] = value
        elif isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, (*path, name))
        else:
            others.append(path)

    walk(point, ())
    return values, others


def find_distributions(tree: Tree) -> dict[str, Distribution]:
    """Return every well-formed distribution in ``tree`` by its dotted field, in the order written."""
    return {
        ".".join(path): Distribution(kind, tuple(values))
        for path, written in _written(tree)
        if _form_issue(written) is None
        for kind, values in written.items()
        if isinstance(values, list)
    }


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


def probe_issues(tree: Tree) -> tuple[list[ConfigIssue], list[TrialConfig]]:
    """Check a trial's sections with each distribution at its bounds or values, one at a time.

    The others stand at their first value meanwhile.

    Returns:
        The issues, and the trials that could be built.
    """
    distributions = find_distributions(tree)
    firsts = {field: distribution.probes()[0][0] for field, distribution in distributions.items()}
    plain = substitute(tree, firsts)
    issues = find_issues(TrialConfig, plain)
    trial_configs = [] if issues else [TrialConfig.model_validate(plain)]
    known = set(issues)
    swept = {tuple(field.split(".")) for field in distributions}
    # An issue at a swept field is reported below, where the value that causes it is known.
    issues = [issue for issue in issues if not any(issue.is_within(path) for path in swept)]
    for field, distribution in distributions.items():
        path = tuple(field.split("."))
        if distribution.kind in ("uniform", "loguniform") and _is_whole(path, plain):
            text = f"{distribution.kind} draws fractions, but this must be a whole number: say {{randint: [low, high]}}"
            issues.append(ConfigIssue(path, f"{text}, high left out"))
            continue
        for value, words in distribution.probes():
            probe = substitute(tree, firsts | {field: value})
            probe_errors = find_issues(TrialConfig, probe)
            trial_configs += [] if probe_errors else [TrialConfig.model_validate(probe)]
            for issue in probe_errors:
                if issue.is_within(path):
                    issues.append(ConfigIssue(issue.path, f"{issue.text} ({words})"))
                elif issue not in known:
                    issues.append(ConfigIssue(issue.path, f"{issue.text} (with {field} = {show(value)}, {words})"))
    return issues, trial_configs


def _is_whole(path: FieldPath, tree: Tree) -> bool:
    types = {alternative.type for alternative in alternatives(TrialConfig, path, tree)}
    return int in types and float not in types


def _draws(distributions: Mapping[str, Distribution], seed: int, points: Sequence[Point]) -> Iterator[Tree]:
    """Yield different settings without end.

    Each field has random numbers of its own, so that sweeping one more field, or writing them in another order, does
    not change the draws of the others.
    """
    taken: set[str] = set()
    for number in itertools.count():
        point = points[number] if number < len(points) else {}
        given = {field: value for field, value in point.items() if field in distributions}  # others are of stage two
        for attempt in itertools.count():  # a trial seen already would only be trained twice
            values = {
                field: given[field]
                if field in given
                else distribution.draw(np.random.default_rng([seed, number, attempt, _stream(field)]))
                for field, distribution in distributions.items()
            }
            if key_of(values) not in taken or len(given) == len(distributions):
                break
        taken.add(key_of(values))
        yield values


def _stream(field: str) -> int:
    """Return the number of the random stream that a field is drawn from: by the first name it had."""
    return zlib.crc32(".".join(FIRST_NAMES.get(name, name) for name in field.split(".")).encode())


def key_of(value: object) -> str:
    """Return a text that is equal for equal settings."""
    return json.dumps(value, sort_keys=True)


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
