"""What is done before Ray starts.

Every trial's rows are tokenized, its model and the sweep's metric are checked, and the features are planned that
stage one will train on.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tailsweep.orchestrator.config.schema import FeaturesConfig
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes, checkpoint_bytes
from tailsweep.orchestrator.runs.trials import inputs_key
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import ModelConfig, Trainable, TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.last_layer import last_layer, trains_last_layer_alone
from tailsweep.trainables.models.classifier import check_model
from tailsweep.trainables.models.hub import resolve, weights_digest
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.rehearsal import rehearse_once
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.metrics import score
from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialInputs:
    """The keys of what a trial trains on."""

    data: str  # of its tokenized data
    features: str | None  # of its cached features; None: its trunk is run live
    linear_head: bool = False  # whether stage one trains a linear layer on them, and it gives the logits


@dataclass(frozen=True)
class PreparedTrials:
    """Rows and features of a sweep's trials; those that differ in other settings share them."""

    data: dict[str, PreparedData]  # by their keys
    plans: dict[str, FeaturePlan]  # by their keys
    inputs: dict[str, TrialInputs]  # by `runs.trials.inputs_key`
    live: list[str]  # why some trunk is run live
    checkpoints: CheckpointBytes
    weights: dict[str, str]  # of each model, by name, see `weights_digest`

    @property
    def notes(self) -> list[str]:
        """What the user should know about rows and features, each thing once."""
        data_notes = [note for data in self.data.values() for note in data.notes]
        return list(dict.fromkeys(data_notes + self.live))


def prepare_trials(
    trial_configs: Sequence[Mapping[str, Any]],
    metric: str,
    features: FeaturesConfig,
    postprocess: PostprocessConfig | None = None,
) -> PreparedTrials:
    """Check all that can be checked without a cluster, and tokenize what the trials train on.

    Args:
        trial_configs: dumped TrialConfigs; every one of the sweep, or one for each value of ``inputs_key``.
        postprocess: what the chosen model is to take after training; None: nothing.

    Raises:
        DataError: the rows cannot be used, or cannot define the metric.
        ModelError: a model cannot be found, cannot train as a stage asks, or cannot take what ``postprocess`` asks for.
    """
    data: dict[str, PreparedData] = {}
    plans: dict[str, FeaturePlan] = {}
    parts: dict[str, TrialInputs] = {}
    live: list[str] = []
    key_by_source: dict[str, str] = {}
    models, checkpoints = _check_models(trial_configs)
    for dumped in trial_configs:
        if inputs_key(dumped) in parts:
            continue
        trial_config = TrialConfig.model_validate(dumped)
        source = json.dumps(
            [dumped["data"], trial_config.model.name, trial_config.needs_augmented_rows], sort_keys=True
        )
        if source not in key_by_source:
            logger.info("reading and tokenizing %s", trial_config.data.train)
            tokenizer = resolve(trial_config.model.name)
            prepared = prepare(
                trial_config.data,
                tokenizer,
                default_cache_dir(),
                trial_config.needs_augmented_rows,
                trial_config.model.trust_remote_code,
            )
            _check_metric(metric, prepared)
            key_by_source[source] = prepared.key
            data[prepared.key] = prepared
        rows = data[key_by_source[source]]
        model = models[trial_config.model.model_dump_json()]
        for field in _fields_about_last_layer(trial_config, postprocess):
            last_layer(model, rows.train, torch.device("cpu"), field)
        plan = _plan(trial_config, model, rows, features)
        if isinstance(plan, FeaturePlan):
            plans[plan.key] = plan
        elif plan is not None:
            live.append(f"stage one runs its trunk live: {plan}")
        parts[inputs_key(dumped)] = _inputs(trial_config, model, rows, plan)
    live += _rehearse(trial_configs, models, {key: data[parts[key].data] for key in parts})
    names = dict.fromkeys(trial_config["model"]["name"] for trial_config in trial_configs)
    weights = {name: digest for name in names if (digest := weights_digest(name)) is not None}
    return PreparedTrials(data, plans, parts, live, checkpoints, weights)


def _fields_about_last_layer(trial_config: TrialConfig, postprocess: PostprocessConfig | None) -> list[str]:
    """Return the fields that need a layer that gives the logits."""
    fields = [] if postprocess in (None, PostprocessConfig()) else ["postprocess"]
    fields += [] if trial_config.model.head_init == "random" else ["model.head_init"]
    for stage in report_keys.STAGES:
        described = getattr(trial_config, stage)
        if described.epochs > 0 and described.reads_vectors is not None:
            fields.append(f"{stage}.{described.reads_vectors}")
    return fields


def _rehearse(
    trial_configs: Sequence[Mapping[str, Any]], models: Mapping[str, nn.Module], data: Mapping[str, PreparedData]
) -> list[str]:
    """Rehearse every different model, with everything that some trial trains in it.

    Args:
        trial_configs: as for :func:`prepare_trials`.
        models: by their dumped configs; of no use afterwards.
        data: by ``inputs_key``.

    Returns:
        What the user should know.
    """
    trainable: dict[str, dict[str, Trainable]] = defaultdict(dict)
    rehearsed: dict[str, tuple[ModelConfig, PreparedData]] = {}
    for dumped in trial_configs:
        trial_config = TrialConfig.model_validate(dumped)
        key = trial_config.model.model_dump_json()
        rehearsed.setdefault(key, (trial_config.model, data[inputs_key(dumped)]))
        for stage in report_keys.STAGES:
            setting = getattr(trial_config, stage).trainable
            if dumped[stage]["epochs"] > 0 and setting not in trainable[key].values():
                trainable[key][f"{stage}.trainable: {dumped[stage]['trainable']}"] = setting
    return [
        note
        for key, (config, examples) in rehearsed.items()
        for note in rehearse_once(models[key], config, examples, trainable[key], default_cache_dir())
    ]


def _check_models(trial_configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, nn.Module], CheckpointBytes]:
    """Check every different model once, with everything that some trial trains in it.

    Returns:
        The models by their dumped configs, and the sizes of their checkpoints.
    """
    checked: dict[str, CheckpointBytes] = {}
    models: dict[str, nn.Module] = {}
    for dumped in trial_configs:
        trainable = {stage: dumped[stage]["trainable"] for stage in report_keys.STAGES}
        decayed = [stage for stage in report_keys.STAGES if dumped[stage]["layer_decay"] < 1]
        run = [stage for stage in report_keys.STAGES if dumped[stage]["epochs"] > 0]
        key = json.dumps([dumped["model"], trainable, decayed, run], sort_keys=True)
        if key not in checked:
            trial_config = TrialConfig.model_validate(dumped)
            settings = {stage.value: getattr(trial_config, stage).trainable for stage in report_keys.STAGES}
            model = check_model(trial_config.model, settings, decayed)
            models[trial_config.model.model_dump_json()] = model
            checked[key] = checkpoint_bytes(model, trial_config)
    return models, CheckpointBytes.largest(checked.values())


def _plan(
    trial_config: TrialConfig, model: nn.Module, rows: PreparedData, config: FeaturesConfig
) -> FeaturePlan | str | None:
    """Return the features of a trial's stage one, or why its trunk is run live; None if there is nothing to cache."""
    if config.cache == "off" or trial_config.stage_one.epochs == 0:
        return None
    plan = plan_features(model, trial_config.stage_one, rows, config.dtype, torch.device("cpu"))
    if isinstance(plan, FeaturePlan) and plan.num_bytes > config.max_gb * 1e9:
        return f"its features would take {plan.num_bytes / 1e9:.1f} GB, above features.max_gb ({config.max_gb:g})"
    return plan


def _inputs(
    trial_config: TrialConfig, model: nn.Module, rows: PreparedData, plan: FeaturePlan | str | None
) -> TrialInputs:
    """Return the keys of a trial's data and features, and whether its head can train with others."""
    if not isinstance(plan, FeaturePlan):
        return TrialInputs(rows.key, None)
    is_head = trial_config.stage_one.trainable == "head"  # `plan_features` has set what trains
    return TrialInputs(rows.key, plan.key, is_head and trains_last_layer_alone(model, rows.train, torch.device("cpu")))


def _check_metric(metric: str, data: PreparedData) -> None:
    """Refuse a metric that these validation rows cannot define, whatever is predicted: it is scored before a trial is.

    A recall of a group needs a row of that group; ``micro_f1_minority`` needs a row of a class that is not the largest.
    """
    rows = np.bincount(data.validation.labels, minlength=len(data.class_counts))
    constant = [np.where(np.arange(len(rows)) == label, rows[:, None], 0) for label in range(len(rows))]
    name = metric.removeprefix(f"{report_keys.VALIDATION}/")
    if any(score(name, counts, data.class_counts) is None for counts in (np.diag(rows), *constant)):
        listed = ", ".join(f"{label} {count}" for label, count in zip(data.label_names, rows.tolist(), strict=True))
        raise DataError(
            f"metric is {metric}, but the validation rows cannot define it: by class they are {listed}; give more "
            f"validation rows, or choose another metric, e.g. {report_keys.DEFAULT_METRIC}"
        )
