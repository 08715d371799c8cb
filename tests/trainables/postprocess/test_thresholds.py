"""Fitted decisions against every decision there is, against grids, and against cases worked by hand."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy.special import softmax
from tailsweep.trainables.postprocess import thresholds as thresholds_module
from tailsweep.trainables.postprocess.thresholds import (
    TAUS,
    adjustment,
    best_thresholds,
    chosen_tau,
    counts_of,
    fitted_thresholds,
)
from tailsweep.trainables.training import metrics
from tailsweep.trainables.training.metrics import accuracy, balanced_accuracy, macro_f1

HARD = np.array([300, 60, 20])  # rows by class, of which the model says the first too often


def rows_of(seed: int, counts: list[int], noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that favour the classes with many rows, as training on them does."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    logits = rng.normal(size=(len(labels), len(counts))) * noise + np.eye(len(counts))[labels]
    return logits + np.log(np.maximum(counts, 1)), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("score", [macro_f1, metrics.mcc])
def test_two_classes_get_the_best_decision_there_is(seed: int, score: thresholds_module.Score) -> None:
    logits, labels = rows_of(seed, [40, 8])
    advantage = logits[:, 1] - logits[:, 0]
    every = [(advantage > edge).astype(int) for edge in [-np.inf, *advantage]]
    reference_score = {
        macro_f1: lambda said: reference.f1_score(labels, said, average="macro", zero_division=0),
        metrics.mcc: lambda said: reference.matthews_corrcoef(labels, said),
    }[score]
    actual = (softmax(logits, axis=1) / best_thresholds(logits, labels, score)).argmax(axis=1)
    assert reference_score(actual) == pytest.approx(max(map(reference_score, every)), abs=1e-12)


@pytest.mark.parametrize("seed", [1, 6])  # 6 goes over the classes more than twice
def test_no_single_threshold_could_be_better(seed: int) -> None:
    """Coordinate ascent ends where moving one class alone no longer helps; here it also beats a coarse grid of all."""
    logits, labels = rows_of(seed, [60, 20, 7])
    thresholds = best_thresholds(logits, labels, macro_f1)

    def reached(t: np.ndarray) -> float:
        said = (softmax(logits, axis=1) / t).argmax(axis=1)
        return float(reference.f1_score(labels, said, average="macro", zero_division=0))

    best = reached(thresholds)
    assert best > reached(np.ones(3)) + 0.02
    for label, factor in itertools.product(range(3), np.exp(np.linspace(-4, 4, 33))):
        moved = thresholds.copy()
        moved[label] *= factor
        assert reached(moved) <= best + 1e-12
    assert best_thresholds(logits - np.log(thresholds), labels, macro_f1).tolist() == [1.0, 1.0, 1.0]
    coarse = np.exp(np.linspace(-3, 3, 7))
    assert best >= max(reached(np.array([1.0, *pair])) for pair in itertools.product(coarse, coarse))


def test_thresholds_worked_by_hand() -> None:
    # Log-odds of class 1 are -1, -2, -3 and -4; the first and second rows are of it, and all are said to be class 0.
    # Accuracy is 1 where class 1 is said above log-odds -2.5, midway between rows two and three: t_1 / t_0 = exp(-2.5).
    # Class 0 comes first: raising its threshold to exp(2.5) says that already.
    logits, labels = np.array([[0.0, -1.0], [0.0, -2.0], [0.0, -3.0], [0.0, -4.0]]), np.array([1, 1, 0, 0])
    thresholds = best_thresholds(logits, labels, accuracy)
    np.testing.assert_allclose(thresholds, [np.exp(2.5), 1.0], rtol=1e-12)


def test_a_decision_that_cannot_be_bettered_is_left_as_it_is() -> None:
    logits, labels = rows_of(0, [30, 10, 5], noise=0.0)
    logits -= np.log([30, 10, 5])
    assert macro_f1(counts_of(logits, labels)) == 1
    assert best_thresholds(logits, labels, macro_f1).tolist() == [1.0, 1.0, 1.0]


def test_of_equal_places_the_nearest_to_no_change_is_taken() -> None:
    # Class 1 leads by -8, -6, -2 and -1, so that 0 is said of all four, of which two are. With the edge between the
    # last two (-1.5) or between the first two (-7) three are right; the first of these is nearer to none at all.
    logits = np.array([[0.0, -8.0], [0.0, -6.0], [0.0, -2.0], [0.0, -1.0]])
    thresholds = best_thresholds(logits, np.array([0, 1, 0, 1]), balanced_accuracy)
    np.testing.assert_allclose(np.log(thresholds), [1.5, 0.0], atol=1e-12)


def test_a_class_without_validation_rows_keeps_one() -> None:
    """Even where it is said too often, and forbidding it would raise the score."""
    logits, labels = rows_of(1, [60, 20, 7, 0])
    logits[:, 3] += 5
    thresholds = best_thresholds(logits, labels, macro_f1)
    assert thresholds[3] == 1.0
    assert np.isfinite(thresholds).all()
    assert (thresholds[:3] < 1).all()


def drawn_from(seed: int, rows: int, separation: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a long tail with the logits of a model that knows their distribution."""
    prior = np.array([0.7, 0.12, 0.09, 0.06, 0.03])
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, rows, p=prior)
    inputs = rng.normal(size=(rows, 5)) + separation * np.eye(5)[labels]
    return inputs * separation + np.log(prior), labels


@pytest.mark.parametrize(("separation", "helps"), [(0.7, True), (2.5, False)])
def test_fitted_thresholds_hold_on_other_rows(separation: float, helps: bool) -> None:
    """Where the classes overlap, macro-F1 needs thresholds; where they do not, those best for 90 rows do harm."""
    plain, best, fitted = np.zeros(3), np.zeros(3), np.zeros(3)
    for seed in range(3):
        logits, labels = drawn_from(seed, 90, separation)
        others, true = drawn_from(100 + seed, 5000, separation)
        plain[seed] = macro_f1(counts_of(others, true))
        best[seed] = macro_f1(counts_of(others - np.log(best_thresholds(logits, labels, macro_f1)), true))
        thresholds, kept = fitted_thresholds(logits, labels, macro_f1)
        assert (kept == 0) == (thresholds == 1).all()
        fitted[seed] = macro_f1(counts_of(others - np.log(thresholds), true))
    if helps:
        assert fitted.mean() > plain.mean() + 0.05
    else:
        assert best.mean() < plain.mean() - 0.01
        assert fitted.mean() > best.mean()
    assert fitted.mean() > plain.mean() - 0.01


def test_every_resample_has_as_many_rows_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without rows keeps 1, one with a single row does no harm; the same rows give the same thresholds."""
    logits, labels = rows_of(1, [60, 20, 1, 0])
    logits[:, 3] += 5
    drawn = []
    monkeypatch.setattr(
        thresholds_module,
        "best_thresholds",
        lambda z, y, score: drawn.append(np.bincount(y, minlength=4).tolist()) or best_thresholds(z, y, score),
    )
    thresholds, kept = fitted_thresholds(logits, labels, macro_f1)
    assert drawn == thresholds_module.RESAMPLES * [[60, 20, 1, 0]]
    assert kept > 0
    assert thresholds[3] == 1.0
    assert np.isfinite(np.log(thresholds)).all()
    assert np.array_equal(thresholds, fitted_thresholds(logits, labels, macro_f1)[0])


def test_a_single_row_of_each_class_changes_nothing() -> None:
    thresholds, kept = fitted_thresholds(np.array([[3.0, 0.0], [3.0, 0.0]]), np.array([0, 1]), macro_f1)
    assert (thresholds.tolist(), kept) == ([1.0, 1.0], 0.0)


def test_many_rows_cost_no_more_than_their_cuts() -> None:
    logits, labels = rows_of(2, [3000, 300])
    calls = 0

    def counted(counts: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        assert counts.sum() == len(labels)
        assert (counts >= 0).all()
        assert counts.sum(axis=1).tolist() == [3000, 300]
        return macro_f1(counts)

    thresholds = best_thresholds(logits, labels, counted)
    assert calls <= 1 + 3 * 2 * thresholds_module.MAX_CUTS
    advantage = logits[:, 1] - logits[:, 0]
    best = max(macro_f1(_two(labels, advantage > edge)) for edge in advantage)
    actual = macro_f1(counts_of(logits - np.log(thresholds), labels))
    assert best - 0.01 < actual <= best


def _two(labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    return np.array([[np.sum((labels == i) & (said == j)) for j in (0, 1)] for i in (0, 1)])


def test_rows_that_float32_cannot_tell_apart_are_not_parted() -> None:
    # Between rows 1 and 2 lies 1e-7 of log-odds: a threshold there would be rounded away in the model.
    logits, labels = np.array([[0.0, -1.0], [0.0, -1.0 - 1e-7], [0.0, -4.0]]), np.array([1, 0, 0])
    thresholds = best_thresholds(logits, labels, accuracy)
    assert thresholds.tolist() == [1.0, 1.0]


def test_logit_adjustment_subtracts_tau_log_priors() -> None:
    # Priors .75, .2 and .05: with tau 1 the model of a balanced world has p(y | x) / prior(y), normalized.
    shift = adjustment(np.array([15, 4, 1]), 1.0)
    probabilities = np.array([[0.9, 0.08, 0.02]])
    actual = softmax(np.log(probabilities) + shift, axis=1)
    expected = probabilities / [0.75, 0.2, 0.05]
    np.testing.assert_allclose(actual, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(adjustment(np.array([15, 4, 1]), 0.5), shift / 2, rtol=1e-12)


def test_tau_is_the_first_of_the_best_of_its_grid() -> None:
    logits, labels = rows_of(3, HARD.tolist())

    def at(tau: float) -> np.ndarray:
        return logits + adjustment(HARD, tau)

    scores = [reference.f1_score(labels, at(tau).argmax(axis=1), average="macro") for tau in TAUS]
    assert len(TAUS) == 21
    tau = chosen_tau("auto", at, labels, macro_f1)
    assert tau == TAUS[int(np.argmax(scores))]  # argmax: the first
    assert tau > 0
    assert chosen_tau(0.7, at, labels, macro_f1) == 0.7
    assert chosen_tau("auto", lambda tau: logits, labels, macro_f1) == 0
