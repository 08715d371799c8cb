"""What one sweep is: :class:`SweepConfig`, loaded from YAML, with every mistake reported at once.

``load_sweep`` reads the file, lays it over the method's preset, fills in the defaults and checks what can be checked
without touching rows, models or a cluster. Settings nobody honours yet have no field here.
"""

import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator

from orchestrator.mistakes import (
    Mistake,
    SweepConfigError,
    alternatives,
    did_you_mean,
    find_mistakes,
    in_file_order,
    show,
)
from orchestrator.search_space import (
    LISTS,
    MAX_CANDIDATES,
    SECTIONS,
    Candidate,
    Distribution,
    Search,
    candidate,
    candidates,
    distribution_mistakes,
    find_distributions,
    is_distribution,
    num_different,
    point_values,
    probe_mistakes,
    settings,
    substitute,
)
from orchestrator.sweep_file import Tree, parse_number, parse_yaml, read_sweep_file, split_override, write_yaml
from trainables.config import Section, TrialConfig
from trainables.keys import SCORES, STAGES, VALIDATION, on_split
from trainables.methods import METHODS

__all__ = [
    "AshaConfig",
    "FeaturesConfig",
    "ResourcesConfig",
    "StageResources",
    "Sweep",
    "SweepConfig",
    "SweepConfigError",
    "WandbConfig",
    "load_sweep",
    "to_yaml",
]

METRICS = tuple(on_split(VALIDATION, score) for score in SCORES)
DEFAULT_CANDIDATES = 8


def _name_of_a_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ValueError(
            f"is {show(name)}, but must be 1 to 128 letters, digits, dots, underscores and hyphens, the first a letter "
            "or digit: it names a folder"
        )
    return name


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"is {show(name)}, but must be a method{did_you_mean(name, METHODS)}")
    return name


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"is {show(name)}, but must be a validation score{did_you_mean(name, METRICS)}")
    return name


class AshaConfig(Section):
    """Asynchronous successive halving over the epochs of stage one (Li et al. 2020, arXiv 1810.05934)."""

    grace_epochs: PositiveInt = 1  # no candidate is pruned earlier (the paper's r)
    reduction_factor: int = Field(3, ge=2)  # of so many candidates at a rung one goes on (the paper's eta)
    brackets: PositiveInt = 1  # bracket b has its first rung after grace_epochs * reduction_factor**b epochs, b from 0


class StageResources(Section):
    """What the Ray Train run of one candidate asks for."""

    workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: float = Field(0.0, ge=0)  # below 1: a share of one GPU

    @field_validator("gpus_per_worker", mode="after")
    @classmethod
    def _whole_or_a_share(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"is {gpus}, but above 1 must be a whole number: Ray shares out single GPUs only")
        return gpus


class ResourcesConfig(Section):
    stage_one: StageResources = StageResources()  # of a tournament's first round; inline, stage two's serve both stages
    stage_two: StageResources = StageResources()


class FeaturesConfig(Section):
    """The outputs of stage one's frozen trunk: made once, kept for all candidates and for later sweeps."""

    cache: Literal["auto", "off"] = "auto"  # off: the trunk is run at every step
    dir: str | None = None  # a folder of each node; null: $TAILSWEEP_CACHE, else below the user's cache folder
    max_gb: PositiveFloat = 50.0  # of one entry; where more is needed, the trunk is run at every step
    dtype: Literal["fp32", "bf16"] = "fp32"  # bf16: half the size, and numbers of three digits


class WandbConfig(Section):
    mode: Literal["offline", "online", "disabled"] = "offline"  # offline: written to the run directory, synced by hand
    project: str = Field("tailsweep", min_length=1)
    entity: str | None = None  # the user or team at W&B; null: the account's own
    tags: list[str] = Field(default_factory=list)


class SweepConfig(Section):
    """A sweep as its file states it, resolved: preset and defaults filled in, distributions still in place."""

    name: Annotated[str, AfterValidator(_name_of_a_folder)] | None = (
        None  # run directory <storage>/<name>; null: file and time
    )
    storage: str = Field("runs", min_length=1)  # a folder, or any pyarrow filesystem URI
    seed: int = Field(0, ge=0, lt=2**32)  # of the draws and of every candidate
    method: Annotated[str, AfterValidator(_known_method)] = "two_stage"  # fills the stages where the file says nothing
    num_candidates: PositiveInt | None = Field(None, le=MAX_CANDIDATES)  # null: 8 at random, or the whole grid
    search: Search = "random"  # optuna: TPE, each candidate drawn in the light of those that have ended
    points: list[dict[str, Any]] = Field(default_factory=list)  # settings of the first candidates; the rest is drawn
    metric: Annotated[str, AfterValidator(_known_metric)] = on_split(VALIDATION, "macro_f1")  # larger is better
    asha: AshaConfig | None = AshaConfig()  # null: no pruning
    promote: Literal["all"] | PositiveInt = "all"  # all: each candidate does both stages; K: the K best do stage two
    max_concurrent: Literal["auto"] | PositiveInt = "auto"  # candidates at once; auto: as many as the cluster holds
    # The sections of TrialConfig, in which a distribution may stand for a value:
    data: dict[str, Any]
    model: dict[str, Any] = Field(default_factory=dict)
    stage_one: dict[str, Any] = Field(default_factory=dict)
    stage_two: dict[str, Any] = Field(default_factory=dict)
    resources: ResourcesConfig = ResourcesConfig()
    wandb: WandbConfig = WandbConfig()
    features: FeaturesConfig = FeaturesConfig()

    @property
    def trial_tree(self) -> Tree:
        """The four sections of a trial, with their distributions."""
        return {section: getattr(self, section) for section in SECTIONS}

    @property
    def point_values(self) -> list[dict[str, Any]]:
        """``points`` by dotted field."""
        distributions = find_distributions(self.trial_tree)
        return [point_values(point, distributions)[0] for point in self.points]


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
            self.config.trial_tree,
            search=self.config.search,
            num_candidates=self.num_candidates,
            seed=self.config.seed,
            points=self.config.point_values,
        )

    def candidate(self, number: int, values: Mapping[str, Any]) -> Candidate:
        """The candidate that an adaptive search has drawn ``values`` for."""
        return candidate(self.config.trial_tree, number, values, self.config.seed)

    def representatives(self) -> list[TrialConfig]:
        """Trials that stand for all that may be drawn, as far as rows and features go: one for every combination of
        what these depend on."""
        tree = self.config.trial_tree
        distributions = find_distributions(tree)
        firsts = {field: distribution.probes()[0][0] for field, distribution in distributions.items()}
        deciding = [field for field in distributions if _decides_features(field)]
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
    malformed = []
    for override in overrides:
        try:
            _apply(tree, override)
        except ValueError as error:
            malformed.append(Mistake((), str(error)))
    if storage is not None:
        tree["storage"] = storage
    if tree.get("name") is None:
        tree["name"] = _default_name(path)
    return _checked(tree, malformed, str(path))


def to_yaml(sweep: Sweep) -> str:
    """The resolved sweep as YAML that :func:`load_sweep` reads back as an equal sweep."""
    return write_yaml(sweep.config.model_dump())


def _apply(tree: Tree, override: str) -> None:
    """Sets one field in ``tree``, in place."""
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


def _default_name(path: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:100].lstrip("-._") or "sweep"
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _checked(tree: Tree, mistakes: Sequence[Mistake], source: str) -> Sweep:
    """``tree`` resolved and checked as a whole."""
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
    _raise_any([*mistakes, *in_file_order([*misplaced, *others], tree)], source)

    filled = tree | {section: _filled(tree.get(section, {}), _dumps(trials, section)) for section in SECTIONS}
    config = SweepConfig.model_validate(filled)
    distributions = find_distributions(config.trial_tree)
    mistakes = _count_mistakes(config, distributions) + _asha_mistakes(config, trials)
    _raise_any(mistakes + _search_mistakes(config, distributions), source)
    config = config.model_copy(
        update={"num_candidates": config.num_candidates or _default_count(config, distributions)}
    )
    _raise_any(_candidate_mistakes(config) + _tournament_mistakes(config, trials), source)
    return Sweep(config, _notes(config, distributions, trials))


def _raise_any(mistakes: Sequence[Mistake], source: str) -> None:
    if mistakes:
        raise SweepConfigError(source, list(dict.fromkeys(map(str, mistakes))))


def _on_preset(tree: Tree) -> Tree:
    """The method's stages beneath those of the file."""
    method = tree.get("method", SweepConfig.model_fields["method"].default)
    preset = METHODS.get(method, {}) if isinstance(method, str) else {}
    stages = {stage: _overlaid(preset.get(stage, {}), tree.get(stage, {})) for stage in STAGES}
    return tree | {"model": tree.get("model", {})} | stages


def _overlaid(preset: Any, written: Any) -> Any:
    """``written`` over ``preset``, field by field; a loss of another name takes the preset's whole place."""
    if not isinstance(preset, Mapping) or not isinstance(written, dict) or is_distribution(written):
        return written
    if "name" in preset and written.get("name", preset["name"]) != preset["name"]:
        return written
    below = {name: _overlaid(preset.get(name), value) for name, value in written.items()}
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


def _default_count(config: SweepConfig, distributions: Mapping[str, Distribution]) -> int:
    different = num_different(distributions)
    if config.search == "grid":
        assert different is not None
        return different
    return DEFAULT_CANDIDATES if different is None else min(DEFAULT_CANDIDATES, different)


def _count_mistakes(config: SweepConfig, distributions: Mapping[str, Distribution]) -> list[Mistake]:
    """Candidates that cannot all be different."""
    different, asked = num_different(distributions), config.num_candidates
    path = ("num_candidates",)
    if config.search == "grid":
        assert different is not None
        if different > MAX_CANDIDATES:
            return [Mistake(path, f"the grid has {different} points, but must have at most {MAX_CANDIDATES}")]
        doubled = [
            Mistake(tuple(field.split(".")), "names a value twice: its candidates would be the same")
            for field, distribution in distributions.items()
            if distribution.num_values() != len(distribution.values)
        ]
        if asked not in (None, different) and not doubled:
            return [Mistake(path, f"is {asked}, but the grid has {different} points: leave num_candidates out")]
        return doubled
    if asked is None or different is None or asked <= different:
        return []
    if not distributions:
        return [
            Mistake(path, f"is {asked}, but no field is swept, so that all would be the same: say 1, or sweep a field")
        ]
    return [
        Mistake(
            path, f"is {asked}, but only {different} different candidates can be drawn: say {different}, or sweep more"
        )
    ]


def _search_mistakes(config: SweepConfig, distributions: Mapping[str, Distribution]) -> list[Mistake]:
    """Points that are no points of the space, and what an adaptive search cannot draw."""
    mistakes = []
    for number, point in enumerate(config.points):
        path: tuple[str | int, ...] = ("points", number)
        if config.search == "grid":
            mistakes.append(Mistake(path, "a grid has its points already: leave points out, or say search: random"))
        values, others = point_values(point, distributions)
        for other in others:
            text = f"is not swept{did_you_mean('.'.join(map(str, other)), distributions)}"
            mistakes.append(Mistake((*path, *other), text))
        for field, value in values.items():
            if not distributions[field].holds(value):
                text = f"is {show(value)}, but is never drawn from {_written(distributions[field])}"
                mistakes.append(Mistake((*path, *field.split(".")), text))
    if config.search == "optuna":
        if importlib.util.find_spec("optuna") is None:
            mistakes.append(Mistake(("search",), "is optuna, which is not installed: pip install 'tailsweep[optuna]'"))
        for field, distribution in distributions.items():
            if _decides_features(field) and distribution.kind not in LISTS:
                rule = "must be fixed or {choice: [...]} with search: optuna: features are made for every value of it"
                mistakes.append(Mistake(tuple(field.split(".")), f"is {_written(distribution)}, but {rule}"))
    return mistakes


def _written(distribution: Distribution) -> str:
    return show({distribution.kind: list(distribution.values)})


def _decides_features(field: str) -> bool:
    """Whether rows or features depend on a field, see ``records.made_of``."""
    within = ("data.", "model.", "stage_one.trains", "stage_one.frozen_dropout", "stage_one.epochs")
    return field.startswith(within)


def _asha_mistakes(config: SweepConfig, trials: Sequence[TrialConfig]) -> list[Mistake]:
    """Brackets without a rung. That even the first has none is a note only: ASHA is on unless switched off."""
    if config.asha is None:
        return []
    epochs = max(trial.stage_one.epochs for trial in trials)
    last = config.asha.brackets - 1
    first_rungs = [config.asha.grace_epochs]
    while first_rungs[-1] <= epochs:
        first_rungs.append(first_rungs[-1] * config.asha.reduction_factor)
    held = len(first_rungs) - 1  # brackets with a rung
    if last < max(held, 1):
        return []
    rule = f"at most {held}" if held else "1"
    reason = f"the first rung of bracket {max(held, 1)} (from 0) lies beyond stage one's {epochs} epochs"
    return [Mistake(("asha", "brackets"), f"is {config.asha.brackets}, but must be {rule}: {reason}")]


def _tournament_mistakes(config: SweepConfig, trials: Sequence[TrialConfig]) -> list[Mistake]:
    """What a first round needs: a stage one to rank by, a stage two to be promoted to, and more to choose from."""
    if config.promote == "all":
        return []
    assert config.num_candidates is not None
    mistakes = []
    if config.promote > config.num_candidates:
        rule = f"must be at most num_candidates ({config.num_candidates}), or all"
        mistakes.append(Mistake(("promote",), f"is {config.promote}, but {rule}"))
    for stage in STAGES:
        if any(getattr(trial, stage).epochs == 0 for trial in trials):
            reason = "promotion is by rank after stage one, for stage two: say promote: all"
            mistakes.append(
                Mistake((stage, "epochs"), f"is 0, but must be at least 1 where promote is a number; {reason}")
            )
    if config.resources.stage_one.workers != 1:
        found = config.resources.stage_one.workers
        rule = "must be 1: a first round's candidate trains in one process, and many do at once"
        mistakes.append(Mistake(("resources", "stage_one", "workers"), f"is {found}, but {rule}"))
    return mistakes


def _candidate_mistakes(config: SweepConfig) -> list[Mistake]:
    """Rules between fields that only a whole candidate can break. One candidate is named for each."""
    assert config.num_candidates is not None
    found: dict[Mistake, str] = {}
    tree = config.trial_tree
    drawn = settings(
        tree, search=config.search, num_candidates=config.num_candidates, seed=config.seed, points=config.point_values
    )
    for number, values in enumerate(drawn):
        where = f"candidate c{number:03d}: {', '.join(f'{field} = {show(value)}' for field, value in values.items())}"
        for mistake in find_mistakes(TrialConfig, substitute(tree, values)):
            found.setdefault(mistake, where)
    return [Mistake(mistake.path, f"{mistake.text} ({where})") for mistake, where in found.items()]


def _notes(config: SweepConfig, distributions: Mapping[str, Distribution], trials: Sequence[TrialConfig]) -> list[str]:
    notes = []
    if not distributions:
        notes.append("no field is swept: there is one candidate")
    epochs = max(trial.stage_one.epochs for trial in trials)
    if config.asha is not None and epochs < config.asha.grace_epochs:
        notes.append(
            f"asha prunes nothing: its first rung comes after epoch {config.asha.grace_epochs} of stage one, which has "
            f"{epochs}"
        )
    for stage in STAGES:
        swept = [field for field in distributions if field.startswith(f"{stage}.") and field != f"{stage}.epochs"]
        if swept and all(getattr(trial, stage).epochs == 0 for trial in trials):
            notes.append(f"sweeping {', '.join(swept)} changes nothing: {stage}.epochs is 0")
    if config.promote == "all" and config.resources.stage_one != StageResources():
        notes.append(
            "resources.stage_one has no effect with promote: all; both stages run on the workers of resources.stage_two"
        )
    resources = config.resources.stage_two
    if resources.workers > 1 and 0 < resources.gpus_per_worker < 1:
        notes.append(
            f"{resources.workers} workers with {resources.gpus_per_worker} of a GPU each may share one: they talk over "
            "gloo, as NCCL needs a GPU per worker"
        )
    return notes
