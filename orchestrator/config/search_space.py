"""The search space: which settings are distributions, what may be one, and the candidates drawn from them.

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
from typing import Any, Literal

import numpy as np
from tailsweep.orchestrator.config.errors import Mistake, Path, alternatives, did_you_mean, find_mistakes, show
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import STAGE_TWO

Search = Literal["random", "grid", "optuna"]
Tree = dict[str, Any]

SECTIONS = (
    "data",
    "model",
    "stage_one",
    "stage_two",
)  # what a trial is made of, in the order candidates are numbered by
INTERVALS = ("loguniform", "uniform", "randint")  # [low, high]; randint's high is left out, as in Ray and numpy
LISTS = ("choice", "grid")  # the values themselves, mappings included
KINDS = (*INTERVALS, *LISTS)
MAX_CANDIDATES = 10_000


@dataclass(frozen=True)
class Candidate:
    """One point of the search space. Candidates share the sweep's seed: they differ in settings, not in luck."""

    number: int  # from 0
    name: str  # "c000"
    values: Mapping[str, Any]  # what was swept: dotted field -> value
    trial: TrialConfig


@dataclass(frozen=True)
class Distribution:
    """What a swept field's values are drawn from: the two bounds of an interval, or a list of values."""

    kind: str  # one of KINDS
    values: tuple[Any, ...]

    def probes(self) -> list[tuple[Any, str]]:
        """The values that show whether the field takes this distribution, each with the words for what it is."""
        if self.kind in LISTS:
            return [(value, f"value {number} of {self.kind}") for number, value in enumerate(self.values, start=1)]
        low, high = self.values
        if self.kind == "randint":
            return [(low, "the lower bound of randint"), (high - 1, "the largest value of randint")]
        return [(float(low), f"the lower bound of {self.kind}"), (float(high), f"the upper bound of {self.kind}")]

    def holds(self, value: Any) -> bool:
        """Whether ``value`` may be drawn."""
        if self.kind in LISTS:
            return any(key_of(value) == key_of(one) for one in self.values)
        low, high = self.values
        if not _is_number(value):
            return False
        return isinstance(value, int) and low <= value < high if self.kind == "randint" else bool(low <= value <= high)

    def num_values(self) -> int | None:
        """How many different values there are; None of a continuum."""
        if self.kind in LISTS:
            return len({key_of(value) for value in self.values})
        return self.values[1] - self.values[0] if self.kind == "randint" else None

    def draw(self, generator: np.random.Generator) -> Any:
        from ray import tune  # here: it takes seconds, and a mistake in a sweep should show at once

        if self.kind in LISTS:  # the place and not the value: Ray takes a mapping for a search space of its own
            return self.values[int(tune.randint(0, len(self.values)).sample(random_state=generator))]
        number = getattr(tune, self.kind)(*self.values).sample(random_state=generator)
        return int(number) if self.kind == "randint" else float(number)


Point = Mapping[str, Any]  # dotted field -> value


def candidates(
    tree: Tree, *, search: Search, num_candidates: int, seed: int, points: Sequence[Point] = ()
) -> list[Candidate]:
    """The candidates known before the start: of an adaptive search none.

    A longer random sweep begins with the candidates of a shorter one of the same seed. ``tree`` holds the four sections
    of a trial, already found free of mistakes.
    """
    if search == "optuna":
        return []
    drawn = settings(tree, search=search, num_candidates=num_candidates, seed=seed, points=points)
    return [candidate(tree, number, values, seed) for number, values in enumerate(drawn)]


def candidate(tree: Tree, number: int, values: Point, seed: int) -> Candidate:
    """The candidate of that number, with these settings."""
    trial = TrialConfig.model_validate(substitute(tree, values) | {"seed": seed})
    return Candidate(number, f"c{number:03d}", values, trial)


def offspring(
    tree: Tree, parent: str, number: int, values: Point, *, search: Search, num_settings: int, seed: int
) -> list[Candidate]:
    """A promoted candidate once for each of several settings of stage two; all else is the parent's.

    Its own settings come first, then others from the same distributions, drawn from (seed, number); of a grid all, in
    their order. Settings that make no trial are left out.

    Args:
        parent: the candidate's name; number and values are its own, too.
    """
    of_stage_two = stage_two_distributions(tree)
    fixed = {field: value for field, value in values.items() if field not in of_stage_two}
    own = {field: value for field, value in values.items() if field in of_stage_two}
    entropy = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    how: Search = "grid" if search == "grid" else "random"
    drawn = settings(substitute(tree, fixed), search=how, num_candidates=num_settings, seed=entropy, points=[own])
    found = []
    for place, of_two in enumerate(drawn, start=1):
        all_values = {field: (fixed | of_two)[field] for field in find_distributions(tree)}
        trial = substitute(tree, all_values) | {"seed": seed}
        if not find_mistakes(TrialConfig, trial):
            found.append(Candidate(number, f"{parent}.{place}", all_values, TrialConfig.model_validate(trial)))
    return found


def stage_two_distributions(tree: Tree) -> dict[str, Distribution]:
    """Those below ``stage_two``, by dotted field."""
    return {field: of for field, of in find_distributions(tree).items() if field.startswith(f"{STAGE_TWO}.")}


def settings(
    tree: Tree, *, search: Search, num_candidates: int, seed: int, points: Sequence[Point] = ()
) -> list[dict[str, Any]]:
    """What each candidate sets: dotted field -> value, without checking that it makes a trial.

    ``points`` are those of the first candidates; a field that one leaves out is drawn.
    """
    distributions = find_distributions(tree)
    if search == "grid":  # the last field written varies fastest
        values = (distribution.values for distribution in distributions.values())
        return [dict(zip(distributions, point, strict=True)) for point in itertools.product(*values)]
    different = num_different(distributions)
    assert different is None or num_candidates <= different, "more candidates than can differ: drawing would not end"
    return list(itertools.islice(_draws(distributions, seed, points), num_candidates))


def point_values(point: Tree, distributions: Mapping[str, Distribution]) -> tuple[dict[str, Any], list[Path]]:
    """Of a point, nested as a sweep file is: values of swept fields by dotted field, and the paths of all else."""
    values: dict[str, Any] = {}
    others: list[Path] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
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
    """Every well-formed distribution in ``tree`` by its dotted field, in the order written."""
    return {
        ".".join(path): Distribution(kind, tuple(value))
        for path, written in _written(tree)
        if _form_mistake(written) is None
        for kind, value in written.items()
    }


def is_distribution(value: object) -> bool:
    """Whether ``value`` is a distribution or meant as one: ``{logunifrom: [1e-5, 1e-2]}`` is, and is wrong."""
    if not isinstance(value, dict):
        return False
    if any(kind in value for kind in KINDS):
        return True
    # No field of ours holds a list alone under a name near those of the distributions.
    ((name, inner),) = value.items() if len(value) == 1 else [("", None)]
    return isinstance(inner, list) and bool(difflib.get_close_matches(name, KINDS))


def num_different(distributions: Mapping[str, Distribution]) -> int | None:
    """How many different candidates there can be; None where the space is a continuum."""
    counts = [distribution.num_values() for distribution in distributions.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def substitute(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of ``tree`` with the values in place of what stands at their dotted fields."""
    return {section: _substitute(below, (section,), values) for section, below in tree.items()}


def distribution_mistakes(tree: Tree, search: Search | None) -> list[Mistake]:
    """Distributions that stand where none may, are not well formed, or do not go with ``search`` (None: not known).

    ``tree`` is the whole sweep.
    """
    mistakes = []
    for path, written in _written(tree):
        text = _place_mistake(path) or _form_mistake(written) or _search_mistake(written, search)
        if text:
            mistakes.append(Mistake(path, text))
    return mistakes


def probe_mistakes(tree: Tree) -> tuple[list[Mistake], list[TrialConfig]]:
    """What is wrong with a trial's sections, each distribution tried at its bounds or values, one at a time.

    The others stand at their first value meanwhile. Returns the trials that could be built, too.
    """
    distributions = find_distributions(tree)
    firsts = {field: distribution.probes()[0][0] for field, distribution in distributions.items()}
    plain = substitute(tree, firsts)
    mistakes = find_mistakes(TrialConfig, plain)
    trials = [] if mistakes else [TrialConfig.model_validate(plain)]
    known = set(mistakes)
    swept = {tuple(field.split(".")) for field in distributions}
    # A mistake at a swept field is told below, where the value that makes it is known.
    mistakes = [mistake for mistake in mistakes if not any(mistake.is_within(path) for path in swept)]
    for field, distribution in distributions.items():
        path = tuple(field.split("."))
        if distribution.kind in ("uniform", "loguniform") and _is_whole(path, plain):
            text = f"{distribution.kind} draws fractions, but this must be a whole number: say {{randint: [low, high]}}"
            mistakes.append(Mistake(path, f"{text}, high left out"))
            continue
        for value, words in distribution.probes():
            probe = substitute(tree, firsts | {field: value})
            found = find_mistakes(TrialConfig, probe)
            trials += [] if found else [TrialConfig.model_validate(probe)]
            for mistake in found:
                if mistake.is_within(path):
                    mistakes.append(Mistake(mistake.path, f"{mistake.text} ({words})"))
                elif mistake not in known:
                    mistakes.append(Mistake(mistake.path, f"{mistake.text} (with {field} = {show(value)}, {words})"))
    return mistakes, trials


def _is_whole(path: Path, tree: Tree) -> bool:
    types = {alternative.type for alternative in alternatives(TrialConfig, path, tree)}
    return int in types and float not in types


def _draws(distributions: Mapping[str, Distribution], seed: int, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Different settings without end. Each field has random numbers of its own, so that sweeping one more field, or
    writing them in another order, leaves the draws of the others as they were."""
    taken: set[str] = set()
    for number in itertools.count():
        given = points[number] if number < len(points) else {}
        for attempt in itertools.count():  # a candidate seen already would only be trained twice
            values = {
                field: given[field]
                if field in given
                else distribution.draw(np.random.default_rng([seed, number, attempt, zlib.crc32(field.encode())]))
                for field, distribution in distributions.items()
            }
            if key_of(values) not in taken or len(given) == len(distributions):
                break
        taken.add(key_of(values))
        yield values


def key_of(value: object) -> str:
    """Equal for equal settings."""
    return json.dumps(value, sort_keys=True)


def _written(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Every mapping that is, or is meant as, a distribution. What lies inside one is not looked at."""
    for name, value in tree.items():
        path = (*above, name)
        if is_distribution(value):
            yield path, value
        elif isinstance(value, dict):
            yield from _written(value, path)


def _substitute(value: Any, path: tuple[str, ...], values: Mapping[str, Any]) -> Any:
    if (field := ".".join(path)) in values:
        return _substitute(values[field], (), {})  # a copy
    if isinstance(value, dict):
        return {name: _substitute(inner, (*path, name), values) for name, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def _place_mistake(path: Path) -> str | None:
    if path[0] in ("model", "stage_one", "stage_two"):
        return f"cannot be swept as a whole: sweep the fields of {path[0]}" if len(path) == 1 else None
    if path == ("data", "max_length"):
        return None
    if path[0] == "data":
        return "cannot be swept: a sweep compares its candidates on the same rows (of data, only max_length can)"
    if path[0] == "seed":
        return "cannot be swept: candidates differ in settings, not in luck; run the sweep again with another seed"
    if path[0] == "method":
        return (
            "cannot be swept: a method fills both stages; run one sweep per method, or sweep the fields of the stages"
        )
    return "cannot be swept: all candidates share it; below model, stage_one and stage_two any field can be"


def _form_mistake(written: Tree) -> str | None:
    if len(written) != 1:
        return f"a distribution is a mapping with one key, but this has {', '.join(written)}"
    ((kind, values),) = written.items()
    if kind not in KINDS:
        return f'there is no distribution "{kind}"{did_you_mean(kind, KINDS)}'
    if kind in LISTS:
        return _list_mistake(kind, values)
    if not isinstance(values, list) or len(values) != 2 or not all(_is_number(value) for value in values):
        return f"{kind} is {show(values)}, but must be two numbers, [low, high]"
    low, high = values
    if kind == "randint":
        if not (isinstance(low, int) and isinstance(high, int)):
            return f"randint is {show(values)}, but its bounds must be whole numbers"
        return None if low < high else f"randint is {show(values)}, but low must be below high (which is left out)"
    if kind == "loguniform" and low <= 0:
        return f"the lower bound of loguniform is {low}, but must be a number > 0"
    # Bounds next to each other would leave no room for different candidates.
    if low >= high or math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-300):
        return f"{kind} is {show(values)}, but low must be below high"
    return None if math.isfinite(high - low) else f"{kind} is {show(values)}, but that is too wide"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_mistake(kind: str, values: object) -> str | None:
    if not isinstance(values, list) or not values:
        return f"{kind} is {show(values)}, but must be a list of at least one value"
    if any(True for _ in _written({str(place): value for place, value in enumerate(values)})):
        return f"{kind} holds another distribution, but must hold plain values: list the combinations"
    return None


def _search_mistake(written: Tree, search: Search | None) -> str | None:
    (kind,) = written
    if search in ("random", "optuna") and kind == "grid":
        return "grid goes with search: grid; say {choice: [...]} here, or search: grid above"
    if search == "grid" and kind in INTERVALS:
        return f"search: grid goes through lists, but {kind} is none; say {{grid: [...]}} here, or search: random above"
    return None
