"""Classify texts with a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.data.tokenization import tokenize
from tailsweep.trainables.data.tokenized import TokenizedExamples
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.models.hub import max_positions, pad_token_id
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Texts:
    """The tokenized texts, in the place of a split."""

    examples: TokenizedExamples

    def rows_of(self, split: str) -> TokenizedExamples:
        return self.examples


def classify(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None = None
) -> NDArray[np.float64]:
    """Return the class probabilities (n, C) of at least one text. Moves the model to a GPU if there is one.

    Args:
        model: as ``load_classifier`` opens it.
        tokenizer: its tokenizer.
        texts: (n,).
        pairs: (n,), the second text of each, for a model that was trained on pairs.

    Raises:
        ModelError: The model needs more inputs than token ids and a mask, or its outputs are not numbers.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = _config(model)
    tokens, offsets, _ = tokenize(texts, tokenizer, _max_length(model, tokenizer), pairs)
    # Where the model's head looks for padding, it looks for the token of its own configuration.
    pad = pad_token_id(tokenizer) if config.pad_token_id is None else int(config.pad_token_id)
    labels = np.zeros(len(texts), np.int64)  # unknown
    examples = TokenizedExamples(tokens, offsets, labels, pad)
    execution = live_execution(model.to(device), _Texts(examples), device, "fp32")
    execution.module.eval()
    split = report_keys.TEST
    probabilities: NDArray[np.float64] | None = None
    try:
        with torch.inference_mode():
            for batch in execution.evaluation_batches(split):
                logits = execution.module(*execution.inputs(split, batch))
                values = logits.double().softmax(dim=1).cpu().numpy()
                probabilities = np.empty((len(texts), values.shape[1])) if probabilities is None else probabilities
                probabilities[batch] = values
    except (TypeError, ValueError) as error:  # an architecture that wants more than token ids and a mask
        raise ModelError(f"{type(model).__name__} cannot classify rows of text: {error}") from error
    assert probabilities is not None, "there is at least one text"
    undefined = int(np.isnan(probabilities).any(axis=1).sum())
    if undefined:
        raise ModelError(
            f"{type(model).__name__} gives no probabilities for {undefined:,} of {len(texts):,} texts: its weights "
            "hold values that are not numbers (NaN); give another checkpoint"
        )
    return probabilities


def class_names(model: nn.Module, folder: Path) -> list[str]:
    """Return the names of the classes, in the order of the logits.

    Raises:
        ModelError: The model does not choose one class of several.
    """
    config = _config(model)
    kind = getattr(config, "problem_type", None)
    names = [str(config.id2label[index]) for index in range(len(config.id2label))]
    if len(names) < 2 or kind not in (None, "single_label_classification"):
        reason = f"its problem_type is {kind}" if kind else "it has one output"
        raise ModelError(f'the model in "{folder}" does not choose one class of several: {reason}')
    if len(set(names)) < len(names):
        raise ModelError(f'the model in "{folder}" has two classes of one name: fix id2label in its config.json')
    return names


def _max_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokenizer's limit, which our folders set to the training length; at most the model's own limit."""
    return min(int(tokenizer.model_max_length), max_positions(_config(model)))


def _config(model: nn.Module) -> PretrainedConfig:
    return cast(nn.Module, model.base_model).config
