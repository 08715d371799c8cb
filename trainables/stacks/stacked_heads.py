"""Linear heads of one shape on the same vectors, as one tensor: one matrix product for all of them, and one AdamW.

K heads, B rows, H width of the vectors, C classes. The bias is the last column of a head's matrix, and the vectors
have a last column of ones.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from tailsweep.trainables.config.trial import StageConfig
from torch import Tensor

BETA_ONE, BETA_TWO, EPSILON = 0.9, 0.999, 1e-8  # as `training/optimizer.py` has them
CLIPPING_EPSILON = 1e-6  # torch's own


class StackedHeads:
    """K heads with their optimizers: what ``nn.Linear``, gradient clipping and AdamW are to one.

    Args:
        stages: How each of them trains, K.
        parameters: (K, C, H + 1).
        moments: Of AdamW, the first and the second, as ``parameters``.
        step: How many steps were taken.
    """

    def __init__(self, stages: Sequence[StageConfig], parameters: Tensor, moments: Sequence[Tensor], step: int) -> None:
        self.parameters = parameters
        self.first_moments, self.second_moments = moments
        self.step = step
        self._set(stages)

    @classmethod
    def from_layer(cls, layer: torch.nn.Linear, stages: Sequence[StageConfig]) -> Self:
        """Return K heads as the layer is, (C, H) with a bias."""
        head = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
        parameters = head.repeat(len(stages), 1, 1)
        return cls(stages, parameters, [torch.zeros_like(parameters) for _ in range(2)], 0)

    def _set(self, stages: Sequence[StageConfig]) -> None:
        def per_head(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.parameters.device)[:, None, None]

        self.stages = list(stages)
        self.max_norms = per_head([stage.max_grad_norm for stage in stages])
        self.weight_decay = per_head([stage.weight_decay for stage in stages])
        self._decays = any(stage.weight_decay for stage in stages)

    def __len__(self) -> int:
        return len(self.stages)

    def keep(self, which: Sequence[int]) -> None:
        """Keep some of the heads, by their places."""
        index = torch.tensor(which, dtype=torch.long, device=self.parameters.device)
        self.parameters = self.parameters[index]
        self.first_moments, self.second_moments = self.first_moments[index], self.second_moments[index]
        self._set([self.stages[place] for place in which])

    def logits(self, vectors: Tensor) -> Tensor:
        """Return the logits (K, B, C) of vectors with a column of ones, (B, H + 1)."""
        num_heads, num_classes, width = self.parameters.shape
        flat = vectors @ self.parameters.view(num_heads * num_classes, width).T
        return flat.view(len(vectors), num_heads, num_classes).transpose(0, 1).float()

    @torch.no_grad()
    def update(self, vectors: Tensor, gradient: Tensor, learning_rates: Tensor) -> None:
        """Take a step of AdamW (Loshchilov and Hutter 2019), each head's gradient clipped by its own norm.

        Args:
            vectors: (B, H + 1).
            gradient: Of the losses by the logits, (K, B, C).
            learning_rates: Of this step, (K,).
        """
        num_heads, rows, num_classes = gradient.shape
        flat = gradient.transpose(0, 1).reshape(rows, num_heads * num_classes)
        gradients = (flat.T @ vectors).float().view_as(self.parameters)
        norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)[:, None, None]
        gradients *= (self.max_norms / (norms + CLIPPING_EPSILON)).clamp(max=1.0)
        self.step += 1
        rates = learning_rates[:, None, None]
        if self._decays:
            self.parameters[..., :-1] *= 1 - rates * self.weight_decay
        self.first_moments.lerp_(gradients, 1 - BETA_ONE)
        self.second_moments.mul_(BETA_TWO).addcmul_(gradients, gradients, value=1 - BETA_TWO)
        scale = (1 - BETA_TWO**self.step) ** 0.5
        steps = self.first_moments / (self.second_moments.sqrt().div_(scale).add_(EPSILON))
        self.parameters -= steps.mul_(rates / (1 - BETA_ONE**self.step))

    def state(self) -> dict[str, Tensor]:
        """Return the moments and the number of steps, on the CPU."""
        moments = {"exp_avg": self.first_moments, "exp_avg_sq": self.second_moments}
        return {name: moment.cpu() for name, moment in moments.items()} | {"step": torch.tensor(self.step)}

    @classmethod
    def from_state(cls, stages: Sequence[StageConfig], parameters: Tensor, state: Mapping[str, Tensor]) -> Self:
        """Return the heads of which :meth:`state` was kept, on the device of ``parameters``."""
        moments = [state[name].to(parameters.device) for name in ("exp_avg", "exp_avg_sq")]
        return cls(stages, parameters, moments, int(state["step"]))
