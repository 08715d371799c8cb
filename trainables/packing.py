"""Runs a Hugging Face classifier on rows laid end to end, so that no arithmetic goes to padding.

The model's own modules see one row of N tokens; an attention function registered with ``transformers`` keeps each
sequence to itself, and what follows the encoder sees one vector per row: its first token, or its tokens' mean. No model
is rewritten, so that this holds only for architectures that go through ``transformers``' attention interface:
:func:`unpackable` tells by trying.

B rows, N tokens in all, T in the longest row, h heads of width D, H hidden width, C classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from trainables.errors import ModelError
from trainables.model import encoder_layers, layer_stack
from trainables.tokenised import TokenisedRows

ATTENTION = "tailsweep_packed"  # our attention function's name in transformers
TOLERANCE = 1e-5  # fp32, relative to the largest logit if that is above 1
BF16_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Packing:
    """Where the rows of a packed batch begin and end."""

    lengths: tuple[int, ...]  # tokens of each row, (B,)
    positions: Tensor  # of each token in its row, from 0, (N,)
    cu_seq_lens: Tensor  # ends of the rows, from 0: (B + 1,), int32
    slots: Tensor  # of each token in a padded (B, T) batch, flattened, (N,)

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> "Packing":
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


class PackedClassifier(nn.Module):
    """``model`` on packed rows. Owns nothing: the parameters are the model's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.packer = Packer(model)

    def forward(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """``input_ids (N,)`` -> logits (B, C)."""
        with self.packer.taking(packing):
            output = self.model(
                input_ids=input_ids[None],
                attention_mask=None,
                position_ids=self.packer.position_ids(packing),
                packing=packing,
            )
        logits: Tensor = output.logits
        return logits


class Packer:
    """Makes ``model`` take packed rows as one row of N tokens, and give B rows of logits, for as long as it is asked.

    The attention function is exchanged by its name in the model's configuration. What follows the layers is given
    (B, 1, H), a row's first token or the mean of its tokens: whatever reads the first token, or the mean without a
    mask, then does so rightly. Where only first tokens are read, the last layer computes no others after its attention,
    if its modules allow that (those of BERT and its kin do).
    """

    def __init__(self, model: nn.Module) -> None:
        encoder = cast(nn.Module, model.base_model)
        configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
        self._configs: list[Any] = list(configs.values())
        self._first_position = first_position(model)
        self._stack = layer_stack(model)
        self._by_mean = pools_by_mean(model)
        self._narrow = None if self._by_mean else _after_last_attention(encoder)

    def position_ids(self, packing: Packing) -> Tensor:
        """(1, N), as the model's embeddings count them."""
        return packing.positions[None] + self._first_position

    @contextmanager
    def taking(self, packing: Packing) -> Iterator[None]:
        before = [config._attn_implementation for config in self._configs]
        hooks = []
        try:
            for config in self._configs:
                config._attn_implementation = ATTENTION
            if self._narrow is not None:
                hooks.append(self._narrow.register_forward_pre_hook(partial(_only_first_tokens, packing)))
            # Prepended, so that other hooks see what it gives.
            hooks.append(self._stack.register_forward_hook(partial(self._reduce, packing), prepend=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation = implementation

    def _reduce(self, packing: Packing, module: nn.Module, arguments: Any, output: Any) -> Any:
        states = output["last_hidden_state"][0]
        if self._by_mean:
            pooled = row_means(states, packing)
        else:
            pooled = states if len(states) == len(packing.lengths) else first_tokens(states, packing)
        output["last_hidden_state"] = pooled[:, None]
        return output


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in eval mode and keeps no gradients; afterwards every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def unpackable(model: nn.Module, rows: TokenisedRows, device: torch.device, precision: str) -> str | None:
    """Why the model cannot run on packed rows, or None: then a few real rows gave the padded road's logits.

    Args:
        rows: some of the rows it is to run on; the model is on ``device``.
        precision: ``fp32`` or ``bf16`` (autocast).
    """
    name = type(model.base_model).__name__
    few = probe_rows(rows)
    ids = torch.from_numpy(rows.tokens[rows.positions(few)].astype(np.int64)).to(device)
    input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in rows.padded(few))
    try:
        with probing(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            expected = model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
            packing = Packing.of(rows.lengths[few], device)
            found = PackedClassifier(model)(ids, packing).float()
    except Exception as error:  # whatever an architecture makes of a packed row, the padded road is there
        return f"{name} does not take packed rows ({type(error).__name__})"
    off = difference(found, expected)
    if not off <= (TOLERANCE if precision == "fp32" else BF16_TOLERANCE):
        return f"{name} gives other logits on packed rows (off by {off:.1g})"
    return None


def probe_rows(rows: TokenisedRows, count: int = 4) -> NDArray[np.int64]:
    """The shortest row, the longest, and some between."""
    order = np.argsort(rows.lengths, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(np.int64))]


def first_tokens(states: Tensor, packing: Packing) -> Tensor:
    """Token states (N, H) -> each row's first, (B, H)."""
    return states.index_select(0, packing.starts)


def row_means(states: Tensor, packing: Packing) -> Tensor:
    """Token states (N, H) -> the mean over each row's tokens, (B, H)."""
    parts = torch.split(states, [rows * length for rows, length in packing.runs])
    return torch.cat(
        [part.view(rows, length, -1).mean(1) for part, (rows, length) in zip(parts, packing.runs, strict=True)]
    )


def _after_last_attention(encoder: nn.Module) -> nn.Module | None:
    """What BERT and its kin put the last layer's attention through, with the residual as its second argument."""
    try:
        last = encoder_layers(encoder)[-1]
    except ModelError:  # layers that share their weights
        return None
    after = getattr(getattr(last, "attention", None), "output", None)
    return after if isinstance(after, nn.Module) else None


def _only_first_tokens(packing: Packing, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Attention's output and the residual, (1, N, H) each -> those of the first tokens, (1, B, H)."""
    return tuple(first_tokens(states[0], packing)[None] for states in arguments)


def pools_by_mean(model: nn.Module) -> bool:
    """Ours says ``pooling``, ModernBERT's head ``classifier_pooling``; all others read the first token."""
    pooling = getattr(model, "pooling", None) or getattr(getattr(model, "config", None), "classifier_pooling", "cls")
    return bool(pooling == "mean")


def first_position(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``; only their embeddings have that attribute."""
    padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return 0 if padding_idx is None else int(padding_idx) + 1


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
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function as ``transformers`` wants it: query, key and value (1, h, N, D) -> (1, N, h, D).

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
    """A call per run of rows of one length: (h, N, D) -> (N, h, D). Launches cost little on a CPU, padding much."""
    runs = packing.runs
    sizes = [rows * length for rows, length in runs]
    outputs = []
    # split, not slices: the gradient of a slice is as large as what it was cut from
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


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """The mask function of our attention: rows are kept apart by :class:`Packing`, and padding has no place here."""
    if attention_mask is not None:
        raise ValueError("packed attention was given a mask, so a padded batch")


AttentionInterface.register(ATTENTION, attend_within_rows)
AttentionMaskInterface.register(ATTENTION, _no_mask)
