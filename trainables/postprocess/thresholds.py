"""Which class to say, given logits: a shift of each class's logit, fitted on held-out rows to raise a chosen score.

Thresholds t_c on probabilities and logit adjustment are both such shifts, since argmax_c p_c / t_c is
argmax_c (z_c - log t_c). Few rows are easily overfitted: thresholds are averaged over resamples of the rows and drawn
back towards no change as far as the rows left out ask for, and where several decisions score the same, the one nearest
to no change is taken. Plain arrays in and out.

n rows, C classes; logits are (n, C), labels (n,) in [0, C), counts (C, C) are rows by [true, predicted].
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[NDArray[np.int64]], float]  # counts -> what is to be as large as possible

TAUS = tuple(number / 10 for number in range(21))  # the grid of Kang et al. 2020's code, 0 to 2
RESAMPLES = 10
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the fitted shift that may be kept
MAX_PASSES = 20  # over the classes; the score hardly ever rises in more than five
MAX_CUTS = 256  # places tried for one class's threshold: all that differ on so many rows, evenly chosen ones of more
MIN_GAP = 1e-5  # between logits that a threshold may part: the shift has to survive float32


def counts_of(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows by [true, predicted], (C, C)."""
    num_classes = logits.shape[1]
    return confusion_counts(labels, logits.argmax(axis=1), num_classes)


def chosen_tau(
    tau: float | Literal["auto"], logits_at: Callable[[float], Floats], labels: NDArray[np.int64], score: Score
) -> float:
    """``tau`` itself, or for ``auto`` the one of the grid whose logits score best; of equals the smallest."""
    if tau != "auto":
        return tau
    return max(TAUS, key=lambda grid_tau: _rounded(score(counts_of(logits_at(grid_tau), labels))))


def adjustment(class_counts: NDArray[np.int64], tau: float) -> Floats:
    """Post-hoc logit adjustment (Menon et al. 2021, arXiv 2007.07314): -tau * log(prior), (C,).

    Args:
        class_counts: (C,) training rows of each class, at least 1.
    """
    assert class_counts.min() >= 1, class_counts
    shift: Floats = -tau * np.log(class_counts / class_counts.sum())
    return shift


def fitted_thresholds(logits: Floats, labels: NDArray[np.int64], score: Score) -> tuple[Floats, float]:
    """Fit thresholds t (C,), all > 0, with which argmax_c p_c / t_c scores well on new rows; and the share kept.

    Thresholds that are the best for a few rows are often worse than none for the next. So they are fitted to bootstrap
    resamples of each class's rows (Breiman 1996), and the mean of their logarithms is taken. Of this a share is kept:
    that with which each resample's thresholds score best on the rows it left out, all of these together; of equals the
    smallest, so that nothing is changed unless it is better for rows not fitted to. A class without rows keeps 1.
    """
    rng = np.random.default_rng(0)
    rows_by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    shifts = []
    left_out = {share: np.zeros((logits.shape[1], logits.shape[1]), np.int64) for share in SHARES}
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(rows, len(rows)) for rows in rows_by_class])
        shift = -np.log(best_thresholds(logits[drawn], labels[drawn], score))
        shifts.append(shift)
        others = np.setdiff1d(np.arange(len(labels)), drawn)
        for share, counts in left_out.items():
            counts += counts_of(logits[others] + share * shift, labels[others])
    if left_out[0.0].sum() == 0:  # one row of each class: none was ever left out
        return np.ones(logits.shape[1]), 0.0
    kept = max(SHARES, key=lambda share: _rounded(score(left_out[share])))
    return np.exp(-kept * np.mean(shifts, axis=0)), kept


def best_thresholds(logits: Floats, labels: NDArray[np.int64], score: Score) -> Floats:
    """Fit thresholds t (C,), all > 0: argmax_c p_c / t_c scores as high as coordinate ascent takes it.

    One class after the other is given its best threshold, found exactly (up to ``MAX_CUTS``) from the rows' logits,
    the others held; until a pass over all classes raises the score no more, or after ``MAX_PASSES``. A threshold is
    moved only if that raises the score; of equally good places the one nearest to 1 is taken. A class without rows
    keeps 1: nothing is known of it.
    """
    shift = np.zeros(logits.shape[1])  # -log t
    best = _rounded(score(counts_of(logits, labels)))
    for _ in range(MAX_PASSES):
        before = best
        for label in np.unique(labels):
            shift[label], best = _best_shift(logits, labels, score, shift, label, best)
        if best == before:
            break
    return np.exp(-shift)


def _best_shift(
    logits: Floats, labels: NDArray[np.int64], score: Score, shift: Floats, label: int, best: float
) -> tuple[float, float]:
    """Return the best shift of one class and its score: its own shift and ``best`` unless one is better."""
    num_classes = logits.shape[1]
    others = logits + shift
    others[:, label] = -np.inf
    rivals = others.argmax(axis=1)
    needed = others.max(axis=1) - logits[:, label]  # a row is said to be of the class if its shift is above this
    order = np.argsort(needed, kind="stable")
    needed, rivals, true = needed[order], rivals[order], labels[order]
    # Number k: the first k rows are predicted to be of the class, all others to be their rivals'.
    sizes = np.concatenate([[0], 1 + np.flatnonzero(np.diff(needed) > MIN_GAP), [len(needed)]])
    if len(sizes) > MAX_CUTS:
        sizes = sizes[np.linspace(0, len(sizes) - 1, MAX_CUTS).round().astype(np.int64)]
    counts = confusion_counts(true, rivals, num_classes)
    best_place = (best, 0.0, float(shift[label]))  # score, minus the distance to no change, shift
    done = 0
    for size in sizes.tolist():
        part = slice(done, size)
        counts += confusion_counts(true[part], np.full(size - done, label), num_classes)
        counts -= confusion_counts(true[part], rivals[part], num_classes)
        done = size
        reached = _rounded(score(counts))
        if reached > best:
            place = _nearest_to_zero(needed, size)
            best_place = max(best_place, (reached, -abs(place), place))
    return best_place[2], best_place[0]


def _nearest_to_zero(needed: Floats, size: int) -> float:
    """Return a shift that takes exactly the first ``size`` rows: 0 if that does, else midway between two rows."""
    low = needed[size - 1] if size > 0 else needed[0] - 2.0
    high = needed[size] if size < len(needed) else needed[-1] + 2.0
    if low + MIN_GAP / 2 < 0 < high - MIN_GAP / 2:
        return 0.0
    return float(low + high) / 2


def _rounded(score: float) -> float:
    """Without the rounding errors that would make equal scores of different decisions differ."""
    return round(score, 12)


def confusion_counts(true: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Rows by [true, predicted], (C, C)."""
    flat = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return flat.astype(np.int64).reshape(num_classes, num_classes)
