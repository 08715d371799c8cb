"""Standard errors over seeds and intervals of differences, against scipy, scikit-learn, the normal approximation."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score, matthews_corrcoef

from orchestrator.significance import Difference, Estimate, differences, score_methods

NAMES = ("other", "absorption", "excretion")
COUNTS = np.array([600, 60, 10])
ROWS = 400
RESAMPLES = 400  # whose percentiles are uncertain by a tenth or so of the interval


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(0).choice(3, size=ROWS, p=[0.7, 0.2, 0.1])


def guesses(labels: np.ndarray, right: float, seed: int) -> np.ndarray:
    """The label with probability ``right``, else any class."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < right, labels, rng.integers(3, size=len(labels)))


def between(labels: np.ndarray, ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, Difference]:
    both = {"ours": ours, "theirs": theirs}
    return differences(labels, both, "theirs", COUNTS, NAMES, resamples=RESAMPLES, seed=0)["ours"]


def test_scores_are_means_over_seeds_with_their_standard_error(labels: np.ndarray) -> None:
    predictions = [guesses(labels, 0.6, seed) for seed in (1, 2, 3)]
    found = score_methods(labels, {"ours": predictions}, COUNTS, NAMES)["ours"]
    f1 = [f1_score(labels, predicted, average="macro") for predicted in predictions]
    assert found["test/macro_f1"].mean == pytest.approx(np.mean(f1), abs=1e-12)
    assert found["test/macro_f1"].standard_error == pytest.approx(scipy.stats.sem(f1), abs=1e-12)
    assert found["test/mcc"].mean == pytest.approx(np.mean([matthews_corrcoef(labels, p) for p in predictions]))
    assert found["test/recall_few"].mean == pytest.approx(
        np.mean([(predicted[labels == 2] == 2).mean() for predicted in predictions])
    )


def test_one_seed_has_no_standard_error_and_an_absent_class_no_score(labels: np.ndarray) -> None:
    without = labels[labels != 2]
    found = score_methods(without, {"ours": [guesses(without, 0.6, 1)]}, COUNTS, NAMES)["ours"]
    assert found["test/macro_f1"].standard_error is None
    assert found["test/recall_few"] == Estimate(None, None)
    assert "test/recall_few" not in between(without, [without], [guesses(without, 0.6, 1)])


def test_what_predicts_the_same_does_not_differ(labels: np.ndarray) -> None:
    """Paired: the resamples are the same rows for both, and what is common to both cancels."""
    predicted = guesses(labels, 0.6, 1)
    found = between(labels, [predicted], [predicted])
    assert all((gap.value, gap.low, gap.high) == (0, 0, 0) and gap.within_noise for gap in found.values())


def test_the_interval_of_accuracy_is_that_of_the_paired_normal_approximation(labels: np.ndarray) -> None:
    ours, theirs = guesses(labels, 0.7, 1), guesses(labels, 0.55, 2)
    gaps = (ours == labels).astype(float) - (theirs == labels)
    half = 1.96 * gaps.std() / math.sqrt(ROWS)
    found = between(labels, [ours], [theirs])["test/accuracy"]
    assert found.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.2 * half)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.2 * half)
    assert not found.within_noise


def test_the_interval_of_macro_f1_is_scipy_s(labels: np.ndarray) -> None:
    ours, theirs = guesses(labels, 0.62, 1), guesses(labels, 0.55, 2)

    def gap(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
        return float(f1_score(truth, one, average="macro") - f1_score(truth, other, average="macro"))

    expected = scipy.stats.bootstrap(
        (labels, ours, theirs), gap, paired=True, vectorized=False, n_resamples=200, method="percentile", random_state=1
    ).confidence_interval
    found = between(labels, [ours], [theirs])["test/macro_f1"]
    assert found.value == pytest.approx(gap(labels, ours, theirs), abs=1e-12)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.2 * width)
    assert found.high == pytest.approx(expected.high, abs=0.2 * width)


def test_seeds_are_averaged_within_each_resample(labels: np.ndarray) -> None:
    """Of accuracy, the mean over seeds is the accuracy of the rows' mean, which one resample's rows decide."""
    ours, theirs = [guesses(labels, 0.7, seed) for seed in (1, 2)], [guesses(labels, 0.6, seed) for seed in (3, 4, 5)]
    per_row = np.mean([p == labels for p in ours], axis=0) - np.mean([p == labels for p in theirs], axis=0)
    half = 1.96 * per_row.std() / math.sqrt(ROWS)
    found = between(labels, ours, theirs)["test/accuracy"]
    assert found.value == pytest.approx(per_row.mean(), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2)


def test_the_same_seed_draws_the_same_resamples(labels: np.ndarray) -> None:
    ours, theirs = [guesses(labels, 0.7, 1)], [guesses(labels, 0.6, 2)]
    assert between(labels, ours, theirs) == between(labels, ours, theirs)
