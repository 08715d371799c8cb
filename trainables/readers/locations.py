"""Find the files of a source: one, those of a folder or a pattern, and those behind a URI."""

import fnmatch
import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow.fs as pafs
from tailsweep.trainables.errors import DataError, describe_error
from tailsweep.trainables.readers.columns import Wanted
from tailsweep.trainables.readers.encoding import decode
from tailsweep.trainables.readers.files import COMPRESSED, TYPES
from tailsweep.trainables.readers.json_rows import SPLIT_NAMES
from tailsweep.trainables.storage.filesystem import join_location, open_location
from tailsweep.trainables.storage.retry import fetch_remote

WEB = ("http", "https", "hf")  # schemes that fsspec reads, and pyarrow does not
NOT_DATA = re.compile(r"(dataset_infos?|config|metadata|package)\.json|(readme|license)\b.*", re.I)


@dataclass(frozen=True)
class DataFile:
    """A file of a source."""

    name: str
    place: str  # its path or URI, for messages
    read: Callable[[], bytes]

    @classmethod
    def local(cls, path: Path) -> "DataFile":
        """Return a file of this machine."""
        return cls(path.name, str(path), path.read_bytes)


def is_pattern(source: str) -> bool:
    """Return whether a path has the wildcards of a shell."""
    return glob.has_magic(source)


def files_of_pattern(pattern: Path, called: str) -> list[DataFile]:
    """Return the files of a pattern such as ``train-*.parquet``, in the order of the numbers in their names.

    Raises:
        DataError: There is none.
    """
    paths = [Path(path) for path in glob.glob(str(pattern), recursive=True) if os.path.isfile(path)]
    if not paths:
        raise DataError(f'{called}: no file matches "{pattern}"')
    return [DataFile.local(path) for path in sorted(paths, key=lambda path: _natural(str(path)))]


def files_in_folder(folder: Path, split: str, called: str, wanted: Wanted) -> list[DataFile]:
    """Return the files of a folder for a split.

    They are those whose names say so (``train-00000-of-00002.parquet``, ``dev.tsv``), and all where no name says
    anything about splits. A folder that has a folder of texts per class is read as one file.

    Raises:
        DataError: There is none, or they are of several types.
    """
    inner = folder / "data"  # as datasets of the hub are laid out
    names = sorted(os.listdir(folder), key=_natural)
    data = [name for name in names if _is_data(name) and (folder / name).is_file()]
    if not data and inner.is_dir():
        return files_in_folder(inner, split, called, wanted)
    if not data and (classes := _class_folders(folder)):
        return [_texts_of_classes(folder, classes, wanted)]
    chosen = select_split(data, split, f'{called}: the folder "{folder}"')
    return [DataFile.local(folder / name) for name in chosen]


def select_split(names: Sequence[str], split: str, called: str) -> list[str]:
    """Choose the files of a split by their names.

    Raises:
        DataError: There is none, or they are of several types.
    """
    names = [name for name in names if _is_data(name)]
    if not names:
        raise DataError(f"{called} has no data: no file of it is one of {', '.join(TYPES)}")
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in names}
    by_split = {role: [name for name in names if words[name] & set(aliases)] for role, aliases in SPLIT_NAMES.items()}
    chosen = by_split[split]
    if not chosen:
        if others := [role for role, files in by_split.items() if files]:
            raise DataError(f"{called} has files of {', '.join(others)}, but none of {split}: name a file")
        chosen = list(names)
    types = {TYPES[_suffix(name)] for name in chosen}
    if len(types) > 1:
        raise DataError(
            f"{called} has files of several types ({', '.join(chosen[:5])}): name one of them, or give a pattern such "
            f'as "*{PurePosixPath(chosen[0]).suffix}"'
        )
    return chosen


def remote_files(uri: str, called: str, split: str = "train") -> list[DataFile]:
    """Return the file behind a URI, or those of a pattern or, for a split, of a folder on an object store.

    Raises:
        DataError: There is none, or the URI cannot be used.
    """
    scheme = uri.partition("://")[0]
    if scheme in WEB:
        return [DataFile(PurePosixPath(unquote(urlsplit(uri).path)).name, uri, lambda: _fetch(uri))]
    path_of_uri, mark, query = uri.partition("?")
    parent, _, last = path_of_uri.rpartition("/")
    pattern = last if re.search(r"[*[]", last) else None
    folder = f"{parent}{mark}{query}" if pattern else uri
    try:
        filesystem, path = open_location(folder)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [_remote(filesystem, path, uri)]
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except (OSError, ValueError) as error:
        raise DataError(f'{called}: "{uri}" cannot be opened: {describe_error(error)}') from error
    paths = {entry.base_name: entry.path for entry in entries if entry.type == pafs.FileType.File}
    names = sorted(paths, key=_natural)
    if pattern:
        names = fnmatch.filter(names, pattern)
    elif names:
        names = select_split(names, split, f'{called}: "{uri}"')
    if not names:
        raise DataError(f'{called}: there is no file "{uri}"')
    return [_remote(filesystem, paths[name], join_location(folder, name)) for name in names]


def _remote(filesystem: pafs.FileSystem, path: str, place: str) -> DataFile:
    def read() -> bytes:
        content: bytes = filesystem.open_input_file(path).read()
        return content

    return DataFile(PurePosixPath(path).name, place, lambda: fetch_remote(filesystem, read, place))


def _fetch(uri: str) -> bytes:
    with fsspec.open(uri, "rb") as file:
        content: bytes = file.read()
    return content


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what to sort names by, so that ``part-10`` comes after ``part-9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _suffix(name: str) -> str:
    name = name.lower()
    return PurePosixPath(name.removesuffix(PurePosixPath(name).suffix) if name.endswith(COMPRESSED) else name).suffix


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_")) and NOT_DATA.fullmatch(name) is None and _suffix(name) in TYPES


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders of a folder, if each has texts and nothing else."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return folders if len(folders) > 1 and all(any(path.glob("*.txt")) for path in folders) else []


def _texts_of_classes(folder: Path, classes: Sequence[Path], wanted: Wanted) -> DataFile:
    """Return the texts of a folder per class as one file: JSON lines, with the folders' names as labels."""

    def read() -> bytes:
        rows = [
            {wanted.texts[0]: decode(path.read_bytes()).content, wanted.label or "label": label.name}
            for label in classes
            for path in sorted(label.glob("*.txt"), key=lambda path: _natural(path.name))
        ]
        return "\n".join(json.dumps(row) for row in rows).encode()

    return DataFile(f"{folder.name}.jsonl", str(folder), read)
