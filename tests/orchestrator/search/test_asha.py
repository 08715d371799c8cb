"""The stopping rule as a conversation, worked by hand and against Ray's own."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from tailsweep.orchestrator.search.asha import Decision, Rung, Rungs, StageASHA, describe
from tailsweep.trainables import report_keys

METRIC = "validation/macro_f1"


def stage_one(trial: str, epoch: float, score: float) -> dict[str, Any]:
    return {"trial": trial, "stage": "stage_one", "epoch": epoch, "stage_one_epoch": epoch, METRIC: score}


def stage_two(trial: str, epoch: float, score: float) -> dict[str, Any]:
    return {"trial": trial, "stage": "stage_two", "epoch": epoch, METRIC: score}


def trial_config(trial: str) -> Any:
    return SimpleNamespace(trial_id=trial, config={"trial": {"name": trial}})


def ask(scheduler: StageASHA, report: dict[str, Any]) -> str:
    return scheduler.on_trial_result(None, trial_config(report["trial"]), report)


def test_rungs_lie_a_reduction_factor_apart_from_grace_to_the_last_epoch() -> None:
    assert Rungs(1, 9, 3).milestones == [[1, 3, 9]]
    assert Rungs(2, 9, 2).milestones == [[2, 4, 8]]
    assert Rungs(1, 9, 3, brackets=3).milestones == [[1, 3, 9], [3, 9], [9]]
    assert Rungs(4, 3, 2).milestones == [[]]


def test_the_last_rung_is_kept_where_a_quotient_of_logarithms_would_round_it_away() -> None:
    # log(243) / log(3) is 4.999... in floating point.
    assert Rungs(1, 243, 3).milestones == [[1, 3, 9, 27, 81, 243]]


def test_rungs_may_lie_within_an_epoch() -> None:
    assert Rungs(0.25, 3, 3).milestones == [[0.25, 0.75, 2.25]]
    assert Rungs(0.25, 3, 3, brackets=2).milestones == [[0.25, 0.75, 2.25], [0.75, 2.25]]
    # 0.07 * 100 is 7.000000000000001 in floating point, 0.1 * 3 is 0.30000000000000004: rungs all the same.
    assert Rungs(0.07, 7, 10).milestones == [pytest.approx([0.07, 0.7, 7])]
    assert Rungs(0.1, 1, 3).report("t000", 3 / 10, 0.5).rung == 1


def test_reports_within_an_epoch_reach_rungs_there() -> None:
    rungs = Rungs(0.25, 3, 3)
    assert rungs.report("t000", 0.25, 0.5).rung == 0
    assert rungs.report("t001", 0.25, 0.6).rung == 0
    assert rungs.report("t002", 0.25, 0.4) == Decision(stop=True, rung=0, cutoff=pytest.approx(0.5 + 2 / 3 * 0.1))
    assert rungs.report("t001", 0.5, 0.0) == Decision(stop=False)
    assert rungs.report("t001", 0.75, 0.6).rung == 1
    assert rungs.report("t000", 0.75, 0.5) == Decision(stop=True, rung=1, cutoff=0.6)
    assert [rungs.report("t001", epoch, 0.6).rung for epoch in (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5)] == [None] * 5 + [
        2,
        None,
    ]
    assert rungs.occupancy() == [(0.25, 3), (0.75, 2), (2.25, 1)]


def test_a_third_may_be_written_to_three_decimals() -> None:
    for grace in (0.333, 1 / 3):
        rungs = Rungs(grace, 3, 3)
        assert [rungs.report("t000", thirds / 3, 0.5).rung for thirds in range(1, 10)] == [
            0, None, 1, None, None, None, None, None, 2
        ]  # fmt: skip


def test_first_trial_is_not_pruned() -> None:
    assert Rungs(1, 3, 3).report("t000", 1, 0.0) == Decision(stop=False, rung=0, cutoff=None)


def test_a_worse_trial_is_pruned_an_equal_or_better_one_is_not() -> None:
    rungs = Rungs(1, 3, 2)
    rungs.report("t000", 1, 0.5)
    # One score is there: every percentile of it is itself.
    assert rungs.report("t001", 1, 0.4) == Decision(stop=True, rung=0, cutoff=0.5)
    # The median of 0.4 and 0.5, halfway: 0.45.
    assert rungs.report("t002", 1, 0.45) == Decision(stop=False, rung=0, cutoff=pytest.approx(0.45))
    # The median of 0.4, 0.45 and 0.5.
    assert rungs.report("t003", 1, 0.44) == Decision(stop=True, rung=0, cutoff=pytest.approx(0.45))
    # The median of 0.4, 0.44, 0.45, 0.5: 0.445.
    assert rungs.report("t004", 1, 0.6) == Decision(stop=False, rung=0, cutoff=pytest.approx(0.445))


def test_the_cutoff_is_the_percentile_that_lets_the_best_of_eta_pass() -> None:
    rungs = Rungs(1, 3, 3)
    for number, score in enumerate([0.1, 0.4, 0.2, 0.3]):
        rungs.report(f"t{number:03d}", 1, score)
    # 1 - 1/3 of the way from 0.1 to 0.4, in steps of 0.1 (three of them): 0.1 + 2/3 * 0.3 = 0.3.
    assert rungs.report("t004", 1, 0.29) == Decision(stop=True, rung=0, cutoff=pytest.approx(0.3))


def test_trials_that_arrive_ascending_are_never_pruned() -> None:
    rungs = Rungs(1, 3, 3)
    assert not any(rungs.report(f"t{number:03d}", 1, number / 100).stop for number in range(50))


def test_a_rung_records_a_trial_once() -> None:
    rungs = Rungs(1, 9, 3)
    rungs.report("t000", 1, 0.9)
    assert rungs.report("t001", 1, 0.9).rung == 0
    # Epoch 2 still belongs to the rung at 1, which has decided: however bad, it continues to the rung at 3.
    assert rungs.report("t001", 2, 0.0) == Decision(stop=False)
    rungs.report("t000", 3, 0.9)
    assert rungs.report("t001", 3, 0.1) == Decision(stop=True, rung=1, cutoff=0.9)
    assert rungs.occupancy() == [(1, 2), (3, 2), (9, 0)]


def test_before_the_grace_epoch_nothing_is_asked() -> None:
    rungs = Rungs(2, 4, 2)
    assert rungs.report("t000", 1, 0.9) == Decision(stop=False)
    assert rungs.report("t001", 1, 0.1) == Decision(stop=False)
    assert rungs.occupancy() == [(2, 0), (4, 0)]


def test_a_report_beyond_several_rungs_is_recorded_in_the_highest_only() -> None:
    rungs = Rungs(1, 9, 3)
    assert rungs.report("t000", 4, 0.5).rung == 1
    assert rungs.occupancy() == [(1, 0), (3, 1), (9, 0)]


def test_a_score_that_is_no_number_is_our_own_issue() -> None:
    with pytest.raises(AssertionError):
        Rungs(1, 3, 3).report("t000", 1, float("nan"))


def test_reports_of_stage_two_are_never_asked() -> None:
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1, 3, 3)}, METRIC)
    for epoch in (1, 2, 3):
        assert ask(scheduler, stage_one("t000", epoch, 0.9)) == TrialScheduler.CONTINUE
        assert ask(scheduler, stage_one("t001", epoch, 0.9)) == TrialScheduler.CONTINUE
    before = scheduler.rungs[report_keys.STAGE_ONE].occupancy()
    for epoch in range(1, 10):
        assert scheduler.add_report("t001", stage_two("t001", epoch, 0.0)) is None
        assert ask(scheduler, stage_two("t001", epoch, 0.0)) == TrialScheduler.CONTINUE
    assert scheduler.rungs[report_keys.STAGE_ONE].occupancy() == before == [(1, 2), (3, 2)]


def test_the_scheduler_stops_a_worse_trial_and_says_why() -> None:
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1, 3, 3)}, METRIC)
    assert ask(scheduler, stage_one("t000", 1, 0.52)) == TrialScheduler.CONTINUE
    report = stage_one("t001", 1, 0.41235)
    assert ask(scheduler, report) == TrialScheduler.STOP
    assert describe(scheduler.decisions["t001"], METRIC, report) == (
        "validation/macro_f1 0.4123 after epoch 1 of stage one is below the 0.5200 that rung 0 asked for"
    )
    assert scheduler.decisions["t000"] == Decision(stop=False, rung=0)


def test_a_trial_may_be_stopped_within_an_epoch() -> None:
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1 / 3, 3, 3)}, METRIC)
    assert ask(scheduler, stage_one("t000", 1 / 3, 0.5)) == TrialScheduler.CONTINUE
    report = stage_one("t001", 1 / 3, 0.4)
    assert ask(scheduler, report) == TrialScheduler.STOP
    assert " 0.4000 after epoch 0.333 of stage one is below " in describe(scheduler.decisions["t001"], METRIC, report)


def test_rungs_may_be_shares_of_each_trials_own_epochs() -> None:
    """Halfway, a trial of six epochs is judged after three of them, and one of two after its first."""
    epochs = {"t000": 6, "t001": 2, "t002": 6}
    scheduler = StageASHA(
        {report_keys.STAGE_TWO: Rungs(0.5, 0.999, 3)}, METRIC, {report_keys.STAGE_TWO: epochs.__getitem__}
    )
    assert scheduler.rungs[report_keys.STAGE_TWO].milestones == [[0.5]]
    assert ask(scheduler, stage_two("t001", 1, 0.6)) == TrialScheduler.CONTINUE
    assert [ask(scheduler, stage_two("t000", epoch, 0.1)) for epoch in (1, 2, 3)] == ["CONTINUE", "CONTINUE", "STOP"]
    assert [ask(scheduler, stage_two("t002", epoch, 0.7)) for epoch in (1, 2, 3)] == ["CONTINUE"] * 3
    assert ask(scheduler, stage_two("t001", 2, 0.0)) == TrialScheduler.CONTINUE, "it is at its end"


def test_tune_may_name_its_metric_and_mode() -> None:
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1, 3, 3)}, METRIC)
    assert scheduler.set_search_properties(METRIC, "max")
    assert scheduler.metric == METRIC


@st.composite
def conversations(draw: st.DrawFn) -> tuple[float, float, int, int, list[tuple[int, float]]]:
    """(grace, max epochs, eta, reports an epoch, who reports what next): every report is that trial's next."""
    grace, eta, per_epoch = draw(st.integers(1, 4)), draw(st.integers(2, 5)), draw(st.sampled_from([1, 2, 4]))
    longest = draw(st.integers(grace, 30))
    score = st.integers(-10, 10).map(lambda tenths: tenths / 10)  # few values, so that some are equal
    reports = draw(st.lists(st.tuples(st.integers(0, 8), score), max_size=120))
    return grace / per_epoch, longest / per_epoch, eta, per_epoch, reports


@settings(max_examples=150)
@given(conversations())
def test_decides_as_rays_asha_does(conversation: tuple[float, float, int, int, list[tuple[int, float]]]) -> None:
    grace, max_epochs, eta, per_epoch, reports = conversation
    ours = StageASHA({report_keys.STAGE_ONE: Rungs(grace, max_epochs, eta)}, METRIC)
    rays = AsyncHyperBandScheduler(
        time_attr="stage_one_epoch",
        metric=METRIC,
        mode="max",
        max_t=max_epochs,
        grace_period=grace,
        reduction_factor=eta,
        stop_last_trials=False,
    )
    epochs: dict[str, float] = {}
    stopped: set[str] = set()
    for number, score in reports:
        name = f"t{number:03d}"
        if name not in epochs:
            epochs[name] = 0
            rays.on_trial_add(None, trial_config(name))
        epochs[name] += 1 / per_epoch
        in_stage_one = epochs[name] <= max_epochs
        report = stage_one(name, epochs[name], score) if in_stage_one else stage_two(name, epochs[name], score)
        if name not in stopped:
            decision = ask(ours, report)
            assert decision == rays.on_trial_result(None, trial_config(name), report)
            if decision == TrialScheduler.STOP:
                stopped.add(name)


def random_history(seed: int, num_trials: int, epochs: int) -> list[dict[str, Any]]:
    """Reports of both stages in a random order that keeps each trial's own."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.repeat(np.arange(num_trials), epochs + 1))
    seen = dict.fromkeys(range(num_trials), 0)
    reports = []
    for number in order.tolist():
        seen[number] += 1
        name, score = f"t{number:03d}", float(generator.random())
        inside = seen[number] <= epochs
        reports.append(stage_one(name, seen[number], score) if inside else stage_two(name, 1, score))
    return reports


@pytest.mark.parametrize("brackets", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_after_a_replay_it_decides_as_if_it_had_never_stopped(seed: int, brackets: int) -> None:
    reports = random_history(seed, num_trials=20, epochs=9)
    interruption = len(reports) // 3
    unbroken = StageASHA({report_keys.STAGE_ONE: Rungs(1, 9, 3, brackets, seed=4)}, METRIC)
    first = [unbroken.add_report(report["trial"], report) for report in reports[:interruption]]
    resumed = StageASHA({report_keys.STAGE_ONE: Rungs(1, 9, 3, brackets, seed=4)}, METRIC)
    resumed.replay(reports[:interruption])
    assert resumed.decisions == unbroken.decisions
    assert resumed.rungs[report_keys.STAGE_ONE].occupancy() == unbroken.rungs[report_keys.STAGE_ONE].occupancy()
    later = [unbroken.add_report(report["trial"], report) for report in reports[interruption:]]
    assert [resumed.add_report(report["trial"], report) for report in reports[interruption:]] == later
    assert any(decision is not None and decision.stop for decision in first)
    assert any(decision is not None and decision.stop for decision in later)
    # The check has teeth: an empty scheduler would have let other trials pass.
    empty = StageASHA({report_keys.STAGE_ONE: Rungs(1, 9, 3, brackets, seed=4)}, METRIC)
    assert [empty.add_report(report["trial"], report) for report in reports[interruption:]] != later


def test_a_trials_bracket_depends_on_seed_and_name_alone() -> None:
    names = [f"t{number:03d}" for number in range(300)]
    drawn = [Rungs(1, 9, 3, brackets=2, seed=1).bracket(name) for name in names]
    other_order = Rungs(1, 9, 3, brackets=2, seed=1)
    assert [other_order.bracket(name) for name in reversed(names)] == drawn[::-1]
    assert [Rungs(1, 9, 3, brackets=2, seed=2).bracket(name) for name in names] != drawn


def test_brackets_are_drawn_by_their_number_of_rungs() -> None:
    rungs = Rungs(1, 9, 3, brackets=3)  # 3, 2 and 1 rungs
    drawn = np.bincount([rungs.bracket(f"c{number}") for number in range(3000)], minlength=3) / 3000
    weights = np.exp([3, 2, 1])
    # Standard error at most sqrt(0.25 / 3000) = 0.009.
    assert drawn == pytest.approx(weights / weights.sum(), abs=0.04)


def test_brackets_keep_rungs_of_their_own() -> None:
    rungs = Rungs(1, 9, 3, brackets=2)
    early = [name for name in map(str, range(40)) if rungs.bracket(name) == 0][:2]
    late = [name for name in map(str, range(40)) if rungs.bracket(name) == 1][:2]
    rungs.report(early[0], 3, 0.9)
    # The rung at epoch 3 of the other bracket is empty: its first trial passes, its second is compared with it.
    assert rungs.report(late[0], 3, 0.1) == Decision(stop=False, rung=0)
    assert rungs.report(late[1], 3, 0.2) == Decision(stop=False, rung=0, cutoff=0.1)
    assert rungs.report(early[1], 3, 0.2) == Decision(stop=True, rung=1, cutoff=0.9)
    assert rungs.occupancy() == [(1, 0), (3, 4), (9, 0)]


def test_brackets_are_those_that_trials_had_under_their_first_names() -> None:
    """These are the draws of seed 7 from before trials were named `t000`."""
    rungs = Rungs(1, 4, 2, brackets=2, seed=7)
    drawn = [rungs.bracket(f"t{number:03d}") for number in range(16)]
    assert drawn == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0]
    assert [rungs.bracket(f"t004.{number}") for number in range(1, 7)] == [0, 1, 1, 1, 0, 0]


@settings(deadline=None)
@given(scores=st.lists(st.floats(-1, 1), min_size=1, max_size=60), reduction_factor=st.integers(2, 5))
def test_a_cutoff_is_numpys_percentile_to_the_bit(scores: list[float], reduction_factor: int) -> None:
    rung = Rung()
    percent = (1 - 1 / reduction_factor) * 100
    for number, score in enumerate(scores, start=1):
        rung.add(f"t{number:03d}", score)
        assert rung.percentile(percent) == float(np.percentile(scores[:number], percent))
