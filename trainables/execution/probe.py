"""Compare two ways of computing the same logits on a few real examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.errors import ModelError, describe_error
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


Padding = Literal["right", "left", "none"]  # in the order in which they are tried


def one_by_one(model: nn.Module, rows: TokenizedExamples, numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the logits (n, C) of rows, each computed by itself without padding: what they are, whatever the batch."""
    logits = []
    for number in numbers:
        input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in rows.padded(np.array([number])))
        logits.append(model(input_ids=input_ids, attention_mask=attention_mask).logits.float())
    return torch.cat(logits)


def exact_padding(model: nn.Module, rows: TokenizedExamples, device: torch.device, precision: str) -> Padding:
    """Return how to pad rows so that each has the logits that it has by itself.

    Architectures with convolutions over tokens, or with a head that reads a fixed position, do not leave a row alone
    on one side or on either; then only rows of one length are computed together.

    Raises:
        ModelError: the model cannot compute a row by itself.
    """
    few = probe_rows(rows)
    tolerance = TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    with probing(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        try:
            expected = one_by_one(model, rows, few, device)
        except Exception as error:  # whatever an architecture makes of it
            raise ModelError(
                f"{type(model).__name__} cannot classify a row of tokens: {describe_error(error)}"
            ) from error
        for padding in get_args(Padding)[:-1]:
            input_ids, mask = (torch.from_numpy(a).to(device) for a in rows.padded(few, on_the_left=padding == "left"))
            try:
                logits = model(input_ids=input_ids, attention_mask=mask).logits.float()
            except Exception:  # it takes no batches of this kind
                continue
            if difference(logits, expected) <= tolerance:
                side: Padding = padding
                return side
    return "none"
