"""How far probabilities can be believed: their negative log-likelihood and calibration error, and a temperature.

Plain arrays in and out. n rows, C classes; logits are (n, C), labels (n,) in [0, C).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Floats = NDArray[np.float64]

BINS = 15  # of equal width, as Guo et al. 2017 have them
MOST = 100.0  # a temperature lies between 1 / MOST and MOST


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Mean of -log p(label), nats per row."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def expected_calibration_error(logits: Floats, labels: NDArray[np.int64], bins: int = BINS) -> float:
    """ECE (Naeini et al. 2015, as in Guo et al. 2017, arXiv 1706.04599), in [0, 1].

    Rows are put into bins ((b - 1) / bins, b / bins] by the probability of the class that is predicted; the absolute
    differences between a bin's mean probability and its share of right predictions are averaged over the rows.
    """
    probabilities = softmax(logits, axis=1)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(bin_of, weights=confidence - right, minlength=bins)  # rows times the bin's difference
    return float(np.abs(surplus).sum() / len(labels))


def fitted_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """T > 0 with the least negative log-likelihood of ``logits / T`` (Guo et al. 2017).

    1.0 where there is no such T between 1/100 and 100: rows that are all predicted rightly want probabilities of 1,
    rows that are predicted no better than by chance want them equal, and neither says how far to go.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    # Convex in 1 / T, so that there is one minimum, over log T too.
    edge = np.log(MOST)
    optimum = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits * np.exp(-log_t), labels),
        bounds=(-edge, edge),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return 1.0 if abs(optimum.x) > edge - 0.01 else float(np.exp(optimum.x))
