"""What a running sweep shows, in a terminal and elsewhere."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from tailsweep.orchestrator.monitoring import console
from tailsweep.orchestrator.monitoring.console import Progress

METRIC = "validation/macro_f1"
EPOCHS = {"c000": (3, 1), "c001": (3, 1), "c002": (3, 1), "c003": (3, 1)}


class Clock:
    """Stands in for the module ``time``: tells the time it was set to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return "12:00:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def plain() -> tuple[Progress, io.StringIO]:
    written = io.StringIO()
    return Progress(EPOCHS, METRIC, Console(file=written, width=40)), written


def report(stage: str, epoch: float, score: float) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, METRIC: score}


def test_a_candidate_between_two_rounds_is_pending() -> None:
    shown, _ = plain()
    shown.started("c000")
    assert shown.summary() == "3 pending, 1 running"
    shown.reported("c000", report("stage_one", 3, 0.5))
    shown.waiting("c000")
    assert shown.summary() == "4 pending"


def test_outside_a_terminal_each_event_is_one_plain_line(clock: Clock) -> None:
    shown, written = plain()
    with shown:
        shown.started("c000")
        shown.reported("c000", report("stage_one", 2, 0.51239))
        shown.reported("c000", report("stage_two", 1, 0.6))
        clock.now += 10
        shown.ended("c000", "completed", "all its epochs are done", 0.6)
        shown.ended("c001", "failed", "[red]ValueError[/red]: a b", None)
    assert written.getvalue().splitlines() == [
        "12:00:00  c000  stage_one epoch 2/3  validation/macro_f1 0.5124",
        "12:00:00  c000  stage_two epoch 1/1  validation/macro_f1 0.6000",
        "12:00:00  c000  completed: all its epochs are done  "
        "[3 pending, 1 completed; best c000 0.6000; about 30 s left]",
        "12:00:00  c001  failed: [red]ValueError[/red]: a b  "
        "[2 pending, 1 completed, 1 failed; best c000 0.6000; about 10 s left]",
    ]
    assert "\x1b" not in written.getvalue()


def test_the_summary_counts_states_in_the_order_of_a_candidates_life() -> None:
    shown, _ = plain()
    assert shown.summary() == "4 pending"
    shown.started("c001")
    shown.recalled("c003", "pruned", 0.9)
    assert shown.summary() == "2 pending, 1 running, 1 pruned"


def test_best_is_the_best_completed_candidate_and_the_first_of_equals() -> None:
    shown, _ = plain()
    shown.ended("c000", "pruned", "", 0.9)
    assert shown.best is None
    shown.ended("c002", "completed", "", 0.5)
    shown.ended("c001", "completed", "", 0.5)
    assert shown.best == ("c002", 0.5)
    shown.recalled("c003", "completed", 0.7)
    assert shown.best == ("c003", 0.7)


def test_time_left_follows_from_the_pace_of_this_process_alone(clock: Clock) -> None:
    shown, _ = plain()
    shown.recalled("c000", "completed", 0.5)
    shown.ended("c001", "pruned", "settled from the history, before anything ran", 0.1)
    clock.now += 1000  # Ray starts
    with shown:
        assert shown.seconds_left() is None
        shown.started("c002")
        clock.now += 50
        shown.ended("c002", "completed", "", 0.5)
        assert shown.seconds_left() == 50  # one candidate in 50 s, one left
        shown.ended("c003", "completed", "", 0.5)
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
def test_time_left_is_told_in_units_of_its_size(clock: Clock, seconds: float, text: str) -> None:
    shown, _ = plain()
    with shown:
        clock.now += seconds
        shown.ended("c000", "failed", "", None)
        shown.ended("c001", "failed", "", None)
    assert shown.summary() == f"2 pending, 2 failed; about {text} left"


def test_in_a_terminal_a_table_shows_candidates_best_and_rungs(clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, legacy_windows=False)
    shown = Progress(EPOCHS, METRIC, console)
    with shown:
        shown.started("c000")
        shown.started("c001")
        shown.reported("c001", report("stage_one", 2, 0.25))
        shown.rungs = [(1, 2), (3, 0)]
        shown.ended("c002", "completed", "all its epochs are done", 0.75)
        clock.now += 61
    screens = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "")
    last = [line.rstrip() for line in screens[screens.rindex("candidate ") :].splitlines()]
    assert last == [
        "candidate  where          validation/macro_f1",
        "c000       starting",
        "c001       stage_one 2/3  0.2500",
        "rungs  epoch 1: 2  epoch 3: 0",
        "1 min 01 s  1 pending, 2 running, 1 completed; best c002 0.7500; about 3 min 03 s left",
    ]
    assert "all its epochs are done" not in screens, "the table stands for the lines"


def test_epochs_may_be_fractions(clock: Clock) -> None:
    shown, written = plain()
    shown.reported("c000", report("stage_one", 4 / 3, 0.5))
    assert shown.places == {"c000": "stage_one 1.333/3"}
    assert written.getvalue() == "12:00:00  c000  stage_one epoch 1.333/3  validation/macro_f1 0.5000\n"
    shown.rungs = [(0.1 * 3, 2), (1, 1), (12345.6789, 0)]
    shown.console.width = 80
    with shown.console.capture() as drawn:
        shown.console.print(shown._table())
    assert "rungs  epoch 0.3: 2  epoch 1: 1  epoch 12345.679: 0" in drawn.get()


def test_a_candidate_that_has_ended_leaves_the_table(clock: Clock) -> None:
    shown, _ = plain()
    shown.started("c000")
    shown.reported("c000", report("stage_one", 1, 0.5))
    assert shown.places == {"c000": "stage_one 1/3"}
    shown.ended("c000", "pruned", "below", 0.5)
    assert shown.places == {}
