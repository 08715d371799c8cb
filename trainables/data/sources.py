"""Reading a *source*: its rows, as they are.

A source is the value of ``data.train``, ``.validation``, ``.test`` or ``.augmentation.file``.

All types but JSON go through the readers of ``datasets``. Whatever a user's file makes a reader raise leaves here as
a :class:`DataError`. What the rows mean (text, label, splits) is ``data.py``'s business.
"""

import difflib
import glob
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import datasets
import pandas as pd
import pyarrow.parquet
from tailsweep.trainables.data.demo import DEMO_NUM_ROWS, DEMO_SEED, demo_rows
from tailsweep.trainables.data.json_reader import json_rows
from tailsweep.trainables.errors import DataError, describe_error
from tailsweep.trainables.storage.cache import cache_error, is_of_cache
from tailsweep.trainables.storage.checksums import file_sha256

Role = Literal["train", "validation", "test", "augmentation.file"]

DEMO = "demo://drug-labels"
DEMO_NOTE = f"{DEMO} is synthetic: its texts are made up, and no score on them says anything about real drug labels"
FILE_TYPES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


def read_source(source: str, role: Role, cache_dir: Path | None) -> datasets.Dataset:
    """All rows and columns of a source, at least one row.

    Args:
        source: a CSV, TSV, JSON(-lines) or Parquet file, a folder written by ``datasets.save_to_disk``, a hub name
            (``name`` or ``name:config``) or ``demo://drug-labels``. CSV and TSV are read as strings, so that "NA",
            "None" and "01" stay what they are.
        role: names the setting in messages (``data.<role>``), and the split to take where a source has several: of
            paraphrases that is train.
        cache_dir: where ``datasets`` keeps a CSV, TSV or Parquet file's Arrow conversion; None: its own cache.

    Raises:
        DataError: it is missing, empty, of an unknown type, not UTF-8, damaged, or without a split for this role.
    """
    if source.startswith("demo://"):
        return _read_demo(source, role)
    path = Path(source).expanduser()
    with quiet_datasets():
        if os.path.isdir(path):
            dataset = _read_folder(path, role)
        elif os.path.exists(path):
            dataset = read_file(path, f"data.{role}", cache_dir)
        elif _is_meant_as_file(source):
            raise DataError(f'data.{role}: there is no file "{source}"{_near_file(path)}')
        else:
            dataset = _read_hub(source, role)
    if len(dataset) == 0:
        raise DataError(f'data.{role}: "{source}" has no rows')
    return dataset


def _read_demo(source: str, role: Role) -> datasets.Dataset:
    if source != DEMO:
        raise DataError(f'data.{role}: there is no "{source}"; the only rows made here are {DEMO}')
    if role != "train":
        hint = "name a file" if role == "augmentation.file" else "give a share, such as 0.2"
        raise DataError(f"data.{role} is {DEMO}, but those are the rows of data.train: {hint}")
    texts, labels = demo_rows(DEMO_NUM_ROWS, DEMO_SEED)
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def _read_folder(path: Path, role: Role) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # any: see _cause
        raise DataError(
            f'data.{role}: "{path}" is a folder, but not one that datasets.save_to_disk wrote: {_cause(error)}'
            f"\n    name a file in it, or save it again"
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


def read_file(path: Path, called: str, cache_dir: Path | None) -> datasets.Dataset:
    """Read an existing CSV, TSV, JSON(-lines) or Parquet file, as :func:`read_source` does.

    Args:
        called: what messages begin with.
    """
    kind = FILE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f'{called}: the type of "{path}" is "{path.suffix}", but must be one of {", ".join(FILE_TYPES)}: '
            "convert it, or rename it if it is one of these"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f'{called}: "{path}" is empty')
        if kind != "parquet":
            _check_utf8(path, called)
        if kind == "json":
            return json_rows(path.read_text(encoding="utf-8-sig"))
        # `datasets` knows a file by its path and time; a conversion must not outlive the bytes it was made of.
        cache = None if cache_dir is None else str(cache_dir / "datasets" / file_sha256(path)[:32])
        options: dict[str, object] = {}
        if kind == "csv":
            options = _csv_options(path)
        elif kind == "parquet" and pyarrow.parquet.read_metadata(path).num_rows == 0:
            raise DataError(f'{called}: "{path}" has no rows')
        with warnings.catch_warnings():
            # pandas only warns when a row has more fields than the header, and drops what is too much.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return datasets.load_dataset(
                kind, data_files=glob.escape(str(path.absolute())), split="train", cache_dir=cache, **options
            )
    except DataError:
        raise
    except Exception as error:  # any: see _cause
        if cache_dir is not None and is_of_cache(cache_dir, root := _root(error)):
            assert isinstance(root, OSError)
            raise cache_error(cache_dir, root) from error
        if "corresponds to no data" in str(error):
            raise DataError(f'{called}: "{path}" has no rows') from error
        raise DataError(f'{called}: cannot read "{path}" as {path.suffix[1:]}: {_cause(error)}') from error


def _csv_options(path: Path) -> dict[str, object]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = pd.read_csv(path, sep=separator, nrows=0, encoding="utf-8", index_col=False).columns
    return {
        "sep": separator,
        "index_col": False,  # else a row longer than the header makes its first column an index and shifts the others
        "keep_default_na": False,
        "features": datasets.Features({str(name): datasets.Value("string") for name in columns}),
    }


def _read_hub(source: str, role: Role) -> datasets.Dataset:
    parts = HUB_NAME.fullmatch(source)
    if parts is None:
        raise DataError(
            f'data.{role} is "{source}", but must be a file ({", ".join(FILE_TYPES)}), a folder written by '
            f"datasets.save_to_disk, a hub name (name or name:config) or {DEMO}"
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
    if "://" in source:
        return False
    return Path(source).suffix.lower() in FILE_TYPES or source.startswith((".", "/", "~")) or source.count("/") > 1


def _near_file(path: Path) -> str:
    """Suggest what to do about a missing file: the nearest name next to it, or the folder that is missing too."""
    folder = path.parent
    if not os.path.isdir(folder):
        return f': there is no folder "{folder.absolute()}" either'
    near = difflib.get_close_matches(path.name, os.listdir(folder), n=1)
    return f': did you mean "{folder / near[0]}"?' if near else f' in "{folder.absolute()}"'


def _check_utf8(path: Path, called: str) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f'{called}: "{path}" is not UTF-8: byte 0x{line[error.start]:02x} in line {number}'
                    f"\n    save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
                ) from error


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
