"""Files and folders that appear whole or not at all: written next to their place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path for a new file that takes the place of ``path`` when the body completes.

    The file is flushed to disk first. The caller holds a lock, since the temporary name is always the same.
    """
    partial = _partial(path)
    yield partial
    sync_to_disk(partial)
    partial.rename(path)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the body completes, and is deleted if it raises.

    Nothing is flushed to disk. The caller holds a lock, since the temporary name is always the same.
    """
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry; processes that have it mapped keep it
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


UMASK = _read_umask()  # once, at import: reading it changes it for a moment, for every thread


def apply_umask(folder: Path) -> None:
    """Give everything in a folder the permissions of a new file: safetensors writes what only its owner can read."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~UMASK)


def sync_to_disk(path: Path) -> None:
    """Flush a file or folder, so that a crash of the machine cannot leave a file of the right size but no bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
