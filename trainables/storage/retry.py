"""Retry what storage refuses for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow.fs as pafs
from tailsweep.trainables.errors import StorageError

T = TypeVar("T")


DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts: half a minute, for what may pass


def patiently(ask: Callable[[], T], what: str, missing: bool = True) -> T:
    """What ``ask`` returns, tried again after growing delays while storage refuses.

    Args:
        what: that is read or written, for the message.
        missing: whether a file that is not there is a refusal too. If not, FileNotFoundError is raised at once.

    Raises:
        StorageError: it refused to the end.
    """
    for delay in (*DELAYS_S, None):
        try:
            return ask()
        except OSError as error:
            if not missing and isinstance(error, FileNotFoundError):
                raise
            if delay is None:
                raise StorageError(
                    f"storage refused {what} {len(DELAYS_S) + 1} times in {sum(DELAYS_S):g} s: {first_line(error)}; "
                    "free space on it, or mend its permissions or the way to it"
                ) from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def fetched(filesystem: pafs.FileSystem, read: Callable[[], T], what: str) -> T:
    """What ``read`` returns, which reads ``what`` from ``filesystem`` and writes it to a disk of this machine.

    Patiently, but where ``filesystem`` is a disk too: an OSError may then be of either, and the caller's to explain.

    Raises:
        StorageError: an object store goes on refusing it.
        OSError: there is no such file, or a disk refuses it.
    """
    return read() if isinstance(filesystem, pafs.LocalFileSystem) else patiently(read, what, missing=False)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
