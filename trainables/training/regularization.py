"""What a step minimises beyond its loss: consistency under dropout, mixed examples, a contrast between classes.

    R-Drop       Liang et al. 2021, arXiv 2106.14448: two predictions of an example, with different dropout, agree
    mixup        Zhang et al. 2018, arXiv 1710.09412; of text vectors Sun et al. 2020, arXiv 2010.02394
    contrastive  Khosla et al. 2020, arXiv 2004.11362; next to a loss, Gunel et al. 2021, arXiv 2011.01403

Mixup and contrast are about the vector (B, H) of each row that the layer of the logits reads: a hook there mixes
it or keeps it, so that every execution path and architecture has them. They act among the rows that are computed
together, which are a micro-batch's, or a few of like length where rows are padded on a CPU. Everything is computed in
float32. As every loss here, each term is a mean over rows weighted by class, so that parts of a step add up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tailsweep.trainables.config.trial import ContrastiveConfig, StageConfig
from tailsweep.trainables.training.losses import Loss, weighted_mean
from torch import Tensor, nn

VIEWS = 2  # of each row, by R-Drop
LOWEST = torch.finfo(torch.float32).min  # as a logit: no share; finite, so that a row alone has a gradient, of 0


@dataclass(eq=False)
class Objective:
    """What a stage minimises on rows that are computed together.

    Args:
        config: The stage.
        layer: That gives the logits; needed by mixup and contrast.
    """

    config: StageConfig
    layer: nn.Linear | None = None
    _vectors: Tensor | None = field(default=None, init=False)  # (B, H), that the layer was given
    _partners: Tensor | None = field(default=None, init=False)  # (B,), the row that each is mixed with
    _share: float = field(default=1.0, init=False)  # of a row itself

    @property
    def views(self) -> int:
        """How often each row is computed."""
        return VIEWS if self.config.r_drop else 1

    def __call__(self, compute: Callable[[], Tensor], labels: Tensor, loss: Loss) -> Tensor:
        """Return what is minimised, the weighted mean over the rows.

        Args:
            compute: Returns the logits (views * B, C), those of a row next to each other.
            labels: Of the rows, (B,).
            loss: The step's.
        """
        repeated = labels.repeat_interleave(self.views)
        if self.config.mixup is not None:
            self._share = float(torch.distributions.Beta(self.config.mixup, self.config.mixup).sample())
            self._partners = torch.randperm(len(labels)).repeat_interleave(self.views).to(labels.device) * self.views
            self._partners += torch.arange(len(repeated), device=labels.device) % self.views
        with self._hooked():
            logits = compute().float()
        total = loss.function(logits, repeated)
        if self._partners is not None:
            total = self._share * total + (1 - self._share) * loss.function(logits, repeated[self._partners])
        if self.config.contrastive is not None:
            assert self._vectors is not None
            apart = contrast(self._vectors, repeated, self.config.contrastive, loss.class_weights)
            total = (1 - self.config.contrastive.weight) * total + self.config.contrastive.weight * apart
        if self.config.r_drop:
            total = total + self.config.r_drop * disagreement(logits, labels, loss.class_weights)
        self._vectors = self._partners = None
        return total

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        if self.config.reads_vectors is None:
            yield
            return
        assert self.layer is not None
        hook = self.layer.register_forward_pre_hook(self._at_layer)
        try:
            yield
        finally:
            hook.remove()

    def _at_layer(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        (self._vectors,) = arguments
        if self._partners is None:
            return None
        return (self._share * self._vectors + (1 - self._share) * self._vectors[self._partners],)


def disagreement(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean of the two divergences between a row's two predictions, in nats.

    Args:
        logits: (2 B, C), those of a row next to each other.
        labels: (B,), for the weights.
        class_weights: (C,); None: rows count alike.
    """
    first, second = (F.log_softmax(logits[view::VIEWS], dim=1) for view in range(VIEWS))
    divergences = ((first.exp() - second.exp()) * (first - second)).sum(1) / 2  # KL(p|q) + KL(q|p) in one sum
    return weighted_mean(divergences, labels, class_weights)


def contrast(vectors: Tensor, labels: Tensor, config: ContrastiveConfig, class_weights: Tensor | None = None) -> Tensor:
    """Return the supervised contrastive loss, L_out of Khosla et al. (2020), eq. 2, in nats.

    A row's loss is the mean, over the other rows of its class, of -log softmax of their cosines to it over all other
    rows. That of a row without such rows is 0.

    Args:
        vectors: (B, H).
        labels: (B,).
        config: Temperature of the cosines.
        class_weights: (C,); None: rows count alike.
    """
    units = F.normalize(vectors.float(), dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    cosines = (units @ units.T / config.temperature).masked_fill(itself, LOWEST)
    log_shares = F.log_softmax(cosines, dim=1).masked_fill(itself, 0.0)
    positive = (labels[:, None] == labels[None]) & ~itself
    losses = -(log_shares * positive).sum(1) / positive.sum(1).clamp(min=1)
    return weighted_mean(losses, labels, class_weights)
