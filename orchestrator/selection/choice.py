"""The choice of a sweep's model among its baselines, its trials and the mean of the best of both.

The best of many by few validation examples is the luckiest. So each kind of model is judged out of fold: the best of
the kind is found on four fifths of the examples and predicts the last, in turn and several times over. Between kinds
there is a presumption, and another kind is taken only if it is ahead by more than one standard error of the difference.
For accuracy the presumption is for the mean of several: on resamples of recorded runs, RESULTS.md, it is seldom worse
than the best of its members and needs no luck. For simplicity it is for a baseline, then for a single trial (the
one-standard-error rule of Breiman et al. 1984, section 3.4.3).

Plain arrays in and out; M models, n rows, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.postprocess.resampling import resampled_rows, stratified_folds

Kind = Literal["baseline", "trial", "ensemble"]  # the simplest and cheapest first
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Score = Callable[[NDArray[np.int64]], float]  # counts (C, C) by [true, predicted] -> what is to be as large as possible
Fit = Callable[[NDArray[np.int64]], Floats]  # rows -> weights (M,) of the contenders

FOLDS = 5
REPEATS = 4
MANY_ROWS = 20_000  # of which one repeat tells as much
RESAMPLES = 200  # of the rows, for the standard errors
LEAST = 1e-12  # probability, whose logarithm is taken


@dataclass(frozen=True, eq=False)
class Contender:
    """A model that a sweep may end with."""

    name: str
    kind: Literal["baseline", "trial"]
    probabilities: Floats  # (n, C), of the validation examples


@dataclass(frozen=True)
class Preference:
    """What kind of model is presumed to be the right one."""

    max_members: int  # of a mean; at most half of all contenders, rounded up, so that it never takes in the worst
    simplest: bool = False  # presume the simplest kind, in place of the mean of several


@dataclass(frozen=True)
class JudgedKind:
    """The best model of a kind, and how the kind does on examples left out of its choice."""

    kind: Kind
    weights: Mapping[str, float]  # of its members, by name; they sum to 1
    score: float  # out of fold
    difference: float  # of the score to that of the chosen kind
    standard_error: float  # of that difference
    chosen: bool


def choose(
    contenders: Sequence[Contender], labels: Labels, score: Score, preference: Preference, seed: int
) -> list[JudgedKind]:
    """Judge each kind of model and choose one.

    Args:
        contenders: At least one; of equals the first of a kind is chosen.
        labels: (n,), in [0, C).
        score: What is to be raised.
        preference: What is presumed.
        seed: Of folds and resamples.

    Returns:
        The kinds that there are, the simplest first.
    """
    judge = _Judge(contenders, labels, score, preference, seed)
    kinds = list(judge.fits)
    if preference.simplest:
        best = max(kinds, key=lambda kind: judge.scores[kind])  # the first, and simplest, of equals
        chosen = next(kind for kind in kinds if judge.difference(best, kind) <= judge.standard_error(best, kind))
    else:
        presumed = kinds[-1]
        ahead = [kind for kind in kinds if judge.difference(kind, presumed) > judge.standard_error(kind, presumed)]
        chosen = max(ahead, key=lambda kind: judge.scores[kind], default=presumed)
    return [
        JudgedKind(
            kind,
            judge.best_of(kind),
            judge.scores[kind],
            judge.difference(kind, chosen),
            judge.standard_error(kind, chosen),
            kind == chosen,
        )
        for kind in kinds
    ]


class _Judge:
    """The predictions of each kind on rows left out of its choice."""

    def __init__(
        self, contenders: Sequence[Contender], labels: Labels, score: Score, preference: Preference, seed: int
    ) -> None:
        self.names = [contender.name for contender in contenders]
        self.probabilities = np.stack([contender.probabilities for contender in contenders])  # (M, n, C)
        self.predictions = self.probabilities.argmax(axis=2)  # (M, n)
        self.labels, self.score = labels, score
        likelihood = np.maximum(self.probabilities[:, np.arange(len(labels)), labels], LEAST)
        self.log_likelihood = np.log(likelihood)  # (M, n)
        self.fits = self._fits([contender.kind for contender in contenders], preference)
        rng = np.random.default_rng(seed)
        repeats = REPEATS if len(labels) <= MANY_ROWS else 1
        folds = [stratified_folds(labels, FOLDS, rng) for _ in range(repeats)]
        self.predicted = {kind: [self._out_of_fold(fit, fold) for fold in folds] for kind, fit in self.fits.items()}
        self.scores = {kind: self._mean_score(kind, slice(None)) for kind in self.fits}
        drawn = [resampled_rows(labels, rng) for _ in range(RESAMPLES)]
        self.resampled = {kind: np.array([self._mean_score(kind, rows) for rows in drawn]) for kind in self.fits}

    def best_of(self, kind: Kind) -> dict[str, float]:
        """Return the weights of the best model of a kind by all rows."""
        weights = self.fits[kind](np.arange(len(self.labels)))
        return {name: float(weight) for name, weight in zip(self.names, weights, strict=True) if weight}

    def difference(self, kind: Kind, other: Kind) -> float:
        """Return by how much a kind's score exceeds another's."""
        return self.scores[kind] - self.scores[other]

    def standard_error(self, kind: Kind, other: Kind) -> float:
        """Return the standard error of that difference, over resamples of the rows."""
        return float(np.std(self.resampled[kind] - self.resampled[other]))

    def _fits(self, kinds: Sequence[Kind], preference: Preference) -> dict[Kind, Fit]:
        fits: dict[Kind, Fit] = {}
        simple: tuple[Kind, ...] = ("baseline", "trial")
        for kind in simple:
            numbers = [number for number, own in enumerate(kinds) if own == kind]
            if numbers:
                fits[kind] = partial(self._mean_of_best, numbers, 1)
        size = min(preference.max_members, -(-len(kinds) // 2))
        if size > 1:
            fits["ensemble"] = partial(self._mean_of_best, range(len(kinds)), size)
        return fits

    def _mean_of_best(self, numbers: Sequence[int], size: int, rows: NDArray[np.int64]) -> Floats:
        """Return equal weights for the best contenders by score; of equals, for the more likely ones."""

        def key(number: int) -> tuple[float, float]:
            score = self._scored(self.labels[rows], self.predictions[number, rows])
            return -round(score, 12), -float(self.log_likelihood[number, rows].mean())

        weights = np.zeros(len(self.names))
        weights[sorted(numbers, key=key)[:size]] = 1 / min(size, len(numbers))
        return weights

    def _out_of_fold(self, fit: Fit, folds: NDArray[np.int64]) -> Labels:
        """Return the class that is predicted for each row by what was fitted to the other folds, (n,)."""
        predicted = np.empty(len(folds), np.int64)
        for fold in np.unique(folds):
            outside = folds == fold
            weights = fit(np.flatnonzero(~outside))
            predicted[outside] = np.tensordot(weights, self.probabilities[:, outside], axes=1).argmax(axis=1)
        return predicted

    def _mean_score(self, kind: Kind, rows: NDArray[np.int64] | slice) -> float:
        labels = self.labels[rows]
        return float(np.mean([self._scored(labels, repeat[rows]) for repeat in self.predicted[kind]]))

    def _scored(self, labels: Labels, predicted: Labels) -> float:
        num_classes = self.probabilities.shape[2]
        flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        return self.score(flat.astype(np.int64).reshape(num_classes, num_classes))
