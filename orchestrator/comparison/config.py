"""What one comparison is: a sweep file that names methods, seeds and a budget beside what its sweeps share.

A :class:`Comparison` gives the sweep of every method, each with the same budget; how they are run is the business of
``compare.py``.
"""

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator
from tailsweep.orchestrator.config.errors import Mistake, SweepConfigError, did_you_mean, find_mistakes, show
from tailsweep.orchestrator.config.schema import FolderName, Storage
from tailsweep.orchestrator.config.search_space import find_distributions, num_different
from tailsweep.orchestrator.config.sweep import Sweep, laid_over, sweep_of, with_overrides
from tailsweep.orchestrator.config.yaml_io import Tree, read_sweep_file
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.storage.filesystem import join_location

Baseline = Literal["tfidf", "tfidf_balanced", "embeddings", "embeddings_balanced"]  # what they are: baselines.py
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
# Of a method's own settings: what would make its scores those of other rows, or of another question.
SHARED = ("name", "storage", "seed", "metric", "num_candidates", "max_seconds", "wandb", "features")
OWN_OF_DATA = ("augmentation",)  # a method may say how its training rows are augmented; the rows are everybody's

MOST_IN_TIME = 100  # candidates of a method whose budget is seconds
# Every method has a folder; in it its search and its retraining are run directories, one of each per fold.
METHODS_FOLDER = "methods"
SEARCH = "search"
SEEDS = "seeds"


class Budget(Section):
    """Of each method's search: one of these."""

    candidates: PositiveInt | None = None  # fewer where a method has fewer different ones
    # As many candidates, in the order they are drawn, as have so many epochs of both stages between them, before any
    # pruning; one at least.
    epochs: PositiveInt | None = None
    seconds: PositiveFloat | None = None  # after which no candidate is started, see max_seconds of a sweep

    @model_validator(mode="after")
    def _just_one(self) -> "Budget":
        if [self.candidates, self.epochs, self.seconds].count(None) != 2:
            raise ValueError("must say one of candidates, epochs and seconds")
        return self


class ComparisonConfig(Section):
    """The fields that a comparison has beyond those of a sweep."""

    name: FolderName
    storage: Storage = "runs"
    # By name: what the method's sweep has beyond the shared settings; a method's own name may stand alone.
    methods: Annotated[dict[FolderName, dict[str, Any]], Field(min_length=1)]
    reference: str = ""  # the method that the others are set against; default: vanilla, else the first
    budget: Budget = Budget(candidates=8)
    # The chosen settings are trained once with each: initialisation, order and dropout (the papers' five).
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = Field(default_factory=lambda: [7, 42, 106, 190, 191])
    baselines: list[Baseline] = Field(default_factory=lambda: list(BASELINES))
    folds: int | None = Field(None, ge=2, le=100)  # stratified folds of all rows, each in turn the test rows
    resamples: int = Field(2000, ge=100, le=100_000)  # of the test rows, for the intervals of differences

    @field_validator("methods", mode="before")
    @classmethod
    def _list_or_mapping(cls, methods: Any) -> Any:
        return _as_mapping(methods)

    @field_validator("seeds", mode="after")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"is {show(seeds)}, but each seed must stand there once: the same seed gives the same model"
            )
        return seeds

    @model_validator(mode="after")
    def _reference_is_a_method(self) -> "ComparisonConfig":
        if self.reference and self.reference not in self.methods:
            raise ValueError(
                f"reference is {show(self.reference)}, but must be one of the methods"
                f"{did_you_mean(self.reference, self.methods)}"
            )
        return self


def _as_mapping(methods: Any) -> Any:
    """``[vanilla]`` and ``{vanilla: }`` are ``{vanilla: {}}``; what is neither stays for the check to refuse."""
    if isinstance(methods, list):
        methods = {name if isinstance(name, str) else show(name): None for name in methods}
    if isinstance(methods, Mapping):
        return {name: {} if written is None else written for name, written in methods.items()}
    return methods


@dataclass(frozen=True)
class Comparison:
    """A checked comparison: every method's sweep is a valid one."""

    config: ComparisonConfig
    shared: Tree  # the fields of a sweep that all methods share
    notes: list[str]

    @property
    def location(self) -> str:
        return join_location(self.config.storage, str(self.config.name))

    @property
    def folds(self) -> list[int | None]:
        """The folds in turn; None alone: the test rows are given."""
        return [None] if self.config.folds is None else list(range(self.config.folds))

    @property
    def reference(self) -> str:
        names = list(self.config.methods)
        return self.config.reference or ("vanilla" if "vanilla" in names else names[0])

    def search(self, method: str, fold: int | None) -> Sweep:
        """The sweep that a method's settings are chosen in."""
        return _search(self.config, self.shared, method, fold)

    def tree(self) -> Tree:
        """What :func:`comparison_of` reads back as an equal comparison."""
        return deepcopy(self.shared) | self.config.model_dump()


def is_comparison(tree: Tree) -> bool:
    """Whether a file's content is a comparison; else it is a sweep."""
    return "methods" in tree


def load_comparison(path: Path, overrides: Sequence[str] = (), storage: str | None = None) -> Comparison:
    """The comparison in the file ``path``, with overrides as :func:`load_sweep` has them.

    Raises:
        SweepConfigError: with all mistakes.
    """
    tree = read_sweep_file(path)
    tree["methods"] = _as_mapping(tree.get("methods"))  # an override may say more of one
    malformed = with_overrides(tree, path, overrides, storage)
    if tree["methods"] is None:
        raise SweepConfigError(str(path), [f"methods: is missing: for a sweep there is `tailsweep run {path}`"])
    return comparison_of(tree, str(path), malformed)


def comparison_of(tree: Tree, source: str, malformed: Sequence[Mistake] = ()) -> Comparison:
    """``tree`` checked as a whole."""
    fields = ComparisonConfig.model_fields
    own = {name: value for name, value in tree.items() if name in fields}
    shared = {name: value for name, value in tree.items() if name not in fields}
    mistakes = [*map(str, malformed), *map(str, find_mistakes(ComparisonConfig, own))]
    mistakes += [
        f"{name}: is not for a comparison: {remedy}"
        for name, remedy in (
            ("method", "say methods"),
            ("num_candidates", "say budget: {candidates: n}"),
            ("max_seconds", "say budget: {seconds: n}"),
        )
        if name in shared
    ]
    if mistakes:
        raise SweepConfigError(source, mistakes)
    config = ComparisonConfig.model_validate(own)
    notes: list[str] = []
    found: dict[str, list[str]] = {}  # by mistake: the methods that have it
    for method, written in config.methods.items():
        if misplaced := _misplaced(method, written):
            mistakes += [f"methods.{method}.{text}" for text in misplaced]
            continue
        try:
            sweep = _search(config, shared, method, None if config.folds is None else 0)
        except SweepConfigError as error:
            for text in error.mistakes:
                found.setdefault(text, []).append(method)
        else:
            notes += [f"{method}: {note}" for note in (*sweep.notes, *_few(config, sweep))]
    for text, methods in found.items():
        everywhere = len(methods) == len(config.methods)
        mistakes += [text] if everywhere else [f"methods.{method}: {text}" for method in methods]
    if mistakes:
        raise SweepConfigError(source, mistakes)
    return Comparison(config, shared, notes)


def _misplaced(method: str, written: Tree) -> list[str]:
    """What may not differ between methods that are to be compared."""
    texts = [f"{name}: all methods share it: write it beside methods" for name in SHARED if name in written]
    data = written.get("data", {})
    texts += [
        f"data.{name}: all methods share their rows: write it under data, beside methods"
        for name in (data if isinstance(data, dict) else {})
        if name not in OWN_OF_DATA
    ]
    if "method" not in written and method.split("/")[0] not in METHODS:
        texts.append(
            "method: is missing, and must be given where the name is not that of a method"
            f"{did_you_mean(method, METHODS)}"
        )
    return texts


def _search(config: ComparisonConfig, shared: Tree, method: str, fold: int | None) -> Sweep:
    written = {"method": method} | config.methods[method]
    tree: Tree = laid_over(shared, written)
    tree["name"] = of_fold(SEARCH, fold)
    tree["storage"] = join_location(config.storage, f"{config.name}/{METHODS_FOLDER}/{method}")
    if fold is not None:
        tree["data"] = _with(tree.get("data", {}), {"fold": {"index": fold, "of": config.folds}})
    tree["wandb"] = _with(tree.get("wandb", {}), {"group": f"{config.name}-{method}"})
    free = sweep_of(tree, f"methods.{method}")  # what there is to draw from decides how many can be drawn
    settled = {"num_candidates": _num_candidates(config, free), "max_seconds": config.budget.seconds}
    return sweep_of(tree | settled, f"methods.{method}")


def _with(written: Any, fields: Tree) -> Any:
    """A section with some fields set; what is no mapping stays for the check to refuse."""
    return written | fields if isinstance(written, dict) else written


def _num_candidates(config: ComparisonConfig, sweep: Sweep) -> int:
    different = num_different(find_distributions(sweep.config.drawn_tree))
    if sweep.config.search == "grid":
        rule = "a grid is as large as it is, whatever the budget: say random or optuna, and choice in place of grid"
        raise SweepConfigError("", [f"search: is grid, but {rule}"])
    # Of a budget of epochs: a candidate has one at least.
    most = config.budget.candidates or config.budget.epochs or MOST_IN_TIME
    most = most if different is None else min(most, different)
    if config.budget.epochs is None:
        return most
    if sweep.config.search == "optuna":
        rule = "search: optuna draws a candidate only when others have ended: say budget: {candidates: n}"
        raise SweepConfigError("", [f"budget.epochs: is {config.budget.epochs}, but {rule}"])
    all_that_may_fit = Sweep(sweep.config.model_copy(update={"num_candidates": most}), notes=[]).candidates()
    spent = itertools.accumulate(epochs_of(candidate.trial) for candidate in all_that_may_fit)
    return max(1, sum(epochs <= config.budget.epochs for epochs in spent))


def of_fold(name: str, fold: int | None) -> str:
    return name if fold is None else f"{name}-fold{fold}"


def epochs_of(trial: TrialConfig) -> int:
    return trial.stage_one.epochs + trial.stage_two.epochs


def _few(config: ComparisonConfig, sweep: Sweep) -> list[str]:
    asked = config.budget.candidates
    if asked is None or sweep.num_candidates >= asked:
        return []
    return [f"has {sweep.num_candidates} different candidate(s), fewer than the budget of {asked}"]
