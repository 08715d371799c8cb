"""A run directory on any pyarrow filesystem: its layout, and files that appear whole or not at all."""

import errno
import importlib.metadata
import json
import os
import shlex
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs
from tailsweep.orchestrator.config.redaction import HINT, has_a_secret
from tailsweep.trainables.errors import InputError, describe_error
from tailsweep.trainables.storage.atomic import apply_umask, replace_folder
from tailsweep.trainables.storage.filesystem import (
    download,
    join_location,
    open_location,
    upload,
    without_trailing_slash,
)
from tailsweep.trainables.storage.json_text import parse_json
from tailsweep.trainables.storage.retry import with_retries

T = TypeVar("T")

SWEEP_FILE = "sweep.yaml"
COMPARISON_FILE = "comparison.yaml"  # of a comparison, whose sweeps have run directories below its own
REFIT_FOLDER = "refit"  # the run directory of the sweep that trains the chosen model again
FOLDS_FOLDER = "folds"  # that of the sweep that trains the best models on all folds but one each
METHODS_FOLDER = "methods"  # of a comparison, with those run directories
ENVIRONMENT_FILE = "environment.json"
TRIALS_TABLE = "trials.parquet"
HISTORY_FILE = "history.parquet"
REPORT_FILE = "report.html"
BEST_FOLDER = "best"
METRICS_FILE = "best/metrics.json"
PREDICTIONS_FILE = "predictions/validation.parquet"  # of the models that the best was chosen among
FOLDS_FILE = "predictions/folds.parquet"  # the same out of fold, of training and validation examples
WANDB_FOLDER = "wandb"
LOG_FILE = "log.jsonl"  # the messages of the sweep, one JSON object per line
CHECKPOINTS_FOLDER = "state/checkpoints"  # one folder per trial
SLOTS_FOLDER = "state/slots"  # what Ray Train keeps of its runs, while the sweep runs
STACKS_FOLDER = "state/stacks"  # checkpoints of trials that train together, one folder per stack
FEATURES_FOLDER = "state/features"  # parts of features, while the sweep runs
DATA_FOLDER = "state/data"  # the tokenized rows, for nodes that lack them
TRIALS_FILE = "state/trials.json"  # those known before the start
EVENTS_FOLDER = "state/events"  # what happened since: trials drawn, reports, outcomes
SEAL_FILE = "state/seal.json"  # how many events there are, written when a process ends
SIGNATURE_FILE = "state/signature"  # of sweep.yaml, by the key of the person who began the run
FORMAT_FILE = "state/format.json"  # of the files of this run directory
FORMAT_VERSION = 1
READ_AT_ONCE = 16  # files of an object store, each of which takes two requests and their time on the way


class RunDirectoryError(InputError):
    """A run directory that does not exist, exists already, or cannot be used."""


class RunDirectory:
    """A run directory: ``<storage>/<name>`` on a local folder or any filesystem pyarrow opens by URI.

    Requests are retried; one that storage continues to refuse raises StorageError. See also :meth:`reach`.
    """

    def __init__(self, location: str) -> None:
        if has_a_secret(location):
            raise RunDirectoryError(f"the run directory's URI holds a key or a password: {HINT}")
        location = without_trailing_slash(location)
        try:
            self.filesystem, self.path = open_location(location)
        except (ValueError, OSError) as error:
            raise RunDirectoryError(f'storage "{location}" cannot be used: {describe_error(error)}') from None
        self.location = location if "://" in location else self.path

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """Return the folder if storage is local, else None."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def resume_command(self) -> str:
        """Return the command line that resumes the run."""
        return f"tailsweep resume {shlex.quote(self.location)}"

    def uri(self, relative: str) -> str:
        """Return the location of a file of the run, for messages and other processes."""
        return join_location(self.location, relative)

    def reach(self) -> bool:
        """Return whether the directory exists, without retries: a run does not begin on storage that does not answer.

        Raises:
            RunDirectoryError: Storage does not answer.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound)
        except OSError as error:
            raise RunDirectoryError(
                f"storage {self.location} does not answer: {describe_error(error)}; check the network and the "
                "credentials"
            ) from None

    def exists(self, relative: str) -> bool:
        """Return whether a file or folder of the run exists."""
        info = self._fetch(lambda: self.filesystem.get_file_info(self._at(relative)), relative)
        return bool(info.type != pafs.FileType.NotFound)

    @property
    def has_begun(self) -> bool:
        """Return whether there is a sweep in it that ``resume`` can resume.

        Raises:
            RunDirectoryError: There is one of which a file is missing.
        """
        missing = [file for file in (SWEEP_FILE, TRIALS_FILE) if not self.exists(file)]
        # The trials are written last before the start, and everything else after it.
        if missing and (TRIALS_FILE not in missing or self.exists(EVENTS_FOLDER) or self.exists(SEAL_FILE)):
            raise RunDirectoryError(
                f"{self.uri(missing[0])} is missing: restore the run directory from a copy; nothing can be done with "
                "the rest of it"
            )
        return not missing

    @property
    def is_comparison(self) -> bool:
        """Return whether it is that of a comparison.

        Raises:
            RunDirectoryError: It is, but the file that says of what is missing.
        """
        if self.exists(COMPARISON_FILE):
            return True
        if self.exists(FORMAT_FILE) and self.list(METHODS_FOLDER):
            raise RunDirectoryError(f"{self.uri(COMPARISON_FILE)} is missing: restore it from a copy")
        return False

    def reject_unsafe_files(self) -> None:
        """Check that the directory holds files and folders only, and no link that leads out of it.

        A link would redirect what is read, written or deleted; whoever reads a named pipe waits for ever.

        Raises:
            RunDirectoryError: There is another kind of file, or such a link.
        """
        if self.local is None:
            return
        root = self.local.resolve()
        for folder, folders, files in os.walk(root):
            if Path(folder).match(f"{WANDB_FOLDER}/*/logs"):  # also of a comparison's sweeps
                continue  # W&B's own link to the log of its process, which nothing here opens
            for path in (Path(folder, name) for name in (*folders, *files)):
                with suppress(FileNotFoundError):  # a sweep that runs deletes files
                    _reject_unsafe(path, root)

    def check_format(self) -> None:
        """Check that this version of tailsweep reads the files of the run directory.

        Raises:
            RunDirectoryError: It does not, or the file that says so is missing.
        """
        try:
            read = parse_json(self.read_text(FORMAT_FILE))
            version, written_by = int(read["format_version"]), str(read["written_by"])
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{self.uri(FORMAT_FILE)} is missing: the run directory was written by a version of tailsweep that "
                "wrote none, which must be used for it, or the file was removed: restore it from a copy"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise RunDirectoryError(
                f"{self.uri(FORMAT_FILE)} is damaged ({describe_error(error)}): restore it from a copy"
            ) from None
        if version != FORMAT_VERSION:
            raise RunDirectoryError(
                f"{self.location} was written by {written_by} in format {version}, but this is {_this_version()}, "
                f"which reads format {FORMAT_VERSION}: use that version for it"
            )

    def refuse_existing(self, but_one_not_begun: bool = False) -> None:
        """Raise :class:`RunDirectoryError` if the directory exists.

        Args:
            but_one_not_begun: Accept a directory whose sweep ended before it began: it has only examples.
        """
        if not self.reach():
            return
        beforehand = {"state", ENVIRONMENT_FILE, SWEEP_FILE, LOG_FILE}
        if not (but_one_not_begun and not self.has_begun and set(self.list("")) <= beforehand):
            raise RunDirectoryError(
                f"the run directory {self.location} is there already: resume it by `{self.resume_command}`, or "
                "choose another name (`--set name=...`)"
            )

    def create(self, over_one_not_begun: bool = False) -> None:
        """Create the directory, which must not exist.

        Raises:
            RunDirectoryError: It exists already, or storage refuses a file.
        """
        self.refuse_existing(over_one_not_begun)
        self.reject_unsafe_files()
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            self.filesystem.create_dir(self._at("state"), recursive=True)
            written = {"format_version": FORMAT_VERSION, "written_by": _this_version()}
            self._write(self._at(FORMAT_FILE), json.dumps(written).encode() + b"\n")
        except OSError as error:
            raise RunDirectoryError(f"storage {self.location} cannot be written: {describe_error(error)}") from None

    def read_text(self, relative: str) -> str:
        """Read a file as UTF-8; raises as :meth:`read_bytes` does."""
        return str(self.read_bytes(relative), "utf-8")

    def read_bytes(self, relative: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: There is no such file.
            RunDirectoryError: A folder is in its place.
            StorageError: Storage continues to refuse it.
        """

        def read() -> bytes:
            if self.local is not None and Path(self._at(relative)).is_dir():  # pyarrow's error has no number
                raise RunDirectoryError(f"{self.uri(relative)} is a folder, not a file: restore it from a copy")
            with self.filesystem.open_input_stream(self._at(relative)) as stream:
                content: bytes = stream.read()
                return content

        return self._fetch(read, relative)

    def read_files(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of files in a folder, in their order, reading many at once from an object store."""
        if self.local is not None:
            yield from ((name, self.read_bytes(f"{folder}/{name}")) for name in names)
            return
        with ThreadPoolExecutor(READ_AT_ONCE) as several:
            yield from zip(names, several.map(lambda name: self.read_bytes(f"{folder}/{name}"), names), strict=True)

    def write_text(self, relative: str, text: str) -> None:
        """Write a file as UTF-8, see :meth:`write_bytes`."""
        self.write_bytes(relative, text.encode("utf-8"))

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file whole or not at all: an object store does so by itself, a disk through a renamed temporary file.

        Raises:
            StorageError: Storage continues to refuse it.
        """
        target = self._at(relative)
        if self.local is None:
            with_retries(lambda: self._write(target, content), self.uri(relative))
            return

        def write_aside_and_rename() -> None:
            folder = Path(target).parent
            if folder.is_file():  # pyarrow says of it that it exists, which passes where another process is making it
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            self.filesystem.create_dir(str(folder), recursive=True)
            aside = f"{target}.{uuid.uuid4().hex}.tmp"
            try:
                self._write(aside, content)
                os.replace(aside, target)
            except OSError:
                Path(aside).unlink(missing_ok=True)  # on a full disk it would take what is left
                raise

        with_retries(write_aside_and_rename, self.uri(relative))

    def list(self, relative: str) -> list[str]:
        """Return the names of the finished files directly in a folder, sorted; none if there is no such folder."""
        selector = pafs.FileSelector(self._at(relative), allow_not_found=True)
        infos = self._fetch(lambda: self.filesystem.get_file_info(selector), relative)
        return sorted(info.base_name for info in infos if not info.base_name.endswith((".tmp", ".partial")))

    def sizes(self, relative: str) -> dict[str, int]:
        """Return the bytes of each file below a folder by its path from there; none if there is no such folder."""
        folder = self._at(relative)
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=True)
        infos = self._fetch(lambda: self.filesystem.get_file_info(selector), relative)
        files = (info for info in infos if info.type == pafs.FileType.File)
        return {info.path.removeprefix(f"{folder}/"): info.size for info in files}

    def modified(self, relative: str) -> float | None:
        """Return when a file was last written, in seconds since the epoch by the clock of storage; None: unknown."""
        info = self._fetch(lambda: self.filesystem.get_file_info(self._at(relative)), relative)
        return None if info.mtime_ns is None else info.mtime_ns / 1e9

    def make_folder(self, relative: str) -> None:
        """Create a folder, which may exist, for processes that write to it themselves."""
        with_retries(lambda: self.filesystem.create_dir(self._at(relative), recursive=True), self.uri(relative))

    def delete_folder(self, relative: str) -> None:
        """Delete a folder, which need not exist."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(self._at(relative))

        with_retries(delete, self.uri(relative))

    def delete_files(self, paths: Iterable[str]) -> None:
        """Delete files, which need not exist, many at once on an object store."""

        def delete(relative: str) -> None:
            with suppress(FileNotFoundError):
                self.filesystem.delete_file(self._at(relative))

        with ThreadPoolExecutor(1 if self.local is not None else READ_AT_ONCE) as several:
            list(several.map(lambda path: with_retries(lambda: delete(path), self.uri(path)), paths))

    def upload(self, folder: Path, relative: str) -> None:
        """Copy a local folder's files below ``relative``; on local storage the folder appears whole.

        Raises:
            StorageError: Storage continues to refuse it.
        """
        with_retries(lambda: self._upload(folder, relative), self.uri(relative))

    def _upload(self, folder: Path, relative: str) -> None:
        if self.local is None:
            upload(folder, self.filesystem, self._at(relative))
            return
        target = self.local / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(target) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            apply_umask(partial)

    def download(self, relative: str, folder: Path) -> None:
        """Copy everything below ``relative`` into a local folder; raises as :meth:`read_bytes` does."""
        self._fetch(lambda: download(self.filesystem, self._at(relative), folder), relative)

    def _at(self, relative: str) -> str:
        return f"{self.path}/{relative}" if relative else self.path

    def _fetch(self, request: Callable[[], T], relative: str) -> T:
        """Return the answer of storage to a request for ``relative``; raises as :meth:`read_bytes` does."""
        return with_retries(request, self.uri(relative), missing=False)

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)


def _reject_unsafe(path: Path, root: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise RunDirectoryError(
                f"{path} is a link that leads out of the run directory: replace it by what it leads to"
            )
        try:
            mode = path.stat().st_mode  # of what it leads to
        except FileNotFoundError:
            return  # as if the file were missing
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be followed ({error.strerror}): remove it") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RunDirectoryError(f"{path} is neither a file nor a folder: remove it")


def _this_version() -> str:
    try:
        return f"tailsweep {importlib.metadata.version('tailsweep')}"
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "tailsweep of a checkout"


def open_run(location: str) -> RunDirectory:
    """Open the run directory of an existing sweep.

    Raises:
        RunDirectoryError: There is none, or the sweep in it never started.
    """
    run = RunDirectory(location)
    run.reach()
    if not run.has_begun:
        raise RunDirectoryError(
            f"{run.location} is not a run directory: it has no {SWEEP_FILE} and {TRIALS_FILE}; give the folder "
            "that `tailsweep run` printed, e.g. runs/demo-20260131-120000"
        )
    run.reject_unsafe_files()
    run.check_format()
    return run
