"""From logits to the one number a stage minimises. Tensors in, one tensor out; nothing here knows of workers.

    B  rows of the batch
    C  classes

Logits are (B, C), labels (B,) int64 in [0, C), losses are in nats. Everything is computed in float32, whatever the
logits' precision and under autocast too. Per-class tensors may lie on any device; they follow the logits.

Every loss is the *weighted mean* over the batch, sum_i w(y_i) l_i / sum_i w(y_i), as ``F.cross_entropy(weight=...)``
has it. Such means of the parts of a batch do not average to the mean of the whole: see :class:`Loss`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tailsweep.trainables.config.losses import LossConfig
from tailsweep.trainables.training.class_balance import effective_number_weights, ldam_margins, log_counts, log_priors
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss with what is needed to put it together again from parts of a batch.

    Over parts p of a batch (workers, micro-batches), with W_p = ``class_weights[labels of p].sum()``, the loss of the
    whole is sum_p W_p * L_p / sum_p W_p. A part without rows has W_p = 0 and L_p = 0.

    What ``function`` was made with is there too, for losses of many models that are computed together.
    """

    function: Callable[[Tensor, Tensor], Tensor]  # logits (B, C), labels (B,) -> weighted mean over the batch, ()
    class_weights: Tensor  # (C,) float32, on the CPU
    margins: Tensor | None = None  # (C,), see :func:`ldam`
    scale: float = 1.0
    adjustments: Tensor | None = None  # (C,), see :func:`adjusted_cross_entropy`
    label_smoothing: float = 0.0
    gamma: float = 0.0  # see :func:`focal`


def build_loss(config: LossConfig, class_counts: np.ndarray, deferred: bool = False) -> Loss:
    """Build the loss that ``config`` names, for classes with these numbers of visits in an epoch, (C,).

    Args:
        deferred: as it is while its class weights are deferred: all classes weigh the same.

    Raises:
        ClassWithoutRows: a class has no training rows, and the loss divides by their number or takes its log.
    """
    settings = config.model_dump(exclude={"name", "reweight_after"})
    if deferred and "beta" in settings:
        settings["beta"] = 0.0
    return LOSSES[config.name](class_counts, **settings)


@dataclass(frozen=True, eq=False)
class LossSchedule:
    """The loss of step t of a stage: that of its epoch, an ``early`` one in the first ``deferred_steps``."""

    early: Sequence[Loss]  # one of each epoch
    late: Sequence[Loss]
    steps_per_epoch: int
    deferred_steps: int

    def __call__(self, step: int) -> Loss:
        """Return the loss of a step, counted from 0."""
        return (self.early if step < self.deferred_steps else self.late)[step // self.steps_per_epoch]


def build_losses(
    config: LossConfig, visits: Sequence[np.ndarray], steps_per_epoch: int, num_steps: int | None = None
) -> LossSchedule:
    """Build the losses of a stage: one and the same, unless its epochs differ or its class weights are deferred.

    Weights, margins and priors are of the classes as the stage sees them. By the rows of the file, a sampler that
    visits rare classes more often and a loss that weighs them more would correct twice.

    Deferred re-weighting (DRW; Cao et al. 2019, arXiv 1906.07413) learns features from the rows as they are before the
    weights of rare classes come in. Which loss a step has follows from its number alone.

    Args:
        config: the loss.
        visits: of each epoch, how often it visits each class, (C,), see ``data.sampling.class_visits``.
        steps_per_epoch: of the optimizer.
        num_steps: of the stage; None: of all epochs, whole.

    Raises:
        ClassWithoutRows: see :func:`build_loss`.
    """
    late = [build_loss(config, counts) for counts in visits]
    total = len(visits) * steps_per_epoch if num_steps is None else num_steps
    deferred_steps = int(getattr(config, "reweight_after", 0.0) * total)
    early = [build_loss(config, counts, deferred=True) for counts in visits] if deferred_steps else late
    return LossSchedule(early, late, steps_per_epoch, deferred_steps)


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Weighted mean of -log softmax(logits)[label]; 0 for a batch without rows.

    With ``label_smoothing`` e a row's loss is (1 - e) times that plus e times the mean of -log softmax(logits) over all
    classes (Szegedy et al. 2016, arXiv 1512.00567); the row then weighs what its own class weighs. This differs from
    ``F.cross_entropy(weight=..., label_smoothing=...)``, where the spread share weighs what the classes weigh on which
    it falls: rows of a class of small weight are then smoothed many times as strongly as was asked for.
    """
    logits = logits.float()
    if class_weights is not None and label_smoothing > 0:
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return weighted_mean(losses, labels, class_weights)
    weight = None if class_weights is None else class_weights.to(logits.device, torch.float32)
    # Over no rows torch's mean is NaN and its sum is 0, which a worker without rows can take backwards.
    reduction = "mean" if len(labels) > 0 else "sum"
    return F.cross_entropy(logits, labels, weight=weight, reduction=reduction, label_smoothing=label_smoothing)


def ldam(
    logits: Tensor, labels: Tensor, *, margins: Tensor, scale: float, class_weights: Tensor | None = None
) -> Tensor:
    """Label-distribution-aware margin loss (Cao et al. 2019, arXiv 1906.07413), as in the authors' code.

    The logit of the true class is lowered by that class's margin, all logits are multiplied by ``scale``, and the
    weighted cross-entropy is taken. Margins, (C,), are in units of the logits before scaling. ``scale`` is the paper's
    s: its 30 goes with a normalized head, whose logits are cosines; an ordinary linear head wants 1.
    """
    true_class = F.one_hot(labels, logits.shape[1])  # (B, C)
    lowered = logits.float() - true_class * margins.to(logits.device, torch.float32)
    return cross_entropy(scale * lowered, labels, class_weights)


def focal(logits: Tensor, labels: Tensor, *, gamma: float, class_weights: Tensor | None = None) -> Tensor:
    """Weighted mean of -(1 - p)^gamma log p with p = softmax(logits)[label] (Lin et al. 2017, arXiv 1708.02002).

    The papers have it of sigmoids, a yes or no per class; this is its usual form for classes that exclude one another.
    """
    surprise = F.cross_entropy(logits.float(), labels, reduction="none")  # (B,), -log p
    # 1 - p without cancellation. Of a row that is certain it is 0, at which a power below 1 has no finite slope.
    missed = (-torch.expm1(-surprise)).clamp_min(torch.finfo(torch.float32).tiny)
    return weighted_mean(missed**gamma * surprise, labels, class_weights)


def adjusted_cross_entropy(
    logits: Tensor, labels: Tensor, *, adjustments: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the logits with a constant of each class added, (C,).

    A model trained so has learned the classes apart from how frequent they are in training: what it predicts by is its
    logits without the adjustment. With the log counts it is the balanced softmax (Ren et al. 2020), with tau times the
    log priors the logit-adjusted loss (Menon et al. 2021); at tau = 1 the two differ by a constant that cancels.
    """
    return cross_entropy(logits.float() + adjustments.to(logits.device), labels, label_smoothing=label_smoothing)


def weighted_mean(losses: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return the mean of the rows' losses (B,), each by its class's weight; 0 for a batch without rows."""
    if len(losses) == 0:
        return losses.sum()
    if class_weights is None:
        return losses.mean()
    weights = class_weights.to(losses.device, torch.float32)[labels]
    return (weights * losses).sum() / weights.sum()


def _cross_entropy(class_counts: np.ndarray, *, label_smoothing: float) -> Loss:
    function = partial(cross_entropy, label_smoothing=label_smoothing)
    return Loss(function, torch.ones(len(class_counts)), label_smoothing=label_smoothing)


def _weighted_cross_entropy(class_counts: np.ndarray, *, beta: float, label_smoothing: float) -> Loss:
    weights = _float32(effective_number_weights(class_counts, beta))
    function = partial(cross_entropy, class_weights=weights, label_smoothing=label_smoothing)
    return Loss(function, weights, label_smoothing=label_smoothing)


def _ldam(class_counts: np.ndarray, *, max_margin: float, scale: float, beta: float) -> Loss:
    weights = _float32(effective_number_weights(class_counts, beta))
    margins = _float32(ldam_margins(class_counts, max_margin))
    function = partial(ldam, margins=margins, scale=scale, class_weights=weights)
    return Loss(function, weights, margins=margins, scale=scale)


def _focal(class_counts: np.ndarray, *, gamma: float, beta: float) -> Loss:
    if beta == 0:  # no class's count is asked for
        return Loss(partial(focal, gamma=gamma), torch.ones(len(class_counts)), gamma=gamma)
    weights = _float32(effective_number_weights(class_counts, beta))
    return Loss(partial(focal, gamma=gamma, class_weights=weights), weights, gamma=gamma)


def _balanced_softmax(class_counts: np.ndarray, *, label_smoothing: float) -> Loss:
    return _adjusted(_float32(log_counts(class_counts)), label_smoothing)


def _logit_adjustment(class_counts: np.ndarray, *, tau: float, label_smoothing: float) -> Loss:
    return _adjusted(_float32(tau * log_priors(class_counts)), label_smoothing)


def _adjusted(adjustments: Tensor, label_smoothing: float) -> Loss:
    function = partial(adjusted_cross_entropy, adjustments=adjustments, label_smoothing=label_smoothing)
    weights = torch.ones(len(adjustments))
    return Loss(function, weights, adjustments=adjustments, label_smoothing=label_smoothing)


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# Name in the configuration -> builder, called with the class counts and the configuration's other fields.
LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": _cross_entropy,
    "weighted_cross_entropy": _weighted_cross_entropy,
    "ldam": _ldam,
    "focal": _focal,
    "balanced_softmax": _balanced_softmax,
    "logit_adjustment": _logit_adjustment,
}
