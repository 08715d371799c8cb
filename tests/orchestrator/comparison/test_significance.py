"""Standard errors and intervals, over seeds and test examples, against scipy, scikit-learn and a normal."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score, matthews_corrcoef
from tailsweep.orchestrator.comparison import significance
from tailsweep.orchestrator.comparison.significance import (
    Choice,
    Difference,
    Estimate,
    Predictions,
    ScoredExamples,
    holm,
    pooled_variance,
    resample,
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
    return resample(ScoredExamples(labels, COUNTS, NAMES), both, resamples, seed=0).differences("theirs")["ours"]


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


def test_resampled_scores_are_those_of_each_resample_alone(labels: np.ndarray, monkeypatch: Any) -> None:
    monkeypatch.setattr(significance, "ROWS_AT_ONCE", 3 * ROWS)  # several blocks, the last one not full
    predictions = {seed: guesses(labels, 0.6, seed) for seed in (1, 2)}
    drawn = resample(ScoredExamples(labels, COUNTS, NAMES), {"ours": predictions}, resamples=7, seed=5)
    rng = np.random.default_rng(5)
    for reached in drawn.scores["test/macro_f1"].resampled["ours"]:
        rows = rng.integers(ROWS, size=ROWS)
        expected = np.mean([macro_f1(labels[rows], predicted[rows]) for predicted in predictions.values()])
        assert reached == pytest.approx(expected, abs=1e-12)


def test_equal_predictions_do_not_differ(labels: np.ndarray) -> None:
    """Paired: the resamples are the same examples for both, and common errors cancel."""
    predicted = guesses(labels, 0.6, 1)
    estimates = between(labels, {7: predicted, 42: predicted}, {7: predicted, 42: predicted})
    same = Difference(0, 0, 0, 0, 0, 0, 0, p_better=0.5, p_value=1, adjusted_p_value=1)
    assert all(gap == same and gap.verdict == "not told apart" for gap in estimates.values())


def test_the_interval_of_accuracy_is_that_of_the_paired_normal_approximation(labels: np.ndarray) -> None:
    ours, theirs = guesses(labels, 0.7, 1), guesses(labels, 0.55, 2)
    gaps = (ours == labels).astype(float) - (theirs == labels)
    half = 1.96 * gaps.std() / math.sqrt(ROWS)
    estimates = between(labels, {7: ours}, {7: theirs})["test/accuracy"]
    assert estimates.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert estimates.low == pytest.approx(gaps.mean() - half, abs=0.2 * half)
    assert estimates.high == pytest.approx(gaps.mean() + half, abs=0.2 * half)
    assert estimates.verdict == "better with these seeds"
    assert (estimates.examples_low, estimates.examples_high) == pytest.approx((estimates.low, estimates.high), abs=0.02)


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
    assert estimates.examples_low == pytest.approx(expected.low, abs=0.2 * width)
    assert estimates.examples_high == pytest.approx(expected.high, abs=0.2 * width)


def test_seeds_are_averaged_within_each_resample(labels: np.ndarray) -> None:
    """The mean accuracy over seeds is the accuracy of the mean per example, over one resample."""
    ours = {seed: guesses(labels, 0.7, seed) for seed in (1, 2)}
    theirs = {seed: guesses(labels, 0.6, seed) for seed in (3, 4, 5)}
    per_row, subtracted = (np.mean([p == labels for p in by_seed.values()], axis=0) for by_seed in (ours, theirs))
    per_row -= subtracted
    half = 1.96 * per_row.std() / math.sqrt(ROWS)
    estimates = between(labels, ours, theirs)["test/accuracy"]
    assert estimates.value == pytest.approx(per_row.mean(), abs=1e-12)
    assert (estimates.examples_high - estimates.examples_low) / 2 == pytest.approx(half, rel=0.2)


def test_the_same_seed_draws_the_same_resamples(labels: np.ndarray) -> None:
    ours, theirs = {7: guesses(labels, 0.7, 1)}, {7: guesses(labels, 0.6, 2)}
    assert between(labels, ours, theirs) == between(labels, ours, theirs)


def test_the_interval_over_seeds_is_that_of_the_t_test_with_equal_variances(labels: np.ndarray) -> None:
    """Of two methods; of more, the variance is pooled over all of them."""
    ours = {seed: guesses(labels, 0.62, seed) for seed in (7, 42, 106, 190)}
    theirs = {seed: guesses(labels, 0.6, 1000 + seed) for seed in (106, 42, 191)}
    mine, other = ([macro_f1(labels, predicted) for predicted in by_seed.values()] for by_seed in (ours, theirs))
    expected = scipy.stats.ttest_ind(mine, other).confidence_interval(0.95)
    estimates = between(labels, ours, theirs, resamples=10)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_pooled_variance_is_that_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 1, size) for mean, size in ((0, 3), (1, 4), (5, 1))]
    variance, freedom = pooled_variance(groups)
    between_groups = sum(len(group) * (group.mean() - np.concatenate(groups).mean()) ** 2 for group in groups)
    assert scipy.stats.f_oneway(*groups).statistic == pytest.approx(between_groups / 2 / variance)
    assert freedom == 5
    assert pooled_variance([np.array([1.0]), np.array([2.0])]) == (0, 0)


def test_a_baseline_is_the_same_for_every_seed(labels: np.ndarray) -> None:
    ours = {seed: guesses(labels, 0.62, seed) for seed in (7, 42, 106)}
    baseline = guesses(labels, 0.6, 1)
    gaps = [macro_f1(labels, predicted) - macro_f1(labels, baseline) for predicted in ours.values()]
    expected = scipy.stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    estimates = between(labels, ours, {None: baseline}, resamples=10)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    turned = between(labels, {None: baseline}, ours, resamples=10)["test/macro_f1"]
    assert (turned.seeds_low, turned.seeds_high) == pytest.approx((-expected.high, -expected.low), abs=1e-12)


def test_other_examples_and_other_seeds_add_up(labels: np.ndarray) -> None:
    ours = {seed: guesses(labels, 0.66, seed) for seed in (1, 2, 3)}
    theirs = {seed: guesses(labels, 0.6, 10 + seed) for seed in (1, 2, 3)}
    gap = between(labels, ours, theirs)["test/macro_f1"]
    assert gap.seeds_low is not None
    assert gap.low < min(gap.examples_low, gap.value)
    assert gap.low + gap.high == pytest.approx(2 * gap.value)
    assert (gap.high - gap.low) ** 2 == pytest.approx(
        (gap.examples_high - gap.examples_low) ** 2 + (gap.seeds_high - gap.seeds_low) ** 2, rel=0.4
    )
    assert gap.p_value == pytest.approx(2 * (1 - gap.p_better))
    assert (gap.p_value < 0.05) == (gap.low > 0)


@pytest.mark.parametrize(("ours", "theirs"), [((7,), (7,)), ((7,), (None,)), ((None,), (None,))])
def test_one_seed_of_each_has_no_interval(
    labels: np.ndarray, ours: tuple[int | None, ...], theirs: tuple[int | None, ...]
) -> None:
    mine, other = (
        {seed: guesses(labels, right, number) for number, seed in enumerate(seeds)}
        for right, seeds in ((0.9, ours), (0.4, theirs))
    )
    estimates = between(labels, mine, other)["test/macro_f1"]
    assert (estimates.seeds_low, estimates.seeds_high) == (None, None)
    assert estimates.verdict == "better with these seeds"  # more than the noise of the examples
    turned = between(labels, other, mine)["test/macro_f1"]
    assert turned.verdict == "worse with these seeds"


def test_holm_is_statsmodels_example() -> None:
    """The p values of Holm's procedure: each times the number of those that are not smaller, and never falling."""
    values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(values) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1}


def test_a_difference_is_judged_with_all_others(labels: np.ndarray) -> None:
    theirs = {seed: guesses(labels, 0.6, 10 + seed) for seed in (1, 2, 3)}
    methods = {
        f"m{number}": {seed: guesses(labels, 0.6 + number / 40, 100 * number + seed) for seed in (1, 2, 3)}
        for number in range(6)
    }
    family = resample(ScoredExamples(labels, COUNTS, NAMES), methods | {"theirs": theirs}, 50, seed=0).differences(
        "theirs"
    )
    p_values = {name: gaps["test/macro_f1"].p_value for name, gaps in family.items()}
    assert {name: gaps["test/macro_f1"].adjusted_p_value for name, gaps in family.items()} == holm(p_values)
    verdicts = {gaps["test/macro_f1"].verdict for gaps in family.values()}
    assert verdicts == {"better", "not told apart"}


def test_the_probability_to_be_best_adds_up_and_goes_with_the_scores(labels: np.ndarray) -> None:
    methods = {
        name: {seed: guesses(labels, right, 100 * number + seed) for seed in (1, 2, 3)}
        for number, (name, right) in enumerate((("low", 0.5), ("high", 0.7), ("higher", 0.72)))
    }
    p_best = resample(ScoredExamples(labels, COUNTS, NAMES), methods, 200, seed=0).p_best()
    shares = {name: by_score["test/macro_f1"] for name, by_score in p_best.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["low"] < 0.01 < min(shares["high"], shares["higher"])


def choice_of(labels: np.ndarray, rights: dict[str, float], validation: dict[str, list[float]]) -> Choice:
    methods: dict[str, Predictions] = {
        name: {seed: guesses(labels, right, 100 * number + seed) for seed in range(len(validation[name]))}
        for number, (name, right) in enumerate(rights.items())
    }
    resampled = resample(ScoredExamples(labels, COUNTS, NAMES), methods, 400, seed=0)
    by_seed = {name: np.array(values) for name, values in validation.items()}
    choice = resampled.choice(by_seed, "low", "test/macro_f1")
    assert choice is not None
    means = {name: np.mean([macro_f1(labels, p) for p in by_seed.values()]) for name, by_seed in methods.items()}
    ours = max(validation, key=lambda name: np.mean(validation[name]))
    assert choice.value == pytest.approx(means[ours] - means["low"], abs=1e-12)
    assert sum(choice.shares.values()) == pytest.approx(1)
    return choice


def test_a_choice_that_is_clear_gains_what_its_method_does(labels: np.ndarray) -> None:
    choice = choice_of(labels, {"low": 0.4, "high": 0.8}, {"low": [0.4, 0.41], "high": [0.8, 0.81]})
    assert choice.shares == {"low": 0, "high": 1}
    assert 0 < choice.low < choice.value < choice.high


def test_a_choice_by_chance_gains_half_of_it_on_average_and_none_where_it_is_the_reference(labels: np.ndarray) -> None:
    choice = choice_of(labels, {"low": 0.4, "high": 0.8}, {"low": [0.5, 0.7], "high": [0.5, 0.7]})
    assert 0.4 < choice.shares["low"] < 0.6
    assert choice.low == 0 < choice.high
    # The standard error of a mean is 0.1: two means are 0.2 apart by chance in 8 %.
    wrong = choice_of(labels, {"low": 0.4, "high": 0.8}, {"low": [0.7, 0.9], "high": [0.5, 0.7]})
    assert wrong.value == 0
    assert wrong.shares["high"] == pytest.approx(scipy.stats.norm.sf(0.2 / math.hypot(0.1, 0.1)), abs=0.04)


def test_a_choice_needs_a_score_that_the_test_examples_define(labels: np.ndarray) -> None:
    examples = ScoredExamples(np.where(labels == 2, 0, labels), COUNTS, NAMES)
    resampled = resample(examples, {"low": {1: labels}, "high": {1: labels}}, 10, seed=0)
    by_seed = {"low": np.array([0.5]), "high": np.array([0.6])}
    assert resampled.choice(by_seed, "low", "test/recall_few") is None
    assert resampled.choice(by_seed, "low", "test/accuracy") is not None


SIMULATED = {"reference": 0.6, "same": 0.6, "better": 0.85, "worse": 0.5}  # how able each method is
SHARES = np.array([0.6, 0.25, 0.15])
OF_SEED, OF_METHOD_AND_EXAMPLE, OF_ALL = 0.1, 0.5, 0.4  # standard deviations, where examples have 1


def simulate(rng: np.random.Generator, size: int) -> tuple[np.ndarray, dict[str, Predictions]]:
    """Examples that are hard for every method, for one, with one seed, or by chance; harder ones of rare classes."""
    labels = rng.choice(3, size=size, p=SHARES)
    hardness = rng.standard_normal(size)
    predictions: dict[str, Predictions] = {}
    for method, ability in SIMULATED.items():
        own = OF_METHOD_AND_EXAMPLE * rng.standard_normal(size)
        by_seed = {}
        for seed in range(3):
            noise = OF_SEED * rng.standard_normal() + OF_ALL * rng.standard_normal(size)
            right = ability - 0.2 * labels + hardness + own + noise > 0
            by_seed[seed] = np.where(right, labels, (labels + rng.integers(1, 3, size=size)) % 3)
        predictions[method] = by_seed
    return labels, predictions


def true_macro_f1(ability: float) -> float:
    """Of so many examples and seeds that no chance is left, in closed form."""
    spread = math.sqrt(1 + OF_SEED**2 + OF_METHOD_AND_EXAMPLE**2 + OF_ALL**2)
    right = scipy.stats.norm.cdf((ability - 0.2 * np.arange(3)) / spread)
    confusion = np.diag(SHARES * right) + (1 - np.eye(3)) * (SHARES * (1 - right) / 2)[:, None]
    return float(np.mean(2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))))


@pytest.mark.slow
def test_the_intervals_cover_what_they_say() -> None:
    """In 400 comparisons of four methods, three seeds each: 95 %, to two points; no examples or seeds alone do."""
    covered: dict[str, list[bool]] = {"both": [], "examples": [], "seeds": []}
    wrong = []
    for number in range(400):
        labels, predictions = simulate(np.random.default_rng(number), 400)
        examples = ScoredExamples(labels, COUNTS, NAMES)
        gaps = resample(examples, predictions, 100, seed=number).differences("reference")
        for method, by_score in gaps.items():
            gap = by_score["test/macro_f1"]
            truth = true_macro_f1(SIMULATED[method]) - true_macro_f1(SIMULATED["reference"])
            assert gap.seeds_low is not None
            assert gap.seeds_high is not None
            covered["both"].append(gap.low <= truth <= gap.high)
            covered["examples"].append(gap.examples_low <= truth <= gap.examples_high)
            covered["seeds"].append(gap.seeds_low <= truth <= gap.seeds_high)
        wrong.append(gaps["same"]["test/macro_f1"].verdict != "not told apart")
    shares = {kind: np.mean(hits) for kind, hits in covered.items()}
    print({kind: round(share, 3) for kind, share in shares.items()}, "called different where equal:", np.mean(wrong))
    assert shares["both"] == pytest.approx(0.95, abs=0.02)
    assert shares["examples"] < 0.93
    assert shares["seeds"] < 0.93
    assert np.mean(wrong) < 0.05
