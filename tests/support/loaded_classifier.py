"""``build_classifier`` for tests that need what it gives, not to see it load: each model is read once, then copied."""

import copy
from functools import lru_cache

from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.models import classifier
from torch import nn

_loaded = lru_cache(classifier.build_classifier)


def build_classifier(config: ModelConfig, label_names: tuple[str, ...], seed: int) -> nn.Module:
    return copy.deepcopy(_loaded(config, label_names, seed))
