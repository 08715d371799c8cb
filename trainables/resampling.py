"""Folds and resamples of examples for judging what is fitted to them. Plain arrays in and out."""

import numpy as np
from numpy.typing import NDArray


def stratified_folds(labels: NDArray[np.int64], num_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each row, (n,): those of a class are spread as evenly as they can be.

    Args:
        labels: (n,).
        num_folds: how many there are.
        rng: shuffles the rows of each class.
    """
    folds = np.empty(len(labels), np.int64)
    first = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (first + np.arange(len(rows))) % num_folds
        first += len(rows)  # so that single rows do not all lie in the first fold
    return folds


def resampled_rows(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return as many rows, drawn with replacement, (n,)."""
    return rng.integers(len(labels), size=len(labels))
