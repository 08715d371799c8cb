"""The attention function that keeps the sequences of a packed batch apart."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from tailsweep.trainables.execution.packing import Packing
from torch import Tensor, nn

ATTENTION = "tailsweep_packed"  # our attention function's name in transformers


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
    **_: object,
) -> tuple[Tensor, None]:
    """Attend, with the signature that ``transformers`` wants: query, key, value (1, h, N, D) -> (1, N, h, D).

    Args:
        sliding_window: a token sees those less than so many places away; None: its whole row.
    """
    if packing is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention was given a padded batch")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend: Callable[..., Tensor]
    if query.is_cuda:
        # The flash kernel takes half precision only, and drops nothing.
        attend = _by_flash if query.dtype in (torch.bfloat16, torch.float16) and dropout == 0 else _padded
    else:
        attend = _by_runs
    return attend(query[0], key[0], value[0], packing, scale, dropout, sliding_window)[None], None


def _by_runs(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, window: int | None
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
        mask = _within_window(length, window, query.device)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _padded(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, window: int | None
) -> Tensor:
    """One call over rows padded for it alone: (h, N, D) -> (N, h, D)."""
    rows, longest = len(packing.lengths), max(packing.lengths)

    def pad(tensor: Tensor) -> Tensor:
        padded = tensor.new_zeros(rows * longest, tensor.shape[0], tensor.shape[2])
        padded = padded.index_copy(0, packing.slots, tensor.transpose(0, 1))
        return padded.view(rows, longest, *padded.shape[1:]).transpose(1, 2)

    real = torch.zeros(rows * longest, dtype=torch.bool, device=query.device).index_fill(0, packing.slots, True)
    mask = real.view(rows, 1, 1, longest)
    near = _within_window(longest, window, query.device)
    if near is not None:
        # A padding token far from every real one would see nothing at all: let each see itself.
        mask = mask & near | torch.eye(longest, dtype=torch.bool, device=query.device)
    output = F.scaled_dot_product_attention(
        pad(query), pad(key), pad(value), attn_mask=mask, dropout_p=dropout, scale=scale
    )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, packing.slots)


def _by_flash(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float, window: int | None
) -> Tensor:
    """(h, N, D) -> (N, h, D) by the flash kernel for rows of any lengths."""
    from torch.nn.attention.varlen import varlen_attn  # not in the oldest torch that is supported

    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
    ends, longest = packing.cu_seq_lens, max(packing.lengths)
    reach = (-1, -1) if window is None else (window - 1, window - 1)
    output = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=reach)
    return cast(Tensor, output)


def _within_window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(T, T), True where two tokens see each other; None where all do."""
    if window is None or length <= window:
        return None
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions).abs() < window


def _no_mask(*_: object, attention_mask: Tensor | None = None, **__: object) -> None:
    """Mask nothing: rows are kept apart by :class:`Packing`, and packed rows have no padding."""
    if attention_mask is not None:
        raise ValueError("packed attention was given a mask, so a padded batch")
