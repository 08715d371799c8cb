"""The decoupled classifiers of Kang et al. 2020 (arXiv 1910.09217): a last linear layer made fair to the rare classes.

All take the layer as it was trained, and the inputs it is given, and return another layer; the rest of the model is
as it was. Validation rows are not used here: training stops after the given epochs.

n rows, H width of the layer's input, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tailsweep.trainables.data.sampling import epoch_rows, steps
from tailsweep.trainables.training.optimizer import LinearSchedule
from torch import Tensor, nn

Floats = NDArray[np.float64]


class Layer(NamedTuple):
    """A linear layer: logits = inputs (n, H) @ weight.T + bias."""

    weight: Floats  # (C, H)
    bias: Floats  # (C,)

    def logits(self, inputs: NDArray[np.float32]) -> Floats:
        """Map inputs (n, H) to logits (n, C)."""
        return inputs.astype(np.float64) @ self.weight.T + self.bias

    def scaled(self, factors: Floats | float) -> "Layer":
        """Return the layer whose logits are ``factors``, (C,) or one for all, times this one's."""
        factors = np.broadcast_to(factors, self.bias.shape)
        return Layer(self.weight * factors[:, None], self.bias * factors)

    def shifted(self, shift: Floats) -> "Layer":
        """Return the layer whose logits are this one's plus ``shift``, (C,)."""
        return Layer(self.weight, self.bias + shift)


@dataclass(frozen=True)
class TrainingSettings:
    """How a classifier is trained on the fixed outputs of the rest of the model."""

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int  # of the first values, and of the rows' order


def retrained(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, settings: TrainingSettings
) -> Layer:
    """cRT: a layer drawn anew and trained on class-balanced rows with cross-entropy.

    Args:
        inputs: (n, H) of the training rows.
        labels: (n,) in [0, C).
        settings: its seed draws the first values, distributed as those of ``nn.Linear``.
    """
    width = inputs.shape[1]
    generator, bound = torch.Generator().manual_seed(settings.seed), width**-0.5
    weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound, generator=generator))
    bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound, generator=generator))
    vectors = torch.from_numpy(inputs)

    def logits(rows: NDArray[np.int64]) -> Tensor:
        return F.linear(vectors[rows], weight, bias)

    _train([weight, bias], logits, labels, settings)
    return Layer(weight.detach().double().numpy(), bias.detach().double().numpy())


def learned_scales(logits: Floats, labels: NDArray[np.int64], settings: TrainingSettings) -> Floats:
    """LWS: one factor per class on the logits, bias included as in the authors' code, from 1 on; (C,).

    Args:
        logits: (n, C) of the training rows.
    """
    scales = nn.Parameter(torch.ones(logits.shape[1]))
    fixed = torch.from_numpy(logits.astype(np.float32))

    def scaled(rows: NDArray[np.int64]) -> Tensor:
        return fixed[rows] * scales

    _train([scales], scaled, labels, settings)
    return scales.detach().double().numpy()


def tau_normalized(layer: Layer, tau: float) -> Layer:
    """w_c / ||w_c||^tau, and no bias: the paper drops it. A class whose weights are all 0 keeps them."""
    norms = np.linalg.norm(layer.weight, axis=1, keepdims=True)
    return Layer(layer.weight / np.where(norms > 0, norms, 1.0) ** tau, np.zeros_like(layer.bias))


def _train(
    parameters: list[nn.Parameter],
    logits: Callable[[NDArray[np.int64]], Tensor],
    labels: NDArray[np.int64],
    settings: TrainingSettings,
) -> None:
    """As a stage trains on ``class_balanced`` rows: AdamW without decay, falling linearly to 0."""
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = LinearSchedule(settings.learning_rate, settings.epochs * math.ceil(len(labels) / settings.batch_size))
    step = 0
    for epoch in range(settings.epochs):
        for rows in steps(epoch_rows("class_balanced", labels, settings.seed, epoch), settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            loss = F.cross_entropy(logits(rows), torch.from_numpy(labels[rows]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            step += 1
