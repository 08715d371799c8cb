"""The models that a sweep has trained, from their checkpoints: one, or several whose probabilities are averaged.

What ``postprocess`` asks for is done to each trial's model when it is opened, by the validation examples.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, RunDirectory
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import Baseline
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.postprocess.pipeline import Postprocessed, postprocess_classifier
from tailsweep.trainables.postprocess.thresholds import adjustment
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.checkpoint import PARAMETERS_FILE, STAGE_ONE_FILE, load_parameters
from tailsweep.trainables.training.runtime import SingleProcess
from torch import nn


class TrialModel(TypedDict):
    """A model that a trial has trained; plain values, since it travels."""

    name: str  # of the trial, as reports have it; that which is chosen may have been trained again as another
    trial: str
    config: dict[str, Any]  # TrialConfig, dumped
    report: Mapping[str, Any]  # what it is judged by
    checkpoint: str  # name of the folder
    is_stage_one_end: bool  # whether it is what stage one ended with, in a checkpoint of stage two


class ModelRequest(TypedDict):
    """A model of a sweep, or a mean of several; it travels, too."""

    location: str  # the run directory
    data: DataSource
    metric: str  # the sweep's
    postprocess: dict[str, Any]  # the sweep's PostprocessConfig, dumped
    members: list[TrialModel | Baseline]
    weights: list[float]  # of the members' probabilities; they sum to 1
    tau: float  # of the logit adjustment of their mean; 0: none


@dataclass(frozen=True)
class ModelSource:
    """Where the checkpoints of trials lie, and the examples."""

    location: str  # a run directory
    data: DataSource

    def request(
        self,
        members: Sequence[TrialModel | Baseline],
        metric: str,
        weights: Sequence[float] = (1.0,),
        tau: float = 0.0,
        postprocess: PostprocessConfig | None = None,
    ) -> ModelRequest:
        """Return a model, or a mean of several, as tasks take it; as it was trained, unless more is asked for."""
        return ModelRequest(
            location=self.location,
            data=self.data,
            metric=metric,
            postprocess=(postprocess or PostprocessConfig()).model_dump(),
            members=list(members),
            weights=list(weights),
            tau=tau,
        )


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A trial's model with all that is done after training, on this process's device."""

    model: nn.Module
    config: TrialConfig
    postprocessed: Postprocessed | None
    device: torch.device

    def logits(self, data: PreparedData, split: str) -> torch.Tensor:
        """Return the logits of a split, (n, C)."""
        return split_logits(live_execution(self.model, data, self.device, "fp32"), split)


def open_trial_model(request: ModelRequest, member: TrialModel, data: PreparedData) -> OpenModel:
    """Return a trial's model as the request wants it."""
    config = TrialConfig.model_validate(member["config"])
    model = build_classifier(config.model, data.label_names, config.seed)
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        folder = Path(temporary) / "checkpoint"
        checkpoint = f"{CHECKPOINTS_FOLDER}/{member['trial']}/{member['checkpoint']}"
        RunDirectory(request["location"]).download(checkpoint, folder)
        load_parameters(folder, model, STAGE_ONE_FILE if member["is_stage_one_end"] else PARAMETERS_FILE)
    runtime = SingleProcess()
    model = runtime.place(model)
    postprocess = PostprocessConfig.model_validate(request["postprocess"])
    finished = None
    if postprocess != PostprocessConfig():
        metric, device = request["metric"], runtime.device
        finished = postprocess_classifier(model, data, postprocess, metric, config.seed, device)
    return OpenModel(model, config, finished, runtime.device)


def member_logits(member: TrialModel | Baseline, request: ModelRequest, split: str) -> NDArray[np.float64]:
    """Return the logits that a member gives a split, (n, C): but for a constant the logarithms of probabilities."""
    if isinstance(member, Baseline):
        return member.test_logits if split == report_keys.TEST else member.validation_logits
    data = fetch_prepared(request["data"], default_cache_dir())
    logits: NDArray[np.float64] = open_trial_model(request, member, data).logits(data, split).double().numpy()
    return logits


def predict_split(request: ModelRequest, split: str) -> NDArray[np.float64]:
    """Return logits (n, C) of the validation or test examples. Runs as a Ray task, as every export does."""
    logits = mean_logits([member_logits(member, request, split) for member in request["members"]], request["weights"])
    shift = class_shift(request["tau"], fetch_prepared(request["data"], default_cache_dir()))
    return logits if shift is None else logits + shift


def class_shift(tau: float, data: PreparedData) -> NDArray[np.float64] | None:
    """Return what logit adjustment adds to the logits of the classes, (C,); None if that is nothing."""
    return adjustment(data.class_counts, tau) if tau else None


def mean_logits(logits: list[NDArray[np.float64]], weights: list[float]) -> NDArray[np.float64]:
    """Return the logarithm of a weighted mean of probabilities, (n, C); of one member its logits as they are."""
    if len(logits) == 1:
        return logits[0]
    logs = np.stack([log_softmax(part, axis=1) + np.log(weight) for part, weight in zip(logits, weights, strict=True)])
    mean: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=0)
    return mean
