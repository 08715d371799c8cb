"""Who goes on from a first round, by the history alone."""

from typing import Any

import pytest
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Outcome, Records
from tailsweep.orchestrator.search.promotion import stage_one_end, stage_one_ranking

METRIC = "validation/macro_f1"


def records(scores: dict[str, list[float]], **of_stage_one: Any) -> Records:
    trial = {"stage_one": {"epochs": 4, **of_stage_one}, "stage_two": {"epochs": 1}}
    history = [
        {"candidate": name, "stage": "stage_one", "epoch": epoch, METRIC: score}
        for name, of_candidate in scores.items()
        for epoch, score in enumerate(of_candidate, start=1)
    ]
    return Records([CandidateRecord(name, {}, trial) for name in scores], history)


def test_rank_is_by_the_last_score_of_those_whose_stage_one_is_over() -> None:
    of_four = records(
        {"c000": [0.9, 0.9, 0.9, 0.2], "c001": [0.1, 0.1, 0.1, 0.3], "c002": [0.9, 0.9], "c003": [0.1, 0.1, 0.1, 0.3]}
    )
    assert stage_one_ranking(of_four, METRIC) == ["c001", "c003", "c000"]
    of_four.outcomes["c001"] = Outcome("c001", "pruned", "", 1.0)
    assert stage_one_ranking(of_four, METRIC) == ["c003", "c000"]


def test_a_stage_one_that_ended_early_is_ranked_by_the_score_it_ended_with() -> None:
    scores = {"c000": [0.5, 0.4, 0.4], "c001": [0.1, 0.2, 0.3, 0.45], "c002": [0.3, 0.6, 0.5], "c003": [0.1, 0.2]}
    early = records(scores, patience=2)
    assert stage_one_ranking(early, METRIC) == ["c001", "c000"]
    assert [stage_one_end(early, name, METRIC) is None for name in scores] == [False, False, True, True]
    assert stage_one_ranking(records(scores), METRIC) == ["c001"]
    assert stage_one_ranking(records(scores, patience=1), METRIC) == ["c002", "c001", "c000"]


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_stage_one_without_reports_has_no_last_one(epochs: int) -> None:
    assert stage_one_end(records({"c000": []}, epochs=epochs, patience=1), "c000", METRIC) is None
