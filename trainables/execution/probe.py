"""Compare two ways of computing the same logits on a few real examples."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenized import TokenizedExamples
from torch import Tensor, nn

TOLERANCE = 1e-5  # fp32, relative to the largest logit if that is above 1
BF16_TOLERANCE = 3e-2


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients for the block, and restore every module's mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit where that is above 1."""
    return float((logits - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def probe_rows(rows: TokenizedExamples, count: int = 4) -> NDArray[np.int64]:
    """Return the numbers of the shortest row, the longest, and some between."""
    order = np.argsort(rows.lengths, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(np.int64))]
