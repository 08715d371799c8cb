"""This project's own package, as one folder that a job carries along."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tailsweep

PACKAGES = ("orchestrator", "trainables", "clusters")


@dataclass(frozen=True)
class PackageFolder:
    """The folder `tailsweep/` with all of this project's code, laid out as a wheel has it."""

    path: Path
    temporary: tempfile.TemporaryDirectory[str] | None = None  # removed with this object


def package_folder() -> PackageFolder:
    """Return the installed package, or of a checkout a copy in which one folder holds all code.

    Ray makes each folder of `py_modules` importable on its own, so that the four folders of a checkout would not find
    one another.
    """
    home = Path(tailsweep.__file__).resolve().parent
    if all((home / package).is_dir() for package in PACKAGES):
        return PackageFolder(home)
    temporary = tempfile.TemporaryDirectory(prefix="tailsweep-package-", ignore_cleanup_errors=True)
    copy = Path(temporary.name) / home.name
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(home, copy, ignore=ignored)
    for package in PACKAGES:
        shutil.copytree(home.parent / package, copy / package, ignore=ignored)
    return PackageFolder(copy, temporary)
