"""What follows from the number of training rows of each class: loss weights, margins, priors, groups to report by.

Plain arrays in and out; which rows are visited is the business of ``samplers.py``. C: number of classes.
"""

import numpy as np
from tailsweep.trainables.errors import InputError


class ClassWithoutRows(InputError):
    """A class has no training rows, so that nothing can be said of how much its rows should count."""


def effective_number_weights(class_counts: np.ndarray, beta: float) -> np.ndarray:
    """Weights of the classes in a loss, by the effective number of samples (Cui et al. 2019, arXiv 1901.05555).

    The effective number of n rows is (1 - beta^n) / (1 - beta); a class weighs its inverse. The paper's beta is ours.

    Args:
        class_counts: (C,) training rows of each class.
        beta: in [0, 1). 0 weighs all classes the same; towards 1 the weights become the inverse class frequencies.
            Between classes with many more than 1 / (1 - beta) rows it makes no difference.

    Returns:
        (C,) float64, normalized to sum to C.

    Raises:
        ClassWithoutRows: its weight would be infinite.
    """
    assert 0 <= beta < 1, beta
    _refuse_empty_classes(class_counts)
    if beta == 0:
        return np.ones(len(class_counts))
    # 1 - beta^n without cancellation, which near beta = 1 would leave no digits. The factor 1 - beta normalizes away.
    weights: np.ndarray = -1 / np.expm1(class_counts * np.log(beta))
    weights *= len(class_counts) / weights.sum()
    return weights


def ldam_margins(class_counts: np.ndarray, max_margin: float) -> np.ndarray:
    """Label-distribution-aware margins (Cao et al. 2019, arXiv 1906.07413): proportional to n^(-1/4).

    Args:
        class_counts: (C,) training rows of each class.
        max_margin: the rarest class's margin, in logits; max_m in the official code.

    Returns:
        (C,) float64, the largest of them ``max_margin``.

    Raises:
        ClassWithoutRows: its margin would be infinite.
    """
    assert max_margin >= 0, max_margin
    _refuse_empty_classes(class_counts)
    margins: np.ndarray = class_counts.astype(np.float64) ** -0.25
    margins *= max_margin / margins.max()
    return margins


def log_counts(class_counts: np.ndarray) -> np.ndarray:
    """Return what the balanced softmax adds to the logits (Ren et al. 2020, arXiv 2007.10740).

    Returns:
        (C,) float64, nats.

    Raises:
        ClassWithoutRows: its term would be infinite.
    """
    _refuse_empty_classes(class_counts)
    logs: np.ndarray = np.log(class_counts)
    return logs


def log_priors(class_counts: np.ndarray) -> np.ndarray:
    """Return logs of the classes' shares of the training rows, pi in Menon et al. 2021 (arXiv 2007.07314).

    Returns:
        (C,) float64, nats, none above 0.

    Raises:
        ClassWithoutRows: its log would be infinite.
    """
    priors: np.ndarray = log_counts(class_counts) - np.log(class_counts.sum())
    return priors


def groups(class_counts: np.ndarray, many: int = 100, few: int = 20) -> dict[str, np.ndarray]:
    """Return the indices of the classes with ``many``, ``medium`` and ``few`` training rows, ascending; may be empty.

    Many is more than 100 rows, few is fewer than 20, medium lies between, 20 and 100 included (Liu et al. 2019, arXiv
    1904.05160).
    """
    assert few <= many + 1, (few, many)  # else a class were in two groups
    return {
        "many": np.flatnonzero(class_counts > many),
        "medium": np.flatnonzero((class_counts >= few) & (class_counts <= many)),
        "few": np.flatnonzero(class_counts < few),
    }


def _refuse_empty_classes(class_counts: np.ndarray) -> None:
    empty = np.flatnonzero(class_counts < 1)
    if len(empty) > 0:
        raise ClassWithoutRows(
            f"The number of training rows of class {', '.join(map(str, empty))} is 0, but must be at least 1 for a "
            f"loss that is made of these numbers: give the class rows, drop it, or take the loss cross_entropy"
        )
