"""Errors that the user can fix, and errors in one line. Imports nothing of this project."""

from typing import Literal


class InputError(ValueError):
    """What the user wrote or gave cannot be used; the message says the value, the rule and the fix.

    The command line prints it without a traceback and exits with status 2.
    """


class StorageError(OSError):
    """Storage refuses a file after all retries; the message says which file and why.

    The user's input is not at fault: the run has failed, and can be resumed when storage accepts files again.
    """


class DataError(InputError):
    """The data the user named cannot be used as asked; the message names the setting, the fault and a fix."""


class UnreadableError(ValueError):
    """A file's content cannot be read; the message says where and why, and not which file it is."""


class ModelError(InputError):
    """The model the user named cannot be used as asked."""


def describe_error(error: BaseException, line: Literal["first", "last"] = "first") -> str:
    """Describe an exception in one line.

    Args:
        error: the exception.
        line: which line of its message to return. The last one holds the cause in messages that quote a traceback.

    Returns:
        The line, stripped; the exception's type for one without a message.

    Example:
        >>> describe_error(ValueError("no such file"))
        'no such file'
        >>> describe_error(ValueError())
        'ValueError'
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0 if line == "first" else -1].strip()
