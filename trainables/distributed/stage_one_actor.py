"""Stage one of one trial after another in one process, which keeps what they share: examples, model, features.

Only the top of the model trains, so one model serves every trial: what an earlier one trained is reset. The stage
itself is the one that every trial runs (``stages.py``).
"""

from functools import lru_cache
from pathlib import Path

import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.trial import ModelConfig, Trainable, TrialConfig
from tailsweep.trainables.distributed.inputs import open_examples, open_features
from tailsweep.trainables.distributed.settings import FeatureSource
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.training.runtime import Runtime
from tailsweep.trainables.training.stages import TrialRun, run_two_stages
from torch import Tensor, nn


def train_stage_one(
    trial: TrialConfig,
    source: DataSource,
    features: FeatureSource | None,
    runtime: Runtime,
    start: Path | None,
    metric: str = report_keys.DEFAULT_METRIC,
) -> None:
    """Train stage one of ``trial`` to its end, as :func:`run_two_stages` does.

    Args:
        source: the trial's tokenized examples.
        features: the source of its features; None: the trunk is run live.
        runtime: the worker it runs on, and the receiver of its reports.
        start: a checkpoint folder of this trial's stage one to resume from.
        metric: the key of the score that a stage with ``patience`` waits for.
    """
    data = open_examples(source)
    model = untrained_model(trial, source)
    opened = None if features is None else open_features(model, data, features)
    only_stage_one = trial.model_copy(update={"stage_two": trial.stage_two.model_copy(update={"epochs": 0})})
    run_two_stages(TrialRun(only_stage_one, data, runtime, opened, metric), model, start)


def untrained_model(trial: TrialConfig, source: DataSource) -> nn.Module:
    """Return a trial's model as it was built, with what stage one trains set; it serves the trials after it, too."""
    reusable = _model(trial.model.model_dump_json(), source, trial.seed)
    return reusable.reset(trial.stage_one.trainable)


class ReusableModel:
    """A model as it was built, however often it has been trained."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.untrained: dict[str, Tensor] = {}  # every parameter that has ever been trained, as it was

    def reset(self, trainable: Trainable) -> nn.Module:
        """Restore the model as it was built, and set what trains."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self.untrained.items():
                parameters[name].copy_(value)
        set_trainable(self.model, trainable)
        for name, parameter in parameters.items():
            parameter.grad = None
            if parameter.requires_grad and name not in self.untrained:
                self.untrained[name] = parameter.detach().clone()
        return self.model


@lru_cache(maxsize=2)
def _model(config: str, source: DataSource, seed: int) -> ReusableModel:
    labels = open_examples(source).label_names
    return ReusableModel(build_classifier(ModelConfig.model_validate_json(config), labels, seed))
