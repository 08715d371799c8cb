"""What a sweep passes to its trials: checked models, which Ray carries as plain values (``dump``)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import NonNegativeFloat, PositiveInt, model_validator
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.report_keys import Stage

if TYPE_CHECKING:  # the driver of a trial imports this module and needs neither torch nor Ray
    from ray.actor import ActorHandle
    from tailsweep.trainables.execution.feature_plan import FeaturePlan


class Placement(Section):
    """The resources of one Train run."""

    workers: PositiveInt
    min_workers: PositiveInt  # a run continues with as few as these after a node is lost
    cpus_per_worker: NonNegativeFloat
    gpus_per_worker: NonNegativeFloat

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, but must be at most workers ({self.workers})")
        return self


class FeatureSource(Section):
    """Where a trial's features come from, see ``inputs.open_features``."""

    plan: dict[str, object]  # FeaturePlan, dumped
    published: str  # URI of the parts that the sweep has published
    num_parts: PositiveInt
    cache_dir: str | None  # ``features.dir`` of the sweep; None: the project's cache

    def load_plan(self) -> "FeaturePlan":
        """Return the plan of the features."""
        from tailsweep.trainables.execution.feature_plan import FeaturePlan

        return FeaturePlan.load(self.plan)


class WorkerConfig(Section):
    """The configuration of a trial's workers."""

    trial: TrialConfig
    metric: str  # the key of the score that ranks reports, and that a stage with patience waits for
    data: DataSource
    features: FeatureSource | None  # of stage one's frozen trunk; None: the trunk is run live
    resume_from: tuple[str, ...]  # URIs of the folders with checkpoints: the trial's own, its parent's
    weights: str | None = None  # of the pretrained model, see `models.hub.weights_digest`; None: not known


class TuneTrialConfig(Section):
    """One trial as Tune passes it to a trainable: ``config["trial"]``, the only key of Tune's own ``config``."""

    name: str  # of the trial and of its Train run, so that an interrupted run is resumed
    worker: WorkerConfig
    reported: tuple[tuple[Stage, int | float], ...]  # the (stage, epoch) pairs already in the sweep's history

    def dump(self) -> dict[str, object]:
        """Return the trial as plain values: Tune writes them to JSON, and merges them with its own."""
        return self.model_dump(mode="json")

    @property
    def reported_places(self) -> set[tuple[str, float]]:
        """The (stage, epoch) pairs already in the sweep's history."""
        return {(stage.value, epoch) for stage, epoch in self.reported}


class StackConfig(Section):
    """A stack of trials as Tune passes it to a trainable, see ``stacks/stack.py``."""

    name: str  # of its folder of checkpoints
    members: tuple[TuneTrialConfig, ...]  # at least one
    resume_from: str | None  # URI of the folder of the stack that an earlier process trained them in

    def dump(self) -> dict[str, object]:
        """Return the stack as plain values.

        The members are one string: Tune looks for distributions to draw from in every value of a dictionary.
        """
        names = [member.name for member in self.members]
        return {"name": self.name, "trials": names, "json": self.model_dump_json()}


@dataclass(frozen=True)
class TrialSetup:
    """What the trials of a phase share."""

    checkpoints_uri: str  # of the folder that holds one folder of checkpoints per trial
    slots_uri: str  # of the folder that Ray Train has for each slot
    stacks_uri: str  # of the folder that holds one folder of checkpoints per stack
    placement: Placement
    report_queue: "ActorHandle | None"  # of a ReportQueue; None where the trials train in Tune's own processes
    retries: int  # of each trial, see Recovery
    verdicts: "ActorHandle | None" = None  # of StackVerdicts, where there are stacks
