"""How much of a difference between methods is noise: of the test rows, by a paired bootstrap, and of the seeds.

Plain arrays in and out. Every method has predictions of the same test rows, once per seed; a baseline without a seed
has them once. Scores are those of ``tailsweep.trainables.training.metrics``, computed anew for every resample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.metrics import scores

CONFIDENCE = 0.95
# Of one method: by seed, or None for a baseline that has none, the predicted class of every test row, (n,).
Predictions = Mapping[int | None, np.ndarray]
ScoresBySeed = Mapping[int | None, Mapping[str, float]]  # NaN: the test rows (or the resample) cannot define it


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
    # Ends of the 95 % interval by Student's t over the seeds that both have, paired; None with fewer than two of them.
    seeds_low: float | None = None
    seeds_high: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether other test rows of the same kind may turn it round."""
        return self.low <= 0 <= self.high

    @property
    def of_these_seeds(self) -> bool:
        """More than the noise of the test rows, but other seeds may turn it round, or nothing is known of them."""
        return not self.within_noise and (
            self.seeds_low is None or self.seeds_high is None or self.seeds_low <= 0 <= self.seeds_high
        )


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
        by_seed = _scores_by_seed(labels, of_method, class_counts, label_names)
        found[method] = {key: _estimate(values) for key, values in _by_score(by_seed).items()}
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
    in these intervals; those over the seeds, which leave the test rows as they are, hold it.

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
            resampled = {of: predicted[rows] for of, predicted in of_method.items()}
            drawn[method].append(_means(_scores_by_seed(labels[rows], resampled, class_counts, label_names)))
    trained = {method: _scores_by_seed(labels, of, class_counts, label_names) for method, of in predictions.items()}
    means = {method: _means(by_seed) for method, by_seed in trained.items()}
    return {
        method: {
            key: Difference(
                value - means[reference][key],
                *_interval(drawn[method], drawn[reference], key),
                *_interval_over_seeds(trained[method], trained[reference], key),
            )
            for key, value in means[method].items()
            if not math.isnan(value)
        }
        for method in predictions
        if method != reference
    }


def _scores_by_seed(
    labels: np.ndarray, of_method: Predictions, class_counts: np.ndarray, label_names: Sequence[str]
) -> ScoresBySeed:
    num_classes, found = len(class_counts), {}
    for seed, predicted in of_method.items():
        counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        of_seed = scores(counts.reshape(num_classes, num_classes), class_counts, label_names, report_keys.TEST)
        found[seed] = {key: math.nan if value is None else value for key, value in of_seed.items()}
    return found


def _by_score(by_seed: ScoresBySeed) -> dict[str, list[float]]:
    return {key: [of_seed[key] for of_seed in by_seed.values()] for key in next(iter(by_seed.values()))}


def _means(by_seed: ScoresBySeed) -> dict[str, float]:
    return {key: float(np.mean(values)) for key, values in _by_score(by_seed).items()}


def _interval(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], key: str) -> tuple[float, float]:
    """A resample may hold no row of a rare class, and then says nothing of it."""
    gaps = np.array([one[key] - other[key] for one, other in zip(ours, theirs, strict=True)])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(gaps, [tail, 100 - tail])
    return float(low), float(high)


def _interval_over_seeds(ours: ScoresBySeed, theirs: ScoresBySeed, key: str) -> tuple[float, float] | tuple[None, None]:
    """Of the mean difference over the seeds that both have; a baseline is the same whatever the other's seed."""
    gaps = []
    for seed in {**ours, **theirs}:
        one, other = (by_seed.get(seed, by_seed.get(None)) for by_seed in (ours, theirs))
        if seed is not None and one is not None and other is not None:
            gaps.append(one[key] - other[key])
    if len(gaps) < 2:
        return None, None
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1) * scipy.stats.sem(gaps)
    return float(np.mean(gaps) - half), float(np.mean(gaps) + half)


def _estimate(values: Sequence[float]) -> Estimate:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(None, None)
    spread = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), spread)
