"""What a running sweep shows: a live table in a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tailsweep.trainables import report_keys

STATES = ("pending", "running", "pruned", "not_promoted", "promoted", "completed", "failed")


class Progress:
    """The candidates by state, the best so far, the rungs and the time left.

    Args:
        epochs: (stage one's, stage two's) epochs of each candidate.
        metric: the key candidates are ranked by.
        to_come: how many candidates there will be, where a search has more to draw.
        console: where to write; a live table if it is a terminal.
    """

    def __init__(
        self, epochs: Mapping[str, tuple[int, int]], metric: str, console: Console | None = None, to_come: int = 0
    ) -> None:
        self.epochs = dict(epochs)
        self.metric = metric
        self.to_come = to_come
        self.console = console or Console()
        self.states = dict.fromkeys(epochs, "pending")
        self.places: dict[str, str] = {}  # running candidates: "stage_one 2/3"
        self.scores: dict[str, float] = {}  # of the latest report
        self.best: tuple[str, float] | None = None  # of completed candidates
        self.rungs: Sequence[tuple[float, int]] = ()  # (epoch, how many candidates have reached it)
        self._roads: set[tuple[str, str]] = set()  # what the user has been told
        self._began = time.monotonic()
        self._ended_here = 0
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        self._began, self._ended_here = time.monotonic(), 0
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exception)

    def drawn(self, candidate: str, epochs: tuple[int, int]) -> None:
        """One more candidate; its (stage one's, stage two's) epochs."""
        self.epochs[candidate] = epochs
        self.states[candidate] = "pending"

    def started(self, candidate: str) -> None:
        self.states[candidate] = "running"
        self.places.setdefault(candidate, "starting")

    def reported(self, candidate: str, report: Mapping[str, Any]) -> None:
        stage, epoch = report[report_keys.STAGE], report_keys.shown_epochs(report[report_keys.EPOCH])
        road = report.get(report_keys.ROAD)
        if road and (stage, road) not in self._roads:
            self._roads.add((stage, road))
            self._line(f"{stage} runs {road}")
        total = self.epochs[candidate][report_keys.STAGES.index(stage)]
        self.places[candidate] = f"{stage} {epoch}/{total}"
        self.scores[candidate] = report[self.metric]
        self._line(f"{candidate}  {stage} epoch {epoch}/{total}  {self.metric} {report[self.metric]:.4f}")

    def noticed(self, candidate: str, notice: str) -> None:
        """What happened to a candidate that goes on. Told above a live table, too: it must not be lost."""
        text = f"{time.strftime('%H:%M:%S')}  {candidate}  {notice}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def ended(self, candidate: str, state: str, reason: str, score: float | None) -> None:
        self.states[candidate] = state
        self.places.pop(candidate, None)
        self._ended_here += 1
        self._consider(candidate, state, score)
        self._line(f"{candidate}  {state}: {reason}  [{self.summary()}]")

    def waiting(self, candidate: str) -> None:
        """A candidate that is not at work, and has more before it."""
        self.states[candidate] = "pending"
        self.places.pop(candidate, None)

    def recalled(self, candidate: str, state: str, score: float | None) -> None:
        """A candidate that had ended before: counted, but no measure of this process's pace."""
        self.states[candidate] = state
        self._consider(candidate, state, score)

    def summary(self) -> str:
        """One line: ``2 pending, 2 running, 1 pruned, 1 completed; best c001 0.5210; about 40 s left``."""
        counts = Counter(self.states.values())
        parts = [", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]
        if self.best is not None:
            parts.append(f"best {self.best[0]} {self.best[1]:.4f}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return "; ".join(parts)

    def seconds_left(self) -> float | None:
        """From the pace of the candidates ended so far; None before the first has."""
        left = sum(state in {"pending", "running"} for state in self.states.values())
        left += max(0, self.to_come - len(self.states))
        if not self._ended_here or not left:
            return None
        return (time.monotonic() - self._began) / self._ended_here * left

    def _consider(self, candidate: str, state: str, score: float | None) -> None:
        if state == "completed" and score is not None and (self.best is None or score > self.best[1]):
            self.best = (candidate, score)

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(f"{time.strftime('%H:%M:%S')}  {text}", highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("candidate", "where", self.metric):
            table.add_column(column)
        for candidate, place in self.places.items():
            score = self.scores.get(candidate)
            table.add_row(candidate, place, "" if score is None else f"{score:.4f}")
        rungs = "  ".join(f"epoch {report_keys.shown_epochs(epoch)}: {count}" for epoch, count in self.rungs)
        elapsed = duration(time.monotonic() - self._began)
        return Group(table, Text(f"rungs  {rungs}" if rungs else ""), Text(f"{elapsed}  {self.summary()}"))


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
