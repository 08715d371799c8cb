"""Tune's callback in the sweep's driver: writes the records, feeds W&B and the progress table."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.progress import Progress
from orchestrator.records import (
    CandidateRecord,
    EndState,
    HistoryWriter,
    Outcome,
    Records,
    RunDirectory,
    best_epoch,
    is_over,
    last_stage,
    write_drawn,
    write_outcome,
)
from orchestrator.scheduler import StageASHA, describe
from orchestrator.tracking import Tracker, settings_of
from trainables import keys


class Bookkeeping(tune.Callback):  # type: ignore[misc]
    """Hears everything Tune hears, in its order, and writes it down before anything else happens to it.

    Args:
        run: the run directory.
        records: what was known when the sweep (re)started.
        scheduler: asked why it stopped a trial; None without pruning.
        metric: the key candidates are judged by.
    """

    def __init__(
        self,
        run: RunDirectory,
        records: Records,
        scheduler: StageASHA | None,
        metric: str,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self.run = run
        self.records = records
        self.scheduler = scheduler
        self.metric = metric
        self.tracker = tracker
        self.progress = progress
        self.history = HistoryWriter(run)
        self._began: dict[str, float] = {}
        self._seconds_before: defaultdict[str, float] = defaultdict(float)
        for row in records.history:
            self._seconds_before[row["candidate"]] += row[keys.SECONDS]

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into a file of its own that nothing here reads: give it nothing."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        name = trial.config["of"]["candidate"]
        self._began.setdefault(name, time.monotonic())
        self._track(name)
        self.progress.started(name)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        name = trial.config["of"]["candidate"]
        row = {"candidate": name, **{key: value for key, value in result.items() if _is_reported(key)}}
        self.history.append(row)
        self.records.hear(row)
        self.tracker.log(name, row)
        if self.scheduler is not None:
            rungs = self.scheduler.rungs.get(row[keys.STAGE])
            self.progress.rungs = [] if rungs is None else rungs.occupancy()
        self.progress.reported(name, row)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        name = trial.config["of"]["candidate"]
        verdict = settled(self.records, self.scheduler, self.metric, name)
        if verdict is not None:
            self.end(name, *verdict)
        else:  # Tune was interrupted, or this was a first round
            self._pause(name)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.end(trial.config["of"]["candidate"], "failed", _failure_reason(trial.error_file))

    @property
    def seconds(self) -> float:
        """That candidates have run for so far, summed over them."""
        now = time.monotonic()
        return sum(self._seconds_before.values()) + sum(now - began for began in self._began.values())

    def draw(self, candidate: CandidateRecord) -> None:
        """A candidate was drawn while the sweep runs: it is recorded before anything is done with it."""
        write_drawn(self.run, candidate)
        self.records.draw(candidate)
        self.progress.drawn(candidate.name, epochs_of(candidate.trial))

    def recall(self, outcome: Outcome) -> None:
        """Take up a candidate that had ended before this process began."""
        best = best_epoch(self.records.history_of(outcome.candidate), self.metric)
        self.progress.recalled(outcome.candidate, outcome.state, best[self.metric] if best else None)

    def end(self, name: str, state: EndState, reason: str) -> None:
        """A candidate is at its end: write its outcome, close its W&B run, say so."""
        self._pause(name)
        parent = self.records.candidate(name).parent
        seconds = self._seconds_before[name] + (0.0 if parent is None else self.records.outcomes[parent].seconds)
        outcome = Outcome(name, state, reason, round(seconds, 3))
        write_outcome(self.run, outcome)
        self.records.outcomes[name] = outcome
        best = best_epoch(self.records.history_of(name), self.metric)
        decision = self.scheduler.decisions.get(name) if self.scheduler is not None else None
        summary = {
            "state": state,
            "reason": reason,
            "rung": decision.rung if decision else None,
            f"best/{self.metric}": best[self.metric] if best else None,
        }
        self._track(name)  # not open where a killed sweep had no time to write this end
        self.tracker.finish(name, summary)
        self.progress.ended(name, state, reason, best[self.metric] if best else None)

    def _pause(self, name: str) -> None:
        """Stop a candidate's clock."""
        if name in self._began:
            self._seconds_before[name] += time.monotonic() - self._began.pop(name)
            self.progress.waiting(name)

    def _track(self, name: str) -> None:
        candidate = self.records.candidate(name)
        self.tracker.start(name, settings_of(candidate.trial, candidate.values), self.records.history_of(name))


def settled(records: Records, scheduler: StageASHA | None, metric: str, name: str) -> tuple[EndState, str] | None:
    """State and reason of a candidate whose end follows from its history; None while it has work left."""
    history = records.history_of(name)
    if not history:
        return None
    last = history[-1]
    decision = scheduler.decisions.get(name) if scheduler is not None else None
    if decision is not None and decision.stop:
        return "pruned", describe(decision, metric, last)
    trial = records.candidate(name).trial
    if last[keys.STAGE] == last_stage(trial) and is_over(trial, last[keys.STAGE], history, metric):
        return "completed", "; ".join(_early_ends(trial, history, metric)) or "all its epochs are done"
    return None


def _early_ends(trial: Mapping[str, Any], history: Iterable[Mapping[str, Any]], metric: str) -> list[str]:
    """Of each stage that ended before its last epoch, in words."""
    done = {row[keys.STAGE]: row[keys.EPOCH] for row in history}
    return [
        f"{stage.replace('_', ' ')} ended after epoch {keys.shown_epochs(epoch)} of {trial[stage]['epochs']}, with no "
        f"better {metric} in {trial[stage]['patience']} evaluation{'s' if trial[stage]['patience'] > 1 else ''}"
        for stage, epoch in done.items()
        if epoch != trial[stage]["epochs"]
    ]


def epochs_of(trial: Mapping[str, Any]) -> tuple[int, int]:
    """Of stage one and of stage two, from a dumped TrialConfig."""
    return trial[keys.STAGE_ONE]["epochs"], trial[keys.STAGE_TWO]["epochs"]


def _is_reported(key: str) -> bool:
    """Whether a key of Tune's result is one of ours; Tune adds clocks and addresses of its own."""
    own = {keys.STAGE, keys.EPOCH, keys.STAGE_ONE_EPOCH, keys.ROAD, keys.SECONDS}
    return key in own or key.startswith((f"{keys.VALIDATION}/", "train/"))


def _failure_reason(error_file: str | None) -> str:
    """The last line of the traceback Tune wrote, which is the worker's own message (see ``CandidateFailed``)."""
    if error_file is None or not Path(error_file).exists():
        return "its process died without a word (killed, or its node lost)"
    lines = [line for line in Path(error_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip().split("CandidateFailed: ", 1)[-1] if lines else "unknown"
