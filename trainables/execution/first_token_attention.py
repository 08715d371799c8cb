"""Attention of a last layer that is read at each row's first token alone: one query a row, in place of one a token.

What a head makes of [CLS] depends on the other tokens of the last layer by their keys and values only. Their queries,
and the gradients of these, are not needed: of a layer's twelve products of width by width, two are left for each token.

B rows, N tokens in all, T in the longest row, h heads of width D, H hidden width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from tailsweep.trainables.execution.packing import Packing, first_tokens
from torch import Tensor, nn


def replaceable_attention(layer: nn.Module) -> nn.Module | None:
    """Return a layer's attention, where it has the parts that BERT's and its kin's have; else None."""
    attention = getattr(getattr(layer, "attention", None), "self", None)
    parts = [getattr(attention, name, None) for name in ("query", "key", "value", "dropout")]
    if not all(isinstance(part, nn.Module) for part in parts) or not hasattr(attention, "num_attention_heads"):
        return None
    return cast(nn.Module, attention)


@contextmanager
def reading_first_tokens(attention: nn.Module, packing: Packing) -> Iterator[None]:
    """Make the module attend from the first tokens of packed rows alone, within the block."""

    def forward(hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return attend_from_first_tokens(attention, hidden_states[0], packing)[None], None

    object.__setattr__(attention, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(attention, "forward")


def attend_from_first_tokens(attention: nn.Module, states: Tensor, packing: Packing) -> Tensor:
    """Return what the first tokens of packed rows attend to: states (N, H) -> (B, H).

    Args:
        attention: With ``query``, ``key``, ``value``, ``dropout`` and ``num_attention_heads``, as BERT's.
        states: What enters the layer.
        packing: The rows.
    """
    parts = cast(Any, attention)
    query, key, value = (
        project(tokens).unflatten(1, (parts.num_attention_heads, -1))
        for project, tokens in (
            (parts.query, first_tokens(states, packing)),
            (parts.key, states),
            (parts.value, states),
        )
    )
    scale = getattr(attention, "scaling", None) or query.shape[-1] ** -0.5
    dropout = parts.dropout.p if attention.training else 0.0
    # On a GPU, sums over the tokens of a row would be added up in any order, and differ between equal runs.
    return (_padded if states.is_cuda else _end_to_end)(query, key, value, packing, scale, dropout).flatten(1)


def _end_to_end(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float) -> Tensor:
    """Attend without padding keys or values: (B, h, D), (N, h, D) twice -> (B, h, D)."""
    rows, longest = len(packing.lengths), max(packing.lengths)
    row_of_token = torch.repeat_interleave(
        torch.arange(rows, device=query.device), packing.cu_seq_lens.diff(), output_size=len(key)
    )
    # In fp32, as fused attention adds up what it is given in bf16.
    scores = (key * (scale * query.float()).index_select(0, row_of_token)).sum(-1)  # (N, h)
    padded = scores.new_full((rows * longest, scores.shape[1]), -math.inf).index_copy(0, packing.slots, scores)
    weights = padded.view(rows, longest, -1).softmax(1).flatten(0, 1).index_select(0, packing.slots)
    weights = F.dropout(weights, dropout)
    output = torch.zeros(query.shape, device=query.device).index_add(0, row_of_token, weights[..., None] * value)
    return output.to(value.dtype)


def _padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float) -> Tensor:
    """Attend in one call over padded rows: (B, h, D), (N, h, D) twice -> (B, h, D)."""
    rows, longest = len(packing.lengths), max(packing.lengths)

    def pad(tokens: Tensor) -> Tensor:
        """(N, h, D) -> (B, h, T, D)."""
        padded = tokens.new_zeros(rows * longest, *tokens.shape[1:]).index_copy(0, packing.slots, tokens)
        return padded.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)

    real = torch.zeros(rows * longest, dtype=torch.bool, device=query.device).index_fill(0, packing.slots, True)
    output = F.scaled_dot_product_attention(
        query[:, :, None],
        pad(key),
        pad(value),
        attn_mask=real.view(rows, 1, 1, longest),
        dropout_p=dropout,
        scale=scale,
    )
    return output[:, :, 0]
