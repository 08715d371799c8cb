"""How much of a difference between methods is noise: standard errors over seeds, paired bootstrap over test rows.

Plain arrays in and out. Every method has predictions of the same test rows, once per seed; a baseline without a seed
has them once. Scores are those of ``trainables.metrics``, computed anew for every resample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainables import keys
from trainables.metrics import Scores, scores

CONFIDENCE = 0.95
Predictions = Sequence[np.ndarray]  # of one method: for each seed the predicted class of every test row, (n,)


@dataclass(frozen=True)
class Estimate:
    """One score of one method."""

    mean: float | None  # over the seeds; None where the test rows cannot define the score
    standard_error: float | None  # of that mean, from the spread of the seeds; None with fewer than two


@dataclass(frozen=True)
class Difference:
    """How far a method's mean score lies above the reference's."""

    value: float
    low: float  # ends of the 95 % interval: percentiles of the difference over resamples of the test rows
    high: float

    @property
    def within_noise(self) -> bool:
        return self.low <= 0 <= self.high


def score_methods(
    labels: np.ndarray, predictions: Mapping[str, Predictions], class_counts: np.ndarray, label_names: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Every test score of every method: mean over its seeds, and standard error.

    Args:
        labels: (n,) true class of each test row.
        predictions: by method.
        class_counts: (C,) training rows of each class.
    """
    found = {}
    for method, of_method in predictions.items():
        by_seed = [_scores(labels, predicted, class_counts, label_names) for predicted in of_method]
        found[method] = {key: _estimate([of_seed[key] for of_seed in by_seed]) for key in by_seed[0]}
    return found


def differences(
    labels: np.ndarray,
    predictions: Mapping[str, Predictions],
    reference: str,
    class_counts: np.ndarray,
    label_names: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Difference]]:
    """Every method's differences to ``reference``, by test score.

    Each resample draws n test rows with replacement, the same for all methods and seeds, and averages a method's scores
    over its seeds: a paired percentile bootstrap (Efron & Tibshirani 1993, chapter 13). The spread of the seeds is not
    in these intervals; the standard errors of :func:`score_methods` hold it.

    Args:
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        Without the reference itself, and without the scores that the test rows cannot define.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[dict[str, float]]] = {method: [] for method in predictions}
    for _ in range(resamples):
        rows = rng.integers(len(labels), size=len(labels))
        for method, of_method in predictions.items():
            drawn[method].append(_mean_scores(labels[rows], [p[rows] for p in of_method], class_counts, label_names))
    whole = {method: _mean_scores(labels, of, class_counts, label_names) for method, of in predictions.items()}
    return {
        method: {
            key: Difference(value - whole[reference][key], *_interval(drawn[method], drawn[reference], key))
            for key, value in whole[method].items()
            if not math.isnan(value)
        }
        for method in predictions
        if method != reference
    }


def _scores(labels: np.ndarray, predicted: np.ndarray, class_counts: np.ndarray, label_names: Sequence[str]) -> Scores:
    num_classes = len(class_counts)
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
    return scores(counts, class_counts, label_names, keys.TEST)


def _mean_scores(
    labels: np.ndarray, of_method: Predictions, class_counts: np.ndarray, label_names: Sequence[str]
) -> dict[str, float]:
    """Over the seeds; NaN where these rows cannot define a score (all seeds have the same rows)."""
    by_seed = [_scores(labels, predicted, class_counts, label_names) for predicted in of_method]
    values = {
        key: [math.nan if (value := of_seed[key]) is None else value for of_seed in by_seed] for key in by_seed[0]
    }
    return {key: float(np.mean(of_key)) for key, of_key in values.items()}


def _interval(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], key: str) -> tuple[float, float]:
    """A resample may hold no row of a rare class, and then says nothing of it."""
    gaps = np.array([one[key] - other[key] for one, other in zip(ours, theirs, strict=True)])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(gaps, [tail, 100 - tail])
    return float(low), float(high)


def _estimate(values: Sequence[float | None]) -> Estimate:
    known = [value for value in values if value is not None]
    if not known:
        return Estimate(None, None)
    spread = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), spread)
