"""Stage one of one candidate after another in one process, which keeps what they share: rows, model, features.

Only the top of the model trains, so that the same model serves every candidate: what an earlier one trained is put
back to what it was. The stage itself is the one that every trial runs (``stages.py``).
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.trial import ModelConfig, Trains, TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.execution.feature_plan import FeaturePlan
from tailsweep.trainables.execution.feature_store import Features, make_features
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.models.layers import set_trainable
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.runtime import Runtime
from tailsweep.trainables.training.stages import run_two_stages
from torch import Tensor, nn


def train_stage_one(
    trial: TrialConfig,
    data_key: str,
    published_data: str,
    features: Mapping[str, object] | None,
    runtime: Runtime,
    start: Path | None,
    metric: str = report_keys.DEFAULT_METRIC,
) -> None:
    """Stage one of ``trial`` to its end, as :func:`run_two_stages` does it.

    Args:
        data_key, published_data: of the tokenised rows, see ``fetch_prepared``.
        features: keywords of :func:`open_features_of`; None: the trunk is run live.
        start: a checkpoint folder of this candidate's stage one to go on from.
        metric: see there.
    """
    data = _rows(data_key, published_data)
    fresh = _model(trial.model.model_dump_json(), data_key, published_data, trial.seed)
    model = fresh.given_out(trial.stage_one.trains)
    opened = None if features is None else _features(model, data, **features)  # type: ignore[arg-type]
    only_stage_one = trial.model_copy(update={"stage_two": trial.stage_two.model_copy(update={"epochs": 0})})
    run_two_stages(only_stage_one, data, model, runtime, start, opened, metric)


def open_features_of(
    model: nn.Module, data: PreparedData, plan: FeaturePlan, published: str, num_parts: int, cache_dir: str | None
) -> Features:
    """The features of a plan on this node; made here where nobody has published them.

    Args:
        published, num_parts: where the sweep has had them made, in how many parts.
        cache_dir: ``features.dir`` of the sweep; None: the project's cache.
    """
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    device = next(model.parameters()).device
    return make_features(plan, model, data, cache, device, published, num_parts)


class _Fresh:
    """A model as it was built, however often it has been trained."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.untrained: dict[str, Tensor] = {}  # every parameter that has ever been trained, as it was

    def given_out(self, trains: Trains) -> nn.Module:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self.untrained.items():
                parameters[name].copy_(value)
        set_trainable(self.model, trains)
        for name, parameter in parameters.items():
            parameter.grad = None
            if parameter.requires_grad and name not in self.untrained:
                self.untrained[name] = parameter.detach().clone()
        return self.model


@lru_cache(maxsize=2)
def _rows(key: str, published: str) -> PreparedData:
    return fetch_prepared(key, published, default_cache_dir())


@lru_cache(maxsize=2)
def _model(config: str, data_key: str, published_data: str, seed: int) -> _Fresh:
    labels = _rows(data_key, published_data).label_names
    return _Fresh(build_classifier(ModelConfig.model_validate_json(config), labels, seed))


_opened: dict[str, Features] = {}  # of the sweep that this process works for, by key


def _features(
    model: nn.Module, data: PreparedData, plan: FeaturePlan, published: str, num_parts: int, cache_dir: str | None
) -> Features:
    if plan.key not in _opened:
        _opened[plan.key] = open_features_of(model, data, plan, published, num_parts, cache_dir)
    return _opened[plan.key]
