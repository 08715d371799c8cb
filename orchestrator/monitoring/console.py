"""What a running sweep shows: a live table in a terminal, plain lines elsewhere."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tailsweep.orchestrator.runs.trials import TrialState
from tailsweep.trainables import report_keys

logger = logging.getLogger(__name__)


class Progress:
    """The trials by state, the best so far, the rungs and the time left.

    Args:
        epochs: (stage one's, stage two's) epochs of each trial.
        metric: the key trials are ranked by.
        to_come: how many trials there will be, where a search has more to draw.
        console: where to write; a live table if it is a terminal.
    """

    def __init__(
        self, epochs: Mapping[str, tuple[int, int]], metric: str, console: Console | None = None, to_come: int = 0
    ) -> None:
        self.epochs = dict(epochs)
        self.metric = metric
        self.to_come = to_come
        self.console = console or Console()
        self.states = dict.fromkeys(epochs, TrialState.PENDING)
        self._counts = Counter(self.states.values())  # kept, since every trial's end is logged with it
        self.places: dict[str, str] = {}  # running trials: "stage_one 2/3"
        self.scores: dict[str, float] = {}  # of the latest report
        self.best: tuple[str, float] | None = None  # of completed trials
        self.rungs: Sequence[tuple[float, int]] = ()  # (epoch, how many trials have reached it)
        self._executions: set[tuple[str, str]] = set()  # logged already
        self._began = time.monotonic()
        self._ended_here = 0
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        self._began, self._ended_here = time.monotonic(), 0
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exception)

    def drawn(self, trial: str, epochs: tuple[int, int]) -> None:
        """Add a trial, given the epochs of its stage one and of its stage two."""
        self.epochs[trial] = epochs
        self._set(trial, TrialState.PENDING)

    def started(self, trial: str) -> None:
        """Show a trial as running."""
        self._set(trial, TrialState.RUNNING)
        self.places.setdefault(trial, "starting")

    def reported(self, trial: str, report: Mapping[str, Any]) -> None:
        """Show and log a trial's latest report."""
        stage, epoch = report[report_keys.STAGE], report_keys.shown_epochs(report[report_keys.EPOCH])
        execution = report.get(report_keys.EXECUTION)
        if execution and (stage, execution) not in self._executions:
            self._executions.add((stage, execution))
            logger.info(f"{stage} runs {execution}", extra={"in_table": self._live is not None})
        total = self.epochs[trial][report_keys.STAGES.index(stage)]
        self.places[trial] = f"{stage} {epoch}/{total}"
        self.scores[trial] = report[self.metric]
        self._log(trial, f"{stage} epoch {epoch}/{total}  {self.metric} {report[self.metric]:.4f}")

    def noticed(self, trial: str, notice: str) -> None:
        """Log what happened to a trial that continues, also above a live table: it must not be lost."""
        logger.info(notice, extra={"trial": trial})

    def ended(self, trial: str, state: TrialState, reason: str, score: float | None) -> None:
        """Show and log the end of a trial."""
        self._set(trial, state)
        self.places.pop(trial, None)
        self._ended_here += 1
        self._consider(trial, state, score)
        self._log(trial, f"{state}: {reason}  [{self.summary()}]")

    def waiting(self, trial: str) -> None:
        """Show a trial as pending: it is not running, but has more to do."""
        self._set(trial, TrialState.PENDING)
        self.places.pop(trial, None)

    def recalled(self, trial: str, state: TrialState, score: float | None) -> None:
        """Count a trial that an earlier process ended; it is no measure of this process's pace."""
        self._set(trial, state)
        self._consider(trial, state, score)

    def summary(self) -> str:
        """Return one line: ``2 pending, 2 running, 1 pruned, 1 completed; best t001 0.5210; about 40 s left``."""
        parts = [", ".join(f"{self._counts[state]} {state}" for state in TrialState if self._counts[state])]
        if self.best is not None:
            parts.append(f"best {self.best[0]} {self.best[1]:.4f}")
        seconds = self.seconds_left()
        if seconds is not None:
            parts.append(f"about {duration(seconds)} left")
        return "; ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimate the remaining seconds from the pace of the trials ended so far; None before the first has."""
        unfinished = sum(count for state, count in self._counts.items() if not state.has_ended)
        unfinished += max(0, self.to_come - len(self.states))
        if not self._ended_here or not unfinished:
            return None
        return (time.monotonic() - self._began) / self._ended_here * unfinished

    def _set(self, trial: str, state: TrialState) -> None:
        if (earlier := self.states.get(trial)) is not None:
            self._counts[earlier] -= 1
        self.states[trial] = state
        self._counts[state] += 1

    def _consider(self, trial: str, state: TrialState, score: float | None) -> None:
        if state == TrialState.COMPLETED and score is not None and (self.best is None or score > self.best[1]):
            self.best = (trial, score)

    def _log(self, trial: str, message: str) -> None:
        """Log what a live table shows by itself."""
        logger.info(message, extra={"trial": trial, "in_table": self._live is not None})

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "where", self.metric):
            table.add_column(column)
        for trial, place in self.places.items():
            score = self.scores.get(trial)
            table.add_row(trial, place, "" if score is None else f"{score:.4f}")
        rungs = "  ".join(f"epoch {report_keys.shown_epochs(epoch)}: {count}" for epoch, count in self.rungs)
        elapsed = duration(time.monotonic() - self._began)
        return Group(table, Text(f"rungs  {rungs}" if rungs else ""), Text(f"{elapsed}  {self.summary()}"))


def duration(seconds: float) -> str:
    """Return a duration in words: ``3 min 05 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
