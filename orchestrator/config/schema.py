"""The fields of a sweep file: meaning, unit and default of each, and the rules that one field or section can break.

A distribution may stand for a value in the sections of a trial, so that these are trees here, read-only ones. Settings
no one honours yet have no field here.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from tailsweep.orchestrator.config.distributions import Distribution, Search, find_distributions
from tailsweep.orchestrator.config.errors import did_you_mean, show
from tailsweep.orchestrator.config.methods import MethodField
from tailsweep.orchestrator.config.redaction import HINT, has_a_secret
from tailsweep.orchestrator.config.search_space import MAX_TRIALS, SECTIONS, point_values
from tailsweep.orchestrator.config.tree import FrozenTree, TextsField, Tree, TreeField, TreesField, thaw
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.baselines import TextBaseline
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.report_keys import DEFAULT_METRIC, EPOCH_DECIMALS, SCORES, VALIDATION, on_split

DEFAULT_BASELINES: tuple[TextBaseline, ...] = ("tfidf_balanced", "svm_balanced")
DEFAULT_TRIALS = 8  # of a search that draws them
METRICS = tuple(on_split(VALIDATION, score) for score in SCORES)


def _name_of_a_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ValueError(
            f"is {show(name)}, but must be 1 to 128 letters, digits, dots, underscores and hyphens, the first a letter "
            "or digit: it names a folder"
        )
    return name


def _without_a_key(location: str) -> str:
    if has_a_secret(location):
        raise ValueError(f"holds a key or a password: {HINT}")
    return location


Storage = Annotated[str, Field(min_length=1), AfterValidator(_without_a_key)]
FolderName = Annotated[str, AfterValidator(_name_of_a_folder)]


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"is {show(name)}, but must be a validation score{did_you_mean(name, METRICS)}")
    return name


class AshaConfig(Section):
    """Asynchronous successive halving over the epochs of a stage (Li et al. 2020, arXiv 1810.05934)."""

    # No trial is pruned earlier (the paper's r). Below 1: within an epoch, see stage_one.evaluations_per_epoch
    grace_epochs: int | float = Field(1, ge=10**-EPOCH_DECIMALS)
    # In place of grace_epochs: rungs lie at shares of each trial's own epochs, from this one on. Trials of many epochs,
    # whose learning rate falls late, are then not compared halfway with others at their end.
    grace_fraction: float | None = Field(None, gt=0, lt=1, exclude_if=lambda value: value is None)
    reduction_factor: int = Field(3, ge=2)  # of so many trials at a rung one continues (the paper's eta)
    brackets: PositiveInt = 1  # bracket b has its first rung after grace_epochs * reduction_factor**b epochs, b from 0


class StageTwoSearchConfig(Section):
    """How stage two is searched."""

    # Of a two-phase sweep, for each promoted trial: its own, and others of the same distributions. auto: as many as
    # give phase two about num_trials trials.
    settings: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    asha: AshaConfig | None = None  # over the epochs of stage two, among all trials that reach it; null: no pruning


class StageResources(Section):
    """What the Ray Train run of one trial asks for."""

    workers: PositiveInt = 1
    # Elastic, where below `workers`: a run that loses a node resumes as few as these, and grows again. The rows of
    # an optimizer step stay as many.
    min_workers: PositiveInt | None = None
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: float = Field(0.0, ge=0)  # below 1: a share of one GPU

    @model_validator(mode="after")
    def _no_fewer_than_one_more_than_all(self) -> "StageResources":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, but must be at most workers ({self.workers})")
        return self

    @field_validator("gpus_per_worker", mode="after")
    @classmethod
    def _whole_or_a_share(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"is {gpus}, but above 1 must be a whole number: Ray shares out single GPUs only")
        return gpus


class ResourcesConfig(Section):
    """The resources of one trial in each stage."""

    # Of phase one of a two-phase sweep; in single-phase mode, stage two's serve both stages
    stage_one: StageResources = StageResources()
    stage_two: StageResources = StageResources()


class FeaturesConfig(Section):
    """The outputs of stage one's frozen trunk: made once, kept for all trials and for later sweeps."""

    cache: Literal["auto", "off"] = "auto"  # off: the trunk is run at every step
    dir: str | None = None  # a folder of each node; null: $TAILSWEEP_CACHE, else below the user's cache folder
    max_gb: PositiveFloat = 50.0  # of one entry; where more is needed, the trunk is run at every step
    dtype: Literal["fp32", "bf16"] = "fp32"  # bf16: half the size, and numbers of three digits


class SelectionConfig(Section):
    """What the model of a sweep is chosen among, next to its completed trials; see orchestrator/selection/choice.py."""

    stage_one: bool = True  # what stage one of these trials ended with
    baselines: bool = True  # the sweep's `baselines`
    # Of an ensemble, the mean of the best trials and baselines: its cost in use is that of all its members. 1: no
    # ensemble; `best/` is then one model.
    max_members: int = Field(8, ge=1, le=50)
    # auto: logit adjustment (Menon et al. 2021), where it gains more than one standard error on examples left out of
    # its fit; none: never. With a classifier or a decision under `postprocess` it is never, either.
    decision: Literal["auto", "none"] = Field("auto", exclude_if=lambda value: value == "auto")
    # Whether the chosen model is trained again on training and validation examples together, with the same settings.
    refit: bool = Field(False, exclude_if=lambda value: not value)
    # The best half of the models, at most max_members, is trained again on all of so many stratified folds of training
    # and validation examples but one, which each predicts: with few validation examples, a choice by many more. The
    # chosen model is then trained on all of them, as by refit.
    folds: int | None = Field(None, ge=2, le=20, exclude_if=lambda value: value is None)
    # accuracy: an ensemble, unless something simpler is better by more than one standard error of the difference.
    # simplicity: a baseline, else one trial, unless something else is.
    prefer: Literal["accuracy", "simplicity"] = "accuracy"

    @property
    def trains_again(self) -> bool:
        """Whether the chosen model is trained on training and validation examples."""
        return self.refit or self.folds is not None


class ExportConfig(Section):
    """What is written of the chosen model next to its folder's weights."""

    onnx: bool = False  # model.onnx, checked against the model on 100 rows; needs the extra of that name


class WandbConfig(Section):
    """Where the runs appear at Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = "offline"  # offline: written to the run directory, synced by hand
    project: str = Field("tailsweep", min_length=1)
    entity: str | None = None  # the user or team at W&B; null: the account's own
    group: str | None = None  # of the sweep's runs; null: the sweep's name
    tags: TextsField = ()


class SweepConfig(Section):
    """A sweep as its file states it, resolved: preset and defaults filled in, distributions still in place."""

    name: FolderName | None = None  # run directory <storage>/<name>; null: file and time
    storage: Storage = "runs"  # a folder, or any pyarrow filesystem URI
    seed: int = Field(0, ge=0, lt=2**32)  # of the draws and of every trial
    # Fills what the file leaves out of the trial. Several are searched side by side, see methods.py.
    method: MethodField = "two_stage"
    # null: 8 at random, or the whole grid; 4 of each of several methods. Of several, each has its share.
    num_trials: PositiveInt | None = Field(None, le=MAX_TRIALS)
    # Wall seconds after which no trial is started; those that run continue. In a two-phase sweep: in its phase one.
    max_wallclock_seconds: PositiveFloat | None = None
    search: Search = "random"  # optuna: TPE, each trial drawn based on those that have ended
    initial_points: TreesField = ()  # of the first trials; others are drawn
    metric: Annotated[str, AfterValidator(_known_metric)] = DEFAULT_METRIC  # larger is better
    asha: AshaConfig | None = AshaConfig()  # over the epochs of stage one; null: no pruning
    # K: the K best after stage one do stage two; all: each trial does both stages at a stretch; auto: a quarter, or all
    # where there is nothing to promote by (see two_phase.py).
    promote: Literal["auto", "all"] | PositiveInt = "auto"
    stage_two_search: StageTwoSearchConfig = StageTwoSearchConfig()
    max_concurrent: Literal["auto"] | PositiveInt = "auto"  # trials at once; auto: as many as the cluster holds
    # How often a trial continues from its last checkpoint when a process or a node of it died, or storage refused a
    # file. Its own errors are not tried again, and nodes taken back with notice are not counted.
    retries: int = Field(3, ge=0, le=1000)
    max_consecutive_failures: PositiveInt = 5  # in a row and of one cause, after which the sweep stops
    # The sections of TrialConfig, in which a distribution may stand for a value:
    data: TreeField
    model: TreeField = FrozenTree()
    stage_one: TreeField = FrozenTree()
    stage_two: TreeField = FrozenTree()
    postprocess: PostprocessConfig = (
        PostprocessConfig()
    )  # what is done to the chosen model after training; by default nothing
    # What the best model is set against: classifiers of seconds, fitted to the same examples (trainables/baselines.py)
    baselines: Annotated[Sequence[TextBaseline], AfterValidator(tuple), PlainSerializer(list)] = Field(
        DEFAULT_BASELINES, exclude_if=lambda value: tuple(value) == DEFAULT_BASELINES
    )
    # Fields that sweeps of earlier versions lack are left out of a file where they have their defaults.
    selection: SelectionConfig = Field(SelectionConfig(), exclude_if=lambda value: value == SelectionConfig())
    export: ExportConfig = Field(ExportConfig(), exclude_if=lambda value: value == ExportConfig())
    resources: ResourcesConfig = ResourcesConfig()
    wandb: WandbConfig = WandbConfig()
    features: FeaturesConfig = FeaturesConfig()

    @property
    def trial_tree(self) -> Tree:
        """Return a plain copy of the four sections of a trial, with their distributions."""
        return {section: thaw(getattr(self, section)) for section in SECTIONS}

    @property
    def trial_distributions(self) -> dict[str, Distribution]:
        """Return every distribution of ``trial_tree`` by dotted field."""
        return find_distributions(self.trial_tree)

    @property
    def point_values(self) -> list[Tree]:
        """Return ``initial_points`` by dotted field."""
        distributions = self.trial_distributions
        return [point_values(thaw(point), distributions)[0] for point in self.initial_points]
