"""Promotion from phase one, by the history alone."""

from typing import Any

import pytest
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord
from tailsweep.orchestrator.search.promotion import stage_one_end, stage_one_ranking

METRIC = "validation/macro_f1"


def records(scores: dict[str, list[float]], **stage_one: Any) -> Records:
    trial_config = {"stage_one": {"epochs": 4, **stage_one}, "stage_two": {"epochs": 1}}
    history = [
        {"trial": name, "stage": "stage_one", "epoch": epoch, METRIC: score}
        for name, trial_scores in scores.items()
        for epoch, score in enumerate(trial_scores, start=1)
    ]
    return Records([TrialRecord(name, {}, trial_config) for name in scores], history)


def ranking_of(several: Records) -> list[str]:
    return stage_one_ranking(several, METRIC, several.trials)


def test_rank_is_by_the_last_score_of_those_whose_stage_one_is_over() -> None:
    four = records(
        {"t000": [0.9, 0.9, 0.9, 0.2], "t001": [0.1, 0.1, 0.1, 0.3], "t002": [0.9, 0.9], "t003": [0.1, 0.1, 0.1, 0.3]}
    )
    assert ranking_of(four) == ["t001", "t003", "t000"]
    four.outcomes["t001"] = Outcome("t001", "pruned", "", 1.0)
    assert ranking_of(four) == ["t003", "t000"]


def test_a_stage_one_that_ended_early_is_ranked_by_the_score_it_ended_with() -> None:
    scores = {"t000": [0.5, 0.4, 0.4], "t001": [0.1, 0.2, 0.3, 0.45], "t002": [0.3, 0.6, 0.5], "t003": [0.1, 0.2]}
    early = records(scores, patience=2)
    assert ranking_of(early) == ["t001", "t000"]
    assert [stage_one_end(early, name, METRIC) is None for name in scores] == [False, False, True, True]
    assert ranking_of(records(scores)) == ["t001"]
    assert ranking_of(records(scores, patience=1)) == ["t002", "t001", "t000"]


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_stage_one_without_reports_has_no_last_one(epochs: int) -> None:
    assert stage_one_end(records({"t000": []}, epochs=epochs, patience=1), "t000", METRIC) is None
