"""The attention function that keeps the sequences of a packed batch apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from tailsweep.trainables.execution.packing import Packing
from torch import Tensor, nn

ATTENTION = "tailsweep_packed"  # our attention function's name in transformers


@dataclass(frozen=True)
class Reach:
    """Which tokens of its row a token sees."""

    window: int | None = None  # those less than so many places away; None: all
    is_causal: bool = False  # those before it, and itself

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """(T, T), True where the token of the row sees that of the column; None where each sees all."""
        has_window = self.window is not None and length > self.window
        if not has_window and not self.is_causal:
            return None
        positions = torch.arange(length, device=device)
        distance = positions[:, None] - positions
        sees = torch.ones(length, length, dtype=torch.bool, device=device)
        if has_window:
            sees &= distance.abs() < self.window  # type: ignore[operator]
        return sees & (distance >= 0) if self.is_causal else sees

    @property
    def window_size(self) -> tuple[int, int]:
        """How many tokens to the left and to the right are seen, as the flash kernel takes it; -1: all."""
        side = -1 if self.window is None else self.window - 1
        return side, 0 if self.is_causal else side


def attend_within_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend, with the signature that ``transformers`` wants: query (1, h, N, D) -> (1, N, h, D).

    Key and value have as many heads h, or fewer, of which h/g queries share one (grouped-query attention).

    Args:
        sliding_window: a token sees those less than so many places away; None: its whole row.
        is_causal: whether a token sees only those before it; None: as the module says.
    """
    if packing is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention was given a padded batch")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sees = Reach(sliding_window, bool(getattr(module, "is_causal", False) if is_causal is None else is_causal))
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attend: Callable[..., Tensor]
    if query.is_cuda:
        # The flash kernel takes half precision only, and drops nothing.
        attend = _by_flash if query.dtype in (torch.bfloat16, torch.float16) and dropout == 0 else _padded
    else:
        attend = _by_runs
    return attend(query[0], key[0], value[0], packing, scale, dropout, sees)[None], None


def _by_runs(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, sees: Reach
) -> Tensor:
    """Attend in one call per run of rows of one length: (h, N, D) -> (N, h, D).

    Launches cost little on a CPU, padding much.
    """
    runs = packing.runs
    sizes = [rows * length for rows, length in runs]
    outputs = []
    # split, not slices: the gradient of a slice is as large as the whole tensor
    for (rows, length), *parts in zip(runs, *(torch.split(t, sizes, dim=1) for t in (query, key, value)), strict=True):
        q, k, v = (part.unflatten(1, (rows, length)).transpose(0, 1) for part in parts)
        mask = sees.mask(length, query.device)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _padded(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, sees: Reach
) -> Tensor:
    """One call over rows padded for it alone: (h, N, D) -> (N, h, D)."""
    rows, longest = len(packing.lengths), max(packing.lengths)

    def pad(tensor: Tensor) -> Tensor:
        padded = tensor.new_zeros(rows * longest, tensor.shape[0], tensor.shape[2])
        padded = padded.index_copy(0, packing.slots, tensor.transpose(0, 1))
        return padded.view(rows, longest, *padded.shape[1:]).transpose(1, 2)

    real = torch.zeros(rows * longest, dtype=torch.bool, device=query.device).index_fill(0, packing.slots, True)
    mask = real.view(rows, 1, 1, longest)
    near = sees.mask(longest, query.device)
    if near is not None:
        # A padding token far from every real one would see nothing at all: let each see itself.
        mask = mask & near | torch.eye(longest, dtype=torch.bool, device=query.device)
    output = F.scaled_dot_product_attention(
        pad(query), pad(key), pad(value), attn_mask=mask, dropout_p=dropout, scale=scale
    )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, packing.slots)


def _by_flash(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, sees: Reach
) -> Tensor:
    """(h, N, D) -> (N, h, D) by the flash kernel for rows of any lengths."""
    from torch.nn.attention.varlen import varlen_attn  # not in the oldest torch that is supported

    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
    ends, longest = packing.cu_seq_lens, max(packing.lengths)
    output = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=sees.window_size)
    return cast(Tensor, output)


def _no_mask(*_: object, attention_mask: Tensor | None = None, **__: object) -> None:
    """Mask nothing: rows are kept apart by :class:`Packing`, and packed rows have no padding."""
    if attention_mask is not None:
        raise ValueError("packed attention was given a mask, so a padded batch")
