"""Classify texts with a model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables.data.tokenization import tokenize
from tailsweep.trainables.data.tokenized import TOKENS_AT_ONCE, TokenizedExamples, length_batches
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.packed import PackedClassifier, first_position, why_not_packable
from tailsweep.trainables.execution.packing import Packing
from torch import nn


def classify(model: nn.Module, tokenizer: Any, texts: list[str]) -> NDArray[np.float64]:
    """Texts, at least one -> probabilities (n, C). The model is moved to a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = cast(Any, model.base_model).config
    tokens, offsets, _ = tokenize(texts, tokenizer, _max_length(model, tokenizer))
    pad_token_id = config.pad_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    labels = np.zeros(len(texts), np.int64)  # of which nothing is known
    rows = TokenizedExamples(tokens, offsets, labels, 0 if pad_token_id is None else int(pad_token_id))
    run = _runner(model.to(device), rows, device)
    logits: NDArray[np.float64] | None = None
    try:
        with torch.inference_mode():
            for batch in length_batches(rows.lengths, TOKENS_AT_ONCE[device.type]):
                probabilities = run(batch).double().softmax(dim=1).cpu().numpy()
                logits = np.empty((len(texts), probabilities.shape[1])) if logits is None else logits
                logits[batch] = probabilities
    except (TypeError, ValueError) as error:  # an architecture that wants more than token ids and a mask
        raise ModelError(f"{type(model).__name__} cannot classify rows of text: {error}") from error
    assert logits is not None
    return logits


def class_names(model: nn.Module, folder: Path) -> list[str]:
    """In the order of the logits.

    Raises:
        ModelError: the model does not tell one class of several.
    """
    config = cast(Any, model.base_model).config
    kind = getattr(config, "problem_type", None)
    names = [str(config.id2label[index]) for index in range(len(config.id2label))]
    if len(names) < 2 or kind not in (None, "single_label_classification"):
        reason = f"its problem_type is {kind}" if kind else "it has one output"
        raise ModelError(f'the model in "{folder}" does not choose one class of several: {reason}')
    if len(set(names)) < len(names):
        raise ModelError(f'the model in "{folder}" has two classes of one name: fix id2label in its config.json')
    return names


def _runner(
    model: nn.Module, rows: TokenizedExamples, device: torch.device
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """From some of the rows to their logits: packed where a probe agrees, else padded."""
    if why_not_packable(model, rows, device, "fp32") is None:
        packed = PackedClassifier(model).eval()

        def run_packed(batch: NDArray[np.int64]) -> torch.Tensor:
            ids = torch.from_numpy(rows.tokens[rows.positions(batch)].astype(np.int64)).to(device)
            logits: torch.Tensor = packed(ids, Packing.from_lengths(rows.lengths[batch], device))
            return logits

        return run_packed

    def run_padded(batch: NDArray[np.int64]) -> torch.Tensor:
        input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in rows.padded(batch))
        logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    return run_padded


def _max_length(model: nn.Module, tokenizer: Any) -> int:
    """The tokenizer's, which in a folder of ours is what the model was trained with; at most what the model takes."""
    positions = getattr(cast(Any, model.base_model).config, "max_position_embeddings", None)
    own = int(tokenizer.model_max_length)  # 10**30 where none is known
    return own if not positions else min(own, int(positions) - first_position(model))
