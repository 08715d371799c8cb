"""Tune's callback driven by hand: what is written, in which order, and what becomes of every kind of end."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from rich.console import Console
from support.event_files import outcomes, reports
from tailsweep.orchestrator.config.schema import SweepConfig
from tailsweep.orchestrator.monitoring.console import Progress
from tailsweep.orchestrator.monitoring.log_output import terminal_output
from tailsweep.orchestrator.runner.callback import ConsecutiveFailures, StopWhenAsked, SweepCallback
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.records import read_records, write_trials
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord, TrialState
from tailsweep.orchestrator.search.asha import Rungs, StageASHA
from tailsweep.orchestrator.search.ends import settled
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage import retry

METRIC = "validation/macro_f1"
TRIAL = {"stage_one": {"epochs": 2}, "stage_two": {"epochs": 1}}
DIED = "its process died (killed, or its node lost)"
CONFIG = SweepConfig.model_construct(metric=METRIC, max_consecutive_failures=5)
NAMES = ("t000", "t001", "t002")


class TrackerDouble:
    """Records its calls, and how many reports were on disk at each."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.calls: list[tuple[Any, ...]] = []
        self.open: set[str] = set()

    def start(self, trial: str, settings: dict[str, Any], history: list[dict[str, Any]]) -> None:
        if trial not in self.open:
            self.open.add(trial)
            self.calls.append(("start", trial, len(history)))

    def has_begun(self, trial: str) -> bool:
        return trial in self.open

    def suspend(self, trial: str, interrupted: bool = False) -> None:
        self.open.discard(trial)
        self.calls.append(("suspend", trial, interrupted))

    def log(self, trial: str, report: dict[str, Any]) -> None:
        self.calls.append(("log", trial, len(reports(Path(self.run.path)))))

    def finish(self, trial: str, summary: dict[str, Any]) -> None:
        self.open.remove(trial)
        on_disk = trial in outcomes(Path(self.run.path))
        self.calls.append(("postprocess", trial, on_disk, summary))


class Sweep:
    """The driver's side of a small sweep: reports go to the scheduler first and then to the callback, as in Tune."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.records = read_records(run)
        self.scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1, 2, 2)}, METRIC)
        self.scheduler.replay(self.records.history)
        self.tracker = TrackerDouble(run)
        self.progress = Progress(dict.fromkeys(NAMES, (2, 1)), METRIC, Console(file=io.StringIO()))
        tracker: Any = self.tracker
        self.callback = SweepCallback(run, self.records, self.scheduler, tracker, self.progress, CONFIG)

    def start(self, name: str) -> None:
        self.callback.on_trial_start(0, [], self.trial_config(name))

    def say(self, name: str, words: dict[str, str]) -> None:
        """What is not scores."""
        assert self.scheduler.on_trial_result(None, self.trial_config(name), words) == "CONTINUE"
        self.callback.on_trial_result(0, [], self.trial_config(name), words)

    def report(self, name: str, stage: str, epoch: int, score: float, **words: str) -> str:
        result: dict[str, Any] = {
            **words,
            "stage": stage,
            "epoch": epoch,
            "train/loss": 0.5,
            METRIC: score,
            "seconds": 2.0,
        }
        if stage == "stage_one":
            result["stage_one_epoch"] = epoch
        tunes_own = {
            "training_iteration": 7,
            "hostname": "node",
            "pid": 1,
            "config": {"trial": {"name": name}},
            "date": "now",
        }
        decision = self.scheduler.on_trial_result(None, self.trial_config(name), result | tunes_own)
        self.callback.on_trial_result(0, [], self.trial_config(name), result | tunes_own)
        return decision

    def complete(self, name: str) -> None:
        self.callback.on_trial_complete(0, [], self.trial_config(name))

    def fail(self, name: str, error_file: str | None) -> None:
        self.callback.on_trial_error(0, [], self.trial_config(name, error_file))

    @staticmethod
    def trial_config(name: str, error_file: str | None = None, retries_left: bool = False) -> Any:
        return SimpleNamespace(
            trial_id=name,
            config={"trial": {"name": name}},
            error_file=error_file,
            should_recover=lambda: retries_left,
        )


class Stack:
    """The driver's side of a stack of all trials: what is asked of it, and which trials it has answered are over."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.answers: list[tuple[str, int, list[str]]] = []
        giving = SimpleNamespace(remote=lambda *answer: self.answers.append(answer))
        verdicts: Any = SimpleNamespace(give=giving)
        sweep.callback.verdicts = verdicts

    def tunes(self, error_file: str | None = None, retries_left: bool = False) -> Any:
        config = {"stack": {"name": "s000", "trials": list(NAMES), "json": "{}"}}
        return SimpleNamespace(trial_id="7", config=config, error_file=error_file, should_recover=lambda: retries_left)

    def report(self, epoch: int, scores: dict[str, float], failures: dict[str, str] | None = None) -> list[str]:
        rows = [
            {"trial": name, "stage": "stage_one", "epoch": epoch, "train/loss": 0.5, METRIC: score, "seconds": 2.0}
            for name, score in scores.items()
        ]
        result = {"reports": rows, "failures": [*(failures or {}).items()], "attempt": "a", "number": epoch}
        assert self.sweep.scheduler.on_trial_result(None, self.tunes(), result) == "CONTINUE"
        self.sweep.callback.on_trial_result(0, [], self.tunes(), result)
        attempt, number, over = self.answers.pop()
        assert (attempt, number) == ("a", epoch)
        return over


def test_the_trials_of_a_stack_are_judged_one_by_one(sweep: Sweep, run: RunDirectory) -> None:
    stack = Stack(sweep)
    sweep.callback.on_trial_start(0, [], stack.tunes())
    assert {sweep.progress.states[name] for name in NAMES} == {"running"}
    assert stack.report(1, {"t000": 0.5, "t001": 0.25}, {"t002": "TrainingDiverged: too high"}) == ["t002", "t001"]
    records = read_records(run)
    assert {name: outcome.state for name, outcome in records.outcomes.items()} == {"t001": "pruned", "t002": "failed"}
    assert records.outcomes["t002"].reason == "TrainingDiverged: too high"
    assert stack.report(1, {"t000": 0.5, "t001": 0.25}) == ["t001"]  # again, after a restart: nothing is written
    assert stack.report(2, {"t000": 0.6}) == []
    assert [(row["trial"], row["epoch"]) for row in read_records(run).history] == [
        ("t000", 1),
        ("t001", 1),
        ("t000", 2),
    ]
    sweep.callback.on_trial_complete(0, [], stack.tunes())
    assert sweep.progress.states["t000"] == "pending"  # it waits for phase two
    assert "t000" not in read_records(run).outcomes
    finished = [call[1] for call in sweep.tracker.calls if call[0] == "postprocess"]
    assert sorted(finished) == ["t001", "t002"]


def test_the_seconds_of_a_stack_are_shared(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 12))
    monkeypatch.setattr("tailsweep.orchestrator.runner.callback.time", SimpleNamespace(monotonic=lambda: next(clock)))
    stack = Stack(sweep)
    sweep.callback.on_trial_start(0, [], stack.tunes())  # at 0
    stack.report(1, {"t000": 0.5, "t001": 0.25, "t002": 0.6})  # at 12: 4 each, and t001 is over
    stack.report(2, {"t000": 0.5, "t002": 0.6})  # at 24: 6 for each of two
    assert sweep.records.outcomes["t001"].seconds == 4
    assert sweep.callback.seconds == 4 + 10 + 10 + 12  # and 12 since then
    sweep.callback.on_trial_complete(0, [], stack.tunes())
    assert sweep.callback.seconds == 24 + 24


@pytest.mark.parametrize("retries_left", [False, True])
def test_the_process_of_a_stack_dies(sweep: Sweep, run: RunDirectory, retries_left: bool) -> None:
    stack = Stack(sweep)
    sweep.callback.on_trial_start(0, [], stack.tunes())
    stack.report(1, {"t000": 0.5, "t001": 0.25, "t002": 0.6})
    sweep.callback.on_trial_error(0, [], stack.tunes(None, retries_left))
    if retries_left:  # it had not begun: see on_trial_error
        assert sweep.callback.given_up == {"t000": DIED, "t002": DIED}
        assert set(read_records(run).outcomes) == {"t001"}
    else:
        states = {name: outcome.state for name, outcome in read_records(run).outcomes.items()}
        assert states == {"t000": "failed", "t001": "pruned", "t002": "failed"}


def test_a_stack_is_answered_though_storage_refuses_its_reports(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(sweep)
    sweep.callback.on_trial_start(0, [], stack.tunes())
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", ())
    monkeypatch.setattr(RunDirectory, "write_bytes", lambda *_: (_ for _ in ()).throw(StorageError("refused")))
    assert stack.report(1, {"t000": 0.5}) == []
    assert sweep.callback.stopped == "refused"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "demo"))
    run.create()
    write_trials(run, [TrialRecord(name, {"seed": number}, TRIAL) for number, name in enumerate(NAMES)])
    return run


@pytest.fixture
def sweep(run: RunDirectory) -> Sweep:
    return Sweep(run)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    with terminal_output():
        yield lambda: capsys.readouterr().out


def test_a_report_is_on_disk_before_the_tracker_is_called(
    printed: Callable[[], str], sweep: Sweep, run: RunDirectory
) -> None:
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.report("t000", "stage_one", 2, 0.6)
    assert sweep.tracker.calls == [("start", "t000", 0), ("log", "t000", 1), ("log", "t000", 2)]
    assert sweep.progress.rungs == [(1, 1), (2, 1)]
    assert "t000  stage_one epoch 2/2" in printed()


def test_history_holds_what_a_trial_reports_and_nothing_of_tunes(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.report("t000", "stage_two", 1, 0.6)
    assert read_records(run).history == [
        {
            "trial": "t000", "stage": "stage_one", "epoch": 1, "train/loss": 0.5, METRIC: 0.5, "seconds": 2.0,
            "stage_one_epoch": 1,
        },
        {"trial": "t000", "stage": "stage_two", "epoch": 1, "train/loss": 0.5, METRIC: 0.6, "seconds": 2.0},
    ]  # fmt: skip


def test_a_trial_whose_epochs_are_done_is_completed(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    for stage, epoch, score in (("stage_one", 1, 0.9), ("stage_one", 2, 0.8), ("stage_two", 1, 0.4)):
        sweep.report("t000", stage, epoch, score)
    sweep.complete("t000")
    outcome = read_records(run).outcomes["t000"]
    assert (outcome.state, outcome.reason) == ("completed", "all its epochs are done")
    assert 0 <= outcome.seconds < 5
    summary = {"state": "completed", "reason": outcome.reason, "rung": 1, f"best/{METRIC}": 0.4}
    assert sweep.tracker.calls[-1] == ("postprocess", "t000", True, summary)
    assert sweep.progress.best == ("t000", 0.4)


def test_a_pruned_trial_is_reported_with_its_rung_and_cutoff(sweep: Sweep, run: RunDirectory) -> None:
    for name in ("t000", "t001"):
        sweep.start(name)
    assert sweep.report("t000", "stage_one", 1, 0.5) == "CONTINUE"
    assert sweep.report("t001", "stage_one", 1, 0.25) == "STOP"
    sweep.complete("t001")
    outcome = read_records(run).outcomes["t001"]
    assert outcome.state == "pruned"
    assert outcome.reason == (
        "validation/macro_f1 0.2500 after epoch 1 of stage one is below the 0.5000 that rung 0 asked for"
    )
    summary = {"state": "pruned", "reason": outcome.reason, "rung": 0, f"best/{METRIC}": 0.25}
    assert sweep.tracker.calls[-1] == ("postprocess", "t001", True, summary)
    assert sweep.progress.best is None
    assert "t000" not in read_records(run).outcomes


def test_an_interrupted_trial_gets_no_outcome(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    sweep.start("t001")
    sweep.report("t000", "stage_one", 1, 0.5)
    for name in ("t000", "t001"):  # Tune ends its trials when it is interrupted
        sweep.complete(name)
    assert read_records(run).outcomes == {}
    assert sweep.tracker.calls[-2:] == [("suspend", "t000", True), ("suspend", "t001", True)]


def test_a_trial_whose_phase_one_is_over_waits_and_was_not_interrupted(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    for epoch in (1, 2):
        sweep.report("t000", "stage_one", epoch, 0.5)
    sweep.complete("t000")
    assert read_records(run).outcomes == {}
    assert sweep.tracker.calls[-1] == ("suspend", "t000", False)
    assert sweep.progress.states["t000"] == "pending"


def test_without_pruning_nothing_is_asked_of_a_scheduler(run: RunDirectory) -> None:
    sweep = Sweep(run)
    sweep.callback.scheduler = None
    sweep.start("t000")
    for stage, epoch in (("stage_one", 1), ("stage_one", 2), ("stage_two", 1)):
        sweep.report("t000", stage, epoch, 0.5)
    sweep.complete("t000")
    assert read_records(run).outcomes["t000"].state == "completed"
    assert sweep.tracker.calls[-1][3]["rung"] is None
    assert sweep.progress.rungs == ()


def traceback_of(error: str) -> str:
    return f"Failure # 1 (occurred at 2026-01-31)\nTraceback (most recent call last):\n  File x, line 1\n{error}\n\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("RuntimeError: something else", "RuntimeError: something else"),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n\tclass_name: x\n"
         "Worker exit detail: connection error code 2", DIED),
    ],
)  # fmt: skip
def test_the_reason_of_a_process_s_end_is_what_tune_wrote_last(
    printed: Callable[[], str], sweep: Sweep, run: RunDirectory, tmp_path: Path, error: str, reason: str
) -> None:
    (tmp_path / "error.txt").write_text(traceback_of(error), encoding="utf-8")
    sweep.start("t000")
    sweep.fail("t000", str(tmp_path / "error.txt"))
    outcome = read_records(run).outcomes["t000"]
    assert (outcome.state, outcome.reason) == ("failed", reason)
    assert sweep.tracker.calls[-1][:3] == ("postprocess", "t000", True)
    assert f"t000  failed: {reason}" in printed()


@pytest.mark.parametrize("error_file", [None, "/nowhere/error.txt"])
def test_a_death_without_a_word_is_a_failure_too(sweep: Sweep, run: RunDirectory, error_file: str | None) -> None:
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.fail("t000", error_file)
    outcome = read_records(run).outcomes["t000"]
    assert (outcome.state, outcome.reason) == ("failed", DIED)


def test_a_trial_that_tune_gives_up_before_its_last_retry_is_not_at_its_end(
    printed: Callable[[], str], sweep: Sweep, run: RunDirectory
) -> None:
    sweep.callback.on_trial_error(0, [], sweep.trial_config("t000", retries_left=True))
    assert sweep.callback.given_up == {"t000": DIED}
    assert read_records(run).outcomes == {}
    assert f"t000  {DIED} before it had begun; is started again" in printed()


@pytest.mark.parametrize(("last", "state"), [("3f", "pending"), ("4a", "failed")])
def test_one_death_that_tune_counts_twice_is_no_last_retry(
    sweep: Sweep, run: RunDirectory, tmp_path: Path, last: str, state: str
) -> None:
    died = "ray.exceptions.ActorDiedError: The actor died unexpectedly.\n\tactor_id: "
    text = "".join(traceback_of(died + actor) for actor in ("01", "3f", last))
    (tmp_path / "error.txt").write_text(text, encoding="utf-8")
    sweep.fail("t000", str(tmp_path / "error.txt"))
    assert sweep.callback.given_up == ({"t000": DIED} if state == "pending" else {})
    assert sweep.progress.states["t000"] == state
    assert ("t000" in read_records(run).outcomes) == (state == "failed")


def test_a_resumed_trial_resumes_its_reports_and_its_seconds(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.report("t000", "stage_one", 2, 0.5)
    resumed = Sweep(run)  # the process was killed: nothing but the run directory is left
    resumed.start("t000")
    assert resumed.tracker.calls == [("start", "t000", 2)]
    resumed.report("t000", "stage_two", 1, 0.5)
    assert resumed.tracker.calls[-1] == ("log", "t000", 3)
    resumed.complete("t000")
    outcome = read_records(run).outcomes["t000"]
    assert outcome.state == "completed"
    assert 4.0 <= outcome.seconds < 9.0, "the 2 + 2 seconds of the reports before, and the time since"


def test_an_end_that_a_killed_sweep_could_not_write_is_written_on_resume(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    for stage, epoch in (("stage_one", 1), ("stage_one", 2), ("stage_two", 1)):
        sweep.report("t000", stage, epoch, 0.5)
    resumed = Sweep(run)
    verdict = settled(resumed.records, resumed.scheduler, METRIC, "t000")
    assert verdict == ("completed", "all its epochs are done")
    resumed.callback.end("t000", *verdict)
    assert read_records(run).outcomes["t000"] == Outcome("t000", *verdict, seconds=6.0, num_reports=3)
    # Its W&B run was cut off as well: it is made whole before it is closed.
    assert [call[:3] for call in resumed.tracker.calls] == [("start", "t000", 3), ("postprocess", "t000", True)]


def test_a_trial_with_a_parent_begins_with_its_stage_one(sweep: Sweep, run: RunDirectory) -> None:
    sweep.scheduler.rungs[report_keys.STAGE_TWO] = Rungs(1, 2, 2)
    sweep.start("t000")
    for epoch in (1, 2):
        sweep.report("t000", "stage_one", epoch, 0.5)
    for name in ("t000.1", "t000.2"):
        sweep.callback.draw(TrialRecord(name, {}, TRIAL | {"stage_two": {"epochs": 2}}, "t000"))
    sweep.callback.end("t000", TrialState.PROMOTED, "continues as t000.1, t000.2")
    for name, score in (("t000.1", 0.7), ("t000.2", 0.6)):
        sweep.start(name)
        assert sweep.tracker.calls[-1] == ("start", name, 2)
        sweep.report(name, "stage_two", 1, score)
        sweep.complete(name)
    outcomes = read_records(run).outcomes
    assert set(outcomes) == {"t000", "t000.2"}
    assert outcomes["t000.2"].state == "pruned"
    assert outcomes["t000.2"].reason.endswith(
        "0.6000 after epoch 1 of stage two is below the 0.7000 that rung 0 asked for"
    )
    assert outcomes["t000.2"].seconds >= outcomes["t000"].seconds


def test_a_trial_that_ended_before_is_counted_and_not_ended_again(sweep: Sweep, run: RunDirectory) -> None:
    sweep.start("t000")
    for stage, epoch, score in (("stage_one", 1, 0.9), ("stage_one", 2, 0.9), ("stage_two", 1, 0.4)):
        sweep.report("t000", stage, epoch, score)
    sweep.complete("t000")
    resumed = Sweep(run)
    resumed.callback.recall(resumed.records.outcomes["t000"])
    assert resumed.progress.summary() == "2 pending, 1 completed; best t000 0.4000"
    assert resumed.tracker.calls == []


@pytest.mark.parametrize(
    ("reports", "verdict"),
    [
        ([], None),
        ([("stage_one", 1, 0.5)], None),
        ([("stage_one", 1, 0.5), ("stage_one", 2, 0.5)], None),  # stage two is still to come
        ([("stage_one", 1, 0.5), ("stage_one", 2, 0.5), ("stage_two", 1, 0.1)], "completed"),
        ([("stage_one", 1, 0.1)], "pruned"),
        ([("stage_one", 1, 0.5), ("stage_one", 2, 0.1)], "pruned"),
    ],
)
def test_what_follows_from_a_history(reports: list[tuple[str, int, float]], verdict: str | None) -> None:
    rows = [("t001", "stage_one", 1, 0.4), ("t001", "stage_one", 2, 0.4), *(("t000", *report) for report in reports)]
    history = [
        {"trial": name, "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.0}
        | ({"stage_one_epoch": epoch} if stage == "stage_one" else {})
        for name, stage, epoch, score in rows
    ]
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(1, 2, 2)}, METRIC)
    scheduler.replay(history)
    records = Records([TrialRecord(name, {}, TRIAL) for name in NAMES], history)
    verdict_now = settled(records, scheduler, METRIC, "t000")
    assert (None if verdict_now is None else verdict_now[0]) == verdict


def test_a_single_stage_trial_is_complete_after_its_only_stage() -> None:
    history = [{"trial": "t000", "stage": "stage_one", "epoch": 1, METRIC: 0.5, "seconds": 1.0, "stage_one_epoch": 1}]
    only_one = {"stage_one": {"epochs": 1}, "stage_two": {"epochs": 0}}
    records = Records([TrialRecord("t000", {}, only_one)], history)
    assert settled(records, None, METRIC, "t000") == ("completed", "all its epochs are done")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"stage_one": [0.5, 0.4], "stage_two": [0.3]}, None),  # stage two may still rise
        (
            {"stage_one": [0.5, 0.4, 0.3], "stage_two": [0.3, 0.3]},
            "stage one ended after epoch 3 of 9, with no better validation/macro_f1 in 2 evaluations; stage two ended "
            "after epoch 2 of 5, with no better validation/macro_f1 in 1 evaluation",
        ),
        (
            {"stage_one": [0.9 + n / 99 for n in range(9)], "stage_two": [n / 9 for n in range(5)]},
            "all its epochs are done",
        ),
    ],
)
def test_a_trial_whose_last_stage_ended_early_is_completed_and_says_so(
    scores: dict[str, list[float]], reason: str | None
) -> None:
    history = [
        {"trial": "t000", "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.0}
        for stage, stage_scores in scores.items()
        for epoch, score in enumerate(stage_scores, start=1)
    ]
    trial_config = {"stage_one": {"epochs": 9, "patience": 2}, "stage_two": {"epochs": 5, "patience": 1}}
    records = Records([TrialRecord("t000", {}, trial_config)], history)
    # The rung after epoch 4, where 0.9 has been reached, asks nothing of one that ended before it.
    scheduler = StageASHA({report_keys.STAGE_ONE: Rungs(4, 9, 2)}, METRIC)
    scheduler.replay([{"trial": "t001", "stage": "stage_one", "epoch": 4, METRIC: 0.9}, *history])
    assert settled(records, scheduler, METRIC, "t000") == (None if reason is None else ("completed", reason))


def test_pickling_the_callback_gives_nothing_away(sweep: Sweep) -> None:
    """Tune pickles its callbacks into the run directory; paths, settings and W&B runs have no business there."""
    pickled = cloudpickle.dumps(sweep.callback)
    assert vars(cloudpickle.loads(pickled)) == {}
    assert sweep.run.path.encode() not in pickled
    assert len(pickled) < 200


def test_a_repeated_report_is_recorded_once(sweep: Sweep, run: RunDirectory) -> None:
    """As a trial makes it that was started again."""
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.report("t000", "stage_one", 1, 0.5)
    assert len(read_records(run).history) == 1
    assert [call[0] for call in sweep.tracker.calls] == ["start", "log"]


def test_a_trial_that_says_it_cannot_continue_has_failed(
    printed: Callable[[], str], sweep: Sweep, run: RunDirectory
) -> None:
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    sweep.say("t000", {report_keys.NOTICE: "out of memory; resumes steps in more micro-batches"})
    sweep.say("t000", {report_keys.FAILURE: "TrainingDiverged: the loss is nan"})
    sweep.complete("t000")
    outcome = read_records(run).outcomes["t000"]
    assert (outcome.state, outcome.reason) == ("failed", "TrainingDiverged: the loss is nan")
    assert "t000  out of memory; resumes" in printed()
    assert len(read_records(run).history) == 1


def test_words_are_no_part_of_the_history(printed: Callable[[], str], sweep: Sweep, run: RunDirectory) -> None:
    """A notice may come with a report."""
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5, **{report_keys.NOTICE: "damaged, and passed over: stage_one_epoch_002"})
    (row,) = read_records(run).history
    assert report_keys.NOTICE not in row
    assert "passed over" in printed()


def test_failures_of_one_cause_in_a_row_stop_the_sweep_and_others_do_not() -> None:
    same = ConsecutiveFailures(3)
    assert same.record_end("failed", "ValueError: row 17 of 30 has no label") is None
    assert same.record_end("failed", "ValueError: row 4 of 30 has no label") is None
    assert same.record_end("pruned", "below the rung") is None
    assert same.record_end("failed", "ValueError: row 4 of 30 has no label") is None
    assert same.record_end("failed", "TypeError: else") is None
    assert same.record_end("failed", "TypeError: else") is None
    assert same.record_end("failed", "TypeError: else") == (
        "3 trials in a row failed of one cause, the last with: TypeError: else; fix that first"
    )


def test_a_sweep_is_asked_to_stop_after_so_many_failures(sweep: Sweep) -> None:
    stopper = StopWhenAsked(sweep.callback)
    sweep.callback._consecutive_failures.most = len(NAMES)
    for name in NAMES:
        assert not stopper.stop_all()
        sweep.start(name)
        sweep.say(name, {report_keys.FAILURE: "CUDA error 7"})
        sweep.complete(name)
    assert stopper.stop_all()
    assert not stopper("any trial", {})
    assert (
        sweep.callback.stopped == "3 trials in a row failed of one cause, the last with: CUDA error 7; fix that first"
    )


def test_what_storage_refuses_for_good_stops_the_sweep_and_loses_nothing(
    sweep: Sweep, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.01,))
    sweep.start("t000")
    sweep.report("t000", "stage_one", 1, 0.5)
    folder = Path(run.path, "state/events")
    folder.rename(folder.with_name("aside"))
    folder.write_text("")  # a file where the folder was: root, too, can write nothing below it
    sweep.report("t000", "stage_one", 2, 0.5)
    assert isinstance(sweep.callback.storage_error, StorageError)
    assert StopWhenAsked(sweep.callback).stop_all()
    sweep.complete("t000")  # as Tune says of all that it stops
    folder.unlink()
    folder.with_name("aside").rename(folder)
    resumed = Sweep(run)
    assert [row[report_keys.EPOCH] for row in resumed.records.history] == [1]
    resumed.start("t000")
    resumed.report("t000", "stage_one", 2, 0.5)  # the trial continues from its checkpoint, which has this report
    assert [row[report_keys.EPOCH] for row in read_records(run).history] == [1, 2]
