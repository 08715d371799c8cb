"""Tune's callback in the sweep's driver: writes the records, feeds W&B and the progress table."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from tailsweep.orchestrator.config.schema import SweepConfig
from tailsweep.orchestrator.monitoring.background_tracker import BackgroundTracker
from tailsweep.orchestrator.monitoring.console import Progress
from tailsweep.orchestrator.monitoring.wandb_tracker import settings_of
from tailsweep.orchestrator.runs.directory import RunDirectory
from tailsweep.orchestrator.runs.records import RecordWriter
from tailsweep.orchestrator.runs.trials import (
    Outcome,
    Records,
    Row,
    TrialRecord,
    TrialState,
    is_over,
)
from tailsweep.orchestrator.search.asha import StageASHA
from tailsweep.orchestrator.search.ends import settled
from tailsweep.orchestrator.search.promotion import stage_one_end
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import StorageError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LIVE_SECONDS = 20.0  # between two reports of a stack, from which on W&B has them at once
STACK = "stack"  # key of Tune's config where a trial of Tune's is a stack, see `StackConfig`


class SweepCallback(tune.Callback):  # type: ignore[misc]
    """Writes down every event of Tune, in its order, before anything else is done with it.

    Args:
        run: the run directory.
        records: what was known when the sweep (re)started.
        scheduler: asked why it stopped a trial; None without pruning.
        tracker: W&B.
        progress: the console.
        config: the sweep's; its metric judges trials, and ``max_consecutive_failures`` of one cause stop the sweep.
    """

    def __init__(
        self,
        run: RunDirectory,
        records: Records,
        scheduler: StageASHA | None,
        tracker: BackgroundTracker,
        progress: Progress,
        config: SweepConfig,
    ) -> None:
        self.records = records
        self.scheduler = scheduler
        self.metric = config.metric
        self.tracker = tracker
        self.progress = progress
        self.writer = RecordWriter(run, records.log_end)
        self.failures: dict[str, str] = {}  # of trials that have said they cannot continue, the reason
        self.given_up: dict[str, str] = {}  # by Tune, before they began, and why; `SweepRunner.run_phase` clears it
        self.stopped: str | None = None  # why the sweep is to stop before its end
        self.storage_error: StorageError | None = None
        self.verdicts: ActorHandle | None = None  # of StackVerdicts, while Tune runs stacks
        self._consecutive_failures = ConsecutiveFailures(config.max_consecutive_failures)
        self._began: dict[str, float] = {}
        self._shares: dict[str, SharedClock] = {}  # of stacks that train, by Tune's id
        self._seconds_before: defaultdict[str, float] = defaultdict(float)
        for row in records.history:
            self._seconds_before[row["trial"]] += row[report_keys.SECONDS]
        for name, outcome in records.outcomes.items():  # which knows of its processes' starts, too
            self._seconds_before[name] = outcome.seconds - self._seconds_of_parent(name)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into a file of its own that nothing here reads: give it nothing."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note that a trial runs."""
        if STACK in trial.config:
            self._start_stack(trial)
            return
        name = trial.config["trial"]["name"]
        self._began.setdefault(name, time.monotonic())
        self._track(name)
        self.progress.started(name)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Row, **info: object) -> None:
        """Record a trial's report, and log its notice."""
        if STACK in trial.config:
            self._stack_reported(trial, result)
            return
        name = trial.config["trial"]["name"]
        if report_keys.NOTICE in result:
            self.progress.noticed(name, result[report_keys.NOTICE])
        if report_keys.FAILURE in result:
            self.failures[name] = result[report_keys.FAILURE]
        if report_keys.STAGE in result and not self.records.has_report(name, result):
            self._or_stop(lambda: self._record_report(name, result))

    def _record_report(self, name: str, result: Mapping[str, Any]) -> None:
        row = {"trial": name, **{key: value for key, value in result.items() if _is_reported(key)}}
        self.writer.report(row)
        self._track(name)
        self.records.add_report(row)
        self.tracker.log(name, row)
        self._show(row)

    def _show(self, row: Row) -> None:
        if self.scheduler is not None:
            rungs = self.scheduler.rungs_of(row[report_keys.STAGE], row["trial"])
            self.progress.rungs = [] if rungs is None else rungs.occupancy()
        self.progress.reported(row["trial"], row)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Record the end of a trial that has nothing left to do."""
        if STACK in trial.config:
            self._stop_stack(trial)
            return
        name = trial.config["trial"]["name"]
        verdict = settled(self.records, self.scheduler, self.metric, name)
        if verdict is None and name in self.failures:
            verdict = TrialState.FAILED, self.failures[name]
        if verdict is None:  # this was a phase one, or Tune was interrupted
            self._pause(name)
            history = self.records.history_of(name)
            waits = bool(history) and is_over(
                self.records.trial(name).config, history[-1][report_keys.STAGE], history, self.metric
            )
            self.tracker.suspend(name, interrupted=not waits)
        else:
            self._or_stop(lambda: self.end(name, *verdict))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Record a trial whose process died for good."""
        reason = _failure_reason(trial.error_file)
        if STACK in trial.config:
            self._stack_died(trial, reason)
            return
        name = trial.config["trial"]["name"]
        if trial.should_recover() or _is_reported_twice(trial.error_file):
            # If a reused process dies before the next trial has begun in it, Tune (2.60) counts the death twice, for
            # the process and for its task, and gives the trial up whatever its retries: it restarts running trials
            # only, and this one has not begun.
            self._pause(name)
            self.given_up[name] = reason
            self.progress.noticed(name, f"{reason} before it had begun; is started again")
            return
        self._or_stop(lambda: self.end(name, TrialState.FAILED, reason))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Log that a trial continues after its process died."""
        name = next(iter(trial.config.values()))["name"]
        self.progress.noticed(name, f"{_failure_reason(trial.error_file)}; continues from its last checkpoint")

    @property
    def seconds(self) -> float:
        """Return the seconds that trials have run for so far, summed over them."""
        now = time.monotonic()
        running = [*self._began.values(), *(clock.since for clock in self._shares.values())]
        return sum(self._seconds_before.values()) + sum(now - began for began in running)

    def draw(self, trial: TrialRecord) -> None:
        """Record a trial that was drawn while the sweep runs, before anything is done with it."""
        self.writer.draw(trial)
        self.records.draw(trial)
        self.progress.drawn(trial.name, epochs_of(trial.config))

    def recall(self, outcome: Outcome, track: bool = False) -> None:
        """Take up a trial that had ended before this process began.

        Args:
            track: its W&B run is lost, and is to be made again.
        """
        best = self.records.judged(outcome.trial, self.metric)
        if track:
            self._finish_tracking(outcome, best)
        self.progress.recalled(outcome.trial, outcome.state, best[self.metric] if best else None)

    def end(self, name: str, state: TrialState, reason: str, never_started: bool = False) -> None:
        """End a trial: write its outcome, close its W&B run, log it."""
        self.end_all([(name, state, reason)], never_started)

    def end_all(self, ends: Sequence[tuple[str, TrialState, str]], never_started: bool = False) -> None:
        """End several trials at once, given the name, the state and the reason of each."""
        outcomes = []
        for name, state, reason in ends:
            self._pause(name)
            seconds = round(self._seconds_before[name] + self._seconds_of_parent(name), 3)
            outcomes.append(Outcome(name, state, reason, seconds, self.records.num_reports(name), never_started))
        self.writer.end_trials(outcomes)
        for outcome in outcomes:
            self.records.outcomes[outcome.trial] = outcome
        for outcome in outcomes:
            best = self.records.judged(outcome.trial, self.metric)
            self._finish_tracking(outcome, best)
            self.progress.ended(outcome.trial, outcome.state, outcome.reason, best[self.metric] if best else None)
            if (cause := self._consecutive_failures.record_end(outcome.state, outcome.reason)) is not None:
                self.stopped = self.stopped or cause

    def _start_stack(self, stack: Trial) -> None:
        """Note that the trials of a stack run that have not ended."""
        names = [name for name in stack.config[STACK]["trials"] if name not in self.records.outcomes]
        self._shares.setdefault(stack.trial_id, SharedClock(names))
        for name in names:
            self.progress.started(name)

    def _stack_reported(self, stack: Trial, result: Row) -> None:
        """Record the reports of a stack's trials, judge each, and answer which are over."""
        if report_keys.NOTICE in result:
            self.progress.noticed(stack.config[STACK]["name"], result[report_keys.NOTICE])
        if report_keys.REPORTS not in result:
            return
        is_slow = self._share_time(stack) >= LIVE_SECONDS
        failures = dict(result[report_keys.FAILURES])
        rows = [row for row in result[report_keys.REPORTS] if not self._is_known(row)]
        self._or_stop(lambda: self._record_and_judge(rows, failures, is_slow))
        reported = [*failures, *(row["trial"] for row in result[report_keys.REPORTS])]
        over = [name for name in reported if name in self.records.outcomes]
        if (clock := self._shares.get(stack.trial_id)) is not None:
            clock.running = [name for name in clock.running if name not in over]
        assert self.verdicts is not None
        self.verdicts.give.remote(result[report_keys.ATTEMPT], result[report_keys.NUMBER], over)

    def _is_known(self, row: Row) -> bool:
        return row["trial"] in self.records.outcomes or self.records.has_report(row["trial"], row)

    def _record_and_judge(self, rows: Sequence[Row], failures: Mapping[str, str], is_slow: bool) -> None:
        """Record reports of a stack and end the trials that are over.

        W&B has a trial's reports as they come if there is time to look at them, else at the trial's end.
        """
        self.writer.report(*rows)
        ends = [(name, TrialState.FAILED, why) for name, why in failures.items() if name not in self.records.outcomes]
        for row in rows:
            if is_slow:
                self._track(row["trial"])
            self.records.add_report(row)
            if self.tracker.has_begun(row["trial"]):
                self.tracker.log(row["trial"], row)
            if self.scheduler is not None:
                self.scheduler.add_report(row["trial"], row)
            self._show(row)
            if (verdict := settled(self.records, self.scheduler, self.metric, row["trial"])) is not None:
                ends.append((row["trial"], *verdict))
        if ends:
            self.end_all(ends)

    def _stop_stack(self, stack: Trial) -> None:
        """Note that a stack does not run any more: its trials are through stage one, or were interrupted."""
        self._share_time(stack)
        if (clock := self._shares.pop(stack.trial_id, None)) is not None:
            for name in clock.running:
                self.progress.waiting(name)
                if self.tracker.has_begun(name):
                    self.tracker.suspend(name, interrupted=not self._has_done_stage_one(name))

    def _stack_died(self, stack: Trial, reason: str) -> None:
        """Fail the trials of a stack whose process died for good; see :meth:`on_trial_error`."""
        self._stop_stack(stack)
        unfinished = [name for name in stack.config[STACK]["trials"] if not self._has_done_stage_one(name)]
        if stack.should_recover() or _is_reported_twice(stack.error_file):
            self.given_up |= dict.fromkeys(unfinished, reason)
            self.progress.noticed(stack.config[STACK]["name"], f"{reason} before it had begun; is started again")
        else:
            self._or_stop(lambda: self.end_all([(name, TrialState.FAILED, reason) for name in unfinished]))

    def _has_done_stage_one(self, name: str) -> bool:
        return name in self.records.outcomes or stage_one_end(self.records, name, self.metric) is not None

    def _share_time(self, stack: Trial) -> float:
        """Give each trial that trains in a stack its share of the seconds since the last report; returns these."""
        shares = self._shares[stack.trial_id].shares() if stack.trial_id in self._shares else {}
        for name, seconds in shares.items():
            self._seconds_before[name] += seconds
        return sum(shares.values())

    def _finish_tracking(self, outcome: Outcome, best: Mapping[str, Any] | None) -> None:
        name = outcome.trial
        decision = self.scheduler.decisions.get(name) if self.scheduler is not None else None
        summary = {
            "state": outcome.state.value,
            "reason": outcome.reason,
            "rung": decision.rung if decision else None,
            f"best/{self.metric}": best[self.metric] if best else None,
        }
        self._track(name)  # not open where an earlier process wrote nothing of it, or had no time to
        self.tracker.finish(name, summary)

    def _seconds_of_parent(self, name: str) -> float:
        parent = self.records.trial(name).parent
        return 0.0 if parent is None else self.records.outcomes[parent].seconds

    def _or_stop(self, write: Callable[[], None]) -> None:
        """Do something with storage; if storage refuses for good, stop the sweep, which can be resumed.

        From then on nothing more is written: every attempt would take its half minute.
        """
        if self.storage_error is not None:
            return
        try:
            write()
        except StorageError as error:
            self.storage_error = error
            self.stopped = self.stopped or str(error)

    def _pause(self, name: str) -> None:
        """Stop a trial's clock."""
        if name in self._began:
            self._seconds_before[name] += time.monotonic() - self._began.pop(name)
            self.progress.waiting(name)

    def _track(self, name: str) -> None:
        if self.tracker.has_begun(name):
            return
        trial = self.records.trial(name)
        self.tracker.start(name, settings_of(trial.config, trial.values), self.records.history_of(name))


class SharedClock:
    """The seconds of a stack, of which each trial in training has an equal part.

    Args:
        running: The trials.
    """

    def __init__(self, running: Sequence[str]) -> None:
        self.running = list(running)
        self.since = time.monotonic()

    def shares(self) -> dict[str, float]:
        """Return each trial's part of the seconds since the last call, or the start."""
        before, self.since = self.since, time.monotonic()
        return {name: (self.since - before) / len(self.running) for name in self.running}


class ConsecutiveFailures:
    """Trials that fail one after another of one cause: what failed five times will fail the sixth.

    Args:
        most: in a row.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._cause, self._count = "", 0

    def record_end(self, state: TrialState, reason: str) -> str | None:
        """Record a trial's end; return why the sweep is to stop, or None while it continues."""
        if state != TrialState.FAILED:
            self._count = 0
            return None
        cause = re.sub(r"[-+.\d]*\d\S*", "#", reason)  # whatever the numbers in it, it is the same
        self._count = self._count + 1 if cause == self._cause else 1
        self._cause = cause
        if self._count < self.most:
            return None
        return f"{self._count} trials in a row failed of one cause, the last with: {reason}; fix that first"


class StopWhenAsked(tune.Stopper):  # type: ignore[misc]
    """Tune's question whether a sweep is to stop, answered by its :class:`SweepCallback`."""

    def __init__(self, callback: SweepCallback) -> None:
        self.callback = callback

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Return False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether the sweep is to stop."""
        return self.callback.stopped is not None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it into a file that nothing here reads: give it nothing."""
        return {}


def epochs_of(trial_config: Mapping[str, Any]) -> tuple[int, int]:
    """Of stage one and of stage two, from a dumped TrialConfig."""
    return trial_config[report_keys.STAGE_ONE]["epochs"], trial_config[report_keys.STAGE_TWO]["epochs"]


def _is_reported(key: str) -> bool:
    """Whether a key of Tune's result is one of ours; Tune adds clocks and addresses of its own."""
    own = {
        report_keys.STAGE,
        report_keys.EPOCH,
        report_keys.STAGE_ONE_EPOCH,
        report_keys.EXECUTION,
        report_keys.SECONDS,
    }
    return key in own or key.startswith((f"{report_keys.VALIDATION}/", "train/"))


def _failure_reason(error_file: str | None) -> str:
    """Why Tune says that a trial's process ended: the last line it wrote."""
    died = "its process died (killed, or its node lost)"
    text = _read(error_file)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "ActorDiedError" in text or "ActorUnavailableError" in text or "died unexpectedly" in text:
        return died
    return lines[-1].strip()


def _is_reported_twice(error_file: str | None) -> bool:
    """Whether the last two failures are of one process."""
    last_two = re.findall(r"actor_id: (\w+)", _read(error_file))[-2:]
    return len(last_two) == 2 and len(set(last_two)) == 1


def _read(error_file: str | None) -> str:
    return "" if error_file is None or not Path(error_file).exists() else Path(error_file).read_text(encoding="utf-8")
