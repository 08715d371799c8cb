"""The on-disk cache's folder, keys and errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from tailsweep.trainables.errors import DataError, StorageError

META_FILE = "meta.json"


def checked_key(key: str) -> str:
    """``key``, which a run directory gave and which names a folder of the cache.

    Raises:
        DataError: it is none of ours, but, say, a path.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise DataError(f'"{key:.80}" is no key of rows or features, which is a SHA-256 in hexadecimal digits')
    return key


def default_cache_dir() -> Path:
    """``$TAILSWEEP_CACHE``, else ``tailsweep`` below the user's cache folder."""
    given = os.environ.get("TAILSWEEP_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("tailsweep")


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:  # of what is copied to the cache
        raise
    except OSError as error:
        raise DataError(
            f'cannot write the cache "{cache_dir}": {error.strerror or error}; set TAILSWEEP_CACHE to a folder that '
            "can be written"
        ) from error


def sync_to_disk(path: Path) -> None:
    """So that a crash of the machine cannot leave a file of the right size without its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
