"""W&B apart from Tune's event loop: a thread makes the calls of the tracker, in their order.

A run of W&B takes 0.05 s to open and to close, and seconds where W&B is far away. Tune waits for its callbacks: no
trial would start or be stopped meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from tailsweep.orchestrator.monitoring.wandb_tracker import Tracker
from tailsweep.orchestrator.runs.trials import Row

Settings = Mapping[str, Any]


class BackgroundTracker:
    """A tracker whose calls return at once.

    Args:
        tracker: What is called.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wandb")
        self._begun: set[str] = set()  # trials
        # Of the same trials, as far as the thread has come: for a run that was closed for another.
        self._known: dict[str, tuple[Settings, list[Row]]] = {}
        self._error: BaseException | None = None  # the first that was raised: W&B's own are caught by the tracker

    @property
    def sweep(self) -> str:
        """The start of the names and ids of the runs."""
        return self._tracker.sweep

    @property
    def mode(self) -> Literal["offline", "online", "disabled"]:
        """The mode; offline from when W&B cannot be used."""
        return self._tracker.mode

    def has_begun(self, trial: str) -> bool:
        """Return whether a trial's run was started here, and neither finished nor suspended."""
        return trial in self._begun

    def start(self, trial: str, settings: Settings, history: Sequence[Row]) -> None:
        """Open a trial's run, and log what W&B lacks of ``history``, its reports so far."""
        self._begun.add(trial)
        self._submit(self._start, trial, settings, list(history))

    def log(self, trial: str, report: Row) -> None:
        """Log a report of a trial that has begun."""
        self._submit(self._log, trial, report)

    def suspend(self, trial: str, interrupted: bool = False) -> None:
        """Close the run of a trial that waits, or was interrupted."""
        self._begun.discard(trial)
        self._submit(self._suspend, trial, interrupted)

    def finish(self, trial: str, summary: Mapping[str, Any]) -> None:
        """Close a trial's run with its summary."""
        self._begun.discard(trial)
        self._submit(self._finish, trial, summary)

    def close(self) -> None:
        """Make the calls that wait, and close what is open."""
        self._thread.shutdown()
        self._tracker.close()
        if self._error is not None:
            raise self._error

    def finish_sweep(self, settings: Settings, summary: Mapping[str, Any]) -> None:
        """Write the sweep's own run, once the tracker is closed."""
        self._tracker.finish_sweep(settings, summary)

    def _submit(self, call: Callable[..., None], *arguments: object) -> None:
        def keep_error(done: "Future[None]") -> None:
            self._error = self._error or done.exception()

        self._thread.submit(call, *arguments).add_done_callback(keep_error)

    def _start(self, trial: str, settings: Settings, history: list[Row]) -> None:
        self._known[trial] = settings, history
        self._tracker.start(trial, settings, history)

    def _log(self, trial: str, report: Row) -> None:
        self._reopen(trial)
        self._tracker.log(trial, report)
        self._known[trial][1].append(report)

    def _suspend(self, trial: str, interrupted: bool) -> None:
        self._known.pop(trial, None)
        self._tracker.suspend(trial, interrupted)

    def _finish(self, trial: str, summary: Mapping[str, Any]) -> None:
        self._reopen(trial)
        self._known.pop(trial, None)
        self._tracker.finish(trial, summary)

    def _reopen(self, trial: str) -> None:
        if trial in self._known and not self._tracker.is_open(trial):
            self._tracker.start(trial, *self._known[trial])
