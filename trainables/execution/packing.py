"""The layout of a packed batch: rows laid end to end in one sequence of tokens."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the rows of a packed batch begin and end."""

    lengths: tuple[int, ...]  # tokens of each row, (B,)
    positions: Tensor  # of each token in its row, from 0, (N,)
    cu_seq_lens: Tensor  # ends of the rows, from 0: (B + 1,), int32
    slots: Tensor  # of each token in a padded (B, T) batch, flattened, (N,)

    @classmethod
    def from_lengths(cls, lengths: NDArray[np.int64], device: torch.device) -> "Packing":
        """Lay rows of these lengths (B,) end to end."""
        ends = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        slots = positions + np.repeat(np.arange(len(lengths)) * lengths.max(), lengths)
        return cls(
            tuple(lengths.tolist()),
            torch.from_numpy(positions).to(device, non_blocking=True),
            torch.from_numpy(ends.astype(np.int32)).to(device, non_blocking=True),
            torch.from_numpy(slots).to(device, non_blocking=True),
        )

    @property
    def starts(self) -> Tensor:
        """The first token of each row, (B,)."""
        return self.cu_seq_lens[:-1]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(rows, tokens of each) for neighbouring rows of one length: these are one batch without padding."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]


def first_tokens(states: Tensor, packing: Packing) -> Tensor:
    """Token states (N, H) -> each row's first, (B, H)."""
    return states.index_select(0, packing.starts)


def row_means(states: Tensor, packing: Packing) -> Tensor:
    """Token states (N, H) -> the mean over each row's tokens, (B, H)."""
    parts = torch.split(states, [rows * length for rows, length in packing.runs])
    return torch.cat(
        [part.view(rows, length, -1).mean(1) for part, (rows, length) in zip(parts, packing.runs, strict=True)]
    )
