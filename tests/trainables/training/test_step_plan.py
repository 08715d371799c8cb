"""The steps of a stage, counted by passes over its rows or given as a number."""

import numpy as np
import pytest
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.data.sampling import class_visits, epoch_rows, steps
from tailsweep.trainables.training.step_plan import StepPlan

LABELS = np.repeat([0, 1, 2], [30, 12, 3])
COUNTS = np.array([30, 12, 3])


def plan(**options: object) -> StepPlan:
    return StepPlan(StageConfig.model_validate({"batch_size": 8} | options), LABELS, COUNTS, seed=5)


@pytest.mark.parametrize("sampling", ["original", "oversampled", "class_balanced", "sqrt", "progressive"])
def test_epochs_are_passes_over_the_rows(sampling: str) -> None:
    whole = plan(epochs=3, sampling=sampling)
    assert whole.steps_per_epoch == whole.steps_per_pass
    assert whole.num_steps == 3 * whole.steps_per_pass
    for epoch in range(3):
        order = epoch_rows(whole.config.sampling, LABELS, 5, epoch, 3)
        taken = whole.rows(epoch * whole.steps_per_pass, (epoch + 1) * whole.steps_per_pass)
        assert [rows.tolist() for rows in taken] == [rows.tolist() for rows in steps(order, 8)]
        assert np.array_equal(whole.visits()[epoch], class_visits(whole.config.sampling, COUNTS, epoch, 3))


@pytest.mark.parametrize("sampling", ["original", "oversampled", "progressive"])
def test_given_steps_are_those_of_as_many_passes_as_they_need(sampling: str) -> None:
    parts = plan(epochs=4, steps=13, sampling=sampling)
    assert parts.steps_per_epoch == 4  # 13 are rounded up to 16
    assert parts.num_steps == 16
    passes = plan(epochs=parts.num_passes, sampling=sampling)
    assert parts.num_passes == (3 if sampling != "oversampled" else 2)
    together = [rows.tolist() for first in range(0, 16, 4) for rows in parts.rows(first, first + 4)]
    assert together == [rows.tolist() for rows in passes.rows(0, 16)]
    assert [rows.tolist() for rows in parts.rows(5, 7)] == together[5:7]


def test_the_budget_is_the_same_whatever_the_sampling_and_the_batch_size_visit() -> None:
    options = [{"sampling": "oversampled"}, {"batch_size": 3}, {"batch_size": 45}, {}]
    assert {plan(epochs=2, steps=20, **option).num_steps for option in options} == {20}
    assert [plan(epochs=2, **option).num_steps for option in options] == [24, 30, 2, 12]
