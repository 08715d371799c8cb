"""What a sweep needs of a cluster before it starts: storage, resources, models, disk and W&B."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tailsweep.orchestrator.config.schema import WandbConfig
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.disk_usage import Forecast, forecast, load_checkpoint_bytes
from tailsweep.orchestrator.planning.preparation import PreparedTrials
from tailsweep.orchestrator.planning.resources import placement
from tailsweep.orchestrator.runs.candidates import Records
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.trainables import report_keys
from tailsweep.trainables.distributed.train_run import Placement
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.storage.filesystem import parent_location


@dataclass(frozen=True)
class Needs:
    """What a sweep will ask for, or several that share storage and cluster, as far as it is known before the start."""

    storage: str
    placements: tuple[tuple[str, Placement], ...] = ()  # with the stage whose resources they are
    models: tuple[str, ...] = ()
    features_dir: str | None = None
    forecast: Forecast | None = None  # None: nothing is known
    wandb: WandbConfig | None = None  # None: nothing is to be sent

    def __or__(self, other: "Needs") -> "Needs":
        """Both, one after the other."""
        known = [one.forecast for one in (self, other) if one.forecast is not None]
        return Needs(
            self.storage,
            self.placements + tuple(asked for asked in other.placements if asked not in self.placements),
            tuple(dict.fromkeys(self.models + other.models)),
            self.features_dir or other.features_dir,
            None if not known else known[0] if len(known) == 1 else known[0] + known[1],
            self.wandb or other.wandb,
        )


def needs_of(sweep: Sweep, trials: Iterable[Mapping[str, Any]], prepared: PreparedTrials | None) -> Needs:
    """Of a sweep that is to begin.

    Args:
        trials: dumped TrialConfigs, of its candidates or of those that stand for them.
        prepared: what was made of them; None: it could not be made.
    """
    known = None
    if prepared is not None:
        tokens = {
            key: sum(file.stat().st_size for file in data.folder.iterdir()) for key, data in prepared.data.items()
        }
        features = {key: plan.num_bytes for key, plan in prepared.plans.items()}
        known = forecast(sweep.config, sweep.num_candidates, tokens, features, prepared.checkpoints)
    return _needs(sweep, sweep.config.storage, trials, known)


def needs_of_run(run: RunDirectory, sweep: Sweep, records: Records, environment: Mapping[str, Any]) -> Needs:
    """Of a sweep that is to go on, wherever its storage is now.

    Args:
        environment: the content of environment.json.
    """
    trials = [candidate.trial for candidate in records.candidates]
    left = sweep.num_candidates - len(records.entered)
    left += sum(candidate.name not in records.outcomes for candidate in records.candidates)
    features = {key: FeaturePlan.load(dumped).num_bytes for key, dumped in environment["features"].items()}
    sizes = load_checkpoint_bytes(environment.get("checkpoint_bytes"))
    known = forecast(sweep.config, left, {}, features, sizes, published=True)
    return _needs(sweep, folder_of_runs(run), trials, known)


def folder_of_runs(run: RunDirectory) -> str:
    """The storage that a run directory lies in."""
    return parent_location(run.location)


def _needs(sweep: Sweep, storage: str, trials: Iterable[Mapping[str, Any]], known: Forecast | None) -> Needs:
    config = sweep.config
    stages = [report_keys.STAGE_TWO] if config.promote == "all" else list(report_keys.STAGES)
    placements = tuple((stage, placement(sweep, stage)) for stage in stages)
    models = tuple(dict.fromkeys(trial["model"]["name"] for trial in trials))
    return Needs(storage, placements, models, config.features.dir, known, config.wandb)
