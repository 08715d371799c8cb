"""Runs a Hugging Face classifier on rows laid end to end, so that no arithmetic goes to padding.

The model's own modules see one row of N tokens; an attention function registered with ``transformers`` keeps each
sequence to itself, and what follows the encoder sees one vector per row: its first token, or its tokens' mean. No model
is rewritten, so that this holds only for architectures that go through ``transformers``' attention interface:
:func:`why_not_packable` finds out by a probe.

B rows, N tokens in all, T in the longest row, h heads of width D, H hidden width, C classes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakSet

import numpy as np
import torch
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.attention import ATTENTION, _no_mask, attend_within_rows
from tailsweep.trainables.execution.first_token_attention import reading_first_tokens, replaceable_attention
from tailsweep.trainables.execution.packing import Packing, first_tokens, row_means
from tailsweep.trainables.execution.probe import BF16_TOLERANCE, TOLERANCE, difference, one_by_one, probe_rows, probing
from tailsweep.trainables.models.layers import encoder_layers, layer_stack
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import ModelOutput

# The attention modules of last layers that need to compute the queries of first tokens alone, as a probe has shown.
_first_queries: "WeakSet[nn.Module]" = WeakSet()


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
    if its modules allow that (those of BERT and its kin do), and no other queries, where a probe has shown that this is
    exact.
    """

    def __init__(self, model: nn.Module) -> None:
        configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
        self._configs: list[PretrainedConfig] = list(configs.values())
        self._first_position = first_position(model)
        self._stack = layer_stack(model)
        self._by_mean = pools_by_mean(model)
        last = None if self._by_mean else _last_layer(model)
        self._narrow = None if last is None else _after_attention(last)
        self._attention = None if last is None or self._narrow is None else replaceable_attention(last)

    def position_ids(self, packing: Packing) -> Tensor:
        """(1, N), as the model's embeddings count them."""
        return packing.positions[None] + self._first_position

    @contextmanager
    def taking(self, packing: Packing) -> Iterator[None]:
        """Make the model take rows of this packing within the block."""
        with ExitStack() as undone:
            for config in self._configs:
                undone.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION
            if self._attention is not None and self._attention in _first_queries:
                undone.enter_context(reading_first_tokens(self._attention, packing))
            if self._narrow is not None:
                undone.callback(self._narrow.register_forward_pre_hook(partial(_only_first_tokens, packing)).remove)
            # Prepended, so that other hooks see what it gives.
            hook = self._stack.register_forward_hook(partial(self._reduce, packing), prepend=True)
            undone.callback(hook.remove)
            yield

    def read_all_queries(self) -> None:
        """Let the last layer compute the queries of all tokens, here and in every other packer of the model."""
        if self._attention is not None:
            _first_queries.discard(self._attention)

    def read_first_queries(self, agree: Callable[[], bool]) -> None:
        """Let the last layer compute the queries of first tokens alone, where those are read and logits ``agree``."""
        if self._attention is None:
            return
        _first_queries.add(self._attention)
        try:
            exact = agree()
        except Exception:  # whatever an architecture makes of it, its own attention is there
            exact = False
        if not exact:
            _first_queries.discard(self._attention)

    def _reduce(
        self, packing: Packing, module: nn.Module, arguments: tuple[object, ...], output: ModelOutput
    ) -> ModelOutput:
        states = output["last_hidden_state"][0]
        if self._by_mean:
            pooled = row_means(states, packing)
        else:
            pooled = states if len(states) == len(packing.lengths) else first_tokens(states, packing)
        output["last_hidden_state"] = pooled[:, None]
        return output


def why_not_packable(model: nn.Module, rows: TokenizedExamples, device: torch.device, precision: str) -> str | None:
    """Return why the model cannot run on packed rows; None if a few real rows give the logits that each has by itself.

    Args:
        rows: some of the rows it is to run on; the model is on ``device``.
        precision: ``fp32`` or ``bf16`` (autocast).
    """
    name = type(model.base_model).__name__
    few = probe_rows(rows)
    ids = torch.from_numpy(rows.tokens[rows.positions(few)].astype(np.int64)).to(device)
    packing = Packing.from_lengths(rows.lengths[few], device)
    tolerance = TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    packed = PackedClassifier(model)
    packed.packer.read_all_queries()
    with probing(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        try:
            expected = one_by_one(model, rows, few, device)
            off = difference(packed(ids, packing).float(), expected)
        except Exception as error:  # whatever an architecture makes of a packed row, the padded execution path is there
            return f"{name} does not take packed rows ({type(error).__name__})"
        if not off <= tolerance:
            return f"{name} gives other logits on packed rows (off by {off:.1g})"
        packed.packer.read_first_queries(lambda: difference(packed(ids, packing).float(), expected) <= tolerance)
    return None


def _last_layer(model: nn.Module) -> nn.Module | None:
    """Return the encoder's last layer; None if layers share their weights."""
    try:
        return encoder_layers(model)[-1]
    except ModelError:
        return None


def _after_attention(layer: nn.Module) -> nn.Module | None:
    """Return what BERT and its kin apply after a layer's attention; its second argument is the residual."""
    after = getattr(getattr(layer, "attention", None), "output", None)
    return after if isinstance(after, nn.Module) else None


def _only_first_tokens(packing: Packing, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Attention's output and the residual, (1, N, H) -> those of the first tokens, (1, B, H), if they are not yet."""
    rows = len(packing.lengths)
    return tuple(states if states.shape[1] == rows else first_tokens(states[0], packing)[None] for states in arguments)


def pools_by_mean(model: nn.Module) -> bool:
    """Ours says ``pooling``, ModernBERT's head ``classifier_pooling``; all others read the first token."""
    pooling = getattr(model, "pooling", None) or getattr(getattr(model, "config", None), "classifier_pooling", "cls")
    return bool(pooling == "mean")


def first_position(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``; only their embeddings have that attribute."""
    padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return 0 if padding_idx is None else int(padding_idx) + 1


AttentionInterface.register(ATTENTION, attend_within_rows)
AttentionMaskInterface.register(ATTENTION, _no_mask)
