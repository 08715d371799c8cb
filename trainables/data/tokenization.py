"""Tokenize texts with the tokenizer of a pretrained model."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import transformers
from numpy.typing import NDArray
from tailsweep.trainables.errors import DataError, describe_error

ROWS_AT_ONCE = 1000  # given to the tokenizer


def _load_tokenizer(path: str, trust_remote_code: bool) -> transformers.PreTrainedTokenizerBase:
    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f'model.name: cannot load the tokenizer of "{path}": {describe_error(error)}') from error


def _tokenizer_fingerprint(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Of the files the tokenizer would save: what it does, wherever it was loaded from."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _usable_length(max_length: int, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int, list[str]]:
    """``max_length``, or the model's own limit where that is lower; tokenizers without a limit say 10**30."""
    limit = int(tokenizer.model_max_length)
    if max_length <= limit:
        return max_length, []
    return limit, [f"data.max_length is {max_length}, but the model takes at most {limit} tokens: rows end there"]


def tokenize(
    texts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, max_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Return the rows' tokens end to end, their offsets (see ``TokenizedExamples``), and the truncated rows' number."""
    pieces = [np.empty(0, np.int32)]
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = list(texts[start : start + ROWS_AT_ONCE])
        # One token more than may stay tells a row that is cut from one that just fits.
        encoded = _input_ids(tokenizer, rows, max_length + 1)
        long = [i for i, ids in enumerate(encoded) if len(ids) > max_length]
        if long:
            for i, ids in zip(long, _input_ids(tokenizer, [rows[i] for i in long], max_length), strict=True):
                encoded[i] = ids
        truncated += len(long)
        lengths.extend(map(len, encoded))
        pieces.append(np.array([token for ids in encoded for token in ids], dtype=np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.concatenate(pieces), offsets, truncated


def _input_ids(tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return list(encoded["input_ids"])
