"""The optimizer of a stage: AdamW over what trains, a learning rate for each step and, where asked for, for each depth.

Nothing here is kept between stages or stored: the moments are the checkpoint's business, the rate of a step follows
from its number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.models.layers import depths
from torch import nn

RATE_FACTOR = "rate_factor"  # of a group of parameters: what the schedule's learning rate is multiplied by


def rate_depths(model: nn.Module, config: StageConfig) -> dict[str, int]:
    """Return by name how far below the head a parameter lies; empty where all learn at the stage's own rate.

    Runs a row through the model, which therefore has its whole table of word embeddings.

    Raises:
        ModelError: the layers have no depths, see :func:`tailsweep.trainables.models.layers.depths`.
    """
    return depths(model) if config.layer_decay < 1 else {}


def adamw(model: nn.Module, config: StageConfig, depth_of: Mapping[str, int]) -> torch.optim.Optimizer:
    """AdamW (eps 1e-8) over what trains; biases and norms are not decayed.

    With ``layer_decay`` a parameter's learning rate is the stage's times ``layer_decay ** depth`` (Howard and Ruder
    2018, arXiv 1801.06146; per layer as in ELECTRA, Clark et al. 2020, arXiv 2003.10555): the head and the pooler learn
    at the stage's own, each encoder layer slower than the one above it, the embeddings slowest.
    ``depth_of`` is what :func:`rate_depths` gives.
    """
    groups: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}  # by depth, and whether they are vectors
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth_of.get(name, 0), parameter.ndim < 2), []).append((name, parameter))
    described: list[dict[str, object]] = [
        {
            "params": members,
            "weight_decay": 0.0 if are_vectors else config.weight_decay,
            RATE_FACTOR: config.layer_decay**depth,
        }
        for (depth, are_vectors), members in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(described, lr=config.learning_rate, eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of the next step: the stage's own, of which each group has its part."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE_FACTOR]


@dataclass(frozen=True)
class LinearSchedule:
    """Learning rate of step t of T: rises linearly over the warm-up's steps, then falls linearly to 0 at T."""

    learning_rate: float
    total_steps: int
    warmup_fraction: float = 0.0  # share of the steps

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup_steps = int(self.warmup_fraction * self.total_steps)
        if step < warmup_steps:
            return self.learning_rate * step / warmup_steps
        return self.learning_rate * (self.total_steps - step) / (self.total_steps - warmup_steps)
