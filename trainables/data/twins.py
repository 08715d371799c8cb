"""Find examples that are the same, and nearly the same: equal texts, or similar rows of tokens.

Similarity is the Jaccard index J of the pairs of neighbouring tokens (shingles of two). Rows to compare come from
MinHash (Broder 1997) in bands (locality-sensitive hashing), and each pair is checked exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8  # J from which two rows are near-duplicates
BANDS, ROWS = 10, 5  # a pair of J = 0.8 has a band in common with a probability of 1 - (1 - 0.8**5)**10 = 0.98
LEAST = 8  # shingles of a row, below which only an equal row is its twin
LONG = 64  # tokens of a truncated row, from which they stand for its text
PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, of the golden ratio: multiplication by it mixes bits


@dataclass(frozen=True)
class Twins:
    """Of each row, the earliest one that is equal or similar to it; the row itself where there is none."""

    equal: NDArray[np.int64]  # (n,)
    similar: NDArray[np.int64]  # (n,); equal ones included


def find_twins(texts: Sequence[str], tokens: NDArray[np.int32], offsets: NDArray[np.int64], max_length: int) -> Twins:
    """Find the twins among rows.

    Args:
        texts: of the rows; equal are those that differ in case and blanks at most.
        tokens: the rows end to end; similar are those whose tokens are.
        offsets: (n + 1,), where each begins.
        max_length: tokens that rows were truncated to. Short beginnings say nothing of the rest of their texts.

    Example:
        >>> tokens, offsets = np.array([5, 6, 5, 6, 6], np.int32), np.array([0, 2, 4, 5])
        >>> find_twins(["a b", "A  b", "b"], tokens, offsets, max_length=8).equal.tolist()
        [0, 0, 2]
    """
    lengths = np.diff(offsets)
    first: dict[str, int] = {}
    plain = (" ".join(text.casefold().split()) for text in texts)
    equal = np.array([first.setdefault(text, number) for number, text in enumerate(plain)], np.int64)
    similar = equal.copy()
    is_whole = (lengths < max_length) | (max_length >= LONG)
    numbers = np.flatnonzero((lengths > LEAST) & is_whole & (equal == np.arange(len(equal))))
    if not len(numbers):
        return Twins(equal, similar)
    shingles = _shingles(tokens, offsets)
    for row, other in _likely_pairs(shingles, offsets, numbers):
        if similar[row] == row and _jaccard(shingles, offsets, row, other) >= SIMILAR:
            similar[row] = similar[other]
    return Twins(equal, similar[equal])


def _shingles(tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash each token with the next one. The last of a row is hashed by itself, so that the offsets remain."""
    values = tokens.astype(np.uint64)
    after = np.append(values[1:], np.uint64(0))
    after[offsets[1:][np.diff(offsets) > 0] - 1] = 0
    return _mixed(values * PRIME + after + np.uint64(1))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of each value (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _likely_pairs(
    shingles: NDArray[np.uint64], offsets: NDArray[np.int64], numbers: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Return the pairs (row, earlier row) that have a band of MinHash values in common, by their first rows."""
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        key = np.zeros(len(numbers), np.uint64)
        for place in range(ROWS):
            salt = np.uint64((band * ROWS + place + 1) * int(PRIME) % 2**64)
            # An empty row would take over the minimum of the next one; there is none among `numbers`.
            smallest = np.minimum.reduceat(_mixed(shingles ^ salt), np.minimum(offsets[:-1], len(shingles) - 1))
            key = _mixed(key * PRIME + smallest[numbers])
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        earlier = numbers[first[inverse]]
        joined = np.flatnonzero(earlier != numbers)
        pairs.update(zip(numbers[joined].tolist(), earlier[joined].tolist(), strict=True))
    return sorted(pairs)


def _jaccard(shingles: NDArray[np.uint64], offsets: NDArray[np.int64], row: int, other: int) -> float:
    first, second = (set(shingles[offsets[number] : offsets[number + 1]].tolist()) for number in (row, other))
    return len(first & second) / len(first | second)


def joined_rows(
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int64]]],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Put splits one after another: their tokens, and the offsets into all of them."""
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in parts)])
    offsets = [start + rows[:-1] for start, (_, rows) in zip(starts, parts, strict=False)]
    return np.concatenate([tokens for tokens, _ in parts]), np.concatenate([*offsets, starts[-1:]])


@dataclass(frozen=True)
class TwinCounts:
    """What the twins of a set of splits mean for its scores, by class."""

    repeated: NDArray[np.int64]  # (C,) training examples with an earlier twin in train
    leaked: Mapping[str, NDArray[np.int64]]  # (C,) examples of validation and of test with a twin in an earlier split
    repeated_in_earlier: Mapping[str, int]  # those of them whose text is equal, word for word
    conflicting: NDArray[np.int64]  # (C,) examples of all splits that are equal to one of another class
    example: int | None  # a row that conflicts with an earlier one


def count_twins(twins: Twins, labels: NDArray[np.int64], splits: Mapping[str, int], num_classes: int) -> TwinCounts:
    """Count twins by class.

    Args:
        twins: of the rows of all splits, in their order.
        labels: (n,), of these rows.
        splits: how many rows each split has, train first.
        num_classes: C.
    """
    ends = np.cumsum(list(splits.values()))
    split_of = np.searchsorted(ends, np.arange(len(labels)), side="right")
    has_twin = twins.similar != np.arange(len(labels))
    in_earlier = has_twin & (split_of[twins.similar] < split_of)
    is_equal = (twins.equal != np.arange(len(labels))) & (split_of[twins.equal] < split_of)

    def per_class(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(labels[rows], minlength=num_classes)

    differs = labels != labels[twins.equal]
    groups = np.isin(twins.equal, twins.equal[differs])  # every member of a group that has two classes
    return TwinCounts(
        repeated=per_class(has_twin & (split_of == 0)),
        leaked={name: per_class(in_earlier & (split_of == place)) for place, name in enumerate(splits) if place},
        repeated_in_earlier={name: int((is_equal & (split_of == place)).sum()) for place, name in enumerate(splits)},
        conflicting=per_class(groups),
        example=int(np.flatnonzero(differs)[0]) if differs.any() else None,
    )
