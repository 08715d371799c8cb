"""Models trained again on other parts of the examples, by a sweep below the run directory: the refit of the chosen one.

A refit is on training and validation examples together. Each member has the settings and the seed that it was chosen
with, and as many epochs: with more examples, more steps. What was chosen and fitted by the validation examples stays as
it was, since no score of a refitted model on them says anything. Linear classifiers are fitted again in this process.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tailsweep.orchestrator.config.schema import SelectionConfig, StageTwoSearchConfig, SweepConfig
from tailsweep.orchestrator.config.search_space import Trial
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.environment import read_environment
from tailsweep.orchestrator.planning.preparation import prepare_trials
from tailsweep.orchestrator.runner.select_model import ChosenModel, trial_model
from tailsweep.orchestrator.runner.trained_models import ModelSource, TrialModel
from tailsweep.orchestrator.runs.directory import DATA_FOLDER, REFIT_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.trials import Records, TrialState
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline, refit_baseline
from tailsweep.trainables.config.data import DataSource, Resplit
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.errors import DataError, InputError
from tailsweep.trainables.storage.cache import default_cache_dir

RunTrials = Callable[[Sweep, Sequence[Trial]], Records]  # runs a sweep below the run directory to its end

logger = logging.getLogger(__name__)


def refit(run: RunDirectory, sweep: Sweep, chosen: ChosenModel, run_trials: RunTrials) -> ChosenModel:
    """Return the chosen model trained again; as it is, with a line in the log, where that cannot be done.

    Args:
        run: the run directory of the sweep.
        sweep: that the model was chosen in.
        chosen: the model.
        run_trials: runs the sweep of the refit, or what is left of it.
    """
    try:
        return _refitted(run, sweep, chosen, run_trials)
    except InputError as error:
        logger.warning(f"no refit: {error}; the model is as it was chosen")
        return chosen


def _refitted(run: RunDirectory, sweep: Sweep, chosen: ChosenModel, run_trials: RunTrials) -> ChosenModel:
    before = fetch_prepared(chosen.source.data, default_cache_dir())
    models = [member for member in chosen.members if not isinstance(member, Baseline)]
    trained = train_again(run, sweep, REFIT_FOLDER, [(model, Resplit()) for model in models], run_trials)
    config = again_config(models[0] if models else chosen.best, Resplit())
    source = trained[0].source if trained else _without_training(run, sweep, config)
    data = fetch_prepared(source.data, default_cache_dir())
    _check_examples(before, data)
    again = iter(trained)
    members = [
        replace(refit_baseline(member, config.data), validation_logits=member.validation_logits)
        if isinstance(member, Baseline)
        else next(again).model
        for member in chosen.members
    ]
    logger.info(f"refit: {chosen.name} on {len(data.train):,} training and validation examples")
    record = {**chosen.record, "refit": {"examples": len(data.train)}}
    return replace(chosen, source=source, members=members, record=record)


@dataclass(frozen=True)
class TrainedAgain:
    """A model that was trained again."""

    model: TrialModel  # with the name that it had
    source: ModelSource


def train_again(
    run: RunDirectory,
    sweep: Sweep,
    folder: str,
    wanted: Sequence[tuple[TrialModel, Resplit]],
    run_trials: RunTrials,
) -> list[TrainedAgain]:
    """Train models again, on other parts of the examples, by a sweep of its own.

    Args:
        run: the run directory of the sweep that trained them.
        sweep: this sweep.
        folder: of the run directory of the new sweep, below that.
        wanted: the models and the examples.
        run_trials: runs a sweep, or what is left of it.

    Raises:
        InputError: A model cannot be trained.
    """
    if not wanted:
        return []
    trials = [
        Trial(number, f"t{number:03d}", {}, again_config(model, resplit))
        for number, (model, resplit) in enumerate(wanted)
    ]
    own_run = RunDirectory(run.uri(folder))
    configs = [trial.config.model_dump(mode="json") for trial in trials]
    if own_run.has_begun and [trial.config for trial in read_records(own_run).trials] != configs:
        own_run.delete_folder("")  # of another choice: the sweep has had more trials since
    group = f"{sweep.config.wandb.group or sweep.name}-{folder}"
    changed = {
        "storage": run.location,
        "selection": SelectionConfig(),
        "wandb": sweep.config.wandb.model_copy(update={"group": group}),
    }
    records = run_trials(sweep_of_trials(sweep, folder, trials, changed), trials)
    for trial in trials:
        if records.outcomes[trial.name].state != TrialState.COMPLETED:
            raise InputError(f"{trial.name} of {own_run.location} failed: {records.outcomes[trial.name].reason}")
    environment = read_environment(own_run)
    trained = []
    for trial, (model, _), config in zip(trials, wanted, configs, strict=True):
        own = trial_model(records, sweep.config.metric, trial.name)
        own["name"] = model["name"]
        data = environment.data_source(own_run, environment.inputs_of(config).data)
        trained.append(TrainedAgain(own, ModelSource(own_run.location, data)))
    return trained


def again_config(model: TrialModel, resplit: Resplit) -> TrialConfig:
    """Return the settings that train a model again, to the epoch that it was judged at, on other examples."""
    config = TrialConfig.model_validate(model["config"])
    last = report_keys.STAGE_ONE if model["is_stage_one_end"] else str(model["report"][report_keys.STAGE])
    stages: dict[str, Any] = {
        # Scores must not end a stage, or pick one of its epochs: all models are to have had the same training.
        stage: getattr(config, stage).model_copy(update={"patience": None, "keep": "last"})
        for stage in report_keys.STAGES
    }
    epochs = math.ceil(model["report"][report_keys.EPOCH])
    stages[last] = stages[last].model_copy(update={"epochs": epochs})
    if last == report_keys.STAGE_ONE:
        stages[report_keys.STAGE_TWO] = stages[report_keys.STAGE_TWO].model_copy(update={"epochs": 0})
    data = config.data.model_copy(update={"resplit": resplit})
    return config.model_copy(update={"data": data, **stages})


def sweep_of_trials(sweep: Sweep, name: str, trials: Sequence[Trial], changed: Mapping[str, object]) -> Sweep:
    """Return a sweep of given trials, which prunes none of them and has no baselines.

    Args:
        sweep: whose settings it has otherwise.
        name: of the new sweep.
        trials: at least one.
        changed: what else it has for itself, by field.
    """
    first = trials[0].config
    sections = first.model_dump(mode="json", include={"data", "model", *report_keys.STAGES})
    config = SweepConfig.model_validate(
        sweep.config.model_dump()
        | {
            **sections,
            "method": sweep.config.method if isinstance(sweep.config.method, str) else next(iter(sweep.methods)),
            "search": "random",
            "initial_points": [],
            "max_wallclock_seconds": None,
            "asha": None,
            "promote": "all",
            "stage_two_search": StageTwoSearchConfig(settings=1),
            "baselines": [],
            **changed,
        }
    )
    return Sweep.resolved(config, name, len(trials))


def _without_training(run: RunDirectory, sweep: Sweep, config: TrialConfig) -> ModelSource:
    """Return where the examples of a refit lie that trains no trial."""
    prepared = prepare_trials([config.model_dump(mode="json")], sweep.config.metric, sweep.config.features)
    (data,) = prepared.data.values()
    run.upload(data.folder, f"{DATA_FOLDER}/{data.key}")
    published = run.uri(f"{DATA_FOLDER}/{data.key}")
    return ModelSource(run.location, DataSource(key=data.key, published=published, digest=data.digest))


def _check_examples(before: PreparedData, data: PreparedData) -> None:
    """Refuse other examples than training and validation were: a file may have changed since the sweep began."""
    labels = np.concatenate([before.train.labels, before.validation.labels])
    same: Mapping[str, bool] = {
        "classes": before.label_names == data.label_names,
        "training and validation examples": np.array_equal(labels, data.train.labels),
        "test examples": np.array_equal(before.test.labels, data.test.labels),
    }
    if not all(same.values()):
        changed = " and ".join(name for name, is_same in same.items() if not is_same)
        raise DataError(f"the files under data have other {changed} than the sweep began with")
