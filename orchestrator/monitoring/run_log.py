"""The log of a run directory: ``log.jsonl``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tailsweep.orchestrator.monitoring.log_output import JsonFormatter, handled_by
from tailsweep.orchestrator.runs.directory import LOG_FILE, RunDirectory
from tailsweep.trainables.errors import StorageError


class RunLogHandler(logging.Handler):
    """Append records to the log of a run directory.

    An object store takes no appended lines: the file is uploaded when the handler is closed. Storage that refuses the
    log does not stop the sweep.
    """

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.run = run
        self.lines: list[str] = []  # not yet written

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it until the end."""
        self.lines.append(self.format(record) + "\n")
        if self.run.local is not None:
            self._append(self.run.local / LOG_FILE)

    def close(self) -> None:
        """Upload what is left."""
        if self.lines and self.run.local is None:
            with suppress(StorageError):
                before = self.run.read_text(LOG_FILE) if self.run.exists(LOG_FILE) else ""
                self.run.write_text(LOG_FILE, before + "".join(self.lines))
        super().close()

    def _append(self, path: Path) -> None:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.writelines(self.lines)
        self.lines.clear()


@contextmanager
def run_log(run: RunDirectory) -> Iterator[None]:
    """Append the messages of the ``tailsweep`` loggers to ``log.jsonl`` of a run directory while the context lasts."""
    with handled_by(RunLogHandler(run)):
        yield
