"""Where the messages of the ``tailsweep`` loggers go: the terminal, as text or as JSON lines.

A message about one trial carries its name: ``logger.info(text, extra={"trial": "t017"})``.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tailsweep.orchestrator.config.errors import printable

LOGGER = logging.getLogger("tailsweep")


class TextFormatter(logging.Formatter):
    """The message; with the time and the trial, if it is about one.

    Args:
        verbose: whether every message has its time, level and logger.
    """

    def __init__(self, verbose: bool = False) -> None:
        super().__init__()
        self.verbose = verbose

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        trial, message = getattr(record, "trial", None), printable(record.getMessage())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        if self.verbose:
            about = "" if trial is None else f"  {trial}"
            return f"{clock}  {record.levelname:<7}  {record.name}{about}  {message}"
        if record.levelno >= logging.ERROR:
            return f"tailsweep: {message}"
        return message if trial is None else f"{clock}  {trial}  {message}"


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC), level, logger, message, and the trial if it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (trial := getattr(record, "trial", None)) is not None:
            line["trial"] = trial
        return json.dumps(line, ensure_ascii=False)


class TerminalHandler(logging.Handler):
    """Print records to standard output, errors to standard error. A record of a live table is not printed twice.

    Args:
        to_stderr: whether every record goes to standard error, since the command's result goes to standard output.
    """

    def __init__(self, to_stderr: bool) -> None:
        super().__init__()
        self.to_stderr = to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        if getattr(record, "in_table", False):
            return
        # Looked up now: a live table redirects both streams.
        stream = sys.stderr if self.to_stderr or record.levelno >= logging.ERROR else sys.stdout
        try:
            print(self.format(record), file=stream, flush=True)
        except OSError:  # its reader is gone
            self.handleError(record)


@contextmanager
def terminal_output(verbosity: int = 0, as_json: bool = False, to_stderr: bool = False) -> Iterator[None]:
    """Print the messages of the ``tailsweep`` loggers while the context lasts.

    Args:
        verbosity: negative: warnings and errors; 0: also what a user follows; positive: everything.
        as_json: print JSON lines.
        to_stderr: print to standard error.
    """
    handler = TerminalHandler(to_stderr)
    handler.setLevel(logging.WARNING if verbosity < 0 else logging.DEBUG if verbosity else logging.INFO)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(verbose=verbosity > 0))
    with handled_by(handler):
        yield


@contextmanager
def no_repeated_messages() -> Iterator[None]:
    """Drop messages that were logged before in this context."""
    # A filter of the logger itself would not see the records of the loggers below it. Each handler asks once.
    filters = [(handler, _OncePerHandler()) for handler in LOGGER.handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)


class _OncePerHandler(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new."""
        message = record.getMessage()
        is_new = message not in self.seen
        self.seen.add(message)
        return is_new


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Give the records of the ``tailsweep`` loggers to a handler while the context lasts, then close it."""
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        handler.close()
