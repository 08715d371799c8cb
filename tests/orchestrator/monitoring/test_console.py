"""What a running sweep shows, in a terminal and elsewhere."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from tailsweep.orchestrator.monitoring import console
from tailsweep.orchestrator.monitoring.console import Progress
from tailsweep.orchestrator.monitoring.log_output import terminal_output
from tailsweep.orchestrator.runs.trials import TrialState

METRIC = "validation/macro_f1"
EPOCHS = {"t000": (3, 1), "t001": (3, 1), "t002": (3, 1), "t003": (3, 1)}


class Clock:
    """Stands in for the module ``time``: tells the time it was set to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def plain() -> Progress:
    return Progress(EPOCHS, METRIC, Console(file=io.StringIO(), width=40))


def without_clock(text: str) -> str:
    return re.sub(r"(?m)^\d\d:\d\d:\d\d  ", "", text)


def report(stage: str, epoch: float, score: float) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, METRIC: score}


def test_a_trial_between_two_rounds_is_pending() -> None:
    shown = plain()
    shown.started("t000")
    assert shown.summary() == "3 pending, 1 running"
    shown.reported("t000", report("stage_one", 3, 0.5))
    shown.waiting("t000")
    assert shown.summary() == "4 pending"


def test_outside_a_terminal_each_event_is_one_plain_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plain()
    with shown, terminal_output():
        shown.started("t000")
        shown.reported("t000", report("stage_one", 2, 0.51239))
        shown.reported("t000", report("stage_two", 1, 0.6))
        clock.now += 10
        shown.ended("t000", TrialState.COMPLETED, "all its epochs are done", 0.6)
        shown.ended("t001", TrialState.FAILED, "[red]ValueError[/red]: a b", None)
    printed = capsys.readouterr().out
    assert without_clock(printed).splitlines() == [
        "t000  stage_one epoch 2/3  validation/macro_f1 0.5124",
        "t000  stage_two epoch 1/1  validation/macro_f1 0.6000",
        "t000  completed: all its epochs are done  [3 pending, 1 completed; best t000 0.6000; about 30 s left]",
        "t001  failed: [red]ValueError[/red]: a b  "
        "[2 pending, 1 completed, 1 failed; best t000 0.6000; about 10 s left]",
    ]
    assert "\x1b" not in printed


def test_the_summary_counts_states_in_the_order_of_a_trials_life() -> None:
    shown = plain()
    assert shown.summary() == "4 pending"
    shown.started("t001")
    shown.recalled("t003", TrialState.PRUNED, 0.9)
    assert shown.summary() == "2 pending, 1 running, 1 pruned"


def test_best_is_the_best_completed_trial_and_the_first_of_equals() -> None:
    shown = plain()
    shown.ended("t000", TrialState.PRUNED, "", 0.9)
    assert shown.best is None
    shown.ended("t002", TrialState.COMPLETED, "", 0.5)
    shown.ended("t001", TrialState.COMPLETED, "", 0.5)
    assert shown.best == ("t002", 0.5)
    shown.recalled("t003", TrialState.COMPLETED, 0.7)
    assert shown.best == ("t003", 0.7)


def test_time_left_follows_from_the_pace_of_this_process_alone(clock: Clock) -> None:
    shown = plain()
    shown.recalled("t000", TrialState.COMPLETED, 0.5)
    shown.ended("t001", TrialState.PRUNED, "settled from the history, before anything ran", 0.1)
    clock.now += 1000  # Ray starts
    with shown:
        assert shown.seconds_left() is None
        shown.started("t002")
        clock.now += 50
        shown.ended("t002", TrialState.COMPLETED, "", 0.5)
        assert shown.seconds_left() == 50  # one trial in 50 s, one left
        shown.ended("t003", TrialState.COMPLETED, "", 0.5)
        assert shown.seconds_left() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_remaining_time_is_shown_in_units_of_its_size(clock: Clock, seconds: float, text: str) -> None:
    shown = plain()
    with shown:
        clock.now += seconds
        shown.ended("t000", TrialState.FAILED, "", None)
        shown.ended("t001", TrialState.FAILED, "", None)
    assert shown.summary() == f"2 pending, 2 failed; about {text} left"


def test_in_a_terminal_a_table_shows_trials_best_and_rungs(clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, legacy_windows=False)
    shown = Progress(EPOCHS, METRIC, console)
    with shown:
        shown.started("t000")
        shown.started("t001")
        shown.reported("t001", report("stage_one", 2, 0.25))
        shown.rungs = [(1, 2), (3, 0)]
        shown.ended("t002", TrialState.COMPLETED, "all its epochs are done", 0.75)
        clock.now += 61
    screens = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "")
    last = [line.rstrip() for line in screens[screens.rindex("trial ") :].splitlines()]
    assert last == [
        "trial  where          validation/macro_f1",
        "t000   starting",
        "t001   stage_one 2/3  0.2500",
        "rungs  epoch 1: 2  epoch 3: 0",
        "1 min 01 s  1 pending, 2 running, 1 completed; best t002 0.7500; about 3 min 03 s left",
    ]
    assert "all its epochs are done" not in screens, "the table stands for the lines"


def test_epochs_may_be_fractions(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plain()
    with terminal_output():
        shown.reported("t000", report("stage_one", 4 / 3, 0.5))
    assert shown.places == {"t000": "stage_one 1.333/3"}
    assert without_clock(capsys.readouterr().out) == "t000  stage_one epoch 1.333/3  validation/macro_f1 0.5000\n"
    shown.rungs = [(0.1 * 3, 2), (1, 1), (12345.6789, 0)]
    shown.console.width = 80
    with shown.console.capture() as drawn:
        shown.console.print(shown._table())
    assert "rungs  epoch 0.3: 2  epoch 1: 1  epoch 12345.679: 0" in drawn.get()


def test_a_trial_that_has_ended_leaves_the_table(clock: Clock) -> None:
    shown = plain()
    shown.started("t000")
    shown.reported("t000", report("stage_one", 1, 0.5))
    assert shown.places == {"t000": "stage_one 1/3"}
    shown.ended("t000", TrialState.PRUNED, "below", 0.5)
    assert shown.places == {}
