"""What the ``tailsweep`` loggers say during a test."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("tailsweep")


class _Messages(logging.Handler):
    def __init__(self, react: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self.react = react

    def emit(self, record: logging.LogRecord) -> None:
        self.react(record.getMessage())


@contextmanager
def each_message(react: Callable[[str], object]) -> Iterator[None]:
    """Call a function with every message from INFO on."""
    handler, level = _Messages(react), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect the messages from INFO on."""
    collected: list[str] = []
    with each_message(collected.append):
        yield collected
