"""Locations: local folders, and everything that pyarrow opens by URI."""

import re
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs

GCS_RETRIES_S = 20  # of one request, where the URI does not say; pyarrow's own are a quarter of an hour


def open_location(location: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of ``location`` and the path in it. A local path may contain ``#`` and spaces.

    Raises:
        ValueError: pyarrow does not know the scheme, or the URI is malformed.
        OSError: pyarrow cannot reach the location.
    """
    if "://" in location:
        _check_uri(location)
        filesystem, path = pafs.FileSystem.from_uri(soon_refused(location))
        return filesystem, path
    if mistyped := re.match(r"(s3|gs|gcs|hdfs|abfss?|file|https?):/", location):
        raise ValueError(f"write two slashes after {mistyped[1]}: of a URI, or ./ before the name of a folder")
    return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())


def soon_refused(location: str) -> str:
    """Return the same location with a short limit on retries: pyarrow's own for GCS is a quarter of an hour."""
    if not re.match(r"gc?s://", location) or "retry_limit_seconds=" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}retry_limit_seconds={GCS_RETRIES_S}"


def join_location(location: str, relative: str) -> str:
    """Return the location of ``relative`` below a folder or URI; a URI's query stays behind its path."""
    path, query = _parted(location)
    return f"{path}/{quote(relative) if '://' in location else relative}{query}"


def parent_location(location: str) -> str:
    """Return the folder or URI that contains ``location``."""
    path, query = _parted(location)
    parent = path.rpartition("/")[0]
    return (parent or "/" if path.startswith("/") else parent) + query


def without_trailing_slash(location: str) -> str:
    """Return ``location`` without slashes at the end of its path."""
    return "".join(_parted(location)) or location[:1]  # the root of the disk is one


def download(filesystem: pafs.FileSystem, path: str, folder: Path) -> None:
    """Copy everything below ``path`` into a local folder; files of the same name are overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(path, str(folder), source_filesystem=filesystem)


def upload(folder: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Copy everything in a local folder to below ``path``."""
    # By one thread: with several, uploads to S3 may wait for each other for ever (apache/arrow#32372).
    pafs.copy_files(str(folder), path, destination_filesystem=filesystem, use_threads=False)


def _parted(location: str) -> tuple[str, str]:
    """Return the path without slashes at its end, and a URI's query with its question mark, or ""."""
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        return location.rstrip("/"), ""
    path, mark, query = rest.partition("?")
    return f"{scheme}://{path.rstrip('/')}", mark + query


def _check_uri(location: str) -> None:
    """Reject URIs that pyarrow accepts but reads differently than Ray does, or than the user means."""
    path = _parted(location)[0].partition("://")[2]
    if "#" in location:
        raise ValueError('a "#" would end the URI: write %23')
    if " " in location:
        raise ValueError("a URI has no spaces: write %20")
    if not location.startswith("file:") and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError('between its slashes must stand names, and neither nothing nor "." nor ".."')
