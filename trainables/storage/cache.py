"""The on-disk cache's folder, keys and errors."""

import errno
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
        raise cache_error(cache_dir, error) from error


def cache_error(cache_dir: Path, error: OSError) -> DataError:
    """Return the error of a cache that cannot be written, with the fix."""
    return DataError(
        f'cannot write the cache "{cache_dir}": {error.strerror or error}; set TAILSWEEP_CACHE to a folder that can be '
        "written and has room"
    )


def is_of_cache(cache_dir: Path, error: BaseException) -> bool:
    """Return whether it is the cache that an error is of, and not the file that was being read into it."""
    if not isinstance(error, OSError):
        return False
    named = isinstance(error.filename, str) and Path(error.filename).is_relative_to(cache_dir)
    return named or error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
