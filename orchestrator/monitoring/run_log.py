"""The log of a run directory: ``log.jsonl``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tailsweep.orchestrator.monitoring.log_output import JsonFormatter, handled_by
from tailsweep.orchestrator.runs.directory import LOG_FILE, RunDirectory
from tailsweep.trainables.errors import StorageError


class RunLogHandler(logging.Handler):
    """Append records to the log of a run directory, once there is one; until then they are kept.

    An object store takes no appended lines: the file is uploaded at the end. Storage that refuses the log does not stop
    the sweep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.file: TextIO | None = None  # open: a sweep of a thousand trials writes many thousand lines
        self.lines: list[str] = []  # not yet written

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it."""
        self.lines.append(self.format(record) + "\n")
        self._append()

    @contextmanager
    def written_to(self, run: RunDirectory) -> Iterator[None]:
        """Write to the log of a run directory, what was kept first, while the context lasts."""
        with suppress(OSError):
            self.file = None if run.local is None else (run.local / LOG_FILE).open("a", encoding="utf-8")
        self._append()
        try:
            yield
        finally:
            file, self.file = self.file, None
            if file is not None:
                with suppress(OSError):
                    file.close()
            if run.local is None and self.lines:
                self._upload(run)
            self.lines.clear()

    def _append(self) -> None:
        if self.file is None:
            return
        with suppress(OSError):
            self.file.writelines(self.lines)
            self.file.flush()
        self.lines.clear()

    def _upload(self, run: RunDirectory) -> None:
        with suppress(StorageError):
            before = run.read_text(LOG_FILE) if run.exists(LOG_FILE) else ""
            run.write_text(LOG_FILE, before + "".join(self.lines))
        self.lines.clear()


@contextmanager
def run_log() -> Iterator[RunLogHandler]:
    """Keep the messages of the ``tailsweep`` loggers, for the ``log.jsonl`` of a run directory."""
    handler = RunLogHandler()
    with handled_by(handler):
        yield handler
