"""A worker's log messages, on their way to the sweep's driver: they travel with the worker's next report."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from tailsweep.trainables import report_keys

LOGGER = logging.getLogger("tailsweep")


class ForwardedMessages(logging.Handler):
    """Collects messages until the next report takes them along."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())

    def take(self) -> dict[str, str]:
        """Return the collected messages as part of a report, empty without messages, and forget them."""
        messages, self.messages = self.messages, []
        return _as_notice(messages)


def joined_notices(reports: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Return the notices of several workers' reports as one, each message once; empty without any."""
    return _as_notice(str(report[report_keys.NOTICE]) for report in reports if report_keys.NOTICE in report)


def _as_notice(messages: Iterable[str]) -> dict[str, str]:
    notice = "; ".join(dict.fromkeys(messages))
    return {report_keys.NOTICE: notice} if notice else {}


@contextmanager
def forwarded_messages() -> Iterator[ForwardedMessages]:
    """Collect the messages of the ``tailsweep`` loggers of this process while the context lasts."""
    handler = ForwardedMessages()
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
