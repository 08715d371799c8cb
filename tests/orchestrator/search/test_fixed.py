"""Trials are started while the seconds last; what has begun continues."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher
from tailsweep.orchestrator.runs.trials import Records, TrialRecord
from tailsweep.orchestrator.search.fixed import ListedSearch, SecondsBudget


def search(clock: Any, at_once: int = 2) -> ListedSearch:
    trials = [TrialRecord(name, {}, {}) for name in ("t000", "t001", "t002", "t003")]
    records = Records(list(trials), [{"trial": "t003", "stage": "stage_one", "epoch": 1}])
    return ListedSearch(trials, records, lambda trial: {"name": trial.name}, SecondsBudget(60, at_once, clock))


def test_trials_start_in_order_until_the_seconds_are_spent() -> None:
    clock = SimpleNamespace(seconds=0.0)
    asked = search(clock)
    assert asked.suggest("a") == {"trial": {"name": "t000"}}
    clock.seconds = 119.0  # of two at once: 59.5 on the wall
    assert asked.suggest("b") == {"trial": {"name": "t001"}}
    clock.seconds = 120.0
    assert asked.suggest("c") == {"trial": {"name": "t003"}}  # it had begun before an interruption
    assert asked.suggest("d") == Searcher.FINISHED


@pytest.mark.parametrize("at_once", [1, 4])
def test_seconds_are_those_of_the_wall(at_once: int) -> None:
    budget = SecondsBudget(60, at_once, SimpleNamespace(seconds=59.9 * at_once))  # type: ignore[arg-type]
    assert not budget.spent
    assert SecondsBudget(60, at_once, SimpleNamespace(seconds=60.0 * at_once)).spent  # type: ignore[arg-type]
