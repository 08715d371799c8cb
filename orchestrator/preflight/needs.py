"""What a sweep needs of a cluster before it starts: storage, resources, models, disk and W&B."""

from dataclasses import dataclass

from tailsweep.orchestrator.config.schema import WandbConfig
from tailsweep.orchestrator.planning.disk_usage import Forecast
from tailsweep.orchestrator.planning.plan import SweepPlan
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.report_keys import Stage
from tailsweep.trainables.storage.filesystem import parent_location


@dataclass(frozen=True)
class Needs:
    """What a sweep will ask for, or several that share storage and cluster, as far as it is known before the start."""

    storage: str
    placements: tuple[tuple[Stage, Placement], ...] = ()  # with the stage whose resources they are
    models: tuple[str, ...] = ()
    features_dir: str | None = None
    forecast: Forecast | None = None  # None: nothing is known
    wandb: WandbConfig | None = None  # None: nothing is to be sent

    def __or__(self, other: "Needs") -> "Needs":
        """Return the needs of both, one run after the other."""
        known = [needs.forecast for needs in (self, other) if needs.forecast is not None]
        return Needs(
            self.storage,
            self.placements + tuple(asked for asked in other.placements if asked not in self.placements),
            tuple(dict.fromkeys(self.models + other.models)),
            self.features_dir or other.features_dir,
            None if not known else known[0] if len(known) == 1 else known[0] + known[1],
            self.wandb or other.wandb,
        )


def needs_of(plan: SweepPlan, storage: str | None = None) -> Needs:
    """Return what a planned sweep needs.

    Args:
        plan: the sweep.
        storage: where its run directory lies now; None: where its configuration says.
    """
    config = plan.sweep.config
    return Needs(
        storage=config.storage if storage is None else storage,
        placements=tuple(plan.placements.items()),
        models=plan.models,
        features_dir=config.features.dir,
        forecast=plan.disk,
        wandb=config.wandb,
    )


def folder_of_runs(run: RunDirectory) -> str:
    """Return the storage that a run directory lies in."""
    return parent_location(run.location)
