"""The files of a folder that go to a cluster as a job's working directory, and their size, before anything is sent.

Ray packs the folder itself when the job is submitted. Its own functions list the files here, so that the list cannot
differ from the package: they honour ``.gitignore`` and ``.rayignore`` of every folder (not those of the folders above)
and always leave out ``.git``, ``.venv``, ``venv`` and ``__pycache__``. ``tests/clusters/jobs/test_upload.py`` compares
the list with the package.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tailsweep.clusters import ray_compat
from tailsweep.clusters.sizes import describe_bytes

# Left out of every upload, in addition to the folder's own ignore files: what sweeps write, and files with keys.
EXCLUDES = ("/runs/", "/wandb/", ".env", ".netrc", "__pycache__")
# Ray sends the package whole into the memory of the head, which takes no message as large as this.
MAX_BYTES = ray_compat.GCS_STORAGE_MAX_SIZE
ZIP_BYTES_PER_FILE = 512  # more than a file's name and place take in the package, twice each
SHOWN = 3  # of the largest files
HINT = (
    "name what the job does not need in .rayignore (as in a .gitignore), and put data and models where the nodes reach "
    "them"
)

_SILENT = logging.Logger("upload", logging.CRITICAL)  # Ray's own would name every ignore file


class UploadError(ValueError):
    """A folder that cannot be uploaded; the message has the reason and the fix."""


@dataclass(frozen=True)
class Upload:
    """Files that will be in the job's working directory, by their paths in ``folder`` ("a/b.csv"), with their bytes."""

    folder: Path
    sizes: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(self.sizes.values())

    def holds(self, relative: str) -> bool:
        """Return whether a file, or any file of a folder, is uploaded; ``relative`` is a path in ``folder``."""
        path = os.path.normpath(relative)
        return path == "." or path in self.sizes or any(name.startswith(f"{path}/") for name in self.sizes)

    def __str__(self) -> str:
        """Return ``212 files, 1.9 MB; the largest: a/b.csv (0.8 MB), ...``."""
        largest = sorted(self.sizes.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN]
        shown = ", ".join(f"{name} ({describe_bytes(size)})" for name, size in largest)
        return f"{len(self.sizes)} files, {describe_bytes(self.num_bytes)}; the largest: {shown}"


def upload_of(folder: Path) -> Upload:
    """Return what Ray would upload of ``folder`` without :data:`EXCLUDES`.

    Raises:
        UploadError: The folder is too large, or a part of it cannot be read.
    """
    folder = folder.absolute()
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = [ray_compat.get_excludes(folder, [*ray_compat.get_runtime_env_default_excludes(), *EXCLUDES])]
    as_git = os.environ.get(ray_compat.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        ray_compat.dir_travel(folder, excludes, note, include_gitignore=as_git, logger=_SILENT)
        unreadable = [name for name in sizes if not os.access(folder / name, os.R_OK)]
    except OSError as error:
        raise UploadError(f"{folder} cannot be uploaded: {error}; {HINT}") from None
    if unreadable:
        raise UploadError(f"{folder} cannot be uploaded: {unreadable[0]} may not be read; {HINT}")
    upload = Upload(folder, sizes)
    if upload.num_bytes + ZIP_BYTES_PER_FILE * len(sizes) >= MAX_BYTES:
        raise UploadError(
            f"{folder} is too large to upload: {upload}; a job's working directory must stay below "
            f"{describe_bytes(MAX_BYTES)}: {HINT}"
        )
    return upload
