"""Trials are started while the seconds last; what has begun continues."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher
from tailsweep.orchestrator.runs.trials import Records, TrialRecord
from tailsweep.orchestrator.search.fixed import ListedSearch, SecondsBudget


def search(clock: Any, at_once: int = 2) -> ListedSearch:
    trials = [TrialRecord(name, {}, {}) for name in ("t000", "t001", "t002", "t003")]
    records = Records(list(trials), [{"trial": "t003", "stage": "stage_one", "epoch": 1}])
    budget = SecondsBudget(60, at_once, clock)
    return ListedSearch([[trial] for trial in trials], records, names, budget)


def names(starting: Sequence[TrialRecord]) -> dict[str, object]:
    return {"names": [trial.name for trial in starting]}


def test_trials_start_in_order_until_the_seconds_are_spent() -> None:
    clock = SimpleNamespace(seconds=0.0)
    asked = search(clock)
    assert asked.suggest("a") == {"names": ["t000"]}
    clock.seconds = 119.0  # of two at once: 59.5 on the wall
    assert asked.suggest("b") == {"names": ["t001"]}
    clock.seconds = 120.0
    assert asked.suggest("c") == {"names": ["t003"]}  # it had begun before an interruption
    assert asked.suggest("d") == Searcher.FINISHED


def test_of_trials_that_start_together_those_start_that_may() -> None:
    clock = SimpleNamespace(seconds=0.0)
    trials = [TrialRecord(name, {}, {}) for name in ("t000", "t001", "t002")]
    records = Records(trials, [{"trial": "t002", "stage": "stage_one", "epoch": 1}])
    asked = ListedSearch([trials[:1], trials[1:]], records, names, SecondsBudget(60, 1, clock))
    assert asked.suggest("a") == {"names": ["t000"]}
    clock.seconds = 60.0
    assert asked.suggest("b") == {"names": ["t002"]}
    assert asked.suggest("c") == Searcher.FINISHED


@pytest.mark.parametrize("at_once", [1, 4])
def test_seconds_are_those_of_the_wall(at_once: int) -> None:
    budget = SecondsBudget(60, at_once, SimpleNamespace(seconds=59.9 * at_once))  # type: ignore[arg-type]
    assert not budget.spent
    assert SecondsBudget(60, at_once, SimpleNamespace(seconds=60.0 * at_once)).spent  # type: ignore[arg-type]
