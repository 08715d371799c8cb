"""The choice of a sweep's model among its baselines, its trials and the mean of the best of both.

The best of many by few validation examples is the luckiest. So each kind of model is judged out of fold: the best of
the kind is found on four fifths of the examples and predicts the last, in turn and several times over. Between kinds
there is a presumption, and another kind is taken only if it is ahead by more than one standard error of the difference.
For accuracy the presumption is for the mean of several: on resamples of recorded runs, RESULTS.md, it is seldom worse
than the best of its members and needs no luck. For simplicity it is for a baseline, then for a single trial (the
one-standard-error rule of Breiman et al. 1984, section 3.4.3).

A kind may come with post-hoc logit adjustment (Menon et al. 2021, arXiv 2007.07314), whose strength tau is fitted with
the members. It is taken only if the kind is ahead with it by more than one standard error, too.

Plain arrays in and out; M models, n rows, C classes, T strengths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.postprocess.thresholds import adjustment, confusion_counts
from tailsweep.trainables.resampling import resampled_rows, stratified_folds

Kind = Literal["baseline", "trial", "ensemble"]  # the simplest and cheapest first
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Score = Callable[[NDArray[np.int64]], float]  # counts (C, C) by [true, predicted] -> what is to be as large as possible
Fit = Callable[[NDArray[np.int64]], "_Fitted"]  # rows -> what is fitted to them

FOLDS = 5
REPEATS = 4
MANY_ROWS = 20_000  # of which one repeat tells as much
RESAMPLES = 200  # of the rows, for the standard errors
LEAST = 1e-12  # probability, whose logarithm is taken
TAUS = tuple(number / 4 for number in range(9))  # 0 to 2


@dataclass(frozen=True, eq=False)
class Contender:
    """A model that a sweep may end with."""

    name: str
    kind: Literal["baseline", "trial"]
    probabilities: Floats  # (n, C), of the validation examples


@dataclass(frozen=True, eq=False)
class Examples:
    """What models are judged by."""

    labels: Labels  # (n,), in [0, C)
    class_counts: NDArray[np.int64]  # (C,), training rows of each class, at least 1
    score: Score  # what is to be raised


@dataclass(frozen=True)
class Preference:
    """What kind of model is presumed to be the right one."""

    max_members: int  # of a mean
    at_most_half: bool = True  # of all contenders, rounded up, so that it never takes in the worst
    simplest: bool = False  # presume the simplest kind, in place of the mean of several
    adjust: bool = False  # whether a kind may come with logit adjustment


@dataclass(frozen=True)
class JudgedKind:
    """The best model of a kind, and how the kind does on examples left out of its choice."""

    kind: Kind
    weights: Mapping[str, float]  # of its members, by name; they sum to 1
    tau: float  # of its logit adjustment; 0: it has none
    score: float  # out of fold
    difference: float  # of the score to that of the chosen kind
    standard_error: float  # of that difference
    chosen: bool


def choose(contenders: Sequence[Contender], examples: Examples, preference: Preference, seed: int) -> list[JudgedKind]:
    """Judge each kind of model and choose one.

    Args:
        contenders: At least one; of equals the first of a kind is chosen.
        examples: What they are judged by.
        preference: What is presumed.
        seed: Of folds and resamples.

    Returns:
        The kinds that there are, the simplest first.
    """
    judge = _Judge(contenders, examples, preference, seed)
    versions = judge.versions()
    if preference.simplest:
        best = max(versions, key=lambda version: judge.scores[version])  # the first, and simplest, of equals
        chosen = next(
            version for version in versions if judge.difference(best, version) <= judge.standard_error(best, version)
        )
    else:
        presumed = versions[-1]
        ahead = [version for version in versions if judge.is_ahead(version, presumed)]
        chosen = max(ahead, key=lambda version: judge.scores[version], default=presumed)
    judged = []
    for version in versions:
        weights, tau = judge.fitted(version)
        judged.append(
            JudgedKind(
                version.kind,
                weights,
                tau,
                judge.scores[version],
                judge.difference(version, chosen),
                judge.standard_error(version, chosen),
                version == chosen,
            )
        )
    return judged


@dataclass(frozen=True)
class _Version:
    """A kind of model, with logit adjustment or without."""

    kind: Kind
    is_adjusted: bool


@dataclass(frozen=True, eq=False)
class _Fitted:
    weights: Floats  # (M,)
    strength: int  # the number of tau


class _Judge:
    """The predictions of each kind on rows left out of its choice."""

    def __init__(self, contenders: Sequence[Contender], examples: Examples, preference: Preference, seed: int) -> None:
        labels = examples.labels
        self.names = [contender.name for contender in contenders]
        self.probabilities = np.stack([contender.probabilities for contender in contenders])  # (M, n, C)
        self.taus = TAUS if preference.adjust else TAUS[:1]
        # A shift of the logarithms of probabilities is a factor of these, (T, C): the rarest class has the largest.
        shifts = np.stack([adjustment(examples.class_counts, tau) for tau in self.taus])
        self.factors = np.exp(shifts - shifts.max(axis=1, keepdims=True))
        self.predictions = np.stack([(self.probabilities * each).argmax(axis=2) for each in self.factors])  # (T, M, n)
        self.labels, self.score = labels, examples.score
        likelihood = np.maximum(self.probabilities[:, np.arange(len(labels)), labels], LEAST)
        self.log_likelihood = np.log(likelihood)  # (M, n)
        self.fits = self._fits([contender.kind for contender in contenders], preference)
        rng = np.random.default_rng(seed)
        repeats = REPEATS if len(labels) <= MANY_ROWS else 1
        folds = [stratified_folds(labels, FOLDS, rng) for _ in range(repeats)]
        self.predicted = {each: [self._out_of_fold(fit, fold) for fold in folds] for each, fit in self.fits.items()}
        self.scores = {each: self._mean_score(each, slice(None)) for each in self.fits}
        drawn = [resampled_rows(labels, rng) for _ in range(RESAMPLES)]
        self.resampled = {each: np.array([self._mean_score(each, rows) for rows in drawn]) for each in self.fits}

    def versions(self) -> list[_Version]:
        """Return each kind, simplest first, with logit adjustment where that is clearly ahead."""
        kinds = dict.fromkeys(version.kind for version in self.fits)
        versions = []
        for kind in kinds:
            plain, adjusted = (_Version(kind, is_adjusted) for is_adjusted in (False, True))
            takes = adjusted in self.fits and self.is_ahead(adjusted, plain)
            versions.append(adjusted if takes else plain)
        return versions

    def fitted(self, version: _Version) -> tuple[dict[str, float], float]:
        """Return the weights of the members and tau, fitted to all rows."""
        fitted = self.fits[version](np.arange(len(self.labels)))
        weights = {name: float(weight) for name, weight in zip(self.names, fitted.weights, strict=True) if weight}
        return weights, self.taus[fitted.strength]

    def difference(self, version: _Version, other: _Version) -> float:
        """Return by how much a score exceeds another."""
        return self.scores[version] - self.scores[other]

    def standard_error(self, version: _Version, other: _Version) -> float:
        """Return the standard error of that difference, over resamples of the rows."""
        return float(np.std(self.resampled[version] - self.resampled[other]))

    def is_ahead(self, version: _Version, other: _Version) -> bool:
        """Return whether a score exceeds another by more than one standard error of the difference."""
        return self.difference(version, other) > self.standard_error(version, other)

    def _fits(self, kinds: Sequence[Kind], preference: Preference) -> dict[_Version, Fit]:
        pools: dict[Kind, tuple[Sequence[int], int]] = {}  # whom of, and how many
        simple: tuple[Kind, ...] = ("baseline", "trial")
        for kind in simple:
            if own := [number for number, each in enumerate(kinds) if each == kind]:
                pools[kind] = own, 1
        size = min(preference.max_members, -(-len(kinds) // 2) if preference.at_most_half else len(kinds))
        if size > 1:
            pools["ensemble"] = range(len(kinds)), size
        fits: dict[_Version, Fit] = {}
        for kind, (numbers, size) in pools.items():
            fits[_Version(kind, False)] = partial(self._mean_of_best, numbers, size, 0)
            if preference.adjust:
                fits[_Version(kind, True)] = partial(self._best_adjusted, numbers, size)
        return fits

    def _mean_of_best(self, numbers: Sequence[int], size: int, strength: int, rows: NDArray[np.int64]) -> _Fitted:
        """Return equal weights for the best contenders by score; of equals, for the more likely ones."""

        def key(number: int) -> tuple[float, float]:
            score = self._scored(self.labels[rows], self.predictions[strength, number, rows])
            return -round(score, 12), -float(self.log_likelihood[number, rows].mean())

        weights = np.zeros(len(self.names))
        weights[sorted(numbers, key=key)[:size]] = 1 / min(size, len(numbers))
        return _Fitted(weights, strength)

    def _best_adjusted(self, numbers: Sequence[int], size: int, rows: NDArray[np.int64]) -> _Fitted:
        """Return the tau whose best contenders, so adjusted, score best together; of equals the smallest."""
        fits = [self._mean_of_best(numbers, size, strength, rows) for strength in range(len(self.taus))]
        return max(fits, key=lambda fit: round(self._scored(self.labels[rows], self._predict(fit, rows)), 12))

    def _predict(self, fit: _Fitted, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Labels:
        mean = np.tensordot(fit.weights, self.probabilities[:, rows], axes=1)
        predicted: Labels = (mean * self.factors[fit.strength]).argmax(axis=1)
        return predicted

    def _out_of_fold(self, fit: Fit, folds: NDArray[np.int64]) -> Labels:
        """Return the class that is predicted for each row by what was fitted to the other folds, (n,)."""
        predicted = np.empty(len(folds), np.int64)
        for fold in np.unique(folds):
            outside = folds == fold
            predicted[outside] = self._predict(fit(np.flatnonzero(~outside)), outside)
        return predicted

    def _mean_score(self, version: _Version, rows: NDArray[np.int64] | slice) -> float:
        labels = self.labels[rows]
        return float(np.mean([self._scored(labels, repeat[rows]) for repeat in self.predicted[version]]))

    def _scored(self, labels: Labels, predicted: Labels) -> float:
        return self.score(confusion_counts(labels, predicted, self.probabilities.shape[2]))
