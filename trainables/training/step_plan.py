"""How many optimizer steps a stage takes, and the rows of each.

A stage passes over its rows as often as it has epochs, or, with ``steps``, as often as so many steps need; its epochs
are then equal parts of the steps. Either way a step's rows follow from its number, so that a trial continues anywhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.data.sampling import class_visits, epoch_rows, num_rows, steps


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The steps of a stage.

    Args:
        config: The stage; it has at least one epoch.
        labels: The class of each row of its training split, (n,).
        class_counts: The rows of each class, (C,).
        seed: Of the order of the rows.

    Example:
        >>> config = StageConfig(epochs=4, batch_size=2, steps=6)
        >>> plan = StepPlan(config, np.array([0, 0, 0, 1, 1]), np.array([3, 2]), seed=0)
        >>> plan.steps_per_pass, plan.steps_per_epoch, plan.num_steps, plan.num_passes
        (3, 2, 8, 3)
        >>> [len(rows) for rows in plan.rows(0, 8)]
        [2, 2, 1, 2, 2, 1, 2, 2]
    """

    config: StageConfig
    labels: NDArray[np.int64]
    class_counts: NDArray[np.int64]
    seed: int

    @property
    def steps_per_pass(self) -> int:
        """The steps of a pass over the rows, as often as the sampling visits them."""
        return math.ceil(num_rows(self.config.sampling, self.class_counts) / self.config.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """The steps of an epoch: a pass, or an equal part of ``config.steps``, rounded up."""
        return self.steps_per_pass if self.config.steps is None else math.ceil(self.config.steps / self.config.epochs)

    @property
    def num_steps(self) -> int:
        """The steps of the stage."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def num_passes(self) -> int:
        """The passes over the rows; the last may end before all rows were visited."""
        return math.ceil(self.num_steps / self.steps_per_pass)

    def visits(self) -> list[NDArray[np.float64]]:
        """Return how often each pass visits each class, (C,)."""
        sampling, passes = self.config.sampling, self.num_passes
        return [class_visits(sampling, self.class_counts, number, passes) for number in range(passes)]

    def rows(self, first: int, stop: int) -> list[NDArray[np.int64]]:
        """Return the rows of each step from ``first`` until before ``stop``, counted from 0."""
        taken = []
        for number in range(first // self.steps_per_pass, math.ceil(stop / self.steps_per_pass)):
            order = epoch_rows(self.config.sampling, self.labels, self.seed, number, self.num_passes)
            begin = number * self.steps_per_pass
            taken += steps(order, self.config.batch_size)[max(first - begin, 0) : stop - begin]
        return taken
