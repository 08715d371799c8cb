"""A run directory on any pyarrow filesystem: what lies where in it, and files that appear whole or not at all."""

import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from tailsweep.orchestrator.config.redaction import REMEDY, has_a_secret
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.storage.filesystem import copy_here, copy_there, join_location, open_location, without_trailing_slash
from tailsweep.trainables.storage.retry import first_line, patiently

T = TypeVar("T")

SWEEP_FILE = "sweep.yaml"
COMPARISON_FILE = "comparison.yaml"  # of a comparison, whose sweeps have run directories below its own
ENVIRONMENT_FILE = "environment.json"
RESULTS_FILE = "results.parquet"
HISTORY_FILE = "history.parquet"
REPORT_FILE = "report.html"
BEST_FOLDER = "best"
METRICS_FILE = "best/metrics.json"
WANDB_FOLDER = "wandb"
CHECKPOINTS_FOLDER = "state/checkpoints"  # one folder per candidate, written by its Ray Train run
FEATURES_FOLDER = "state/features"  # parts of features, while the sweep runs
DATA_FOLDER = "state/data"  # the tokenised rows, for nodes that lack them
CANDIDATES_FILE = "state/candidates.json"  # those known before the start
DRAWN_FOLDER = "state/drawn"  # those drawn since, by an adaptive search or at promotion, a file each
HISTORY_FOLDER = "state/history"
OUTCOMES_FOLDER = "state/outcomes"
READ_AT_ONCE = 16  # files of an object store, each of which takes two requests and their time on the way


class RunDirectoryError(InputError):
    """A run directory that is not there, is there already, or cannot be used; says which and what to do."""


class RunDirectory:
    """A run directory: ``<storage>/<name>`` on a local folder or any filesystem pyarrow opens by URI.

    What storage refuses may pass, and is waited for; where it does not, StorageError is raised. See :meth:`reach`.
    """

    def __init__(self, location: str) -> None:
        if has_a_secret(location):
            raise RunDirectoryError(f"the run directory's URI holds a key or a password: {REMEDY}")
        location = without_trailing_slash(location)
        try:
            self.filesystem, self.path = open_location(location)
        except (ValueError, OSError) as error:
            raise RunDirectoryError(f'storage "{location}" cannot be used: {first_line(error)}') from None
        self.location = location if "://" in location else self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The folder itself where storage is local, else None."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def resume_command(self) -> str:
        """The line that goes on with it, as a shell takes it."""
        return f"tailsweep resume {shlex.quote(self.location)}"

    def uri(self, relative: str) -> str:
        return join_location(self.location, relative)

    def reach(self) -> bool:
        """Whether the directory is there, asked once: who begins with storage that does not answer has to mend that.

        Raises:
            RunDirectoryError: it does not.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound)
        except OSError as error:
            raise RunDirectoryError(
                f"storage {self.location} does not answer: {first_line(error)}; mend the way to it, or the access"
            ) from None

    def exists(self, relative: str) -> bool:
        info = self._asked(lambda: self.filesystem.get_file_info(self._at(relative)), relative)
        return bool(info.type != pafs.FileType.NotFound)

    @property
    def has_begun(self) -> bool:
        """Whether there is a sweep in it that ``resume`` can go on with."""
        return self.exists(SWEEP_FILE) and self.exists(CANDIDATES_FILE)

    def refuse_existing(self, but_one_not_begun: bool = False) -> None:
        """Raise :class:`RunDirectoryError` if the directory is there.

        Args:
            but_one_not_begun: let one pass whose sweep was ended before it had begun: it holds nothing but rows.
        """
        if not self.reach():
            return
        beforehand = {"state", ENVIRONMENT_FILE, SWEEP_FILE}
        if not (but_one_not_begun and not self.has_begun and set(self.list("")) <= beforehand):
            raise RunDirectoryError(
                f"the run directory {self.location} is there already: go on with it by `{self.resume_command}`, or "
                "choose another name (`--set name=...`)"
            )

    def create(self, over_one_not_begun: bool = False) -> None:
        """Make the directory, which must not be there.

        Raises:
            RunDirectoryError: it is there already, or storage refuses a file.
        """
        self.refuse_existing(over_one_not_begun)
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            self.filesystem.create_dir(self._at("state"), recursive=True)
            self._write(self._at("state/.writable"), b"")
            self.filesystem.delete_file(self._at("state/.writable"))
        except OSError as error:
            raise RunDirectoryError(f"storage {self.location} cannot be written: {first_line(error)}") from None

    def read_text(self, relative: str) -> str:
        return str(self.read_bytes(relative), "utf-8")

    def read_bytes(self, relative: str) -> bytes:
        """Raises FileNotFoundError where there is no such file, StorageError where storage goes on refusing it."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self._at(relative)) as stream:
                content: bytes = stream.read()
                return content

        return self._asked(read, relative)

    def read_files(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """Name and content of the finished files directly in a folder, sorted by name; see :meth:`list`."""
        names = self.list(folder)
        if self.local is not None:
            yield from ((name, self.read_bytes(f"{folder}/{name}")) for name in names)
            return
        with ThreadPoolExecutor(READ_AT_ONCE) as several:
            yield from zip(names, several.map(lambda name: self.read_bytes(f"{folder}/{name}"), names), strict=True)

    def write_text(self, relative: str, text: str) -> None:
        self.write_bytes(relative, text.encode("utf-8"))

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file whole or not at all: an object store does so anyway, a disk by writing aside and renaming.

        Raises:
            StorageError: storage goes on refusing it.
        """
        target = self._at(relative)
        if self.local is None:
            patiently(lambda: self._write(target, content), self.uri(relative))
            return

        def write_aside_and_rename() -> None:
            self.filesystem.create_dir(os.path.dirname(target), recursive=True)
            aside = f"{target}.{uuid.uuid4().hex}.tmp"
            try:
                self._write(aside, content)
                os.replace(aside, target)
            except OSError:
                Path(aside).unlink(missing_ok=True)  # on a full disk it would take what is left
                raise

        patiently(write_aside_and_rename, self.uri(relative))

    def list(self, relative: str) -> list[str]:
        """Names of the finished files directly in a folder, sorted; empty where there is no such folder."""
        selector = pafs.FileSelector(self._at(relative), allow_not_found=True)
        infos = self._asked(lambda: self.filesystem.get_file_info(selector), relative)
        return sorted(info.base_name for info in infos if not info.base_name.endswith(".tmp"))

    def make_folder(self, relative: str) -> None:
        """Make a folder that need not be missing, for those who write to it by themselves."""
        patiently(lambda: self.filesystem.create_dir(self._at(relative), recursive=True), self.uri(relative))

    def delete_folder(self, relative: str) -> None:
        """Delete a folder that need not be there."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(self._at(relative))

        patiently(delete, self.uri(relative))

    def upload(self, folder: Path, relative: str) -> None:
        """Copy a local folder's files below ``relative``; on local storage the folder appears whole.

        Raises:
            StorageError: storage goes on refusing it.
        """
        patiently(lambda: self._upload(folder, relative), self.uri(relative))

    def _upload(self, folder: Path, relative: str) -> None:
        if self.local is None:
            copy_there(folder, self.filesystem, self._at(relative))
            return
        target = self.local / relative
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        shutil.copytree(folder, aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)

    def download(self, relative: str, folder: Path) -> None:
        """Copy everything below ``relative`` into a local folder; raises as :meth:`read_bytes` does."""
        self._asked(lambda: copy_here(self.filesystem, self._at(relative), folder), relative)

    def _at(self, relative: str) -> str:
        return f"{self.path}/{relative}" if relative else self.path

    def _asked(self, ask: Callable[[], T], relative: str) -> T:
        """What storage answers to a question about ``relative``; raises as :meth:`read_bytes` does."""
        return patiently(ask, self.uri(relative), missing=False)

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)


def open_run(location: str) -> RunDirectory:
    """The run directory of an existing sweep.

    Raises:
        RunDirectoryError: there is none, or the sweep in it never started.
    """
    run = RunDirectory(location)
    run.reach()
    if not run.has_begun:
        raise RunDirectoryError(
            f"{run.location} is not a run directory: it has no {SWEEP_FILE} and {CANDIDATES_FILE}; give the folder "
            "that `tailsweep run` printed, e.g. runs/demo-20260131-120000"
        )
    return run


def refuse_ways_out(run: RunDirectory) -> None:
    """Refuse a run directory, which somebody else may have made, that leads those who write to it out of it.

    Raises:
        RunDirectoryError: a link in it leads elsewhere.
    """
    if run.local is not None:
        for path in (run.local / "state").rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(run.local.resolve()):
                raise RunDirectoryError(
                    f"{path} is a link that leads out of the run directory: copy there what it means"
                )
