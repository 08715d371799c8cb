"""Calibration error and temperature against formulas written out, a grid, and rows drawn from a known temperature."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from tailsweep.trainables.postprocess.calibration import (
    expected_calibration_error,
    fitted_temperature,
    negative_log_likelihood,
)

RNG = np.random.default_rng(0)


def drawn(rows: int, temperature: float, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times too large, with labels drawn from the right probabilities."""
    logits = RNG.normal(size=(rows, num_classes)) * 2
    right = softmax(logits, axis=1).cumsum(axis=1)
    labels = (RNG.random((rows, 1)) > right).sum(axis=1).clip(max=num_classes - 1)
    return logits * temperature, labels


def test_calibration_error_of_rows_worked_by_hand() -> None:
    # Confidences .8 and .75 share bin (11/15, 12/15] = (.733, .8]: one right of two, mean .775, off by .275.
    # .95 lies in (14/15, 1], is right, off by .05. ECE = (2 * .275 + 1 * .05) / 3 = .2
    probabilities = np.array([[0.8, 0.2], [0.75, 0.25], [0.05, 0.95]])
    assert expected_calibration_error(np.log(probabilities), np.array([0, 1, 1])) == pytest.approx(0.2, abs=1e-12)


def test_calibration_error_is_the_papers_formula() -> None:
    logits, labels = drawn(500, 3.0)
    probabilities = softmax(logits, axis=1)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    expected = 0.0
    for edge in np.arange(15) / 15:
        inside = (confidence > edge) & (confidence <= edge + 1 / 15)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).mean()
            expected += inside.sum() / len(labels) * abs(accuracy - confidence[inside].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_probabilities_of_exactly_one_are_in_the_last_bin() -> None:
    assert expected_calibration_error(np.array([[1000.0, 0.0], [1000.0, 0.0]]), np.array([0, 1])) == pytest.approx(0.5)


def test_negative_log_likelihood_is_that_of_scikit_learn() -> None:
    logits, labels = drawn(50, 1.0)
    expected = log_loss(labels, softmax(logits, axis=1), labels=range(4))
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5])
def test_a_temperature_is_found_again(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature)
    actual = fitted_temperature(logits, labels)
    assert actual == pytest.approx(temperature, rel=0.05)
    # No value of a fine grid around it has a smaller loss.
    grid = actual * np.linspace(0.9, 1.1, 41)
    losses = [-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean() for temperature in grid]
    assert np.argmin(losses) == 20
    before, after = (expected_calibration_error(logits / temperature, labels) for temperature in (1.0, actual))
    assert after < 0.01
    assert temperature == 1.0 or after < before / 5


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        pytest.param([[3.0, 0.0], [0.0, 2.0]], [0, 1], id="all right: the likelihood rises towards T = 0"),
        pytest.param([[3.0, 0.0], [0.0, 2.0]], [1, 0], id="all wrong: it rises towards infinity"),
        pytest.param([[5.0, 5.0], [1.0, 1.0]], [0, 1], id="no difference: it is the same everywhere"),
    ],
)
def test_rows_that_know_no_temperature_leave_it_at_one(logits: list[list[float]], labels: list[int]) -> None:
    assert fitted_temperature(np.array(logits), np.array(labels)) == 1.0
