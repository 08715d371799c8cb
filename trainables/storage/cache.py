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
    """Return ``key``, which comes from a run directory and names a folder of the cache.

    Raises:
        DataError: It is not a SHA-256, but, say, a path.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise DataError(f'"{key:.80}" is no key of rows or features, which is a SHA-256 in hexadecimal digits')
    return key


def default_cache_dir() -> Path:
    """Return ``$TAILSWEEP_CACHE``, else ``tailsweep`` below the user's cache folder."""
    given = os.environ.get("TAILSWEEP_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("tailsweep")


def cache_folder(directory: str | None) -> Path:
    """Return the folder of a cache whose setting is ``directory``; None means :func:`default_cache_dir`."""
    return default_cache_dir() if directory is None else Path(directory).expanduser()


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    """Raise an OSError of the body as a DataError that names the cache and the fix."""
    try:
        yield
    except StorageError:  # of what is copied to the cache
        raise
    except OSError as error:
        raise DataError(
            f'cannot write the cache "{cache_dir}": {error.strerror or error}; set TAILSWEEP_CACHE to a folder that '
            "can be written"
        ) from error
