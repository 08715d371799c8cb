"""Folds as even as they can be, in each class and in all, and resamples of the rows."""

import numpy as np
import pytest
from numpy.typing import NDArray
from tailsweep.trainables.resampling import resampled_rows, stratified_folds


def folds_of(labels: list[int], num_folds: int = 5, seed: int = 0) -> NDArray[np.int64]:
    return stratified_folds(np.array(labels), num_folds, np.random.default_rng(seed))


@pytest.mark.parametrize("num_folds", [2, 3, 5])
@pytest.mark.parametrize(
    "labels",
    [
        [0] * 12 + [1] * 7 + [2, 3, 4],
        [3, 0, 1] * 9 + [0] * 40,  # mixed, and no row of class 2
        [0, 1] * 6 + [2] * 4,
        [1] * 3,
        list(range(11)),
    ],
)
def test_folds_are_as_even_as_they_can_be(labels: list[int], num_folds: int) -> None:
    folds = folds_of(labels, num_folds)
    for rows in (np.full(len(labels), True), *(np.array(labels) == label for label in set(labels))):
        sizes = np.bincount(folds[rows], minlength=num_folds)
        assert len(sizes) == num_folds
        assert sizes.max() - sizes.min() <= 1


def test_folds_share_out_each_class_and_single_rows() -> None:
    labels = [0] * 12 + [1] * 7 + [2, 3, 4]
    folds = folds_of(labels)
    assert sorted(np.bincount(folds[:12])) == [2, 2, 2, 3, 3]
    assert sorted(np.bincount(folds[12:19])) == [1, 1, 1, 2, 2]
    assert len(set(folds[19:])) == 3


def test_single_rows_of_many_classes_are_spread_over_the_folds() -> None:
    folds = folds_of(list(range(10)))
    assert np.bincount(folds).tolist() == [2] * 5


def test_the_seed_shuffles_the_rows_of_each_class() -> None:
    labels = [0] * 20 + [1] * 20
    assert np.array_equal(folds_of(labels, seed=1), folds_of(labels, seed=1))
    first, second = folds_of(labels, seed=1), folds_of(labels, seed=2)
    assert not np.array_equal(first[:20], second[:20])
    assert not np.array_equal(first[20:], second[20:])
    assert not np.array_equal(first[:20], first[20:])


def test_a_resample_draws_as_many_rows_with_replacement() -> None:
    """Of many rows, a share of 1 - 1/e = 0.63 is in a resample."""
    labels = np.arange(5000) % 3
    rows = resampled_rows(labels, np.random.default_rng(0))
    assert rows.shape == labels.shape
    assert 0 <= rows.min() < rows.max() < len(labels)
    assert len(np.unique(rows)) / len(labels) == pytest.approx(1 - np.exp(-1), abs=0.02)
