"""Train only the word embeddings that occur in the training rows; the result equals training the whole table.

A word that is in no training row has no gradient: the gradients' norm does not know it, its moments stay 0, and AdamW
merely decays it. Yet with the whole table in place every step fills, clips and updates a row for it, and such rows are
often a third of a small model's parameters and most of a multilingual one's. While a stage takes its steps, the table
is therefore one of the words that occur, under the same name; for all else (scores, checkpoints, the next stage) it is
whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples
from tailsweep.trainables.execution.backends import Execution
from tailsweep.trainables.execution.probe import TOLERANCE, difference, probe_rows, probing
from torch import Tensor, nn
from transformers import PreTrainedModel

# The small table lies in memory next to the whole one. It saves a gradient and two moments of every word that is not
# in it: of V of W words, V against 3 (W - V).
MOST_WORDS = 0.75
TOKENS_AT_ONCE = 1 << 22


class SparseEmbeddingTraining:
    """The words of a stage's training rows, and their table.

    Nothing is done where the embeddings do not train, where most words occur, where the model uses the table for more
    than looking words up (a head that is tied to it), and where a probe of a few rows gives other logits.

    Args:
        model: on its device; what trains has been set, and its parameters are those that the stage starts from.
        execution: computes the stage's logits.
        data: whose training rows those are.
        split: which of them the stage trains on.
        whole: Train the whole table: more happens to the other words than that they decay.
    """

    def __init__(
        self,
        model: nn.Module,
        execution: Execution,
        data: PreparedData,
        split: str = report_keys.TRAIN,
        whole: bool = False,
    ) -> None:
        self._embedding = None if whole else word_embedding(model)
        if self._embedding is None:
            return
        self._whole = self._embedding.weight  # (W, H)
        rows = data.rows_of(split)
        words = _occurring(rows, self._embedding)
        if len(words) > MOST_WORDS * len(self._whole):
            self._embedding = None
            return
        device = self._whole.device
        self._words = torch.from_numpy(words).to(device)  # (V,), ascending
        self._weight = nn.Parameter(self._whole.detach()[self._words])  # (V, H)
        # Of a word that has no place the lookup fails, rather than take another's.
        self._places = torch.full((len(self._whole),), len(words), device=device)  # (W,)
        self._places[self._words] = torch.arange(len(words), device=device)
        self._decay = 1.0  # of the other words, since they were last written
        if not self._is_lookup_only(model, execution, split, rows):
            self._embedding = None

    @property
    def description(self) -> str:
        """Suffix of the execution path's description: what of the table trains; empty if all of it does."""
        if self._embedding is None:
            return ""
        return f", {len(self._words):,} of {len(self._whole):,} word embeddings"

    @contextmanager
    def active(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Within it the model has only these words; afterwards its own table again, as training has left it.

        Args:
            optimizer: whatever steps it takes within count for the other words too: they decay.
        """
        embedding = self._embedding
        if embedding is None:
            yield
            return
        padding_idx = embedding.padding_idx
        hooks = [embedding.register_forward_pre_hook(self._to_places)]
        if optimizer is not None:
            hooks.append(optimizer.register_step_post_hook(self._decay_others))
        embedding.weight = self._weight
        if padding_idx is not None:
            embedding.padding_idx = int(self._places[padding_idx])
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            embedding.weight, embedding.padding_idx = self._whole, padding_idx
            with torch.no_grad():
                if self._decay != 1.0:
                    self._whole.mul_(self._decay)
                    self._decay = 1.0
                self._whole.index_copy_(0, self._words, self._weight)

    def _to_places(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._places[given[0]], *given[1:]

    def _decay_others(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Apply AdamW's weight decay to the parameters without gradient and moments."""
        for group in optimizer.param_groups:
            if any(parameter is self._weight for parameter in group["params"]):
                self._decay *= 1 - group["lr"] * group["weight_decay"]

    def _is_lookup_only(self, model: nn.Module, execution: Execution, split: str, rows: TokenizedExamples) -> bool:
        """Whether the model, with this table, gives a few rows the logits that it gives them with its own."""
        few = execution.inputs(split, probe_rows(rows))
        try:
            with probing(model):
                expected = execution.module(*few)
                with self.active():
                    logits = execution.module(*few)
        except Exception:  # whatever an architecture makes of a smaller table, the whole one is there
            return False
        return difference(logits, expected) <= TOLERANCE


def word_embedding(model: nn.Module) -> nn.Embedding | None:
    """Return the embedding of tokens, if it trains and no other module has the same table."""
    try:
        embedding = cast(PreTrainedModel, model.base_model).get_input_embeddings()
    except (NotImplementedError, AttributeError):  # of an architecture without such a thing, or with several
        return None
    if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
        return None
    parameters = (parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    return embedding if sum(parameter is embedding.weight for parameter in parameters) == 1 else None


def _occurring(rows: TokenizedExamples, embedding: nn.Embedding) -> NDArray[np.int64]:
    """Return the ids of the tokens that occur, ascending, with those that stand for padding."""
    occurs = np.zeros(len(embedding.weight), dtype=np.bool_)
    for start in range(0, len(rows.tokens), TOKENS_AT_ONCE):
        occurs[rows.tokens[start : start + TOKENS_AT_ONCE]] = True
    occurs[[rows.pad_token_id, *([] if embedding.padding_idx is None else [embedding.padding_idx])]] = True
    return np.flatnonzero(occurs)
