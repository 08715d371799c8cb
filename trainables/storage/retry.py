"""Retry requests that storage refuses."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow.fs as pafs
from tailsweep.trainables.errors import StorageError, describe_error

T = TypeVar("T")

# What a disk refuses so, it refuses for ever: it is read-only, or somebody else's, or a file is in a folder's place.
NEVER_PASS = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts: half a minute, for what may pass


def with_retries(request: Callable[[], T], description: str, missing: bool = True) -> T:
    """Return the result of ``request``; while storage refuses, retry after growing delays.

    Args:
        request: The request.
        description: What is read or written, for the message.
        missing: Whether a missing file counts as a refusal too. If not, FileNotFoundError is raised at once.

    Raises:
        StorageError: Every attempt failed, or the first in a way that does not pass.
    """
    for delay in (*RETRY_DELAYS_S, None):
        try:
            return request()
        except OSError as error:
            if not missing and isinstance(error, FileNotFoundError):
                raise
            if error.errno in NEVER_PASS:
                raise StorageError(
                    f"storage refused {description}: {describe_error(error)}; fix its permissions, or use another place"
                ) from error
            if delay is None:
                raise StorageError(
                    f"storage refused {description} {len(RETRY_DELAYS_S) + 1} times in {sum(RETRY_DELAYS_S):g} s: "
                    f"{describe_error(error)}; "
                    "free space on it, or fix its permissions or the connection to it"
                ) from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def fetch_remote(filesystem: pafs.FileSystem, read: Callable[[], T], description: str) -> T:
    """Return the result of ``read``, which copies ``description`` from ``filesystem`` to a disk of this machine.

    Requests to an object store are retried. A local ``filesystem`` is read once: an OSError may then come from either
    disk, and the caller explains it.

    Raises:
        StorageError: An object store keeps refusing it.
        OSError: There is no such file, or a disk refuses it.
    """
    return read() if isinstance(filesystem, pafs.LocalFileSystem) else with_retries(read, description, missing=False)
