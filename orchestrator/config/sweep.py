"""What one sweep is: :class:`Sweep`, loaded from YAML, with every mistake reported at once.

``load_sweep`` reads the file, lays it over the method's preset, fills in the defaults and checks what can be checked
without touching rows, models or a cluster. The fields are in ``sweep_schema.py``, the rules between them in
``sweep_rules.py``.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tailsweep.orchestrator.config.errors import Mistake, SweepConfigError, alternatives, find_mistakes, in_file_order
from tailsweep.orchestrator.config.redaction import REMEDY, secret_mistakes, secret_set_by
from tailsweep.orchestrator.config.schema import AshaConfig, SweepConfig, WandbConfig
from tailsweep.orchestrator.config.search_space import (
    SECTIONS,
    Candidate,
    Search,
    candidate,
    candidates,
    distribution_mistakes,
    find_distributions,
    is_distribution,
    num_different,
    offspring,
    probe_mistakes,
)
from tailsweep.orchestrator.config.validation import (
    asha_mistakes,
    candidate_mistakes,
    count_mistakes,
    decides_features,
    notes,
    round_two_mistakes,
    search_mistakes,
    tournament_mistakes,
)
from tailsweep.orchestrator.config.yaml_io import (
    Tree,
    parse_number,
    parse_yaml,
    read_sweep_file,
    split_override,
    write_yaml,
)
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig

__all__ = [
    "AshaConfig",
    "Sweep",
    "SweepConfig",
    "SweepConfigError",
    "WandbConfig",
    "folder_name",
    "is_named",
    "load_sweep",
    "to_yaml",
]

DEFAULT_CANDIDATES = 8


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: ``config.name`` and ``config.num_candidates`` are settled, every candidate is a valid trial."""

    config: SweepConfig
    notes: list[str]  # for the user: what is allowed, but may not be what was meant

    @property
    def num_candidates(self) -> int:
        assert self.config.num_candidates is not None
        return self.config.num_candidates

    def candidates(self) -> list[Candidate]:
        """Those known before the start; the same list at every call."""
        return candidates(
            self.config.drawn_tree,
            search=self.config.search,
            num_candidates=self.num_candidates,
            seed=self.config.seed,
            points=self.config.point_values,
        )

    def candidate(self, number: int, values: Mapping[str, Any]) -> Candidate:
        """The candidate that an adaptive search has drawn ``values`` for."""
        return candidate(self.config.trial_tree, number, values, self.config.seed)

    def offspring(self, parent: str, number: int, values: Mapping[str, Any]) -> list[Candidate]:
        """A promoted candidate once for each setting of stage two that it is tried with."""
        config = self.config
        return offspring(
            config.trial_tree,
            parent,
            number,
            values,
            search=config.search,
            num_settings=config.round_two.settings,
            seed=config.seed,
        )

    def representatives(self) -> list[TrialConfig]:
        """Trials that stand for all that may be drawn, as far as rows and features go: one for every combination of
        what these depend on."""
        tree = self.config.trial_tree
        distributions = find_distributions(tree)
        firsts = {field: distribution.probes()[0][0] for field, distribution in distributions.items()}
        deciding = [field for field in distributions if decides_features(field)]
        combinations = itertools.product(*(distributions[field].values for field in deciding))
        return [
            candidate(tree, 0, firsts | dict(zip(deciding, values, strict=True)), self.config.seed).trial
            for values in combinations
        ]


def load_sweep(path: Path, overrides: Sequence[str] = (), storage: str | None = None) -> Sweep:
    """The sweep in the file ``path``, with ``dotted.field=value`` overrides laid over it.

    An override's value is YAML, but where the field takes text (a path, a name) it is taken as it stands, whatever its
    characters. ``storage`` overrides the field of that name. Raises :class:`SweepConfigError` with all mistakes.
    """
    tree = read_sweep_file(path)
    malformed = with_overrides(tree, path, overrides, storage)
    if "methods" in tree and "method" not in tree:
        rule = "is of a comparison, where a sweep has one `method`"
        raise SweepConfigError(
            str(path),
            [f"methods: {rule}: `tailsweep compare {path}` here, `tailsweep cluster submit {path}` on a cluster"],
        )
    return sweep_of(tree, str(path), malformed)


def with_overrides(tree: Tree, path: Path, overrides: Sequence[str], storage: str | None) -> list[Mistake]:
    """Lays over ``tree``, in place, what the command line says, and a name made of the file's where there is none.

    Returns:
        What of the overrides is malformed.

    Raises:
        SweepConfigError: a key or password stands among the settings; the message does not repeat it.
    """
    malformed = []
    secret = [str(mistake) for mistake in secret_mistakes(tree)]
    secret += [f"{field}: {REMEDY}" for override in overrides if (field := secret_set_by(override)) is not None]
    if secret:
        raise SweepConfigError(str(path), secret)
    for override in overrides:
        try:
            _apply(tree, override)
        except ValueError as error:
            malformed.append(Mistake((), str(error)))
    if storage is not None:
        tree["storage"] = storage
    if tree.get("name") is None:
        tree["name"] = _default_name(path)
    return malformed


def to_yaml(sweep: Sweep) -> str:
    """The resolved sweep as YAML that :func:`load_sweep` reads back as an equal sweep."""
    return write_yaml(sweep.config.model_dump())


def _apply(tree: Tree, override: str) -> None:
    """Sets the field of ``dotted.field=value`` in ``tree``, in place; ValueError where it is malformed."""
    path, text = split_override(override)
    schema: type[Section] = TrialConfig if path[0] in SECTIONS else SweepConfig
    types = {alternative.type for alternative in alternatives(schema, path, None)}
    number = parse_number(text) if float in types else None  # data.validation: a share or a source
    if number is not None:
        value: Any = number
    elif str in types:
        value = text
    else:
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"--set {override!r}: the value cannot be read as YAML: {error}") from None
    *parents, name = path
    for parent in parents:
        below = tree.get(parent)
        if not isinstance(below, dict) or is_distribution(below):
            below = {}  # what is set inside takes the place of a value or of a distribution
        tree[parent] = below
        tree = below
    tree[name] = value


def is_named(path: Path, overrides: Sequence[str]) -> bool:
    """Whether the file or an override gives the run directory its name; else it has one of the time."""
    set_to = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == "name"]
    return (set_to[-1] if set_to else read_sweep_file(path).get("name")) not in (None, "", "null")


def _default_name(path: Path) -> str:
    return f"{folder_name(path)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def folder_name(path: Path) -> str:
    """What a run directory of the file is called, before what tells it from others."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:100].lstrip("-._") or "sweep"


def sweep_of(tree: Tree, source: str, malformed: Sequence[Mistake] = ()) -> Sweep:
    """``tree`` resolved and checked as a whole; ``malformed`` are mistakes already found.

    Raises:
        SweepConfigError: with all mistakes, said to be those of ``source``.
    """
    tree = _on_preset(tree)
    misplaced = distribution_mistakes(tree, search=_search(tree))
    trial_tree = {section: tree[section] for section in SECTIONS if section in tree}
    trial_mistakes, trials = probe_mistakes(trial_tree)
    # A distribution that may not stand there is one mistake, whatever else the field has against it.
    others = [
        mistake
        for mistake in (*find_mistakes(SweepConfig, tree), *trial_mistakes)
        if not any(mistake.is_within(wrong.path) for wrong in misplaced)
    ]
    _raise_any([*malformed, *in_file_order([*misplaced, *others], tree)], source)

    filled = tree | {section: _filled(tree.get(section, {}), _dumps(trials, section)) for section in SECTIONS}
    config = SweepConfig.model_validate(filled)
    distributions = find_distributions(config.trial_tree)
    mistakes = count_mistakes(config) + asha_mistakes(config, trials) + round_two_mistakes(config)
    _raise_any(mistakes + search_mistakes(config, distributions), source)
    config = config.model_copy(update={"num_candidates": config.num_candidates or _default_count(config)})
    _raise_any(candidate_mistakes(config) + tournament_mistakes(config, trials), source)
    return Sweep(config, notes(config, distributions, trials))


def _raise_any(mistakes: Sequence[Mistake], source: str) -> None:
    if mistakes:
        raise SweepConfigError(source, list(dict.fromkeys(map(str, mistakes))))


def _on_preset(tree: Tree) -> Tree:
    """The method's settings beneath those of the file."""
    method = tree.get("method", SweepConfig.model_fields["method"].default)
    preset = METHODS.get(method, {}) if isinstance(method, str) else {}
    there = [section for section in SECTIONS if section in tree or section != "data"]  # rows are nobody's default
    return tree | {section: laid_over(preset.get(section, {}), tree.get(section, {})) for section in there}


def laid_over(preset: Any, written: Any) -> Any:
    """``written`` over ``preset``, field by field; a loss of another name, or an augmentation of another kind, takes
    the preset's whole place."""
    if not all(isinstance(tree, dict) and not is_distribution(tree) for tree in (preset, written)):
        return written
    if any(tag in preset and written.get(tag, preset[tag]) != preset[tag] for tag in ("name", "kind")):
        return written
    below = {name: laid_over(preset.get(name), value) for name, value in written.items()}
    return below | {name: deepcopy(value) for name, value in preset.items() if name not in written}


def _search(tree: Tree) -> Search | None:
    search = tree.get("search", "random")
    return search if search in ("random", "grid", "optuna") else None


def _dumps(trials: Sequence[TrialConfig], section: str) -> list[Tree]:
    return [getattr(trial, section).model_dump() for trial in trials]


def _filled(written: Tree, dumps: Sequence[Tree]) -> Tree:
    """``written`` with the defaults all ``dumps`` agree on: where the loss is swept, one loss's own stay unsaid."""
    filled = dict(written)
    for name, value in dumps[0].items():
        if not all(name in dump for dump in dumps):
            continue
        values = [dump[name] for dump in dumps]
        if name not in written:
            if all(other == value for other in values):
                filled[name] = value
        elif isinstance(written[name], dict) and not is_distribution(written[name]):
            filled[name] = _filled(written[name], values)
    return filled


def _default_count(config: SweepConfig) -> int:
    different = num_different(find_distributions(config.drawn_tree))
    if config.search == "grid":
        assert different is not None
        return different
    return DEFAULT_CANDIDATES if different is None else min(DEFAULT_CANDIDATES, different)
