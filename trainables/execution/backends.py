"""The execution paths from a batch of rows to its logits: padded, packed, and the trained top on cached features.

All give the same numbers, to rounding. A faster path is used only if its logits agree with the padded path's on a few
rows. A path has a module (for data-parallel wrapping), the module's arguments for a batch, and the best grouping of
rows.
"""

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.data.tokenized import TOKENS_AT_ONCE, PreparedData, TokenizedExamples, length_batches
from tailsweep.trainables.execution.feature_store import Features
from tailsweep.trainables.execution.packed import PackedClassifier, why_not_packable
from tailsweep.trainables.execution.packing import Packing
from tailsweep.trainables.execution.probe import (
    BF16_TOLERANCE,
    TOLERANCE,
    Padding,
    difference,
    exact_padding,
    probe_rows,
    probing,
)
from tailsweep.trainables.execution.trunk import TokenTop, VectorTop
from tailsweep.trainables.models.layers import LogitsOnly
from torch import Tensor, nn

CPU_ROWS_AT_ONCE = 8  # padded on a CPU, see PaddedExecution.parts
EVALUATION_VECTORS = 4096


# The features that cached_execution has verified, so that a process that trains many trials probes once.
_agreed: WeakKeyDictionary[nn.Module, set[tuple[str, str, str]]] = WeakKeyDictionary()


class SplitExamples(Protocol):
    """Tokenized examples by split, such as ``PreparedData``."""

    def rows_of(self, split: str) -> TokenizedExamples:
        """Return the examples of a split."""


class Execution(Protocol):
    """A way to compute the model's logits."""

    description: str  # for the log and the history: which execution path, and why not a faster one
    module: nn.Module  # called with inputs(...), gives logits (B, C); its parameters are the classifier's

    def inputs(self, split: str, rows: NDArray[np.int64]) -> tuple[Tensor | Packing, ...]:
        """Return the module's arguments for a batch of the split's rows, on the device, in this order."""

    def parts(self, split: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split or reorder a micro-batch for speed; the gradient stays the same."""

    def evaluation_batches(self, split: str) -> Sequence[NDArray[np.int64]]:
        """Return batches that hold each row of the split once."""


def live_execution(model: nn.Module, data: SplitExamples, device: torch.device, precision: str) -> "Execution":
    """Run the whole model on the rows' tokens: packed where a probe agrees, else padded."""
    rows = data.rows_of(report_keys.TRAIN)
    reason = why_not_packable(model, rows, device, precision)
    if reason is None:
        return PackedExecution(model, data, device)
    return PaddedExecution(model, data, device, reason, exact_padding(model, rows, device, precision))


def cached_execution(
    model: nn.Module, features: Features, data: PreparedData, device: torch.device, precision: str
) -> "Execution":
    """Run the trained top on cached trunk outputs if two rows' logits agree with the live model's, else run live."""
    execution: Execution = (CachedTokensExecution if features.split_point.per_token else CachedVectorsExecution)(
        model, features, data, device
    )
    probed = (features.key, str(device), precision)
    if probed in _agreed.setdefault(model, set()):
        return execution
    live = live_execution(model, data, device, precision)
    split = features.training_split
    few = probe_rows(data.rows_of(split), 2)
    with probing(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        expected, logits = (path.module(*path.inputs(split, few)).float() for path in (live, execution))
    lowered = "bf16" in (precision, features.dtype)
    if (off := difference(logits, expected)) <= (BF16_TOLERANCE if lowered else TOLERANCE):
        _agreed[model].add(probed)
        return execution
    live.description += f" (the cached features give other logits, off by {off:.1g})"
    return live


def split_logits(execution: Execution, split: str) -> Tensor:
    """Return the logits (n, C) of every row of a split, computed in eval mode, float32 on the CPU."""
    execution.module.eval()
    batches = execution.evaluation_batches(split)
    with torch.inference_mode():
        outputs = torch.cat([execution.module(*execution.inputs(split, batch)).float().cpu() for batch in batches])
    logits = torch.empty_like(outputs)
    logits[torch.from_numpy(np.concatenate(batches))] = outputs
    return logits


class PaddedExecution:
    """Batches padded to their longest row; or of rows of one length, for architectures that no padding leaves alone."""

    def __init__(
        self,
        model: nn.Module,
        data: SplitExamples,
        device: torch.device,
        reason: str,
        padding: Padding = "right",
    ) -> None:
        how = {"right": "padded", "left": "padded on the left", "none": "rows of one length"}[padding]
        self.description = f"{how}: {reason}"
        self.module: nn.Module = LogitsOnly(model)
        self.data = data
        self.device = device
        self.padding = padding

    def inputs(self, split: str, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the token ids and the attention mask, (B, T) each."""
        input_ids, attention_mask = self.data.rows_of(split).padded(rows, on_the_left=self.padding == "left")
        return _to(input_ids, self.device), _to(attention_mask, self.device)

    def parts(self, split: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Group rows of like length."""
        lengths = self.data.rows_of(split).lengths
        if self.padding == "none":
            return _by_equal_length(rows, lengths)
        return _parts_to_pad(rows, lengths, self.device)

    def evaluation_batches(self, split: str) -> Sequence[NDArray[np.int64]]:
        """Batch rows of like length."""
        lengths = self.data.rows_of(split).lengths
        batches = length_batches(lengths, TOKENS_AT_ONCE[self.device.type])
        return (
            batches
            if self.padding != "none"
            else [part for rows in batches for part in _by_equal_length(rows, lengths)]
        )


class PackedExecution:
    """Rows laid end to end, nothing padded."""

    def __init__(self, model: nn.Module, data: SplitExamples, device: torch.device) -> None:
        self.description = "packed"
        self.module: nn.Module = PackedClassifier(model)
        self.data = data
        self.device = device

    def inputs(self, split: str, rows: NDArray[np.int64]) -> tuple[Tensor, Packing]:
        """Return the token ids (N,) and their packing."""
        examples = self.data.rows_of(split)
        input_ids = examples.tokens[examples.positions(rows)].astype(np.int64)
        return _to(input_ids, self.device), Packing.from_lengths(examples.lengths[rows], self.device)

    def parts(self, split: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Sort the rows by length."""
        return [_by_length(rows, self.data.rows_of(split).lengths)]

    def evaluation_batches(self, split: str) -> Sequence[NDArray[np.int64]]:
        """Batch rows of like length."""
        return length_batches(self.data.rows_of(split).lengths, TOKENS_AT_ONCE[self.device.type])


class CachedVectorsExecution:
    """A head, or pooler and head, on one cached vector per row."""

    def __init__(self, model: nn.Module, features: Features, data: PreparedData, device: torch.device) -> None:
        self.description = f"cached {features.split_point}"
        self.module: nn.Module = VectorTop(model, features.split_point)
        self.features = features.near(device)
        self.data = data
        self.device = device

    def inputs(self, split: str, rows: NDArray[np.int64]) -> tuple[Tensor]:
        """Return the cached vectors (B, H)."""
        return (self.features.take(split, rows, self.device),)

    def parts(self, split: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Order and group the rows as the live execution path does: the head's dropout is then the same."""
        lengths = self.data.rows_of(split).lengths
        return [_by_length(rows, lengths)] if self.features.packed else _parts_to_pad(rows, lengths, self.device)

    def evaluation_batches(self, split: str) -> Sequence[NDArray[np.int64]]:
        """Batch the rows in their order."""
        rows = np.arange(len(self.data.rows_of(split)))
        return np.split(rows, range(EVALUATION_VECTORS, len(rows), EVALUATION_VECTORS))


class CachedTokensExecution:
    """The trained layers on the cached token states that enter the first of them."""

    def __init__(self, model: nn.Module, features: Features, data: PreparedData, device: torch.device) -> None:
        how = "packed" if features.packed else "padded"
        self.description = f"cached {features.split_point}, {how}"
        self.module: nn.Module = TokenTop(model, features.split_point)
        self.features = features.near(device)
        self.data = data
        self.device = device

    def inputs(self, split: str, rows: NDArray[np.int64]) -> tuple[Tensor, Packing | Tensor]:
        """Return the cached states, and their packing or attention mask."""
        examples = self.data.rows_of(split)
        states = self.features.take(split, examples.positions(rows), self.device)
        packing = Packing.from_lengths(examples.lengths[rows], self.device)
        if self.features.packed:
            return states, packing
        batch, longest = len(rows), max(packing.lengths)
        padded = states.new_zeros(batch * longest, states.shape[1]).index_copy(0, packing.slots, states)
        mask = torch.zeros(batch * longest, dtype=torch.long, device=self.device).index_fill(0, packing.slots, 1)
        return padded.view(batch, longest, -1), mask.view(batch, longest)

    def parts(self, split: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Group the rows as the live execution path does."""
        lengths = self.data.rows_of(split).lengths
        return [_by_length(rows, lengths)] if self.features.packed else _parts_to_pad(rows, lengths, self.device)

    def evaluation_batches(self, split: str) -> Sequence[NDArray[np.int64]]:
        """Batch rows of like length."""
        return length_batches(self.data.rows_of(split).lengths, TOKENS_AT_ONCE[self.device.type])


def _by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort rows by length: rows of one length attend in one call."""
    return rows[np.argsort(lengths[rows], kind="stable")]


def _parts_to_pad(rows: NDArray[np.int64], lengths: NDArray[np.int64], device: torch.device) -> list[NDArray[np.int64]]:
    """Split a micro-batch into smaller ones of similar length: the same gradient from fewer padding tokens.

    On a CPU padding costs as much as tokens, and small products run as fast as large ones; on a GPU one launch is
    faster. An empty part stays one part: its worker still exchanges gradients.
    """
    if device.type != "cpu":
        return [rows]
    by_length = _by_length(rows, lengths)
    return [by_length[start : start + CPU_ROWS_AT_ONCE] for start in range(0, max(len(rows), 1), CPU_ROWS_AT_ONCE)]


def _by_equal_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split rows into groups of equal length. An empty part stays one part, as in :func:`_parts_to_pad`."""
    by_length = _by_length(rows, lengths)
    return np.split(by_length, np.flatnonzero(np.diff(lengths[by_length])) + 1)


def _to(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
