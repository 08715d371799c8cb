"""Estimate how much of a difference between methods is noise: of the test examples (paired bootstrap) and of the seeds.

The functions take and return plain arrays. Every method predicts the same test examples, once per seed; a baseline
without a seed predicts them once. ``tailsweep.trainables.training.metrics`` computes the scores of every resample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.metrics import scores

CONFIDENCE = 0.95
# Of one method: the predicted class of every test example, (n,), by seed; None is the seed of a baseline.
Predictions = Mapping[int | None, np.ndarray]
ScoresBySeed = Mapping[int | None, Mapping[str, float]]  # NaN: the test examples (or the resample) cannot define it


@dataclass(frozen=True)
class Estimate:
    """A score of a method."""

    mean: float | None  # over the seeds; None if the test examples cannot define the score
    standard_error: float | None  # of that mean, from the spread of the seeds; None with fewer than two


@dataclass(frozen=True)
class Difference:
    """The difference between a method's mean score and the reference's."""

    value: float
    low: float  # ends of the 95 % interval: percentiles of the difference over resamples of the test examples
    high: float
    # Ends of the 95 % interval by Student's t over the seeds that both have, paired; None with fewer than two of them.
    seeds_low: float | None = None
    seeds_high: float | None = None

    @property
    def within_noise(self) -> bool:
        """Return whether other test examples of the same kind may reverse the difference."""
        return self.low <= 0 <= self.high

    @property
    def depends_on_seeds(self) -> bool:
        """Return whether the difference exceeds the noise of the examples, but other seeds may reverse it.

        This also holds if there are fewer than two paired seeds.
        """
        return not self.within_noise and (
            self.seeds_low is None or self.seeds_high is None or self.seeds_low <= 0 <= self.seeds_high
        )


@dataclass(frozen=True)
class ScoredExamples:
    """The test examples, and what their scores depend on besides predictions."""

    labels: np.ndarray  # (n,) true class of each test example, in [0, C)
    class_counts: np.ndarray  # (C,) training examples of each class
    label_names: Sequence[str]  # the C classes

    def take(self, rows: np.ndarray) -> "ScoredExamples":
        """Return a resample: the examples with the indices ``rows``, (n,)."""
        return replace(self, labels=self.labels[rows])


def score_methods(examples: ScoredExamples, predictions: Mapping[str, Predictions]) -> dict[str, dict[str, Estimate]]:
    """Return every test score of every method: the mean over its seeds, and its standard error.

    Args:
        examples: The test examples.
        predictions: By method.
    """
    return {
        method: {key: _estimate(values) for key, values in _by_score(_scores_by_seed(examples, by_seed)).items()}
        for method, by_seed in predictions.items()
    }


def differences(
    examples: ScoredExamples, predictions: Mapping[str, Predictions], reference: str, resamples: int, seed: int
) -> dict[str, dict[str, Difference]]:
    """Return every method's differences to ``reference``, by test score.

    Each resample draws n test examples with replacement, the same for all methods and seeds, and averages a method's
    scores over its seeds: a paired percentile bootstrap (Efron & Tibshirani 1993, chapter 13). These intervals leave
    out the spread of the seeds. The intervals over the seeds contain it, and leave the test examples as they are.

    Args:
        examples: The test examples.
        predictions: By method.
        reference: The method that the others are compared with.
        resamples: The number of resamples.
        seed: The seed of the draws.

    Returns:
        The differences, without the reference itself, and without scores that the test examples cannot define.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[dict[str, float]]] = {method: [] for method in predictions}
    for _ in range(resamples):
        rows = rng.integers(len(examples.labels), size=len(examples.labels))
        for method, by_seed in predictions.items():
            resampled = {key: predicted[rows] for key, predicted in by_seed.items()}
            drawn[method].append(_means(_scores_by_seed(examples.take(rows), resampled)))
    trained = {method: _scores_by_seed(examples, by_seed) for method, by_seed in predictions.items()}
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


def _scores_by_seed(examples: ScoredExamples, predictions: Predictions) -> ScoresBySeed:
    num_classes, by_seed = len(examples.class_counts), {}
    for seed, predicted in predictions.items():
        counts = np.bincount(examples.labels * num_classes + predicted, minlength=num_classes**2)
        confusion = counts.reshape(num_classes, num_classes)
        values = scores(confusion, examples.class_counts, examples.label_names, report_keys.TEST)
        by_seed[seed] = {key: math.nan if value is None else value for key, value in values.items()}
    return by_seed


def _by_score(by_seed: ScoresBySeed) -> dict[str, list[float]]:
    return {key: [values[key] for values in by_seed.values()] for key in next(iter(by_seed.values()))}


def _means(by_seed: ScoresBySeed) -> dict[str, float]:
    return {key: float(np.mean(values)) for key, values in _by_score(by_seed).items()}


def _interval(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], key: str) -> tuple[float, float]:
    """Return the percentile interval. A resample without an example of a rare class does not count for that class."""
    gaps = np.array([mine[key] - other[key] for mine, other in zip(ours, theirs, strict=True)])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(gaps, [tail, 100 - tail])
    return float(low), float(high)


def _interval_over_seeds(ours: ScoresBySeed, theirs: ScoresBySeed, key: str) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the mean difference over the seeds of both; a baseline counts for every seed."""
    gaps = []
    for seed in {**ours, **theirs}:
        mine, other = (by_seed.get(seed, by_seed.get(None)) for by_seed in (ours, theirs))
        if seed is not None and mine is not None and other is not None:
            gaps.append(mine[key] - other[key])
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
