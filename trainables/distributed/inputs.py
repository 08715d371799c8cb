"""A trial's examples and features, which its process keeps for the trials after it."""

from functools import lru_cache

from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.data.tokenized import PreparedData, fetch_prepared
from tailsweep.trainables.distributed.settings import FeatureSource
from tailsweep.trainables.execution.feature_store import Features, PartSet, make_features
from tailsweep.trainables.storage.cache import cache_folder, default_cache_dir
from torch import nn

_opened: dict[str, Features] = {}  # of the sweep that this process works for, by key


@lru_cache(maxsize=2)
def open_examples(source: DataSource) -> PreparedData:
    """Open a trial's tokenized examples on this node."""
    return fetch_prepared(source, default_cache_dir())


def open_features(model: nn.Module, data: PreparedData, source: FeatureSource) -> Features:
    """Open the features of a trial on this node; compute them here if no one has published them."""
    plan = source.load_plan()
    if plan.key not in _opened:
        cache, parts = cache_folder(source.cache_dir), PartSet(source.published, source.num_parts)
        device = next(model.parameters()).device
        _opened[plan.key] = make_features(plan, model, data, cache, device, parts)
    return _opened[plan.key]
