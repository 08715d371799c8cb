"""Retrained and rescaled last layers against scikit-learn, scipy and the formula."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from tailsweep.trainables.postprocess.rebalancing import (
    Layer,
    TrainingSettings,
    learned_scales,
    retrained,
    tau_normalized,
)

COUNTS = [240, 40, 20]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, so that there is one best layer: inputs (300, 4), labels (300,)."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), COUNTS))
    inputs = rng.normal(size=(300, 4)) + rng.normal(size=(3, 4))[labels]
    return inputs.astype(np.float32), labels


def test_crt_comes_to_the_balanced_logistic_regression(rows: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = rows
    layer = retrained(inputs, labels, 3, TrainingSettings(learning_rate=0.02, epochs=60, batch_size=20, seed=0))
    reference = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=1000).fit(inputs, labels)
    actual, expected = softmax(layer.logits(inputs), axis=1), reference.predict_proba(inputs)
    np.testing.assert_allclose(actual, expected, atol=0.04)
    plain = LogisticRegression(C=np.inf, max_iter=1000).fit(inputs, labels).predict_proba(inputs)
    assert np.abs(actual - plain).max() > 0.3


def test_crt_follows_from_its_seed(rows: tuple[np.ndarray, np.ndarray]) -> None:
    first, again, other = (
        retrained(*rows, 3, TrainingSettings(learning_rate=0.01, epochs=1, batch_size=32, seed=seed)).weight
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_rate_of_next_to_nothing_leaves_the_values_it_began_with(rows: tuple[np.ndarray, np.ndarray]) -> None:
    """Those of nn.Linear: uniform within 1 / sqrt(H)."""
    layer = retrained(*rows, 3, TrainingSettings(learning_rate=1e-9, epochs=1, batch_size=32, seed=0))
    values = np.concatenate([layer.weight.ravel(), layer.bias])
    assert np.abs(values).max() <= 0.5 + 1e-6
    assert 0.2 < values.std() < 0.4  # 0.5 / sqrt(3) = 0.289


def test_lws_comes_to_the_best_scales_of_balanced_rows(rows: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = rows
    plain = LogisticRegression(C=np.inf, max_iter=1000).fit(inputs, labels)
    logits = plain.decision_function(inputs) * [2.0, 0.5, 0.7]
    weights = 1 / np.bincount(labels)[labels] / 3

    def loss(scales: np.ndarray) -> float:
        return float(-(log_softmax(logits * scales, axis=1)[np.arange(300), labels] * weights).sum())

    expected = minimize(loss, np.ones(3), method="BFGS").x
    actual = learned_scales(logits, labels, TrainingSettings(learning_rate=0.02, epochs=60, batch_size=20, seed=0))
    assert np.abs(expected - 1).max() > 0.2
    np.testing.assert_allclose(actual, expected, atol=0.05)


def test_tau_normalization_divides_by_norms_and_drops_the_bias() -> None:
    # Norms 5, 2 and 0: with tau 1 all are 1, with tau 0.5 they are their roots, and 0 stays 0.
    layer = Layer(np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), np.array([1.0, -1.0, 2.0]))
    np.testing.assert_allclose(tau_normalized(layer, 1.0).weight, [[0.6, 0.8], [0, 1], [0, 0]], rtol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(tau_normalized(layer, 0.5).weight, axis=1), [5**0.5, 2**0.5, 0], rtol=1e-12
    )
    assert np.array_equal(tau_normalized(layer, 0.0).weight, layer.weight)
    assert tau_normalized(layer, 0.3).bias.tolist() == [0, 0, 0]


def test_a_layer_is_scaled_and_shifted_in_its_logits(rows: tuple[np.ndarray, np.ndarray]) -> None:
    layer = Layer(np.arange(12.0).reshape(3, 4), np.array([1.0, 2.0, 3.0]))
    inputs = rows[0][:5]
    factors, shift = np.array([2.0, -1.0, 0.5]), np.array([0.0, 1.0, -4.0])
    logits = layer.logits(inputs)
    np.testing.assert_allclose(layer.scaled(factors).shifted(shift).logits(inputs), logits * factors + shift, rtol=1e-9)
    np.testing.assert_allclose(layer.scaled(0.5).logits(inputs), logits / 2, rtol=1e-9)
