"""An exponential moving average of a stage's weights (Polyak and Juditsky 1992): less noise of the last steps.

Step t of the stage, from 1, takes the average to d_t times itself plus 1 - d_t times the weights, where d_t is the
decay but at most (1 + t) / (10 + t), so that a short stage does not stay where it began (as in TensorFlow's
``ExponentialMovingAverage``).

Steps continue from the weights; all else is of the average: scores, checkpoints, the stage's model. So each has its
turn in the parameters, and the other lies in the optimizer's state, with which it is stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

OTHER = "other_weights"  # of a parameter in the optimizer's state: outside of training the weights, within the average


class WeightAverage:
    """The average of what an optimizer trains.

    Args:
        optimizer: Over the parameters; it may have been loaded from a checkpoint.
        decay: d; None: there is no average, and nothing is done.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float | None) -> None:
        self._optimizer = optimizer
        self._decay = decay
        self._averages: list[Tensor] = []

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it the parameters are the weights; afterwards they are the average."""
        if self._decay is None:
            yield
            return
        self._averages = [self._exchange(parameter) for parameter in self._parameters()]
        yield
        with torch.no_grad():
            for parameter, average in zip(self._parameters(), self._averages, strict=True):
                self._optimizer.state[parameter][OTHER] = parameter.detach().clone()
                parameter.copy_(average)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights of a step of the stage, counted from 0."""
        if self._decay is None:
            return
        decay = min(self._decay, (2 + step) / (11 + step))
        weights = [parameter.detach() for parameter in self._parameters()]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)

    @torch.no_grad()
    def _exchange(self, parameter: Tensor) -> Tensor:
        """Put a parameter's weights in place, and return its average."""
        average = parameter.detach().clone()
        if (weights := self._optimizer.state[parameter].pop(OTHER, None)) is not None:
            parameter.copy_(weights)
        return average

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
