"""What a working process tells the one in front of it, see ``orchestrator/cli/supervisor.py``. Without one, nothing."""

import json
import os
from dataclasses import dataclass


@dataclass
class _Front:
    pipe: int | None = None  # file descriptor to write to


_front = _Front()


def connect(pipe: int) -> None:
    """Tell everything that follows to the reader of ``pipe``."""
    _front.pipe = pipe


def tell(**message: str | int) -> None:
    """Tell the process in front something, as one line of JSON."""
    if _front.pipe is not None:
        os.write(_front.pipe, json.dumps(message).encode() + b"\n")


def visible_pid() -> int:
    """Return the process that the user sees and can signal."""
    return os.getpid() if _front.pipe is None else os.getppid()
