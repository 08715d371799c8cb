"""What is done before Ray starts: every candidate's rows tokenised, its model and the sweep's metric checked, and the
features planned that stage one will train on."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tailsweep.orchestrator.config.schema import FeaturesConfig
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes, checkpoint_bytes
from tailsweep.orchestrator.runs.candidates import made_of
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.postprocess import FinishConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.models.classifier import check_model
from tailsweep.trainables.models.hub import resolve
from tailsweep.trainables.postprocess.last_layer import last_layer
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.class_balance import groups
from torch import nn

RECORDED_PACKAGES = (
    "tailsweep", "ray", "torch", "transformers", "tokenizers", "datasets", "wandb", "pyarrow", "numpy", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedTrials:
    """Rows and features of a sweep's trials; those that differ in other settings share them."""

    data: dict[str, PreparedData]  # by their keys
    plans: dict[str, FeaturePlan]  # by their keys
    made_of: dict[str, dict[str, str | None]]  # by records.made_of: the keys of "data" and "features" (None: live)
    live: list[str]  # why some trunk is run live
    checkpoints: CheckpointBytes

    @property
    def notes(self) -> list[str]:
        """What the user should know about rows and features, each thing once."""
        of_rows = [note for data in self.data.values() for note in data.notes]
        return list(dict.fromkeys(of_rows + self.live))


def prepare_trials(
    trials: Sequence[Mapping[str, Any]],
    metric: str,
    features: FeaturesConfig,
    say: Callable[[str], None],
    finish: FinishConfig | None = None,
) -> PreparedTrials:
    """Check all that can be checked without a cluster, and tokenise what the trials train on.

    Args:
        trials: dumped TrialConfigs; every one of the sweep, or one for each value of :func:`records.made_of`.
        finish: what the chosen model is to take after training; None: nothing.

    Raises:
        DataError: the rows cannot be used, or cannot define the metric.
        ModelError: a model cannot be found, cannot train as a stage asks, or cannot take what ``finish`` asks for.
    """
    data: dict[str, PreparedData] = {}
    plans: dict[str, FeaturePlan] = {}
    parts: dict[str, dict[str, str | None]] = {}
    live: list[str] = []
    key_by_source: dict[str, str] = {}
    models, checkpoints = _check_models(trials)
    for dumped in trials:
        if made_of(dumped) in parts:
            continue
        trial = TrialConfig.model_validate(dumped)
        source = json.dumps([dumped["data"], trial.model.name, trial.needs_augmented_rows], sort_keys=True)
        if source not in key_by_source:
            say(f"reading and tokenising {trial.data.train}")
            tokenizer = resolve(trial.model.name)
            prepared = prepare(
                trial.data,
                tokenizer,
                default_cache_dir(),
                trial.needs_augmented_rows,
                say,
                trial.model.trust_remote_code,
            )
            _check_metric(metric, prepared)
            key_by_source[source] = prepared.key
            data[prepared.key] = prepared
        rows = data[key_by_source[source]]
        model = models[trial.model.model_dump_json()]
        if finish not in (None, FinishConfig()):
            last_layer(model, rows.train, torch.device("cpu"))
        plan = _plan(trial, model, rows, features)
        if isinstance(plan, FeaturePlan):
            plans[plan.key] = plan
        elif plan is not None:
            live.append(f"stage one runs its trunk live: {plan}")
        parts[made_of(dumped)] = {"data": rows.key, "features": plan.key if isinstance(plan, FeaturePlan) else None}
    return PreparedTrials(data, plans, parts, live, checkpoints)


def environment(prepared: PreparedTrials, nodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What ``environment.json`` holds: versions, git commit, the cluster's nodes, the data's keys."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "git_commit": _git_commit(),
        "nodes": [
            {key: value for key, value in node["Resources"].items() if not key.startswith("node:")} for node in nodes
        ],
        "data": {
            key: {"labels": list(data.label_names), "train_rows": data.class_counts.tolist(), "notes": list(data.notes)}
            for key, data in prepared.data.items()
        },
        "features": {key: plan.dump() for key, plan in prepared.plans.items()},
        "made_of": prepared.made_of,
        "checkpoint_bytes": asdict(prepared.checkpoints),
    }


def _check_models(trials: Sequence[Mapping[str, Any]]) -> tuple[dict[str, nn.Module], CheckpointBytes]:
    """Every different model once, with everything that some trial wants trained in it; by their dumped configs.
    And what their checkpoints will take."""
    checked: dict[str, CheckpointBytes] = {}
    models: dict[str, nn.Module] = {}
    for dumped in trials:
        trains = {stage: dumped[stage]["trains"] for stage in report_keys.STAGES}
        decayed = [stage for stage in report_keys.STAGES if dumped[stage]["layer_decay"] < 1]
        run = [stage for stage in report_keys.STAGES if dumped[stage]["epochs"] > 0]
        what = json.dumps([dumped["model"], trains, decayed, run], sort_keys=True)
        if what not in checked:
            trial = TrialConfig.model_validate(dumped)
            trains = {stage: getattr(trial, stage).trains for stage in report_keys.STAGES}
            model = check_model(trial.model, trains, decayed)
            models[trial.model.model_dump_json()] = model
            checked[what] = checkpoint_bytes(model, trial)
    return models, CheckpointBytes.largest(checked.values())


def _plan(trial: TrialConfig, model: nn.Module, rows: PreparedData, config: FeaturesConfig) -> FeaturePlan | str | None:
    """The features of a trial's stage one, or why its trunk is run live; None where nothing would be cached anyway."""
    if config.cache == "off" or trial.stage_one.epochs == 0:
        return None
    plan = plan_features(model, trial.stage_one, rows, config.dtype, torch.device("cpu"))
    if isinstance(plan, FeaturePlan) and plan.num_bytes > config.max_gb * 1e9:
        return f"its features would take {plan.num_bytes / 1e9:.1f} GB, above features.max_gb ({config.max_gb:g})"
    return plan


def _check_metric(metric: str, data: PreparedData) -> None:
    """Refuse a metric that these validation rows cannot define: the recall of a group without a class, say."""
    for group, members in groups(data.class_counts).items():
        key = report_keys.on_split(report_keys.VALIDATION, f"recall_{group}")
        if metric == key and not np.isin(data.validation.labels, members).any():
            raise DataError(
                f"metric is {metric}, but the validation rows hold no class with {group} training rows: choose "
                f"another, e.g. {report_keys.on_split(report_keys.VALIDATION, 'macro_f1')}"
            )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Of the folder the sweep was started in, if it is a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
