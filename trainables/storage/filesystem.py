"""Where a location leads: a local folder or anything pyarrow opens by URI. And what to do when it refuses."""

import re
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs

GCS_RETRIES_S = 20  # of one request, where the URI does not say; pyarrow's own are a quarter of an hour


def open_location(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of ``location`` and the path in it. A local path may hold any character, ``#`` and spaces too.

    Raises:
        ValueError, OSError: pyarrow knows no such scheme, or cannot reach it.
    """
    if "://" in location:
        _check_uri(location)
        filesystem, path = pafs.FileSystem.from_uri(soon_refused(location))
        return filesystem, path
    if mistyped := re.match(r"(s3|gs|gcs|hdfs|abfss?|file|https?):/", location):
        raise ValueError(f"write two slashes after {mistyped[1]}: of a URI, or ./ before the name of a folder")
    return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())


def soon_refused(location: str) -> str:
    """``location`` for who wants to know soon, where pyarrow would ask for a quarter of an hour. The same place."""
    if not re.match(r"gc?s://", location) or "retry_limit_seconds=" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}retry_limit_seconds={GCS_RETRIES_S}"


def join_location(location: str, relative: str) -> str:
    """What lies at ``relative`` below a folder or URI; a URI's query stays behind its path."""
    path, query = _parted(location)
    return f"{path}/{quote(relative) if '://' in location else relative}{query}"


def parent_location(location: str) -> str:
    """The folder or URI that another one lies in."""
    path, query = _parted(location)
    return path.rpartition("/")[0] + query


def without_trailing_slash(location: str) -> str:
    return "".join(_parted(location))


def copy_here(filesystem: pafs.FileSystem, path: str, folder: Path) -> None:
    """Copy all below ``path`` into a local folder; one of its name in it is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(path, str(folder), source_filesystem=filesystem)


def copy_there(folder: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Copy all in a local folder to below ``path``."""
    # By one thread: with several, uploads to S3 may wait for each other for ever (apache/arrow#32372).
    pafs.copy_files(str(folder), path, destination_filesystem=filesystem, use_threads=False)


def _parted(location: str) -> tuple[str, str]:
    """Its path, without slashes at the end, and its query with the question mark, of a URI that has one."""
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        return location.rstrip("/"), ""
    path, mark, query = rest.partition("?")
    return f"{scheme}://{path.rstrip('/')}", mark + query


def _check_uri(location: str) -> None:
    """Refuse what pyarrow takes, but for another place than Ray does, or than was meant."""
    path = _parted(location)[0].partition("://")[2]
    if "#" in location:
        raise ValueError('a "#" would end the URI: write %23')
    if " " in location:
        raise ValueError("a URI has no spaces: write %20")
    if not location.startswith("file:") and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError('between its slashes must stand names, and neither nothing nor "." nor ".."')
