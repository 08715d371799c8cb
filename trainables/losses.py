"""From logits to the one number a stage minimises. Tensors in, one tensor out; nothing here knows of workers.

    B  rows of the batch
    C  classes

Logits are (B, C), labels (B,) int64 in [0, C), losses are in nats. Everything is computed in float32, whatever the
logits' precision and under autocast too. Per-class tensors may lie on any device; they follow the logits.

Every loss is the *weighted mean* over the batch, sum_i w(y_i) l_i / sum_i w(y_i), as ``F.cross_entropy(weight=...)``
has it. Such means of the parts of a batch do not average to the mean of the whole: see :class:`Loss`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.class_balance import effective_number_weights, ldam_margins
from trainables.config import LossConfig


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss with what is needed to put it together again from parts of a batch.

    Over parts p of a batch (workers, micro-batches), with W_p = ``class_weights[labels of p].sum()``, the loss of the
    whole is sum_p W_p * L_p / sum_p W_p. A part without rows has W_p = 0 and L_p = 0.
    """

    function: Callable[[Tensor, Tensor], Tensor]  # logits (B, C), labels (B,) -> weighted mean over the batch, ()
    class_weights: Tensor  # (C,) float32, on the CPU


def build_loss(config: LossConfig, class_counts: np.ndarray) -> Loss:
    """The loss that ``config`` names, for classes with these numbers of training rows, (C,).

    Raises:
        ClassWithoutRows: a weighted loss was asked for, and a class has no training rows.
    """
    settings = config.model_dump(exclude={"name"})
    return LOSSES[config.name](class_counts, **settings)


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Weighted mean of -log softmax(logits)[label]; 0 for a batch without rows."""
    weight = None if class_weights is None else class_weights.to(logits.device, torch.float32)
    # Over no rows torch's mean is NaN and its sum is 0, which a worker without rows can take backwards.
    reduction = "mean" if len(labels) > 0 else "sum"
    return F.cross_entropy(logits.float(), labels, weight=weight, reduction=reduction)


def ldam(
    logits: Tensor, labels: Tensor, *, margins: Tensor, scale: float, class_weights: Tensor | None = None
) -> Tensor:
    """Label-distribution-aware margin loss (Cao et al. 2019, arXiv 1906.07413), as in the authors' code.

    The logit of the true class is lowered by that class's margin, all logits are multiplied by ``scale``, and the
    weighted cross-entropy is taken. Margins, (C,), are in units of the logits before scaling. ``scale`` is the paper's
    s: its 30 goes with a normalised head, whose logits are cosines; an ordinary linear head wants 1.
    """
    true_class = F.one_hot(labels, logits.shape[1])  # (B, C)
    lowered = logits.float() - true_class * margins.to(logits.device, torch.float32)
    return cross_entropy(scale * lowered, labels, class_weights)


def _cross_entropy(class_counts: np.ndarray) -> Loss:
    return Loss(cross_entropy, torch.ones(len(class_counts)))


def _weighted_cross_entropy(class_counts: np.ndarray, *, beta: float) -> Loss:
    weights = _float32(effective_number_weights(class_counts, beta))
    return Loss(partial(cross_entropy, class_weights=weights), weights)


def _ldam(class_counts: np.ndarray, *, max_margin: float, scale: float, beta: float) -> Loss:
    weights = _float32(effective_number_weights(class_counts, beta))
    margins = _float32(ldam_margins(class_counts, max_margin))
    return Loss(partial(ldam, margins=margins, scale=scale, class_weights=weights), weights)


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# Name in the configuration -> builder, called with the class counts and the configuration's other fields.
LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": _cross_entropy,
    "weighted_cross_entropy": _weighted_cross_entropy,
    "ldam": _ldam,
}
