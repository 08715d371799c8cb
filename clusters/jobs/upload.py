"""What of a folder goes to a cluster as a job's working directory, and how large it is, before anything is sent.

Ray packs the folder itself when the job is submitted. Its own functions say here which files it will take, so that the
list cannot differ from the package: ``.gitignore`` and ``.rayignore`` of every folder are honoured (those of the
folders above are not), and ``.git``, ``.venv``, ``venv`` and ``__pycache__`` stay out in any case. The functions are
private to Ray (2.60, 2.61); ``tests/clusters/jobs/test_upload.py`` compares them with the package.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

# Left out of any folder's upload, besides what its own files of that kind name: what sweeps write, and where keys lie.
EXCLUDES = ("/runs/", "/wandb/", ".env", ".netrc", "__pycache__")
# Ray sends the package whole into the memory of the head, which takes no message as large as this.
MAX_BYTES = packaging.GCS_STORAGE_MAX_SIZE
ZIP_BYTES_PER_FILE = 512  # more than a file's name and place take in the package, twice each
SHOWN = 3  # of the largest files
REMEDY = (
    "name what the job does not need in .rayignore (as in a .gitignore), and put rows and models where the nodes reach "
    "them"
)

_SILENT = logging.Logger("upload", logging.CRITICAL)  # Ray's own would name every ignore file it meets


class UploadError(ValueError):
    """The folder cannot be uploaded; the message says why, and what to do."""


@dataclass(frozen=True)
class Upload:
    """Files that will be in the job's working directory, by their paths in ``folder`` ("a/b.csv"), with their bytes."""

    folder: Path
    sizes: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def holds(self, relative: str) -> bool:
        """Whether a file, or a file of a folder, is there. ``relative`` is a path as a program in ``folder`` has it."""
        path = os.path.normpath(relative)
        return path == "." or path in self.sizes or any(name.startswith(f"{path}/") for name in self.sizes)

    def __str__(self) -> str:
        """``212 files, 1.9 MB; the largest: a/b.csv (0.8 MB), ...``"""
        largest = sorted(self.sizes.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN]
        told = ", ".join(f"{name} ({in_bytes(size)})" for name, size in largest)
        return f"{len(self.sizes)} files, {in_bytes(self.num_bytes)}; the largest: {told}"


def upload_of(folder: Path) -> Upload:
    """What Ray would upload of ``folder``, with :data:`EXCLUDES`.

    Raises:
        UploadError: it is too large, or a part of it cannot be read.
    """
    folder = folder.absolute()
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = [packaging._get_excludes(folder, [*ray_constants.get_runtime_env_default_excludes(), *EXCLUDES])]
    as_git = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        packaging._dir_travel(folder, excludes, note, include_gitignore=as_git, logger=_SILENT)
        unreadable = [name for name in sizes if not os.access(folder / name, os.R_OK)]
    except OSError as error:
        raise UploadError(f"{folder} cannot be uploaded: {error}; {REMEDY}") from None
    if unreadable:
        raise UploadError(f"{folder} cannot be uploaded: {unreadable[0]} may not be read; {REMEDY}")
    upload = Upload(folder, sizes)
    if upload.num_bytes + ZIP_BYTES_PER_FILE * len(sizes) >= MAX_BYTES:
        raise UploadError(
            f"{folder} is too large to upload: {upload}; a job's working directory must stay below "
            f"{in_bytes(MAX_BYTES)}: {REMEDY}"
        )
    return upload


def in_bytes(num_bytes: int) -> str:
    """``1.9 MB``, ``512.0 kB``."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"
