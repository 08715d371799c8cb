"""The search space: the trials that are drawn from the distributions of a sweep, and the check of what they draw.

Knows nothing of files, scheduling or where trials run; ``distributions.py`` says what a distribution is.
"""

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tailsweep.orchestrator.config.distributions import (
    Distribution,
    Point,
    Search,
    find_distributions,
    key_of,
    num_different,
    stage_two_distributions,
    substitute,
)
from tailsweep.orchestrator.config.errors import ConfigIssue, FieldPath, alternatives, find_issues, show
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.trainables.config.trial import TrialConfig

SECTIONS = ("data", "model", "stage_one", "stage_two")  # of a trial, in the order trials are numbered by
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

    def renumbered(self, number: int, values: Point, name: str | None = None) -> "Trial":
        """Return the trial as another number of a larger sweep, whose further values come first."""
        return Trial(number, name or f"t{number:03d}", {**values, **self.values}, self.config)


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
