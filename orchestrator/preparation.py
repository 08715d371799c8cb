"""What is done before Ray starts: every candidate's rows tokenised, its model and the sweep's metric checked."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.records import CandidateRecord
from trainables import keys
from trainables.class_balance import groups
from trainables.config import TrialConfig
from trainables.errors import DataError
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

    @property
    def notes(self) -> list[str]:
        """What the user should know about the rows, each thing once."""
        return list(dict.fromkeys(note for data in self.by_key.values() for note in data.notes))


def prepare_trials(candidates: Sequence[CandidateRecord], metric: str, say: Callable[[str], None]) -> PreparedTrials:
    """Check all that can be checked without a cluster, and tokenise what the candidates train on.

    Raises:
        DataError: the rows cannot be used, or cannot define the metric.
        ModelError: a model cannot be found, or cannot train as a stage asks.
    """
    by_key: dict[str, PreparedData] = {}
    key_of: dict[str, str] = {}
    key_by_source: dict[str, str] = {}
    _check_models([TrialConfig.model_validate(candidate.trial) for candidate in candidates])
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
    return PreparedTrials(by_key, key_of)


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
    }


def _check_models(trials: Sequence[TrialConfig]) -> None:
    """Every different model once, with everything that some candidate wants trained in it."""
    checked: set[str] = set()
    for trial in trials:
        trains = {stage: getattr(trial, stage).trains for stage in keys.STAGES}
        what = f"{trial.model.model_dump_json()} {trains}"
        if what not in checked:
            check_model(trial.model, trains)
            checked.add(what)


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
