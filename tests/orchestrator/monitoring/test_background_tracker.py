"""W&B's calls in a thread: none is waited for, all are made, in their order."""

import threading
import time
from pathlib import Path
from typing import Any

from support.wandb_files import read_runs
from tailsweep.orchestrator.config.schema import WandbConfig
from tailsweep.orchestrator.monitoring.background_tracker import BackgroundTracker
from tailsweep.orchestrator.monitoring.wandb_tracker import Tracker, run_id

SUMMARY = {"state": "completed", "reason": "done"}


def report(epoch: int) -> dict[str, Any]:
    return {"stage": "stage_one", "epoch": epoch, "train/loss": 1 / epoch, "validation/macro_f1": epoch / 10}


class SlowTracker(Tracker):
    """Waits before each call until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(WandbConfig(), "sweep", folder)
        self.may_continue = threading.Event()

    def start(self, *arguments: Any) -> None:
        assert self.may_continue.wait(60)
        super().start(*arguments)


def test_a_slow_wandb_keeps_no_one_waiting_and_has_everything_in_the_end(tmp_path: Path) -> None:
    slow = SlowTracker(tmp_path)
    tracker = BackgroundTracker(slow)
    history = [report(1)]
    began = time.monotonic()
    tracker.start("t000", {"a": 1}, history)
    assert tracker.has_begun("t000")
    for epoch in (2, 3):
        tracker.log("t000", report(epoch))
        history.append(report(epoch))  # as the records do, which the history is of
    tracker.finish("t000", SUMMARY)
    assert not tracker.has_begun("t000")
    assert time.monotonic() - began < 1
    slow.may_continue.set()
    tracker.close()
    runs = read_runs(tmp_path / "wandb")
    assert runs[run_id("sweep", "t000")].steps == [0, 1, 2]


def test_a_run_that_was_closed_for_another_is_opened_again_for_what_follows(tmp_path: Path) -> None:
    wandb = Tracker(WandbConfig(), "sweep", tmp_path)
    wandb.max_open = 1
    tracker = BackgroundTracker(wandb)
    names = ("t000", "t001", "t002")
    for name in names:
        tracker.start(name, {}, [report(1)])
    for name in names:
        tracker.log(name, report(2))
    for name in names[:2]:
        tracker.finish(name, SUMMARY)
    tracker.suspend("t002")
    tracker.start("t002", {}, [report(1), report(2)])
    tracker.close()
    runs = read_runs(tmp_path / "wandb")
    assert {key: run.steps for key, run in runs.items()} == {run_id("sweep", name): [0, 1] for name in names}


def test_closing_makes_the_calls_that_wait(tmp_path: Path) -> None:
    slow = SlowTracker(tmp_path)
    tracker = BackgroundTracker(slow)
    for number in range(10):
        tracker.start(f"t{number:03d}", {}, [])
        tracker.finish(f"t{number:03d}", SUMMARY)
    threading.Timer(0.2, slow.may_continue.set).start()
    tracker.close()
    assert len(read_runs(tmp_path / "wandb")) == 10
