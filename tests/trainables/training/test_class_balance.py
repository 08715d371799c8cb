from fractions import Fraction

import numpy as np
import pytest
from tailsweep.trainables.training.class_balance import (
    effective_number_weights,
    groups,
    ldam_margins,
    log_counts,
    log_priors,
)


def test_weights_of_a_case_worked_by_hand():
    # beta = 1/2, n = 1, 2, 3: effective numbers 1, 3/2, 7/4; inverses 1, 2/3, 4/7 with sum 47/21; times 3 * 21/47.
    weights = effective_number_weights(np.array([1, 2, 3]), beta=0.5)
    np.testing.assert_allclose(weights, [63 / 47, 42 / 47, 36 / 47], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999, 1 - 1e-8, 1 - 2**-53])
def test_weights_are_the_papers_formula_in_exact_arithmetic(beta: float):
    class_counts = np.array([1, 7, 120, 3000])
    exact = [(1 - Fraction(beta)) / (1 - Fraction(beta) ** int(n)) for n in class_counts]
    expected = [float(4 * weight / sum(exact)) for weight in exact]
    np.testing.assert_allclose(effective_number_weights(class_counts, beta), expected, rtol=1e-12)


def test_beta_0_weighs_all_classes_the_same():
    np.testing.assert_array_equal(effective_number_weights(np.array([1, 50, 4000]), beta=0.0), [1.0, 1.0, 1.0])


def test_beta_towards_1_gives_inverse_class_frequencies():
    weights = effective_number_weights(np.array([10, 20, 40]), beta=1 - 2**-53)
    np.testing.assert_allclose(weights / weights[-1], [4.0, 2.0, 1.0], rtol=1e-12)


def test_margins_of_a_case_worked_by_hand():
    # n^(-1/4) of 1, 16, 81, 10000 is 1, 1/2, 1/3, 1/10; the largest becomes 0.5.
    margins = ldam_margins(np.array([1, 16, 81, 10000]), max_margin=0.5)
    np.testing.assert_allclose(margins, [1 / 2, 1 / 4, 1 / 6, 1 / 20], rtol=1e-12)


def test_log_priors_are_the_logs_of_the_shares():
    np.testing.assert_allclose(np.exp(log_priors(np.array([1, 4, 15]))), [0.05, 0.2, 0.75], rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_counts(np.array([1, 4, 15]))), [1, 4, 15], rtol=1e-12)


@pytest.mark.parametrize(
    "build", [lambda n: effective_number_weights(n, 0.9999), lambda n: effective_number_weights(n, 0.0),
                  lambda n: ldam_margins(n, 0.5), log_counts, log_priors]
)  # fmt: skip
def test_a_class_without_rows_is_an_error_that_names_it(build):
    with pytest.raises(ValueError, match=r"of class 1, 3 is 0, but must be at least 1"):
        build(np.array([5, 0, 2, 0]))


def test_groups_have_their_limits_in_the_middle():
    actual = groups(np.array([101, 100, 20, 19, 0, 5000]))
    assert {name: classes.tolist() for name, classes in actual.items()} == {
        "many": [0, 5],
        "medium": [1, 2],
        "few": [3, 4],
    }


def test_group_limits_can_be_set_and_a_group_may_be_empty():
    actual = groups(np.array([3, 8]), many=5, few=2)
    assert {name: classes.tolist() for name, classes in actual.items()} == {"many": [1], "medium": [0], "few": []}
