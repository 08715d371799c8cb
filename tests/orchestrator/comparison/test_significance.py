"""Standard errors and intervals, over seeds and test examples, against scipy, scikit-learn and a normal."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score, matthews_corrcoef
from tailsweep.orchestrator.comparison.significance import (
    Difference,
    Estimate,
    Predictions,
    ScoredExamples,
    differences,
    score_methods,
)

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


def between(
    labels: np.ndarray, ours: Predictions, theirs: Predictions, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    both = {"ours": ours, "theirs": theirs}
    return differences(ScoredExamples(labels, COUNTS, NAMES), both, "theirs", resamples, seed=0)["ours"]


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(labels, predicted, average="macro"))


def test_scores_are_means_over_seeds_with_their_standard_error(labels: np.ndarray) -> None:
    predictions = {seed: guesses(labels, 0.6, seed) for seed in (1, 2, 3)}
    estimates = score_methods(ScoredExamples(labels, COUNTS, NAMES), {"ours": predictions})["ours"]
    f1 = [macro_f1(labels, predicted) for predicted in predictions.values()]
    assert estimates["test/macro_f1"].mean == pytest.approx(np.mean(f1), abs=1e-12)
    assert estimates["test/macro_f1"].standard_error == pytest.approx(scipy.stats.sem(f1), abs=1e-12)
    assert estimates["test/mcc"].mean == pytest.approx(
        np.mean([matthews_corrcoef(labels, p) for p in predictions.values()])
    )
    assert estimates["test/recall_few"].mean == pytest.approx(
        np.mean([(predicted[labels == 2] == 2).mean() for predicted in predictions.values()])
    )


def test_one_seed_has_no_standard_error_and_an_absent_class_no_score(labels: np.ndarray) -> None:
    without = labels[labels != 2]
    examples = ScoredExamples(without, COUNTS, NAMES)
    estimates = score_methods(examples, {"ours": {7: guesses(without, 0.6, 1)}})["ours"]
    assert estimates["test/macro_f1"].standard_error is None
    assert estimates["test/recall_few"] == Estimate(None, None)
    assert "test/recall_few" not in between(without, {7: without}, {7: guesses(without, 0.6, 1)})


def test_equal_predictions_do_not_differ(labels: np.ndarray) -> None:
    """Paired: the resamples are the same examples for both, and common errors cancel."""
    predicted = guesses(labels, 0.6, 1)
    estimates = between(labels, {7: predicted, 42: predicted}, {7: predicted, 42: predicted})
    assert all(gap == Difference(0, 0, 0, 0, 0) and gap.within_noise for gap in estimates.values())


def test_the_interval_of_accuracy_is_that_of_the_paired_normal_approximation(labels: np.ndarray) -> None:
    ours, theirs = guesses(labels, 0.7, 1), guesses(labels, 0.55, 2)
    gaps = (ours == labels).astype(float) - (theirs == labels)
    half = 1.96 * gaps.std() / math.sqrt(ROWS)
    estimates = between(labels, {7: ours}, {7: theirs})["test/accuracy"]
    assert estimates.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert estimates.low == pytest.approx(gaps.mean() - half, abs=0.2 * half)
    assert estimates.high == pytest.approx(gaps.mean() + half, abs=0.2 * half)
    assert not estimates.within_noise


def test_the_interval_of_macro_f1_is_scipy_s(labels: np.ndarray) -> None:
    ours, theirs = guesses(labels, 0.62, 1), guesses(labels, 0.55, 2)

    def gap(truth: np.ndarray, mine: np.ndarray, other: np.ndarray) -> float:
        return float(f1_score(truth, mine, average="macro") - f1_score(truth, other, average="macro"))

    expected = scipy.stats.bootstrap(
        (labels, ours, theirs), gap, paired=True, vectorized=False, n_resamples=200, method="percentile", random_state=1
    ).confidence_interval
    estimates = between(labels, {7: ours}, {7: theirs})["test/macro_f1"]
    assert estimates.value == pytest.approx(gap(labels, ours, theirs), abs=1e-12)
    width = expected.high - expected.low
    assert estimates.low == pytest.approx(expected.low, abs=0.2 * width)
    assert estimates.high == pytest.approx(expected.high, abs=0.2 * width)


def test_seeds_are_averaged_within_each_resample(labels: np.ndarray) -> None:
    """The mean accuracy over seeds is the accuracy of the mean per example, over one resample."""
    ours = {seed: guesses(labels, 0.7, seed) for seed in (1, 2)}
    theirs = {seed: guesses(labels, 0.6, seed) for seed in (3, 4, 5)}
    per_row, subtracted = (np.mean([p == labels for p in by_seed.values()], axis=0) for by_seed in (ours, theirs))
    per_row -= subtracted
    half = 1.96 * per_row.std() / math.sqrt(ROWS)
    estimates = between(labels, ours, theirs)["test/accuracy"]
    assert estimates.value == pytest.approx(per_row.mean(), abs=1e-12)
    assert (estimates.high - estimates.low) / 2 == pytest.approx(half, rel=0.2)


def test_the_same_seed_draws_the_same_resamples(labels: np.ndarray) -> None:
    ours, theirs = {7: guesses(labels, 0.7, 1)}, {7: guesses(labels, 0.6, 2)}
    assert between(labels, ours, theirs) == between(labels, ours, theirs)


def test_the_interval_over_seeds_is_that_of_the_paired_t_test(labels: np.ndarray) -> None:
    """Of the seeds that both have: here 7 and 42 and 106, in whatever order."""
    ours = {seed: guesses(labels, 0.62, seed) for seed in (7, 42, 106, 190)}
    theirs = {seed: guesses(labels, 0.6, 1000 + seed) for seed in (106, 42, 7, 191)}
    mine, other = ([macro_f1(labels, by_seed[seed]) for seed in (7, 42, 106)] for by_seed in (ours, theirs))
    expected = scipy.stats.ttest_rel(mine, other).confidence_interval(0.95)
    estimates = between(labels, ours, theirs, resamples=10)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_baseline_is_the_same_for_every_seed(labels: np.ndarray) -> None:
    ours = {seed: guesses(labels, 0.62, seed) for seed in (7, 42, 106)}
    baseline = guesses(labels, 0.6, 1)
    gaps = [macro_f1(labels, predicted) - macro_f1(labels, baseline) for predicted in ours.values()]
    expected = scipy.stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    estimates = between(labels, ours, {None: baseline}, resamples=10)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    turned = between(labels, {None: baseline}, ours, resamples=10)["test/macro_f1"]
    assert (turned.seeds_low, turned.seeds_high) == pytest.approx((-expected.high, -expected.low), abs=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [((7, 42), (42, 106)), ((7,), (7,)), ((7,), (None,)), ((None,), (None,))])
def test_fewer_than_two_seeds_in_common_have_no_interval(
    labels: np.ndarray, ours: tuple[int | None, ...], theirs: tuple[int | None, ...]
) -> None:
    mine, other = (
        {seed: guesses(labels, right, number) for number, seed in enumerate(seeds)}
        for right, seeds in ((0.9, ours), (0.4, theirs))
    )
    estimates = between(labels, mine, other)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == (None, None)
    assert estimates.depends_on_seeds  # the lead is more than the noise of the examples


@pytest.mark.parametrize(
    ("gap", "depends_on_seeds"),
    [
        (Difference(0.05, 0.01, 0.09, 0.02, 0.08), False),
        (Difference(-0.05, -0.09, -0.01, -0.08, -0.02), False),
        (Difference(0.05, 0.01, 0.09, -0.02, 0.12), True),
        (Difference(-0.05, -0.09, -0.01, -0.12, 0.02), True),
        (Difference(0.02, -0.01, 0.05, -0.02, 0.06), False),  # within noise already
    ],
)
def test_a_difference_within_the_noise_of_the_seeds_depends_on_seeds(gap: Difference, depends_on_seeds: bool) -> None:
    assert gap.depends_on_seeds is depends_on_seeds
