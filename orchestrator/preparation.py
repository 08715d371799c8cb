"""What is done before Ray starts: every candidate's rows tokenised, its model and the sweep's metric checked, and the
features planned that stage one will train on."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator.config import FeaturesConfig
from orchestrator.records import CandidateRecord
from trainables import keys
from trainables.class_balance import groups
from trainables.config import TrialConfig
from trainables.errors import DataError
from trainables.features import FeaturePlan, plan_features
from trainables.model import check_model, resolve
from trainables.tokenised import PreparedData, default_cache_dir
from trainables.tokens import prepare

RECORDED_PACKAGES = (
    "tailsweep", "ray", "torch", "transformers", "tokenizers", "datasets", "wandb", "pyarrow", "numpy", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedTrials:
    """The tokenised rows of every candidate; candidates that differ only in their stages share them."""

    by_key: dict[str, PreparedData]
    key_of: dict[str, str]  # candidate -> key
    plans: dict[str, FeaturePlan]  # by their own keys
    plan_of: dict[str, str]  # candidate -> key of its features; without an entry its trunk is run live
    live: list[str]  # why

    @property
    def notes(self) -> list[str]:
        """What the user should know about rows and features, each thing once."""
        of_rows = [note for data in self.by_key.values() for note in data.notes]
        return list(dict.fromkeys(of_rows + self.live))


def prepare_trials(
    candidates: Sequence[CandidateRecord], metric: str, features: FeaturesConfig, say: Callable[[str], None]
) -> PreparedTrials:
    """Check all that can be checked without a cluster, and tokenise what the candidates train on.

    Raises:
        DataError: the rows cannot be used, or cannot define the metric.
        ModelError: a model cannot be found, or cannot train as a stage asks.
    """
    by_key: dict[str, PreparedData] = {}
    key_of: dict[str, str] = {}
    key_by_source: dict[str, str] = {}
    models = _check_models([TrialConfig.model_validate(candidate.trial) for candidate in candidates])
    for candidate in candidates:
        trial = TrialConfig.model_validate(candidate.trial)
        source = json.dumps([candidate.trial["data"], trial.model.name], sort_keys=True)
        if source not in key_by_source:
            say(f"reading and tokenising {trial.data.train}")
            data = prepare(trial.data, resolve(trial.model.name), default_cache_dir())
            _check_metric(metric, data)
            key_by_source[source] = data.key
            by_key[data.key] = data
        key_of[candidate.name] = key_by_source[source]
    plans, plan_of, live = _plan(candidates, models, {name: by_key[key] for name, key in key_of.items()}, features)
    return PreparedTrials(by_key, key_of, plans, plan_of, live)


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
            for key, data in prepared.by_key.items()
        },
        "data_of": prepared.key_of,
        "features": {key: plan.dump() for key, plan in prepared.plans.items()},
        "features_of": prepared.plan_of,
    }


def _check_models(trials: Sequence[TrialConfig]) -> dict[str, nn.Module]:
    """Every different model once, with everything that some candidate wants trained in it; by their dumped configs."""
    checked: set[str] = set()
    models: dict[str, nn.Module] = {}
    for trial in trials:
        trains = {stage: getattr(trial, stage).trains for stage in keys.STAGES}
        what = f"{trial.model.model_dump_json()} {trains}"
        if what not in checked:
            models[trial.model.model_dump_json()] = check_model(trial.model, trains)
            checked.add(what)
    return models


def _plan(
    candidates: Sequence[CandidateRecord],
    models: Mapping[str, nn.Module],
    data_of: Mapping[str, PreparedData],
    config: FeaturesConfig,
) -> tuple[dict[str, FeaturePlan], dict[str, str], list[str]]:
    """The features of stage one, each once; which candidate trains on which; why some run their trunk live."""
    plans: dict[str, FeaturePlan] = {}
    plan_of: dict[str, str] = {}
    live: list[str] = []
    if config.cache == "off":
        return plans, plan_of, live
    planned: dict[str, FeaturePlan | str] = {}
    for candidate in candidates:
        trial = TrialConfig.model_validate(candidate.trial)
        if trial.stage_one.epochs == 0:
            continue
        model = trial.model.model_dump_json()
        data = data_of[candidate.name]
        what = f"{model} {data.key} {trial.stage_one.trains} {trial.stage_one.frozen_dropout}"
        if what not in planned:
            found = plan_features(models[model], trial.stage_one, data, config.dtype, torch.device("cpu"))
            if isinstance(found, FeaturePlan) and found.num_bytes > config.max_gb * 1e9:
                found = (
                    f"its features would take {found.num_bytes / 1e9:.1f} GB, above features.max_gb ({config.max_gb:g})"
                )
            planned[what] = found
        plan = planned[what]
        if isinstance(plan, FeaturePlan):
            plans[plan.key] = plan
            plan_of[candidate.name] = plan.key
        else:
            live.append(f"stage one runs its trunk live: {plan}")
    return plans, plan_of, live


def _check_metric(metric: str, data: PreparedData) -> None:
    """Refuse a metric that these validation rows cannot define: the recall of a group without a class, say."""
    for group, members in groups(data.class_counts).items():
        key = keys.on_split(keys.VALIDATION, f"recall_{group}")
        if metric == key and not np.isin(data.validation.labels, members).any():
            raise DataError(
                f"metric is {metric}, but the validation rows hold no class with {group} training rows: choose "
                f"another, e.g. {keys.on_split(keys.VALIDATION, 'macro_f1')}"
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
