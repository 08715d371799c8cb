"""What ``environment.json`` of a run directory holds: where a sweep ran, and the inputs that its trials share."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator
from tailsweep.orchestrator.config.changes import settings_digest
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes
from tailsweep.orchestrator.planning.preparation import PreparedTrials, TrialInputs
from tailsweep.orchestrator.runs.directory import DATA_FOLDER, ENVIRONMENT_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.records import verify_checksum, with_checksum
from tailsweep.orchestrator.runs.trials import inputs_key
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.storage.json_text import parse_json

RECORDED_PACKAGES = (
    "tailsweep", "ray", "torch", "transformers", "tokenizers", "datasets", "wandb", "pyarrow", "numpy", "safetensors",
)  # fmt: skip


class DataSummary(BaseModel):
    """The data that trials share, as reports describe it."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    train_rows: tuple[int, ...]  # per class
    notes: tuple[str, ...]
    digest: str  # of the tokenized rows, see `PreparedData`


class Environment(BaseModel):
    """The content of ``environment.json``."""

    model_config = ConfigDict(frozen=True)

    python: str
    platform: str
    packages: dict[str, str | None]
    git_commit: str | None
    nodes: list[dict[str, float]]  # the resources of each
    data: dict[str, DataSummary]  # by the keys of the tokenized data
    features: dict[str, FeaturePlan]  # by their keys
    inputs: dict[str, TrialInputs]  # by `runs.trials.inputs_key`
    weights: dict[str, str] = {}  # of each model, by name, see `weights_digest`
    settings_digest: str  # of the settings that results depend on, see `settings_digest`
    checkpoint_bytes: CheckpointBytes = CheckpointBytes(0, 0, 0, 0)

    @field_validator("features", mode="before")
    @classmethod
    def _load_plans(cls, plans: Mapping[str, Any]) -> dict[str, FeaturePlan]:
        return {key: FeaturePlan.load(plan) if isinstance(plan, dict) else plan for key, plan in plans.items()}

    @field_serializer("features")
    def _dump_plans(self, plans: Mapping[str, FeaturePlan]) -> dict[str, object]:
        return {key: plan.dump() for key, plan in plans.items()}

    def inputs_of(self, trial_config: Mapping[str, Any]) -> TrialInputs:
        """Return the keys of a trial's data and features.

        Args:
            trial_config: a dumped TrialConfig.
        """
        return self.inputs[inputs_key(trial_config)]

    def data_source(self, run: RunDirectory, key: str) -> DataSource:
        """Return where a node finds the tokenized rows of a key."""
        return DataSource(key=key, published=run.uri(f"{DATA_FOLDER}/{key}"), digest=self.data[key].digest)

    def lacks(self, trial_config: Mapping[str, Any]) -> bool:
        """Return whether nothing was prepared for a trial: it is of an extension of the sweep."""
        return inputs_key(trial_config) not in self.inputs

    def extended(self, prepared: PreparedTrials) -> "Environment":
        """Return the environment with what was prepared for more trials."""
        more = _described(prepared)
        return self.model_copy(update={name: getattr(self, name) | inputs for name, inputs in more.items()})


def describe_environment(sweep: Sweep, prepared: PreparedTrials, nodes: Sequence[Mapping[str, Any]]) -> Environment:
    """Describe where a sweep starts, and what was prepared for it.

    Args:
        sweep: the sweep.
        prepared: the data and feature plans of its trials.
        nodes: as ``ray.nodes()`` lists them.
    """
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in RECORDED_PACKAGES},
        git_commit=_git_commit(),
        nodes=[
            {key: value for key, value in node["Resources"].items() if not key.startswith("node:")} for node in nodes
        ],
        settings_digest=settings_digest(sweep),
        checkpoint_bytes=prepared.checkpoints,
        **_described(prepared),
    )


def _described(prepared: PreparedTrials) -> dict[str, dict[str, Any]]:
    return {
        "data": {
            key: DataSummary(
                labels=data.label_names,
                train_rows=tuple(data.class_counts.tolist()),
                notes=data.notes,
                digest=data.digest,
            )
            for key, data in prepared.data.items()
        },
        "features": prepared.plans,
        "inputs": prepared.inputs,
        "weights": prepared.weights,
    }


def write_environment(run: RunDirectory, environment: Environment) -> None:
    """Write ``environment.json``."""
    written = with_checksum(environment.model_dump(mode="json"))
    run.write_text(ENVIRONMENT_FILE, json.dumps(written, indent=2) + "\n")


def read_environment(run: RunDirectory) -> Environment:
    """Read ``environment.json``.

    Raises:
        RunDirectoryError: it is missing, or not as it was written.
    """
    try:
        return Environment.model_validate(verify_checksum(parse_json(run.read_text(ENVIRONMENT_FILE))))
    except FileNotFoundError:
        raise RunDirectoryError(f"{run.uri(ENVIRONMENT_FILE)} is missing: restore it from a copy") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = f"{where + ': ' if where else ''}{first['msg']}"
    except (ValueError, TypeError) as error:
        message = describe_error(error)
    raise RunDirectoryError(f"{run.uri(ENVIRONMENT_FILE)} is damaged ({message}): restore it from a copy")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the folder that the sweep was started in, if it is a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
