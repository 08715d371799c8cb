"""The configuration of a comparison: a sweep file that names methods, seeds and a budget next to shared settings.

A :class:`Comparison` provides the sweep of every method, each with the same budget; ``run_comparison.py`` runs them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from tailsweep.orchestrator.config.distributions import num_different
from tailsweep.orchestrator.config.errors import ConfigIssue, SweepConfigError, did_you_mean, find_issues, show
from tailsweep.orchestrator.config.methods import shared_issues
from tailsweep.orchestrator.config.schema import FolderName, Storage
from tailsweep.orchestrator.config.sweep import Sweep, deep_merge, skips_stage_one, sweep_of, with_overrides
from tailsweep.orchestrator.config.tree import FrozenTree, Tree, thaw
from tailsweep.orchestrator.config.two_phase import drawn_distributions
from tailsweep.orchestrator.config.yaml_io import read_sweep_file
from tailsweep.orchestrator.runs.directory import METHODS_FOLDER
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.baselines import BASELINES, Baseline
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.storage.filesystem import join_location

# Fields that a method must not set: they would make its scores those of other examples, or of another question.
SHARED = ("name", "storage", "seed", "metric", "num_trials", "max_wallclock_seconds", "wandb", "features")
OWN_OF_DATA = ("augmentation",)  # a method may set its augmentation; all methods share the examples

MOST_IN_TIME = 100  # trials of a method whose budget is seconds
# Every method has a folder with the run directories of its search and its retraining, one of each per fold.
SEARCH = "search"
SEEDS = "seeds"


class Budget(Section):
    """The budget of each method's search; exactly one field is set."""

    trials: PositiveInt | None = None  # fewer where a method has fewer different ones
    # The trials, in the order they are drawn, whose epochs of both stages add up to at most this, before any pruning;
    # at least one trial.
    epochs: PositiveInt | None = None
    seconds: PositiveFloat | None = None  # after which no trial is started, see max_wallclock_seconds of a sweep

    @model_validator(mode="after")
    def _just_one(self) -> "Budget":
        if [self.trials, self.epochs, self.seconds].count(None) != 2:
            raise ValueError("must say one of trials, epochs and seconds")
        return self


class ComparisonConfig(Section):
    """The fields that a comparison has beyond those of a sweep."""

    name: FolderName
    storage: Storage = "runs"
    # By name: the settings that a method's sweep adds to the shared ones; the name of a known method needs none.
    methods: Annotated[
        Mapping[FolderName, Tree], Field(min_length=1), AfterValidator(FrozenTree), PlainSerializer(thaw)
    ]
    reference: str = ""  # the method that the others are compared with; default: vanilla, else the first
    budget: Budget = Budget(trials=8)
    # The chosen settings are trained once with each: initialization, order and dropout (the papers' five).
    seeds: Annotated[Sequence[NonNegativeInt], Field(min_length=1), AfterValidator(tuple), PlainSerializer(list)] = (
        7,
        42,
        106,
        190,
        191,
    )
    # Each seed draws a search of its own, and its model is the best of that: what the results say of other seeds, they
    # then say of other searches too. The budget is spent for each seed. False: all seeds have one search's settings.
    search_per_seed: bool = Field(False, exclude_if=lambda value: value is False)
    baselines: Annotated[Sequence[Baseline], AfterValidator(tuple), PlainSerializer(list)] = BASELINES
    folds: int | None = Field(None, ge=2, le=100)  # stratified folds of all examples, each in turn the test split
    resamples: int = Field(2000, ge=100, le=100_000)  # of the test examples, for the intervals of differences

    @field_validator("methods", mode="before")
    @classmethod
    def _list_or_mapping(cls, methods: object) -> object:
        return _as_mapping(methods)

    @field_validator("seeds", mode="after")
    @classmethod
    def _different(cls, seeds: Sequence[int]) -> Sequence[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"is {show(seeds)}, but each seed must appear once: the same seed gives the same model")
        return seeds

    @model_validator(mode="after")
    def _reference_is_a_method(self) -> "ComparisonConfig":
        if self.reference and self.reference not in self.methods:
            raise ValueError(
                f"reference is {show(self.reference)}, but must be one of the methods"
                f"{did_you_mean(self.reference, self.methods)}"
            )
        return self


def _as_mapping(methods: object) -> object:
    """Turn ``[vanilla]`` and ``{vanilla: }`` into ``{vanilla: {}}``; leave anything else for the check to refuse."""
    if isinstance(methods, list):
        methods = {name if isinstance(name, str) else show(name): None for name in methods}
    if isinstance(methods, Mapping):
        return {name: {} if written is None else written for name, written in methods.items()}
    return methods


@dataclass(frozen=True)
class Comparison:
    """A checked comparison, in which every method's sweep is valid."""

    config: ComparisonConfig
    shared: FrozenTree  # the fields of a sweep that all methods share
    notes: list[str]

    @property
    def location(self) -> str:
        """Return the location of the comparison's run directory."""
        return join_location(self.config.storage, self.config.name)

    @property
    def folds(self) -> list[int | None]:
        """Return the folds in turn; only None if the test examples are given."""
        return [None] if self.config.folds is None else list(range(self.config.folds))

    @property
    def draws(self) -> list[int | None]:
        """Return the seeds of a method's searches in turn; only None if there is one search."""
        return list(self.config.seeds) if self.config.search_per_seed else [None]

    @property
    def reference(self) -> str:
        """Return the method that the others are compared with."""
        names = list(self.config.methods)
        return self.config.reference or ("vanilla" if "vanilla" in names else names[0])

    def search(self, method: str, fold: int | None, draw: int | None = None) -> Sweep:
        """Return the sweep that selects a method's settings: of one of the folds, of one of the draws."""
        return _search(self.config, thaw(self.shared), method, fold, draw)

    def first_search(self, method: str) -> Sweep:
        """Return the first of a method's sweeps; the others have the same needs."""
        return self.search(method, self.folds[0], self.draws[0])

    def tree(self) -> Tree:
        """Return the tree that :func:`comparison_of` reads back as an equal comparison."""
        return thaw(self.shared) | self.config.model_dump()


def is_comparison(tree: Tree) -> bool:
    """Return whether a file's content is a comparison; else it is a sweep."""
    return "methods" in tree


def load_comparison(path: Path, overrides: Sequence[str] = (), storage: str | None = None) -> Comparison:
    """Read and check the comparison in the file ``path``, with overrides as in :func:`load_sweep`.

    Raises:
        SweepConfigError: With all errors.
    """
    tree = read_sweep_file(path)
    tree["methods"] = _as_mapping(tree.get("methods"))  # an override may add to one
    malformed = with_overrides(tree, path, overrides, storage)
    if tree["methods"] is None:
        raise SweepConfigError(str(path), [f"methods: is missing: for a sweep there is `tailsweep run {path}`"])
    return comparison_of(tree, str(path), malformed)


def comparison_of(tree: Tree, source: str, malformed: Sequence[ConfigIssue] = ()) -> Comparison:
    """Check ``tree`` as a whole and return the comparison.

    Args:
        tree: The content of the file.
        source: The file, for messages.
        malformed: Errors of overrides.

    Raises:
        SweepConfigError: With all errors.
    """
    fields = ComparisonConfig.model_fields
    own = {name: value for name, value in tree.items() if name in fields}
    shared = {name: value for name, value in tree.items() if name not in fields}
    issues = [*map(str, malformed), *map(str, find_issues(ComparisonConfig, own))]
    issues += [
        f"{name}: is not for a comparison: {hint}"
        for name, hint in (
            ("method", "say methods"),
            ("num_trials", "say budget: {trials: n}"),
            ("max_wallclock_seconds", "say budget: {seconds: n}"),
        )
        if name in shared
    ]
    if own.get("search_per_seed") is True and "seed" in shared:
        issues.append("seed: is of one search, but search_per_seed draws one with each of seeds: leave seed out")
    if issues:
        raise SweepConfigError(source, issues)
    config = ComparisonConfig.model_validate(own)
    notes: list[str] = []
    issues_by_method: dict[str, list[str]] = {method: [] for method in config.methods}
    for method, written in thaw(config.methods).items():
        assert isinstance(written, dict)
        if misplaced := _misplaced(method, written):
            issues += [f"methods.{method}.{text}" for text in misplaced]
            continue
        try:
            sweep = _search(config, shared, method, None if config.folds is None else 0, None)
        except SweepConfigError as error:
            issues_by_method[method] = error.issues
        else:
            notes += [f"{method}: {note}" for note in (*sweep.notes, *_budget_notes(config, sweep))]
    issues += shared_issues(issues_by_method, "methods")
    if issues:
        raise SweepConfigError(source, issues)
    return Comparison(config, FrozenTree(shared), notes)


def _misplaced(method: str, written: Tree) -> list[str]:
    """Return the settings that must not differ between the compared methods."""
    texts = [f"{name}: all methods share it: write it next to methods" for name in SHARED if name in written]
    data = written.get("data", {})
    texts += [
        f"data.{name}: all methods share their examples: write it under data, next to methods"
        for name in (data if isinstance(data, dict) else {})
        if name not in OWN_OF_DATA
    ]
    if "method" in written and not isinstance(written["method"], str):
        texts.append("method: must be one: several side by side are for a sweep")
    if "method" not in written and method.split("/")[0] not in METHODS:
        texts.append(
            "method: is missing, but must be given where the name is not that of a method"
            f"{did_you_mean(method, METHODS)}"
        )
    return texts


def _search(config: ComparisonConfig, shared: Tree, method: str, fold: int | None, draw: int | None) -> Sweep:
    own = thaw(config.methods)[method]
    assert isinstance(own, dict)
    written = {"method": method} | own
    if written["method"] in METHODS and skips_stage_one(written["method"], own):  # whatever that of the others is
        shared = {name: value for name, value in shared.items() if name != "stage_one"}
    tree = deep_merge(shared, written)
    assert isinstance(tree, dict)
    tree["name"] = search_name(fold, draw)
    if draw is not None:
        tree["seed"] = draw
    tree["storage"] = join_location(config.storage, f"{config.name}/{METHODS_FOLDER}/{method}")
    if fold is not None:
        tree["data"] = _with(tree.get("data", {}), {"fold": {"index": fold, "of": config.folds}})
    tree["wandb"] = _with(tree.get("wandb", {}), {"group": f"{config.name}-{method}"})
    free = sweep_of(tree, f"methods.{method}")  # the search space decides how many trials can be drawn
    settled = {"num_trials": _num_trials(config, free), "max_wallclock_seconds": config.budget.seconds}
    return sweep_of(tree | settled, f"methods.{method}")


def _with(written: object, fields: Tree) -> object:
    """Return a section with some fields set; leave what is no mapping for the check to refuse."""
    return written | fields if isinstance(written, dict) else written


def _num_trials(config: ComparisonConfig, sweep: Sweep) -> int:
    if sweep.config.search == "grid":
        rule = "a grid is as large as it is, whatever the budget: say random or optuna, and choice in place of grid"
        raise SweepConfigError("", [f"search: is grid, but {rule}"])
    # With a budget of epochs: a trial has at least one.
    most = config.budget.trials or config.budget.epochs or MOST_IN_TIME
    different = num_different(drawn_distributions(sweep.config, most))
    most = most if different is None else min(most, different)
    if config.budget.epochs is None:
        return most
    if sweep.config.search == "optuna":
        rule = "search: optuna draws a trial only when others have ended: say budget: {trials: n}"
        raise SweepConfigError("", [f"budget.epochs: is {config.budget.epochs}, but {rule}"])
    all_that_may_fit = Sweep.resolved(sweep.config, sweep.name, most).trials()
    spent = itertools.accumulate(total_epochs(trial.config) for trial in all_that_may_fit)
    return max(1, sum(epochs <= config.budget.epochs for epochs in spent))


def fold_name(name: str, fold: int | None) -> str:
    """Return the name of a run or a result in a fold."""
    return name if fold is None else f"{name}-fold{fold}"


def search_name(fold: int | None, draw: int | None) -> str:
    """Return the name of a method's search in a fold, drawn by a seed."""
    return fold_name(SEARCH if draw is None else f"{SEARCH}-seed{draw}", fold)


def total_epochs(trial_config: TrialConfig) -> int:
    """Return the epochs of both stages together."""
    return trial_config.stage_one.epochs + trial_config.stage_two.epochs


def _budget_notes(config: ComparisonConfig, sweep: Sweep) -> list[str]:
    """Return a note on a method that gets less, or more, than the budget."""
    budget = config.budget
    if budget.trials is not None and sweep.num_trials < budget.trials:
        return [f"has {sweep.num_trials} different trial(s), fewer than the budget of {budget.trials}"]
    if budget.epochs is not None and (least := total_epochs(sweep.trials()[0].config)) > budget.epochs:
        return [f"its one trial has {least} epochs, more than the budget of {budget.epochs}: others may have fewer"]
    return []
