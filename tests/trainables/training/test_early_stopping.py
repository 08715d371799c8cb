"""The rule as a conversation: a report, another, is the stage over?"""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailsweep.trainables.training.early_stopping import stage_is_over

METRIC = "validation/macro_f1"


def reports(scores: list[float], stage: str = "stage_two", per_epoch: int = 1) -> list[dict[str, object]]:
    return [{"stage": stage, "epoch": n / per_epoch, METRIC: score} for n, score in enumerate(scores, start=1)]


def over_after(scores: list[float], epochs: int, patience: int | None, per_epoch: int = 1) -> list[bool]:
    reported = reports(scores, per_epoch=per_epoch)
    return [stage_is_over("stage_two", reported[:n], METRIC, epochs, patience) for n in range(len(reported) + 1)]


def test_without_patience_a_stage_ends_with_its_last_epoch() -> None:
    assert over_after([0.9, 0.1, 0.1], epochs=3, patience=None) == [False, False, False, True]
    assert over_after([0.9, 0.1, 0.1, 0.1], epochs=2, patience=None, per_epoch=2) == [False] * 4 + [True]


def test_a_stage_ends_after_as_many_evaluations_without_a_better_score() -> None:
    # The best is the third; the fifth is the second in a row that is no better.
    scores = [0.1, 0.05, 0.4, 0.3, 0.4, 0.9]
    assert over_after(scores, epochs=9, patience=2) == [False, False, False, False, False, True, False]
    assert over_after(scores, epochs=9, patience=1) == [False, False, True, False, True, True, False]


def test_an_equal_score_is_no_better_one_and_what_is_below_0_counts_too() -> None:
    assert over_after([0.0, 0.0, 0.0], epochs=9, patience=2) == [False, False, False, True]
    assert over_after([-0.3, -0.2, -0.2], epochs=9, patience=1) == [False, False, False, True]


def test_the_other_stages_reports_do_not_count() -> None:
    first = reports([0.9, 0.8, 0.7], "stage_one")
    assert stage_is_over("stage_one", first, METRIC, epochs=3, patience=None)
    assert not stage_is_over("stage_two", first, METRIC, epochs=3, patience=1)
    assert not stage_is_over("stage_two", first + reports([0.1]), METRIC, epochs=3, patience=1)
    assert stage_is_over("stage_one", first + reports([0.95]), METRIC, epochs=9, patience=2)


@pytest.mark.parametrize("patience", [None, 1])
def test_a_stage_of_no_epochs_is_over_before_it_begins(patience: int | None) -> None:
    assert stage_is_over("stage_one", [], METRIC, epochs=0, patience=patience)
    assert not stage_is_over("stage_one", [], METRIC, epochs=1, patience=patience)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(1, 5))
def test_it_is_the_counter_that_every_better_score_resets(scores: list[float], patience: int) -> None:
    """Against the rule as training loops have it: a best score and a count of what came since."""

    def add_report(state: tuple[float, int], score: float) -> tuple[float, int]:
        best, waited = state
        return (score, 0) if score > best else (best, waited + 1)

    waited = [count for _, count in accumulate(scores, add_report, initial=(float("-inf"), 0))]
    assert over_after(scores, epochs=99, patience=patience) == [count >= patience for count in waited]
