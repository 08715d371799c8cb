"""The rows that are measured on: made here from a seed, with the lengths of SST-2, or read from a file of one's own.

What a row says does not matter to its speed; how many tokens it has does, and so does how much the lengths differ.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tailsweep.trainables.data import tokenization
from tailsweep.trainables.data.tokenized import PreparedData, TokenizedExamples

MAX_LENGTH = 128  # tokens, special tokens included
# Of the logarithm of a row's words: SST-2's spread, and a mean of 14.6 tokens with the two special ones.
MEAN_LOG_WORDS, SPREAD_LOG_WORDS = 2.24, 0.8
SHORTEST, LONGEST = 3, 60  # tokens
MINORITY = 0.1  # share of the rows
MAX_VALIDATION_ROWS = 100  # hardly measured: there because every data set has some
LABEL_NAMES = ("common", "rare")


@dataclass(frozen=True)
class BenchmarkRows:
    """Texts and labels of the training rows, the tokenizer, and the same rows as the project prepares them."""

    texts: list[str]
    tokenizer: Any
    data: PreparedData
    origin: str  # for the report

    @property
    def max_length(self) -> int:
        return max_length(self.tokenizer)

    def first(self, count: int) -> "BenchmarkRows":
        """The first training rows, tokenized from the texts as they are."""
        return prepared(self.texts[:count], self.data.train.labels[:count], self.tokenizer, self.origin)


def make_rows(count: int, tokenizer: Any, seed: int = 0) -> BenchmarkRows:
    """SST-2-like rows: words of the tokenizer's vocabulary that are one token each, drawn by Zipf's law."""
    rng = np.random.default_rng(seed)
    words = np.array(sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()))
    words = rng.permutation(words)
    by_zipf = 1 / np.arange(1, len(words) + 1)
    longest = min(LONGEST, max_length(tokenizer))
    lengths = rng.lognormal(MEAN_LOG_WORDS, SPREAD_LOG_WORDS, count).round().astype(int).clip(SHORTEST - 2, longest - 2)
    drawn = iter(rng.choice(words, size=lengths.sum(), p=by_zipf / by_zipf.sum()).tolist())
    texts = [" ".join(next(drawn) for _ in range(length)) for length in lengths]
    labels = np.zeros(count, dtype=np.int64)
    labels[rng.choice(count, size=round(MINORITY * count), replace=False)] = 1
    return prepared(texts, labels, tokenizer, f"made by the benchmark, seed {seed}")


def read_rows(path: Path, count: int, tokenizer: Any, seed: int = 0) -> BenchmarkRows:
    """Rows drawn from a Parquet file with the columns ``text`` and ``label``; all of them where it has no more."""
    table = pd.read_parquet(path)
    table = table.sample(n=min(count, len(table)), random_state=seed)
    classes = {name: index for index, name in enumerate(table["label"].value_counts().index)}
    labels = table["label"].map(classes).to_numpy(dtype=np.int64)
    return prepared(table["text"].tolist(), labels, tokenizer, path.name)


def prepared(texts: Sequence[str], labels: NDArray[np.int64], tokenizer: Any, origin: str) -> BenchmarkRows:
    """The rows with their tokens, made as the project makes them but for the files."""
    train = tokenize(texts, labels, tokenizer)
    names = LABEL_NAMES if labels.max() < 2 else tuple(f"class {i}" for i in range(labels.max() + 1))
    data = PreparedData(
        folder=Path(),
        key=hashlib.sha256(train.tokens.tobytes()).hexdigest(),
        digest="",  # of no file
        label_names=names,
        class_counts=np.bincount(labels, minlength=len(names)),
        notes=(),
        pad_token_id=train.pad_token_id,
        train=train,
        validation=train.between(0, min(len(train), MAX_VALIDATION_ROWS)),
        test=train.between(0, 0),
    )
    return BenchmarkRows(list(texts), tokenizer, data, origin)


def tokenize(texts: Sequence[str], labels: NDArray[np.int64], tokenizer: Any) -> TokenizedExamples:
    """By the project's own tokenizing, a thousand rows at once."""
    ids, offsets, _ = tokenization.tokenize(texts, tokenizer, max_length(tokenizer))
    return TokenizedExamples(ids, offsets, labels, int(tokenizer.pad_token_id))


def max_length(tokenizer: Any) -> int:
    return min(MAX_LENGTH, int(tokenizer.model_max_length))
