"""Estimate how much of a difference between methods is noise: of the test examples and of the seeds.

The functions take and return plain arrays. Every method predicts the same test examples, once per seed; a baseline
without a seed predicts them once. ``tailsweep.trainables.training.metrics`` computes the scores of every resample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.stats
from tailsweep.trainables import report_keys
from tailsweep.trainables.training.metrics import scores, scores_of_many

CONFIDENCE = 0.95
ROWS_AT_ONCE = 500_000  # of resamples: what is in memory grows with it
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
    """The difference between a method's mean score and the reference's, and what other draws would make of it.

    What differs between a method's seeds is what the intervals and the probability are about: luck of training with
    the settings of one search, or the search too, where each seed has its own.
    """

    value: float
    low: float  # ends of the 95 % interval over other test examples and other seeds of the same kind
    high: float
    examples_low: float  # over other test examples alone: percentiles of the difference over resamples
    examples_high: float
    # Over other seeds alone: Student's t with a variance pooled over the methods; None with one seed for each of them.
    seeds_low: float | None
    seeds_high: float | None
    p_better: float  # probability that the difference is above 0, by examples and seeds
    p_value: float  # two-sided, of no difference
    adjusted_p_value: float  # after Holm 1979, over all methods that are compared with the reference in this score

    @property
    def verdict(
        self,
    ) -> Literal["better", "worse", "better with these seeds", "worse with these seeds", "not told apart"]:
        """The verdict at 5 %, for all methods together."""
        if self.adjusted_p_value > 1 - CONFIDENCE:
            return "not told apart"
        if self.seeds_low is None:
            return "better with these seeds" if self.value > 0 else "worse with these seeds"
        return "better" if self.value > 0 else "worse"


@dataclass(frozen=True)
class Choice:
    """The gain of taking the method with the best validation score over taking the reference, on the test examples.

    In each draw the seeds of both scores and the test examples are others, and the choice is made anew: whoever
    repeats the comparison may choose another method. The validation examples stay.
    """

    value: float  # of the method that is chosen
    low: float  # ends of the 95 % interval
    high: float
    shares: dict[str, float]  # how often each method is chosen


@dataclass(frozen=True)
class ScoredExamples:
    """The test examples, and what their scores depend on besides predictions."""

    labels: np.ndarray  # (n,) true class of each test example, in [0, C)
    class_counts: np.ndarray  # (C,) training examples of each class
    label_names: Sequence[str]  # the C classes


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


@dataclass(frozen=True)
class ResampledScores:
    """The test scores of all methods, and what they are on other test examples, drawn once for every question."""

    scores: "dict[str, _Score]"  # by test score; without those that the test examples cannot define
    seed: int

    def differences(self, reference: str) -> dict[str, dict[str, Difference]]:
        """Return every other method's differences to ``reference``, by method and test score."""
        by_score = {key: score.differences(reference) for key, score in self.scores.items()}
        methods = [method for method in next(iter(self.scores.values())).by_seed if method != reference]
        return {method: {key: gaps[method] for key, gaps in by_score.items()} for method in methods}

    def choice(self, validation: Mapping[str, np.ndarray], reference: str, score: str) -> Choice | None:
        """Return what choosing by validation score gains over ``reference``; None if the score is not defined.

        Args:
            validation: Of each method to choose from, the validation score by seed, (seeds,).
            reference: One of them.
            score: A test score.
        """
        if score not in self.scores:
            return None
        return self.scores[score].choice(validation, reference, np.random.default_rng(self.seed))

    def p_best(self) -> dict[str, dict[str, float]]:
        """Return the probability that a method has the largest mean score, by method and test score."""
        rng = np.random.default_rng(self.seed)
        by_score = {key: score.p_best(rng) for key, score in self.scores.items()}
        methods = next(iter(self.scores.values())).by_seed
        return {method: {key: shares[method] for key, shares in by_score.items()} for method in methods}


def resample(
    examples: ScoredExamples, predictions: Mapping[str, Predictions], resamples: int, seed: int
) -> ResampledScores:
    """Score all methods on resamples of the test examples.

    Each resample draws n test examples with replacement, the same for all methods and seeds, and averages a method's
    scores over its seeds: a paired bootstrap (Efron & Tibshirani 1993, chapter 13). The spread of the seeds is pooled
    over all methods that have several, as in an analysis of variance: three seeds alone tell too little of it. The
    variances of both add up, with the degrees of freedom of Satterthwaite 1946.

    Args:
        examples: The test examples.
        predictions: By method.
        resamples: The number of resamples.
        seed: The seed of the draws.
    """
    drawn = _resampled_scores(examples, predictions, resamples, np.random.default_rng(seed))
    trained = {method: _by_score(_scores_by_seed(examples, by_seed)) for method, by_seed in predictions.items()}
    defined = [
        key
        for key in next(iter(trained.values()))
        if not any(math.isnan(value) for values in trained.values() for value in values[key])
    ]
    num_seeds = {method: math.inf if None in by_seed else len(by_seed) for method, by_seed in predictions.items()}
    by_score = {
        key: _Score(
            {method: np.array(values[key]) for method, values in trained.items()},
            {method: means[key] for method, means in drawn.items()},
            num_seeds,
        )
        for key in defined
    }
    return ResampledScores(by_score, seed)


def _resampled_scores(
    examples: ScoredExamples, predictions: Mapping[str, Predictions], resamples: int, rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """Return each method's mean scores over its seeds on resamples of the examples: (resamples,) by test score."""
    num_examples, num_classes = len(examples.labels), len(examples.class_counts)
    at_once = max(1, ROWS_AT_ONCE // num_examples)
    blocks: dict[str, list[dict[str, np.ndarray]]] = {method: [] for method in predictions}
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        rows = np.stack([rng.integers(num_examples, size=num_examples) for _ in range(size)])
        offsets = num_classes**2 * np.arange(size)[:, None]
        for method, by_seed in predictions.items():
            counts = np.stack(
                [
                    np.bincount(
                        (offsets + (examples.labels * num_classes + predicted)[rows]).ravel(),
                        minlength=size * num_classes**2,
                    ).reshape(size, num_classes, num_classes)
                    for predicted in by_seed.values()
                ]
            )
            measured = scores_of_many(counts, examples.class_counts, examples.label_names, report_keys.TEST)
            blocks[method].append({key: values.mean(axis=0) for key, values in measured.items()})
    return {
        method: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for method, parts in blocks.items()
    }


@dataclass(frozen=True)
class _Score:
    """One score of every method."""

    by_seed: Mapping[str, np.ndarray]  # (seeds,)
    resampled: Mapping[str, np.ndarray]  # (resamples,), means over the seeds; NaN: the resample cannot define it
    num_seeds: Mapping[str, float]  # infinite for a baseline, which is the same with every seed

    def differences(self, reference: str) -> dict[str, Difference]:
        """Return the difference of every other method to the reference."""
        methods = [method for method in self.by_seed if method != reference]
        gaps = {method: self._difference(method, reference) for method in methods}
        adjusted = holm({method: gap.p_value for method, gap in gaps.items()})
        return {method: replace(gap, adjusted_p_value=adjusted[method]) for method, gap in gaps.items()}

    def p_best(self, rng: np.random.Generator) -> dict[str, float]:
        """Return how often each method has the largest mean, over other test examples and other seeds."""
        methods = list(self.by_seed)
        drawn = self._drawn(methods, rng)
        best = np.bincount(drawn.argmax(axis=0), minlength=len(methods)) / max(1, drawn.shape[1])
        return dict(zip(methods, best.tolist(), strict=True))

    def choice(self, validation: Mapping[str, np.ndarray], reference: str, rng: np.random.Generator) -> Choice:
        """Return what choosing by ``validation`` gains over the reference."""
        methods = list(validation)
        test = self._drawn(methods, rng)
        variance, _ = pooled_variance(list(validation.values()))
        means = np.array([[values.mean()] for values in validation.values()])
        spread = np.array([[math.sqrt(variance / len(values))] for values in validation.values()])
        chosen = (means + spread * rng.standard_normal(test.shape)).argmax(axis=0)
        gains = test[chosen, np.arange(test.shape[1])] - test[methods.index(reference)]
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(gains, [tail, 100 - tail])
        shares = np.bincount(chosen, minlength=len(methods)) / len(chosen)
        ours = methods[int(means.argmax())]
        value = float(self.by_seed[ours].mean() - self.by_seed[reference].mean())
        return Choice(value, float(low), float(high), dict(zip(methods, shares.tolist(), strict=True)))

    def _drawn(self, methods: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Return mean scores over other test examples and other seeds: (methods, draws)."""
        means = np.stack([self.resampled[method] for method in methods])
        means = means[:, ~np.isnan(means).any(axis=0)]
        variance, _ = pooled_variance(list(self.by_seed.values()))
        spread = np.array([[math.sqrt(variance / self.num_seeds[method])] for method in methods])
        return means + spread * rng.standard_normal(means.shape)

    def _difference(self, ours: str, theirs: str) -> Difference:
        value = float(self.by_seed[ours].mean() - self.by_seed[theirs].mean())
        # NaN does not count: a rare class is not in every resample.
        gaps = self.resampled[ours] - self.resampled[theirs]
        tail = 100 * (1 - CONFIDENCE) / 2
        examples_low, examples_high = np.nanpercentile(gaps, [tail, 100 - tail])
        by_examples = float(np.nanvar(gaps))
        variance, freedom = pooled_variance(list(self.by_seed.values()))
        by_seeds = variance * (1 / self.num_seeds[ours] + 1 / self.num_seeds[theirs])
        seeds = None if freedom == 0 else scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(by_seeds)
        error = math.sqrt(by_examples + by_seeds)
        # Satterthwaite; the variance by examples counts as known.
        both = freedom * (error**2 / by_seeds) ** 2 if by_seeds > 0 else math.inf
        half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, both)) * error
        p_better = float(scipy.stats.t.cdf(value / error, both)) if error > 0 else (1 + math.copysign(1, value)) / 2
        p_better = 0.5 if value == 0 else p_better
        return Difference(
            value,
            value - half,
            value + half,
            float(examples_low),
            float(examples_high),
            None if seeds is None else value - float(seeds),
            None if seeds is None else value + float(seeds),
            p_better,
            p_value=2 * min(p_better, 1 - p_better),
            adjusted_p_value=math.nan,
        )


def pooled_variance(groups: Sequence[np.ndarray]) -> tuple[float, int]:
    """Return the variance within groups, and its degrees of freedom; 0 and 0 if no group has two values.

    Example:
        >>> pooled_variance([np.array([1.0, 3.0]), np.array([10.0, 10.0]), np.array([5.0])])
        (1.0, 2)
    """
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return (squares / freedom if freedom else 0.0), freedom


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for how many there are (Holm 1979): the step-down Bonferroni procedure.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


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


def _estimate(values: Sequence[float]) -> Estimate:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(None, None)
    spread = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), spread)
