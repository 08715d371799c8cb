"""A sweep, :class:`Sweep`, loaded from YAML, with all its errors reported at once.

``load_sweep`` reads the file, merges it into the method's preset, fills in the defaults and checks what can be checked
without touching examples, models or a cluster. The fields are in ``schema.py``, the rules between them in
``validation.py``.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import get_origin

from tailsweep.orchestrator.config.distributions import (
    Point,
    Search,
    distribution_issues,
    is_distribution,
    num_different,
)
from tailsweep.orchestrator.config.errors import (
    LISTS,
    MAPPINGS,
    ConfigIssue,
    FieldPath,
    SweepConfigError,
    alternatives,
    find_issues,
    in_file_order,
    show,
)
from tailsweep.orchestrator.config.methods import (
    METHOD,
    OWN_OF_DATA,
    TRIALS_EACH,
    own_issues,
    several_methods,
    shared_issues,
)
from tailsweep.orchestrator.config.redaction import HINT, secret_issues, secret_set_by
from tailsweep.orchestrator.config.schema import DEFAULT_TRIALS, AshaConfig, SweepConfig, WandbConfig
from tailsweep.orchestrator.config.search_space import (
    SECTIONS,
    Trial,
    expand_promoted,
    probe_issues,
    trial,
    trials,
)
from tailsweep.orchestrator.config.tree import Tree
from tailsweep.orchestrator.config.two_phase import TwoPhase, drawn_distributions, drawn_tree, two_phase
from tailsweep.orchestrator.config.validation import (
    asha_issues,
    count_issues,
    decides_features,
    export_issues,
    notes,
    search_issues,
    selection_issues,
    stage_two_search_issues,
    two_phase_issues,
    whole_trial_issues,
)
from tailsweep.orchestrator.config.yaml_io import (
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


@dataclass(frozen=True)
class Sweep:
    """A checked and resolved sweep, in which every trial is a valid trial.

    One of several methods holds a sweep of each. Trial number i is of method i modulo their number.
    """

    config: SweepConfig  # with the same name and num_trials
    name: str  # of the run directory
    num_trials: int
    notes: list[str]  # for the user: what is allowed, but may not be what was meant
    methods: Mapping[str, "Sweep"] = field(default_factory=dict)  # of several methods, by name

    @classmethod
    def resolved(cls, config: SweepConfig, name: str, num_trials: int) -> "Sweep":
        """Return the sweep of ``config`` with this name and number of trials, without a check."""
        settled = config.model_copy(update={"name": name, "num_trials": num_trials})
        return cls(settled, name, num_trials, [], {} if isinstance(config.method, str) else _by_method(settled))

    @cached_property
    def two_phase(self) -> TwoPhase | None:
        """The numbers of a two-phase sweep; None where each trial does both stages at a stretch.

        Of several methods: of those that are in two phases, together.
        """
        if not self.methods:
            return two_phase(self.config, self.num_trials)
        several = [sweep.two_phase for sweep in self.methods.values() if sweep.two_phase is not None]
        return TwoPhase.together(several) if several else None

    def method_sweep(self, values: Mapping[str, object]) -> "Sweep":
        """Return the sweep of a trial's method.

        Args:
            values: of the trial's swept fields.
        """
        return self.methods[str(values[METHOD])] if self.methods else self

    @property
    def num_in_phase_two(self) -> int:
        """The trials of phase two: the promoted ones, and those of methods that have no phase one."""
        sweeps = self.methods.values() or (self,)
        return sum(sweep.num_trials if sweep.two_phase is None else sweep.two_phase.num_trials for sweep in sweeps)

    def trials(self) -> list[Trial]:
        """Return the trials known before the start; the same list at every call."""
        if self.methods:
            drawn = {method: sweep.trials() for method, sweep in self.methods.items()}
            names = list(self.methods)
            places = ((number, names[number % len(names)]) for number in range(self.num_trials))
            return [
                drawn[method][number // len(names)].renumbered(number, {METHOD: method}) for number, method in places
            ]
        return trials(
            drawn_tree(self.config),
            search=self.config.search,
            num_trials=self.num_trials,
            seed=self.config.seed,
            points=self.config.point_values,
        )

    def trial(self, number: int, values: Point) -> Trial:
        """Return the trial that an adaptive search has drawn ``values`` for."""
        return trial(drawn_tree(self.config), number, values, self.config.seed)

    def expand_promoted(self, parent: str, values: Point) -> list[Trial]:
        """Return a promoted trial once for each setting of stage two that it is tried with."""
        if self.methods:
            number = int(parent.removeprefix("t"))
            own = {name: value for name, value in values.items() if name != METHOD}
            expanded = self.method_sweep(values).expand_promoted(f"t{number // len(self.methods):03d}", own)
            method = {METHOD: values[METHOD]}
            return [
                trial.renumbered(number, method, f"{parent}.{place}") for place, trial in enumerate(expanded, start=1)
            ]
        config, two_phase = self.config, self.two_phase
        assert two_phase is not None
        points, number = config.point_values, int(parent.removeprefix("t"))
        return expand_promoted(
            config.trial_tree,
            parent,
            (points[number] if number < len(points) else {}) | dict(values),
            search=config.search,
            num_settings=two_phase.settings,
            seed=config.seed,
        )

    def representative_trials(self) -> list[TrialConfig]:
        """Return trials that together need the examples and features of every trial that may be drawn.

        There is one for every combination of the settings that examples and features depend on.
        """
        tree = self.config.trial_tree
        distributions = self.config.trial_distributions
        firsts = {field: distribution.probes()[0][0] for field, distribution in distributions.items()}
        deciding = [field for field in distributions if decides_features(field)]
        combinations = itertools.product(*(distributions[field].values for field in deciding))
        return [
            trial(tree, 0, firsts | dict(zip(deciding, values, strict=True)), self.config.seed).config
            for values in combinations
        ]


def load_sweep(path: Path, overrides: Sequence[str] = (), storage: str | None = None) -> Sweep:
    """Load the sweep in a file.

    Args:
        path: The file.
        overrides: ``dotted.field=value`` each, which take precedence over the file. The value is YAML; if the field is
            a text (a path, a name), it is used unparsed.
        storage: Overrides the field of that name.

    Raises:
        SweepConfigError: With all errors.
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


def override_sweep(sweep: Sweep, overrides: Sequence[str], source: str) -> Sweep:
    """Return a resolved sweep with some of its settings changed.

    Args:
        sweep: The sweep.
        overrides: As :func:`load_sweep` takes them.
        source: Where the sweep is from, for messages.

    Raises:
        SweepConfigError: With all errors.
    """
    if not overrides:
        return sweep
    tree = parse_yaml(to_yaml(sweep))
    assert isinstance(tree, dict)
    return sweep_of(tree, source, with_overrides(tree, Path(source), overrides, None))


def with_overrides(tree: Tree, path: Path, overrides: Sequence[str], storage: str | None) -> list[ConfigIssue]:
    """Apply the command line's settings to ``tree``, in place, and give it a name after the file if it has none.

    Returns:
        The issues of malformed overrides.

    Raises:
        SweepConfigError: A key or password is among the settings; the message does not repeat it.
    """
    malformed = []
    secret = [str(issue) for issue in secret_issues(tree)]
    secret += [f"{field}: {HINT}" for override in overrides if (field := secret_set_by(override)) is not None]
    if secret:
        raise SweepConfigError(str(path), secret)
    for override in overrides:
        try:
            _apply(tree, override)
        except ValueError as error:
            malformed.append(ConfigIssue((), str(error)))
    if storage is not None:
        tree["storage"] = storage
    if tree.get("name") is None:
        tree["name"] = _default_name(folder_name(path))
    return malformed


def to_yaml(sweep: Sweep) -> str:
    """Return the resolved sweep as YAML that :func:`load_sweep` reads back as an equal sweep."""
    return write_yaml(sweep.config.model_dump())


def _apply(tree: Tree, override: str) -> None:
    """Set the field of ``dotted.field=value`` in ``tree``, in place.

    Raises:
        ValueError: The override is malformed.
    """
    path, text = split_override(override)
    try:
        value = _override_value(path, text)
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


def _override_value(path: FieldPath, text: str) -> object:
    """Return what ``text`` says for the field at ``path``: itself where that may be a text, else what it is as YAML.

    Where a field may be a text, YAML is still what looks like something else that it takes: a number, a list, a mapping
    (of methods), a distribution.

    Raises:
        ValueError: The text is not YAML.
    """
    schema: type[Section] = TrialConfig if path[0] in SECTIONS else SweepConfig
    types = {alternative.type for alternative in alternatives(schema, path, None)}
    number = parse_number(text) if float in types else None  # data.validation: a share or a source
    if number is not None or str not in types:
        return parse_yaml(text)
    try:
        value = parse_yaml(text) if text.startswith(("[", "{")) else text
    except ValueError:
        return text  # a name with a bracket
    takes_more = any(get_origin(each) in (*LISTS, *MAPPINGS) for each in types)
    return value if takes_more or (path[0] in SECTIONS and is_distribution(value)) else text


def is_named(path: Path, overrides: Sequence[str]) -> bool:
    """Return whether the file or an override names the run directory; else its name is that of file and time."""
    set_to = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == "name"]
    return (set_to[-1] if set_to else read_sweep_file(path).get("name")) not in (None, "", "null")


def _default_name(stem: str) -> str:
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def folder_name(path: Path) -> str:
    """Return the start of the names of the file's run directories."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:100].lstrip("-._") or "sweep"


def sweep_of(tree: Tree, source: str, malformed: Sequence[ConfigIssue] = ()) -> Sweep:
    """Resolve ``tree`` and check it as a whole.

    Args:
        tree: The content of a sweep file. Without a ``name``, the sweep is named ``sweep-<UTC time>``.
        source: Where the tree is from, for messages.
        malformed: Issues of the overrides.

    Raises:
        SweepConfigError: With all errors.
    """
    if (methods := several_methods(tree)) is not None:
        if len(methods) > 1:
            return _sweep_of_methods(tree, methods, source, malformed)
        ((name, own),) = methods.items()
        _raise_any([*malformed, *own_issues(methods)], source)
        tree = _merged(tree, own) | {METHOD: name}
    tree = _on_preset(tree)
    misplaced = distribution_issues(tree, search=_search(tree))
    trial_tree = {section: tree[section] for section in SECTIONS if section in tree}
    trial_issues, trial_configs = probe_issues(trial_tree)
    # A distribution that may not stand there is one error, whatever else is wrong with it.
    others = [
        issue
        for issue in (*find_issues(SweepConfig, tree), *trial_issues)
        if not any(issue.is_within(wrong.path) for wrong in misplaced)
    ]
    _raise_any([*malformed, *in_file_order([*misplaced, *others], tree)], source)

    filled = {section: _filled(_mapping(tree, section), _dumps(trial_configs, section)) for section in SECTIONS}
    config = SweepConfig.model_validate(tree | filled)
    distributions = config.trial_distributions
    issues = export_issues(config) + selection_issues(config) + count_issues(config)
    issues += asha_issues(config, trial_configs)
    _raise_any(issues + search_issues(config, distributions), source)
    sweep = Sweep.resolved(config, config.name or _default_name("sweep"), config.num_trials or _default_count(config))
    _raise_any(stage_two_search_issues(sweep.config), source)
    _raise_any(whole_trial_issues(sweep.config) + two_phase_issues(sweep.config, trial_configs), source)
    if sweep.two_phase is None:  # settled for good: more trials or seconds must not change it when a run is resumed
        sweep = replace(sweep, config=sweep.config.model_copy(update={"promote": "all"}))
    return replace(sweep, notes=notes(sweep.config, distributions, trial_configs))


def _sweep_of_methods(tree: Tree, methods: Mapping[str, Tree], source: str, malformed: Sequence[ConfigIssue]) -> Sweep:
    """Resolve the sweep of each method, and put them together."""
    num_trials = tree.get("num_trials")
    issues = [*malformed, *own_issues(methods)]
    if num_trials is None:
        num_trials = TRIALS_EACH * len(methods)
    elif isinstance(num_trials, int) and 0 < num_trials < len(methods):
        rule = f"must be at least {len(methods)}, one for each method; name fewer methods"
        issues.append(ConfigIssue(("num_trials",), f"is {num_trials}, but {rule}"))
    if (search := tree.get("search", "random")) != "random":
        issues.append(ConfigIssue(("search",), f"is {show(search)}, but must be random with several methods"))
    if tree.get("initial_points"):
        issues.append(ConfigIssue(("initial_points",), "go with one method: name one, or leave them out"))
    _raise_any(issues, source)
    sweeps: dict[str, Sweep] = {}
    failed: dict[str, list[str]] = {}
    for place, (method, own) in enumerate(methods.items()):
        share = len(range(place, num_trials, len(methods))) if isinstance(num_trials, int) else num_trials
        merged = _merged(tree, own) | {METHOD: method, "num_trials": share}
        if skips_stage_one(method, own):  # whatever the other methods' stage one is, and however it is searched
            asked = merged.get("stage_two_search")
            kept = {k: v for k, v in asked.items() if k != "settings"} if isinstance(asked, dict) else {}
            promote = own.get("promote", "all")
            merged |= {"promote": promote, "asha": None, "stage_two_search": kept, "stage_one": {"epochs": 0}}
        try:
            sweeps[method] = sweep_of(merged, source)
        except SweepConfigError as error:
            failed[method] = error.issues
    if failed:
        raise SweepConfigError(source, shared_issues({method: failed.get(method, []) for method in methods}, METHOD))
    shared = next(iter(sweeps.values())).config.trial_tree["data"]
    assert isinstance(shared, dict)
    written = _mapping(tree, "data")
    data = {name: value for name, value in shared.items() if name in written or name not in OWN_OF_DATA}
    resolved = {method: _own_settings(sweep, written) for method, sweep in sweeps.items()}
    config = SweepConfig.model_validate(tree | {METHOD: resolved, "data": data, "num_trials": num_trials})
    assert isinstance(num_trials, int)
    sweep = Sweep.resolved(config, config.name or _default_name("sweep"), num_trials)
    remarks = shared_issues({method: one_method.notes for method, one_method in sweeps.items()}, METHOD)
    return replace(sweep, notes=remarks)


def _merged(tree: Tree, own: Tree) -> Tree:
    """Return what a sweep file says with a method's own settings."""
    merged = deep_merge({name: value for name, value in tree.items() if name != METHOD}, own)
    assert isinstance(merged, dict)
    return merged


def skips_stage_one(method: str, own: Tree) -> bool:
    """Return whether a method has no stage one: its own settings decide, then its preset."""
    section = deep_merge(METHODS[method].get("stage_one", {}), own.get("stage_one", {}))
    return isinstance(section, dict) and section.get("epochs") == 0


def _own_settings(sweep: Sweep, written_data: Tree) -> Tree:
    """Return a method's settings, resolved, as they stand below ``method``."""
    tree = sweep.config.trial_tree
    data = tree.pop("data")
    assert isinstance(data, dict)
    own_data = {name: data[name] for name in OWN_OF_DATA if name in data and name not in written_data}
    return tree | ({"data": own_data} if own_data else {}) | {"promote": sweep.config.promote}


def _by_method(config: SweepConfig) -> dict[str, Sweep]:
    """Return the sweep of each method of a resolved configuration."""
    tree = config.model_dump()
    methods = several_methods(tree)
    assert methods is not None
    sweeps = {}
    for place, (method, own) in enumerate(methods.items()):
        share = len(range(place, int(config.num_trials or 0), len(methods)))
        resolved = SweepConfig.model_validate(_merged(tree, own) | {METHOD: method})
        sweeps[method] = Sweep.resolved(resolved, str(config.name), share)
    return sweeps


def _raise_any(issues: Sequence[ConfigIssue], source: str) -> None:
    if issues:
        raise SweepConfigError(source, list(dict.fromkeys(map(str, issues))))


def _on_preset(tree: Tree) -> Tree:
    """Return the file's settings merged into those of the method."""
    method = tree.get("method", SweepConfig.model_fields["method"].default)
    preset = METHODS.get(method, {}) if isinstance(method, str) else {}
    there = [section for section in SECTIONS if section in tree or section != "data"]  # rows are no one's default
    return tree | {section: deep_merge(preset.get(section, {}), tree.get(section, {})) for section in there}


def deep_merge(preset: object, written: object) -> object:
    """Merge ``written`` into ``preset``, field by field.

    A loss of another name, or an augmentation of another kind, replaces the preset's as a whole.
    """
    if not isinstance(preset, dict) or not isinstance(written, dict):
        return written
    if is_distribution(preset) or is_distribution(written):
        return written
    if any(tag in preset and written.get(tag, preset[tag]) != preset[tag] for tag in ("name", "kind")):
        return written
    below = {name: deep_merge(preset.get(name), value) for name, value in written.items()}
    return below | {name: deepcopy(value) for name, value in preset.items() if name not in written}


def _search(tree: Tree) -> Search | None:
    search = tree.get("search", "random")
    return search if search in ("random", "grid", "optuna") else None


def _mapping(tree: Tree, name: str) -> Tree:
    """Return the section of a checked tree, empty if it is not stated."""
    section = tree.get(name, {})
    assert isinstance(section, dict)
    return section


def _dumps(trial_configs: Sequence[TrialConfig], section: str) -> list[Tree]:
    return [getattr(trial_config, section).model_dump() for trial_config in trial_configs]


def _filled(written: Tree, dumps: Sequence[Tree]) -> Tree:
    """Fill in the defaults that all ``dumps`` agree on: if the loss is swept, a loss's own fields stay out."""
    filled = dict(written)
    for name, value in dumps[0].items():
        if not all(name in dump for dump in dumps):
            continue
        stated = written.get(name)
        if name not in written:
            if all(dump[name] == value for dump in dumps):
                filled[name] = value
        elif isinstance(stated, dict) and not is_distribution(stated):
            filled[name] = _filled(stated, [_mapping(dump, name) for dump in dumps])
    return filled


def _default_count(config: SweepConfig) -> int:
    different = num_different(drawn_distributions(config))
    if config.search == "grid":
        assert different is not None
        return different
    return DEFAULT_TRIALS if different is None else min(DEFAULT_TRIALS, different)
