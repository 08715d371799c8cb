"""Read a *source*: its rows, as they are.

A source is the value of ``data.train``, ``.validation``, ``.test`` or ``.augmentation.file``.

Files are read by ``files``, everything else by ``datasets``. Whatever a user's file makes a reader raise leaves here as
a :class:`DataError`. What the rows mean (text, label, splits) is the business of ``splits``.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
from tailsweep.trainables.config.data import FileFormat
from tailsweep.trainables.data.demo import DEMO_NUM_ROWS, DEMO_SEED, demo_rows
from tailsweep.trainables.errors import DataError, StorageError, UnreadableError, describe_error
from tailsweep.trainables.readers.columns import Wanted
from tailsweep.trainables.readers.files import COMPRESSED, TYPES, FileError, FileRows, read_bytes
from tailsweep.trainables.readers.locations import DataFile, files_in_folder, files_of_pattern, is_pattern, remote_files

Role = Literal["train", "validation", "test", "augmentation.file"]

DEMO = "demo://drug-labels"
DEMO_NOTE = f"{DEMO} is synthetic: its texts are made up, and no score on them says anything about real drug labels"
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # in a folder that `datasets` has written


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source."""

    dataset: datasets.Dataset
    forms: tuple[str, ...] = ()  # in what form its files are, where their names do not say it
    refused: tuple[str, ...] = ()  # where records are that have more fields than there are columns: in no row


def read_source(source: str, role: Role, fmt: FileFormat | None = None, wanted: Wanted | None = None) -> SourceRows:
    """Read all rows and columns of a source, at least one row.

    Args:
        source: a CSV, TSV, JSON, Parquet or Excel file, a folder or a pattern of such files, or a URI of one; a folder
            written by ``datasets.save_to_disk``; a hub name (``name`` or ``name:config``) or ``demo://drug-labels``.
            CSV and TSV are read as strings, so that "NA", "None" and "01" stay what they are.
        role: names the setting in messages (``data.<role>``), and the split to take where a source has several: of
            paraphrases that is train.
        fmt: what the user says about how files are written.
        wanted: the columns that are going to be read.

    Raises:
        DataError: it is missing, empty, damaged, ambiguous, or without a split for this role.
    """
    fmt, wanted = fmt or FileFormat(), wanted or Wanted()
    if source.startswith("demo://"):
        return SourceRows(_read_demo(source, role))
    path = Path(source).expanduser()
    with quiet_datasets():
        if re.match(r"\w[\w+.-]*://", source):
            rows = _read_files(remote_files(source, f"data.{role}", _split_for(role)), source, role, fmt, wanted)
        elif os.path.isdir(path):
            if any((path / name).exists() for name in SAVED):
                rows = SourceRows(_read_saved(path, role))
            else:
                files = files_in_folder(path, _split_for(role), f"data.{role}", wanted)
                rows = _read_files(files, source, role, fmt, wanted)
        elif os.path.exists(path):
            rows = _read_files([DataFile.local(path)], source, role, fmt, wanted)
        elif is_pattern(source):
            rows = _read_files(files_of_pattern(path, f"data.{role}"), source, role, fmt, wanted)
        elif _is_meant_as_file(source):
            raise DataError(f'data.{role}: there is no file "{source}"{_near_file(path)}')
        else:
            rows = SourceRows(_read_hub(source, role))
    if len(rows.dataset) == 0:
        raise DataError(f'data.{role}: "{source}" has no rows')
    return rows


def _read_demo(source: str, role: Role) -> datasets.Dataset:
    if source != DEMO:
        raise DataError(f'data.{role}: there is no "{source}"; the only rows made here are {DEMO}')
    if role != "train":
        hint = "name a file" if role == "augmentation.file" else "give a share, such as 0.2"
        raise DataError(f"data.{role} is {DEMO}, but those are the rows of data.train: {hint}")
    texts, labels = demo_rows(DEMO_NUM_ROWS, DEMO_SEED)
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def _read_saved(path: Path, role: Role) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # any: see _cause
        raise DataError(
            f'data.{role}: "{path}" is a folder that datasets.save_to_disk wrote, but it is damaged: {_cause(error)}'
            f"\n    save it again"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    split = _split_for(role)
    if split not in loaded:
        raise DataError(
            f'data.{role}: the folder "{path}" has the splits {", ".join(loaded)}, but none called {split}'
            + ("" if split == "train" else ": give a share, such as 0.2, or another source")
        )
    return loaded[split]


def _split_for(role: Role) -> str:
    return "train" if role == "augmentation.file" else role


def _read_files(files: Sequence[DataFile], source: str, role: Role, fmt: FileFormat, wanted: Wanted) -> SourceRows:
    """Read the files of a source, which must all have the same columns."""
    parts = [read_file(file, f"data.{role}", fmt, wanted, _split_for(role)) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        if sorted(part.names) != sorted(first.names):
            raise DataError(
                f'data.{role}: the files of "{source}" have different columns: "{files[0].name}" has '
                f'{", ".join(first.names)}, "{file.name}" has {", ".join(part.names)}'
            )
    try:
        dataset = datasets.concatenate_datasets([part.dataset for part in parts]) if len(parts) > 1 else first.dataset
    except ValueError as error:  # a column is of different types
        raise DataError(f'data.{role}: the files of "{source}" do not fit together: {_cause(error)}') from error
    forms = [form for form, _ in Counter(part.form for part in parts if part.form).most_common()]
    if len(files) > 1:
        forms.insert(0, f"{len(files)} files, from {files[0].name} to {files[-1].name}")
    refused = [
        f"{file.name}:{line}" if len(files) > 1 else f"line {line:,}"
        for file, part in zip(files, parts, strict=True)
        for line in part.too_long
    ]
    return SourceRows(dataset, tuple(forms), tuple(refused))


def read_file(file: DataFile, called: str, fmt: FileFormat, wanted: Wanted, split: str | None = None) -> FileRows:
    """Read a file.

    Args:
        called: what messages begin with.
        split: which rows to take of a file that has several splits.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_bytes(file.read(), file.name, fmt, wanted, split)
    except FileError as error:
        raise DataError(f'{called}: "{file.place}" {error}') from error
    except StorageError:
        raise
    except UnreadableError as error:
        raise DataError(f'{called}: cannot read "{file.place}": {error}') from error
    except MemoryError as error:
        raise DataError(f'{called}: "{file.place}" does not fit into this machine\'s memory') from error
    except Exception as error:  # any: see _cause
        raise DataError(f'{called}: cannot read "{file.place}": {_cause(error)}') from error


def _read_hub(source: str, role: Role) -> datasets.Dataset:
    parts = HUB_NAME.fullmatch(source)
    if parts is None:
        raise DataError(
            f'data.{role} is "{source}", but must be a file ({", ".join(TYPES)}), a folder or a pattern of files, a '
            f"folder written by datasets.save_to_disk, a hub name (name or name:config) or {DEMO}"
        )
    try:
        # The hub's own cache, not ours: what the user has downloaded before is there, also without a network.
        return datasets.load_dataset(parts["name"], parts["config"], split=_split_for(role))
    except Exception as error:  # any: see _cause
        raise DataError(
            f'data.{role}: there is no file or folder "{source}", and as a name on the hub it cannot be loaded: '
            + _cause(error)
        ) from error


def _is_meant_as_file(source: str) -> bool:
    suffixes = {*TYPES, *COMPRESSED}
    return Path(source).suffix.lower() in suffixes or source.startswith((".", "/", "~")) or source.count("/") > 1


def _near_file(path: Path) -> str:
    """Suggest what to do about a missing file: the nearest name next to it, or the folder that is missing too."""
    folder = path.parent
    if not os.path.isdir(folder):
        return f': there is no folder "{folder.absolute()}" either'
    near = difflib.get_close_matches(path.name, os.listdir(folder), n=1)
    return f': did you mean "{folder / near[0]}"?' if near else f' in "{folder.absolute()}"'


def _cause(error: BaseException) -> str:
    """One line on what went wrong.

    The readers below ``datasets`` (pandas, pyarrow, fsspec, the hub's client) raise whatever they like for a file they
    cannot read, and ``datasets`` wraps it in a message without content; the first cause has the reason.
    """
    return describe_error(_root(error))


def _root(error: BaseException) -> BaseException:
    """Return the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no log lines: what matters is in our own messages."""
    verbosity = datasets.logging.get_verbosity()
    bars_disabled = datasets.utils.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars_disabled:
            datasets.enable_progress_bars()
