"""The losses of a stack of heads, and their gradients by the logits, each head's its own.

    K  heads
    B  rows of the batch
    C  classes

Every loss of ``training/losses.py`` is one formula with other numbers: the logits are lowered by a margin where they
are the true class's, scaled and raised by an adjustment; their cross-entropy may be smoothed or have the focal factor.
So the losses of K heads are a few operations on (K, B, C), where autograd would need as many as there are heads.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from tailsweep.trainables.training.losses import Loss
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


class StackedLoss:
    """The losses of K heads.

    Args:
        losses: One of each head.
        device: Where the logits are.
    """

    def __init__(self, losses: Sequence[Loss], device: torch.device) -> None:
        def per_class(value: Callable[[Loss], Tensor | None]) -> Tensor:
            zeros = torch.zeros(num_classes)
            return torch.stack([zeros if (each := value(loss)) is None else each for loss in losses]).to(device)

        def per_head(value: Callable[[Loss], float]) -> Tensor:
            return torch.tensor([value(loss) for loss in losses], dtype=torch.float32, device=device)

        num_classes = len(losses[0].class_weights)
        self.class_weights = per_class(lambda loss: loss.class_weights)  # (K, C)
        self.margins = per_class(lambda loss: loss.margins)[:, None]  # (K, 1, C)
        self.adjustments = per_class(lambda loss: loss.adjustments)[:, None]  # (K, 1, C)
        self.scales = per_head(lambda loss: loss.scale)[:, None]  # (K, 1), as the rest
        self.label_smoothing = per_head(lambda loss: loss.label_smoothing)[:, None]
        self.gammas = per_head(lambda loss: loss.gamma)[:, None]
        self._has_margins = any(loss.margins is not None or loss.adjustments is not None for loss in losses)
        self._has_smoothing = any(loss.label_smoothing for loss in losses)
        self._is_focal = any(loss.gamma for loss in losses)

    @torch.no_grad()
    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each head's weighted mean loss (K,) and its gradient by the logits (K, B, C).

        Args:
            logits: (K, B, C) float32.
            labels: (B,).
        """
        true_class = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)  # (B, C)
        if self._has_margins:
            logits = (logits - true_class * self.margins) * self.scales[..., None] + self.adjustments
        log_shares = logits.log_softmax(-1)
        surprise = -(log_shares * true_class).sum(-1)  # (K, B), -log p of the true class
        losses, target = surprise, true_class
        if self._has_smoothing:
            smoothing = self.label_smoothing
            losses = (1 - smoothing) * surprise - smoothing * log_shares.mean(-1)
            target = (1 - smoothing[..., None]) * true_class + smoothing[..., None] / logits.shape[-1]
        weights = self.class_weights[:, labels]  # (K, B)
        weights = weights / weights.sum(1, keepdim=True)
        slopes = weights * self.scales
        if self._is_focal:
            missed = (-torch.expm1(-surprise)).clamp_min(TINY)  # 1 - p
            factor = missed**self.gammas
            steepness = factor + self.gammas * missed ** (self.gammas - 1) * torch.exp(-surprise) * surprise
            is_focal = self.gammas > 0
            losses = torch.where(is_focal, factor * surprise, losses)
            slopes = torch.where(is_focal, slopes * steepness, slopes)
        gradient = (log_shares.exp() - target) * slopes[..., None]
        return (weights * losses).sum(1), gradient
