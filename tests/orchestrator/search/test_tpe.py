"""Adaptive search as a conversation with Tune: suggest, complete, suggest. No training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tailsweep.orchestrator.config.search_space import key_of
from tailsweep.orchestrator.config.sweep import Sweep, SweepConfigError, load_sweep
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Outcome, Records
from tailsweep.orchestrator.search.tpe import AdaptiveSearch

LEARNING_RATE = "stage_one.learning_rate"
LOSS = "stage_one.loss"
METRIC = "validation/macro_f1"
LOSSES = [{"name": "cross_entropy"}, {"name": "ldam"}]
BEST = 1e-3


class Notebook:
    """What a search needs of Bookkeeping."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.failures: dict[str, str] = {}

    def draw(self, candidate: CandidateRecord) -> None:
        self.records.draw(candidate)


def sweep(tmp_path: Path, **fields: Any) -> Sweep:
    tree = {
        "search": "optuna",
        "num_candidates": 30,
        "method": "two_stage/paper",  # sweeps nothing of its own
        "data": {"train": "rows.csv"},
        "stage_one": {"learning_rate": {"loguniform": [1e-5, 1e-1]}, "loss": {"choice": LOSSES}},
        **fields,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_sweep(path)


def score(values: Mapping[str, Any]) -> float:
    """Best at ``BEST``, half as good a factor of 1.8 off, and a tenth less with cross-entropy than with LDAM."""
    off = 4 * math.log10(values[LEARNING_RATE] / BEST)
    return 1 / (1 + off**2) - 0.1 * (values[LOSS]["name"] == "cross_entropy")


def report(name: str, value: float) -> dict[str, Any]:
    return {"candidate": name, "stage": "stage_two", "epoch": 1, METRIC: value}


def play(swept: Sweep, records: Records, count: int | None = None) -> None:
    """One candidate after the other to its end, until there are no more, or ``count`` of them."""
    unfinished = [candidate for candidate in records.candidates if candidate.name not in records.outcomes]
    search = AdaptiveSearch(swept, records, unfinished, Notebook(records), lambda c: {"candidate": c.name})  # type: ignore[arg-type]
    for number in range(1000 if count is None else count):
        suggested = search.suggest(f"trial{number}")
        if suggested == "FINISHED":
            return
        name = suggested["of"]["candidate"]
        values = next(candidate.values for candidate in records.candidates if candidate.name == name)
        records.hear(report(name, score(values)))
        records.outcomes[name] = Outcome(name, "completed", "", 1.0)
        search.on_trial_complete(f"trial{number}")
    assert count is not None, "the search did not end"


def test_it_draws_as_many_candidates_as_asked_for_all_different(tmp_path: Path) -> None:
    records = Records([])
    play(sweep(tmp_path), records)
    assert [candidate.name for candidate in records.candidates] == [f"c{number:03d}" for number in range(30)]
    assert len({key_of(candidate.values) for candidate in records.candidates}) == 30
    for candidate in records.candidates:
        assert candidate.trial["stage_one"]["learning_rate"] == candidate.values[LEARNING_RATE]
        assert candidate.trial["stage_one"]["loss"]["name"] == candidate.values[LOSS]["name"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_later_candidates_are_drawn_nearer_to_the_best_than_at_random(seed: int, tmp_path: Path) -> None:
    records = Records([])
    play(sweep(tmp_path, seed=seed, num_candidates=40), records)
    adapted = [score(candidate.values) for candidate in records.candidates[20:]]
    at_random = [score(c.values) for c in sweep(tmp_path, seed=seed, search="random", num_candidates=40).candidates()]
    assert sum(adapted) / 20 > 0.3 > sum(at_random) / 40


def test_the_same_seed_draws_the_same_candidates_and_another_seed_others(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        records = Records([])
        play(sweep(tmp_path, seed=seed, num_candidates=14), records)
        drawn.append([key_of(candidate.values) for candidate in records.candidates])
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_points_known_to_be_good_come_first(tmp_path: Path) -> None:
    points = [{"stage_one": {"learning_rate": 2e-4, "loss": LOSSES[1]}}, {"stage_one": {"learning_rate": 5e-3}}]
    records = Records([])
    play(sweep(tmp_path, points=points, num_candidates=4), records)
    assert records.candidates[0].values == {LEARNING_RATE: 2e-4, LOSS: LOSSES[1]}
    assert records.candidates[1].values[LEARNING_RATE] == 5e-3
    assert len(records.candidates) == 4


def test_gone_on_with_it_finishes_what_was_begun_and_knows_what_was_evaluated(tmp_path: Path) -> None:
    swept = sweep(tmp_path, seed=1)
    records = Records([])
    play(swept, records, 20)
    begun = swept.candidate(20, {LEARNING_RATE: 1e-5, LOSS: LOSSES[0]})
    records.draw(CandidateRecord(begun.name, dict(begun.values), begun.trial.model_dump(mode="json")))
    before = [candidate.values for candidate in records.candidates]
    play(swept, records)
    assert [candidate.values for candidate in records.candidates[:21]] == before
    assert "c020" in records.outcomes
    assert len(records.candidates) == len(records.outcomes) == 30
    # Without the twenty, these nine would be among TPE's first ten, which are random.
    assert sum(score(candidate.values) for candidate in records.candidates[21:]) / 9 > 0.3


def test_a_space_of_few_settings_is_drawn_to_its_end(tmp_path: Path) -> None:
    stage_one = {"learning_rate": {"choice": [1e-4, 1e-3, 1e-2]}, "loss": {"choice": LOSSES}}
    records = Records([])
    play(sweep(tmp_path, stage_one=stage_one, num_candidates=6), records)
    assert len({key_of(candidate.values) for candidate in records.candidates}) == 6


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"points": [{"stage_one": {"learning_rat": 1e-3}}]}, 'did you mean "stage_one.learning_rate"'),
        ({"points": [{"stage_one": {"learning_rate": 1.0}}]}, "is 1.0, but is never drawn from"),
        ({"points": [{"stage_one": {"loss": {"name": "focal"}}}]}, "is never drawn from"),
        ({"stage_one": {"epochs": {"randint": [1, 4]}}}, "must be fixed or {choice: [...]} with search: optuna"),
        ({"stage_one": {"epochs": {"grid": [1, 4]}}}, "grid goes with search: grid"),
    ],
)
def test_what_it_cannot_draw_is_said_before_the_start(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(SweepConfigError) as error:
        sweep(tmp_path, **fields)
    assert text in str(error.value)


def test_points_come_first_in_a_random_search_too(tmp_path: Path) -> None:
    points = [{"stage_one": {"learning_rate": 2e-4, "loss": LOSSES[1]}}]
    with_points = sweep(tmp_path, search="random", points=points, num_candidates=4).candidates()
    without = sweep(tmp_path, search="random", num_candidates=4).candidates()
    assert with_points[0].values == {LEARNING_RATE: 2e-4, LOSS: LOSSES[1]}
    assert [c.values for c in with_points[1:]] == [c.values for c in without[1:]]
