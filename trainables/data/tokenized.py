"""A folder of tokenized rows, opened: Arrow files that every trial of the machine memory-maps.

``<cache>/tokens/<key>`` holds one Arrow file per split and ``meta.json``; where rows were made (``augment.py``), also
one of the training rows with those after them, and ``augmented.parquet``: what was made, for people to read. It appears
whole or not at all, and is never changed. ``tokens.py`` makes it; this module needs neither a tokenizer nor
``datasets``, which take seconds to import in every worker.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.errors import DataError, StorageError
from tailsweep.trainables.storage.atomic import replace_folder
from tailsweep.trainables.storage.cache import META_FILE, cache_errors, checked_key
from tailsweep.trainables.storage.checksums import file_sha256
from tailsweep.trainables.storage.filesystem import download, open_location
from tailsweep.trainables.storage.json_text import parse_json
from tailsweep.trainables.storage.retry import fetch_remote

FORMAT_VERSION = 1  # of the folder; part of the key
SYNTHETIC_FORMAT_VERSION = 2  # of one with synthetic examples
SYNTHETIC_FILE = "augmented.parquet"  # text, label, source (number of the training row; null: not known), kind
SPLITS = (report_keys.TRAIN, report_keys.VALIDATION, report_keys.TEST)
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65536}  # without gradients; on a CPU more than fit its caches gain nothing
# large_list: 64-bit offsets, which map straight to NumPy and do not end at 2**31 tokens
SCHEMA = pa.schema({"tokens": pa.large_list(pa.int32()), "label": pa.int64()})


@dataclass(frozen=True)
class TokenizedExamples:
    """The rows of one split, their tokens end to end. Read-only views of a memory-mapped file; n rows, N tokens."""

    tokens: NDArray[np.int32]  # (N,)
    offsets: NDArray[np.int64]  # (n + 1,): row i is tokens[offsets[i] : offsets[i + 1]]
    labels: NDArray[np.int64]  # (n,), in [0, C)
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (n,)."""
        return np.diff(self.offsets)

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in ``tokens`` the rows' tokens lie, row after row."""
        lengths = self.lengths[indices]
        firsts = self.offsets[indices] - np.cumsum(lengths) + lengths
        return np.arange(lengths.sum()) + np.repeat(firsts, lengths)

    def between(self, start: int, stop: int) -> "TokenizedExamples":
        """Return the rows from ``start`` to before ``stop``."""
        offsets = self.offsets[start : stop + 1]
        tokens = self.tokens[offsets[0] : offsets[-1]]
        return TokenizedExamples(tokens, offsets - offsets[0], self.labels[start:stop], self.pad_token_id)

    def padded(
        self, indices: NDArray[np.int64], on_the_left: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask`` (1: token, 0: padding), both (B, T) with T the longest row's length.

        Args:
            indices: (B,), the rows' numbers.
            on_the_left: pad before the rows, and not behind them.
        """
        starts = self.offsets[indices][:, None]
        lengths = self.offsets[np.asarray(indices) + 1][:, None] - starts
        position = np.arange(lengths.max()) - (lengths.max() - lengths if on_the_left else 0)
        real = (position >= 0) & (position < lengths)
        # Padding slots would read past their row, and past the end of the last one: point them at token 0.
        input_ids = np.where(real, self.tokens[np.where(real, starts + position, 0)], self.pad_token_id)
        return input_ids.astype(np.int64), real.astype(np.int64)


@dataclass(frozen=True)
class PreparedData:
    """The tokenized splits of a ``DataConfig``, as opened from their folder."""

    folder: Path
    key: str  # fingerprint of the rows, the tokenizer and the length
    digest: str  # of the files that hold what trials train on
    label_names: tuple[str, ...]
    class_counts: NDArray[np.int64]  # (C,), rows of each class in train
    notes: tuple[str, ...]  # what the user should be warned of
    pad_token_id: int
    train: TokenizedExamples
    validation: TokenizedExamples
    test: TokenizedExamples
    augmented: TokenizedExamples | None = (
        None  # the training rows if asked for, followed by those made of them; None: none were made
    )
    class_table: tuple[tuple[str, ...], ...] = ()  # examples of each class and what is wrong with them, header first
    key_without_synthetic: str | None = None  # where some were: of the same rows without them

    def rows_of(self, split: str) -> TokenizedExamples:
        """Return the examples of a split, ``augmented`` included."""
        rows: TokenizedExamples | None = getattr(self, split)
        assert rows is not None, f"no {split} rows were made"
        return rows

    def class_counts_of(self, split: str) -> NDArray[np.int64]:
        """(C,), rows of each class in a split."""
        if split == report_keys.TRAIN:
            return self.class_counts
        return np.bincount(self.rows_of(split).labels, minlength=len(self.label_names))

    def key_of(self, split: str) -> str:
        """Fingerprint of the rows that a stage trained on ``split`` has to do with."""
        return self.key if split == report_keys.AUGMENTED else self.key_without_synthetic or self.key

    def sources(self) -> NDArray[np.int64]:
        """Of each row of ``augmented`` the training row that it is, or that it was made of; -1: not known."""
        sources = pyarrow.parquet.read_table(self.folder / SYNTHETIC_FILE, columns=["source"])["source"]
        originals = len(self.rows_of(report_keys.AUGMENTED)) - len(sources)  # all training rows, or none
        return np.concatenate([np.arange(originals), sources.fill_null(-1).to_numpy()])


def open_prepared(folder: Path) -> PreparedData:
    """Memory-map a folder that :func:`prepare` made.

    Raises:
        DataError: it is missing, or its files do not have the sizes they were written with.
    """
    try:
        meta = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
        pad_token_id = int(meta["pad_token_id"])
        names = [*SPLITS, *(name for name in meta["splits"] if name not in SPLITS)]
        parts = {name: _open_split(folder, name, meta["splits"][name], pad_token_id) for name in names}
        return PreparedData(
            folder=folder,
            key=meta["key"],
            digest=_digest(meta),
            label_names=tuple(meta["label_names"]),
            class_counts=np.array(meta["class_counts"], dtype=np.int64),
            notes=tuple(meta["notes"]),
            pad_token_id=pad_token_id,
            class_table=tuple(tuple(map(str, row)) for row in meta.get("audit", ())),
            key_without_synthetic=meta.get("key_without_synthetic"),
            **parts,
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f'the tokens in "{folder}" cannot be opened ({error}): start again from the data, which makes them anew'
        ) from error


def fetch_prepared(source: DataSource, cache_dir: Path) -> PreparedData:
    """Return tokenized rows from this machine's cache, copied there first if it lacks them or has others.

    Raises:
        DataError: Neither can be opened, or the sweep's copy is not of the rows that it began with.
        StorageError: what the copy lies on continues refusing it.
    """
    folder = cache_dir / "tokens" / checked_key(source.key)
    with cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (is_whole(folder) and open_prepared(folder).digest == source.digest):
                _fetch(source, folder)
    return open_prepared(folder)


def _fetch(source: DataSource, folder: Path) -> None:
    """Copy a published entry into the cache. The caller holds its lock."""
    published = source.published
    with replace_folder(folder) as partial:
        try:
            filesystem, path = open_location(published)
            fetch_remote(filesystem, lambda: download(filesystem, path, partial), published)
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f'the tokens published at "{published}" cannot be copied: {error}') from error
        if not (is_whole(partial) and open_prepared(partial).digest == source.digest):
            raise DataError(
                f'the tokens published at "{published}" are not those that the sweep began with: restore the run '
                "directory from a copy, or start another run"
            )


def length_batches(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Batches for evaluation: each row once, rows of like length together, at most ``max_tokens`` each when padded.

    The longest come first: a batch that does not fit into memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        stop = start + max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start:stop])
        start = stop
    return batches


def is_whole(folder: Path) -> bool:
    """Whether the entry is there and holds the very bytes that were written."""
    try:
        meta = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
        written = {f"{name}.arrow": described["sha256"] for name, described in meta["splits"].items()}
        if "synthetic_sha256" in meta:
            written[SYNTHETIC_FILE] = meta["synthetic_sha256"]
        if any(file_sha256(folder / file) != sha256 for file, sha256 in written.items()):
            return False
        open_prepared(folder)
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _digest(meta: Mapping[str, Any]) -> str:
    """Return a digest of the files' digests and of what their numbers mean."""
    described = [meta["splits"][name]["sha256"] for name in sorted(meta["splits"])]
    identity = [meta["key"], meta["label_names"], meta["class_counts"], meta["pad_token_id"], described]
    return hashlib.sha256(json.dumps([*identity, meta.get("synthetic_sha256")]).encode()).hexdigest()


def _open_split(folder: Path, name: str, described: Mapping[str, object], pad_token_id: int) -> TokenizedExamples:
    path = folder / f"{name}.arrow"
    size = path.stat().st_size
    if size != described["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, but was written with {described['bytes']}")
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.schema != SCHEMA or reader.num_record_batches != 1:
        raise ValueError(f"{path.name} does not hold one batch of tokens and labels")
    batch = reader.get_batch(0)
    if batch.num_rows != described["rows"]:
        raise ValueError(f"{path.name} has {batch.num_rows} rows, but was written with {described['rows']}")
    rows = batch.column("tokens")
    return TokenizedExamples(
        tokens=rows.values.to_numpy(zero_copy_only=True),
        offsets=rows.offsets.to_numpy(zero_copy_only=True),
        labels=batch.column("label").to_numpy(zero_copy_only=True),
        pad_token_id=pad_token_id,
    )
