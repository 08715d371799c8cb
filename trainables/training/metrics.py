"""Scores of a classifier from counts that add up: update on each worker, sum over the workers once, then compute.

The mean of the workers' F1 scores is not the F1 score, so what travels is counts, never scores. This module does not
communicate; whoever holds the workers sums :meth:`Confusion.state`.

    B  rows of a batch
    C  classes

``counts`` (C, C) int64 are the rows of true class i (first axis) that were predicted to be class j (second axis). A
class is *present* in a split if it has at least one true row there. What a split cannot define is None, not 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.class_balance import groups
from torch import Tensor

Scores = dict[str, float | None]


class Confusion:
    """Confusion counts and summed cross-entropy of the rows seen so far."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)  # nats, summed over rows

    @property
    def counts(self) -> np.ndarray:
        """(C, C) int64: [true, predicted]."""
        counts: np.ndarray = self._counts.cpu().numpy().copy()
        return counts

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count the rows of a batch: logits (B, C), labels (B,) int64 in [0, C), both on this object's device."""
        num_classes = len(self._counts)
        cells = labels * num_classes + logits.argmax(dim=1)
        self._counts += torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
        # In float64, so that the sum does not show how the rows were batched.
        self._loss += F.cross_entropy(logits.double(), labels, reduction="sum")

    def state(self) -> Tensor:
        """(C * C + 1,) float64: everything seen. The sum of two states is the state of the rows of both."""
        return torch.cat([self._counts.flatten().double(), self._loss.view(1)])

    def load(self, state: Tensor) -> None:
        """Hold what ``state`` holds, forgetting the rows seen so far."""
        self._counts.copy_(state[:-1].view_as(self._counts))  # exact: float64 holds integers up to 2^53
        self._loss.copy_(state[-1])

    def scores(
        self, class_counts: np.ndarray, label_names: Sequence[str], split: str = report_keys.VALIDATION
    ) -> Scores:
        """:func:`scores` of the rows seen, and their mean cross-entropy, which is NaN if a logit was."""
        counts = self.counts
        measured = scores(counts, class_counts, label_names, split)
        return measured | {report_keys.on_split(split, report_keys.LOSS): self._loss.item() / int(counts.sum())}


def scores(
    counts: np.ndarray, class_counts: np.ndarray, label_names: Sequence[str], split: str = report_keys.VALIDATION
) -> Scores:
    """Everything in ``keys.SCORES`` and the F1 of every class, under the keys of ``split``.

    Args:
        counts: (C, C) of the split; at least one row.
        class_counts: (C,) *training* rows: they say which class is the largest and which are many, medium and few.
        label_names: C names, for the keys of the classes.
        split: first part of the keys.
    """
    assert counts.ndim == 2, counts.shape
    assert counts.sum() > 0, f"no rows of {split} were scored"
    measured = scores_of_many(counts, class_counts, label_names, split)
    return {key: _none_if_nan(float(value)) for key, value in measured.items()}


def scores_of_many(
    counts: np.ndarray, class_counts: np.ndarray, label_names: Sequence[str], split: str = report_keys.VALIDATION
) -> dict[str, np.ndarray]:
    """:func:`scores` of many confusion matrices at once, (..., C, C): arrays (...), NaN where a score is undefined."""
    num_classes = len(class_counts)
    assert counts.shape[-2:] == (num_classes, num_classes) == (len(label_names), len(label_names)), counts.shape
    result = {report_keys.on_split(split, name): _score(name, counts, class_counts) for name in report_keys.SCORES}
    by_class = f1_by_class(counts)
    for index, label in enumerate(label_names):
        result[report_keys.class_f1(split, label)] = by_class[..., index]
    return result


def score(name: str, counts: np.ndarray, class_counts: np.ndarray) -> float | None:
    """One of ``keys.SCORES``, arguments as of :func:`scores`."""
    return _none_if_nan(float(_score(name, counts, class_counts)))


def _score(name: str, counts: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    match name:
        case "macro_f1":
            return macro_f1(counts)
        case "micro_f1_minority":  # argmax: of equals, the first
            return micro_f1(counts, np.delete(np.arange(len(class_counts)), np.argmax(class_counts)))
        case "accuracy":
            return accuracy(counts)
        case "balanced_accuracy":
            return balanced_accuracy(counts)
        case "mcc":
            return mcc(counts)
        case "g_mean":
            return g_mean(counts)
        case "recall_many" | "recall_medium" | "recall_few":
            return mean_recall(counts, groups(class_counts)[name.removeprefix("recall_")])
    raise AssertionError(f"no score {name}")


# Of one matrix (C, C) or of many, (..., C, C); NaN where the rows cannot define the value.


def f1_by_class(counts: np.ndarray) -> np.ndarray:
    """(..., C) F1 = 2 TP / (true + predicted) of each class; NaN for absent ones, even if some row was predicted so."""
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    return _ratio_where(true > 0, 2 * _hits(counts), true + predicted)


def recall_by_class(counts: np.ndarray) -> np.ndarray:
    """(..., C) share of each class's rows that were found; NaN for absent classes."""
    true = counts.sum(axis=-1)
    return _ratio_where(true > 0, _hits(counts), true)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the present classes: scikit-learn's ``f1_score`` with these as ``labels`` and ``average="macro"``."""
    return _mean_of_defined(f1_by_class(counts))


def micro_f1(counts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """F1 from the TP, true and predicted rows of ``classes`` together; NaN if none of them is present.

    As scikit-learn's ``f1_score(labels=classes, average="micro")``, which gives 0 where this is NaN.
    """
    true = counts.sum(axis=-1)[..., classes].sum(axis=-1)
    predicted = counts.sum(axis=-2)[..., classes].sum(axis=-1)
    return _ratio_where(true > 0, 2 * _hits(counts)[..., classes].sum(axis=-1), true + predicted)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of the rows whose class was predicted."""
    rows = counts.sum(axis=(-2, -1))
    return _ratio_where(rows > 0, _hits(counts).sum(axis=-1), rows)


def balanced_accuracy(counts: np.ndarray) -> np.ndarray:
    """Mean recall of the present classes."""
    return _mean_of_defined(recall_by_class(counts))


def mean_recall(counts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean recall of those of ``classes`` that are present; NaN if none is."""
    return _mean_of_defined(recall_by_class(counts)[..., classes])


def g_mean(counts: np.ndarray) -> np.ndarray:
    """Geometric mean of the recalls of the present classes: 0 as soon as one of them is never found."""
    recalls = recall_by_class(counts)
    with np.errstate(divide="ignore"):  # the logarithm of 0 is minus infinity, and its mean's exponential 0
        mean: np.ndarray = np.exp(_mean_of_defined(np.log(recalls)))  # a product of hundreds of them could underflow
    return mean


def mcc(counts: np.ndarray) -> np.ndarray:
    """Matthews correlation coefficient for C classes (Gorodkin 2004, R_K); 0 where undefined, as scikit-learn has it.

    It is undefined where all rows are of one class or were predicted to be.
    """
    true, predicted, rows = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    covariance = _hits(counts).sum(axis=-1) * rows - (true * predicted).sum(axis=-1)
    true_variance = rows**2 - (true**2).sum(axis=-1)
    predicted_variance = rows**2 - (predicted**2).sum(axis=-1)
    correlation = _ratio_where(
        (true_variance > 0) & (predicted_variance > 0),
        covariance,
        np.sqrt(true_variance) * np.sqrt(predicted_variance),  # their product may overflow
    )
    known: np.ndarray = np.nan_to_num(correlation, nan=0.0)
    return known


def _hits(counts: np.ndarray) -> np.ndarray:
    """(..., C) rows of each class that were predicted to be it."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _ratio_where(defined: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    ratio = np.full(np.shape(defined), np.nan)
    np.divide(numerator, denominator, out=ratio, where=defined)
    values: np.ndarray = ratio[()]  # a number where there is one matrix
    return values


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return means over the last axis, (..., C) -> (...); NaN where no value is defined."""
    defined = ~np.isnan(values)
    return _ratio_where(defined.any(axis=-1), np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
