"""What ``environment.json`` of a run directory holds: where a sweep ran, and the inputs that its trials share."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator
from tailsweep.orchestrator.planning.disk_usage import CheckpointBytes
from tailsweep.orchestrator.planning.preparation import PreparedTrials, TrialInputs
from tailsweep.orchestrator.runs.directory import ENVIRONMENT_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.trials import inputs_key
from tailsweep.trainables.execution.feature_plan import FeaturePlan

RECORDED_PACKAGES = (
    "tailsweep", "ray", "torch", "transformers", "tokenizers", "datasets", "wandb", "pyarrow", "numpy", "safetensors",
)  # fmt: skip


class DataSummary(BaseModel):
    """The data that trials share, as reports describe it."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    train_rows: tuple[int, ...]  # per class
    notes: tuple[str, ...]


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
    inputs_key: dict[str, TrialInputs]  # by `runs.trials.inputs_key`
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
        return self.inputs_key[inputs_key(trial_config)]


def describe_environment(prepared: PreparedTrials, nodes: Sequence[Mapping[str, Any]]) -> Environment:
    """Describe where a sweep starts, and what was prepared for it.

    Args:
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
        data={
            key: DataSummary(labels=data.label_names, train_rows=tuple(data.class_counts.tolist()), notes=data.notes)
            for key, data in prepared.data.items()
        },
        features=prepared.plans,
        inputs_key=prepared.inputs_key,
        checkpoint_bytes=prepared.checkpoints,
    )


def write_environment(run: RunDirectory, environment: Environment) -> None:
    """Write ``environment.json``."""
    run.write_text(ENVIRONMENT_FILE, environment.model_dump_json(indent=2) + "\n")


def read_environment(run: RunDirectory) -> Environment:
    """Read ``environment.json``.

    Raises:
        RunDirectoryError: it is not as it was written.
    """
    try:
        return Environment.model_validate_json(run.read_text(ENVIRONMENT_FILE))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunDirectoryError(
            f"{run.uri(ENVIRONMENT_FILE)} is damaged ({where + ': ' if where else ''}{first['msg']}): "
            "restore it from a copy"
        ) from None


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
