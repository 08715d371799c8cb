"""Errors in one line. Imports nothing of ours: ``nodes/probe.py`` sends this module to the nodes by value."""

from typing import Literal

MAX_CHARACTERS = 300


def describe_error(error: BaseException, lines: Literal["all", "first", "last"] = "all") -> str:
    r"""Describe an exception in one line.

    Args:
        error: The exception.
        lines: Which lines of its message to return. The last one has the cause where a message quotes a traceback.

    Returns:
        At most ``MAX_CHARACTERS`` of the lines, joined by spaces; the exception's type for one without a message.

    Example:
        >>> describe_error(OSError("no route\nto host"))
        'no route to host'
        >>> describe_error(OSError("no route\nto host"), "first")
        'no route'
        >>> describe_error(OSError())
        'OSError'
    """
    message = str(error).strip().splitlines()
    if not message:
        return type(error).__name__
    chosen = {"all": message, "first": message[:1], "last": message[-1:]}[lines]
    return " ".join(" ".join(chosen).split())[:MAX_CHARACTERS]
