"""Where a location leads: a local folder or anything pyarrow opens by URI."""

from pathlib import Path

import pyarrow.fs as pafs


def open_location(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of ``location`` and the path in it. A local path may hold any character, ``#`` and spaces too.

    Raises:
        ValueError, OSError: pyarrow knows no such scheme, or cannot reach it.
    """
    if "://" in location:
        filesystem, path = pafs.FileSystem.from_uri(location)
        return filesystem, path
    return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
