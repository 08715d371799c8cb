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
CHARACTERS_PER_TOKEN = 32  # of a text, read at first for each token that may stay of it
MARGIN = 16  # tokens beyond those that stay, so that where a text is cut has no part in them


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


def _usable_length(
    max_length: int, tokenizer: transformers.PreTrainedTokenizerBase, positions: int
) -> tuple[int, list[str]]:
    """Return ``max_length``, or the tokenizer's limit or that of the model's ``positions`` where one is lower."""
    limit = min(int(tokenizer.model_max_length), positions)
    if max_length <= limit:
        return max_length, []
    return limit, [f"data.max_length is {max_length}, but the model takes at most {limit} tokens: rows end there"]


def tokenize(
    texts: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_length: int,
    pairs: Sequence[str] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Return the rows' tokens end to end, their offsets (see ``TokenizedExamples``), and the truncated rows' number.

    Args:
        texts: of the rows.
        tokenizer: of the model.
        max_length: tokens kept of a row, special tokens included.
        pairs: the second text of each row; a pair that is too long is truncated where it is longer.
    """
    ending = next(
        (
            token
            for token in (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
            if token is not None
        ),
        0,
    )
    pieces = [np.empty(0, np.int32)]
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = [beginning(text, tokenizer, max_length) for text in texts[start : start + ROWS_AT_ONCE]]
        seconds = None
        if pairs is not None:
            seconds = [beginning(text, tokenizer, max_length) for text in pairs[start : start + ROWS_AT_ONCE]]
        # One token more than may stay tells a row that is cut from one that just fits.
        encoded = _input_ids(tokenizer, rows, seconds, max_length + 1)
        long = [i for i, ids in enumerate(encoded) if len(ids) > max_length]
        if long:
            long_seconds = None if seconds is None else [seconds[i] for i in long]
            truncated_ids = _input_ids(tokenizer, [rows[i] for i in long], long_seconds, max_length)
            for i, ids in zip(long, truncated_ids, strict=True):
                encoded[i] = ids
        encoded = [ids or [ending] for ids in encoded]  # a text of which the tokenizer keeps nothing
        truncated += len(long)
        lengths.extend(map(len, encoded))
        pieces.append(np.array([token for ids in encoded for token in ids], dtype=np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.concatenate(pieces), offsets, truncated


def beginning(text: str, tokenizer: transformers.PreTrainedTokenizerBase, max_length: int) -> str:
    """Return as much of a text as its first ``max_length`` tokens depend on, up to a blank.

    A tokenizer reads a text to its end before it truncates it: a second for one of 1 MB.
    """
    if tokenizer.truncation_side != "right":
        return text
    size = CHARACTERS_PER_TOKEN * max_length
    while size < len(text):
        part = text[: text.rfind(" ", 0, size) + 1] or text[:size]
        if len(_input_ids(tokenizer, [part], None, max_length + MARGIN)[0]) >= max_length + MARGIN:
            return part
        size *= 2
    return text


def _input_ids(
    tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int
) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        pairs,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return list(encoded["input_ids"])
