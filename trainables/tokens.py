"""Rows -> tokens, once per (rows, tokenizer, length), in Arrow files that every trial of the machine memory-maps.

A folder ``<cache>/tokens/<key>`` holds one Arrow file per split and ``meta.json``. It appears whole or not at all, and
is never changed. Nothing here knows of models or batches' order in training.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.fs as pafs
import transformers
from filelock import FileLock
from numpy.typing import NDArray

from trainables.config import DataConfig
from trainables.data import DataError, Splits, load_splits
from trainables.locations import open_location

FORMAT_VERSION = 1  # of the folder; part of the key
META_FILE = "meta.json"
SPLITS = ("train", "validation", "test")
ROWS_AT_ONCE = 1000  # given to the tokenizer
# large_list: 64-bit offsets, which map straight to NumPy and do not end at 2**31 tokens
SCHEMA = pa.schema({"tokens": pa.large_list(pa.int32()), "label": pa.int64()})


@dataclass(frozen=True)
class TokenisedRows:
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

    def padded(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask`` (1: token, 0: padding), both (B, T) with T the longest row's length."""
        starts = self.offsets[indices][:, None]
        lengths = self.offsets[np.asarray(indices) + 1][:, None] - starts
        position = np.arange(lengths.max())
        real = position < lengths
        # Padding slots would read past their row, and past the end of the last one: point them at token 0.
        input_ids = np.where(real, self.tokens[np.where(real, starts + position, 0)], self.pad_token_id)
        return input_ids.astype(np.int64), real.astype(np.int64)


@dataclass(frozen=True)
class PreparedData:
    """The tokenised splits of a ``DataConfig``, as opened from their folder."""

    folder: Path
    key: str  # fingerprint of the rows, the tokenizer and the length
    label_names: tuple[str, ...]
    class_counts: NDArray[np.int64]  # (C,), rows of each class in train
    notes: tuple[str, ...]  # what the user should be warned of
    pad_token_id: int
    train: TokenisedRows
    validation: TokenisedRows
    test: TokenisedRows


def prepare(config: DataConfig, tokenizer_path: str, cache_dir: Path) -> PreparedData:
    """Load and check the rows, and tokenise them unless that was done before.

    Safe to call from several processes at once: one does the work. An entry that is damaged is made again.

    Args:
        tokenizer_path: folder or hub name for ``AutoTokenizer``.
        cache_dir: the project's cache, see :func:`default_cache_dir`.

    Raises:
        DataError: the rows cannot be used, the tokenizer cannot be loaded, or the cache cannot be written.
    """
    with _cache_errors(cache_dir):
        (cache_dir / "tokens").mkdir(parents=True, exist_ok=True)
    splits = load_splits(config, cache_dir)
    tokenizer = _load_tokenizer(tokenizer_path)
    tokenizer_fingerprint = _tokenizer_fingerprint(tokenizer)
    max_length, length_notes = _usable_length(config.max_length, tokenizer)
    notes = [*splits.notes, *length_notes]
    rows_fingerprint = _rows_fingerprint(splits)
    # The notes are kept in the entry, so they are part of what it is known by.
    identity = [FORMAT_VERSION, rows_fingerprint, tokenizer_fingerprint, max_length, notes]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    folder = cache_dir / "tokens" / key
    with _cache_errors(cache_dir), FileLock(f"{folder}.lock"):
        if not _is_whole(folder):
            meta = {
                "format_version": FORMAT_VERSION,
                "key": key,
                "rows_fingerprint": rows_fingerprint,
                "tokenizer_fingerprint": tokenizer_fingerprint,
                "max_length": max_length,
                "pad_token_id": 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
                "label_names": splits.label_names,
                "class_counts": np.bincount(splits.train["label"], minlength=len(splits.label_names)).tolist(),
            }
            _make(folder, splits, tokenizer, max_length, meta, notes)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Memory-map a folder that :func:`prepare` made.

    Raises:
        DataError: it is missing, or its files do not have the sizes they were written with.
    """
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        pad_token_id = int(meta["pad_token_id"])
        parts = {name: _open_split(folder, name, meta["splits"][name], pad_token_id) for name in SPLITS}
        return PreparedData(
            folder=folder,
            key=meta["key"],
            label_names=tuple(meta["label_names"]),
            class_counts=np.array(meta["class_counts"], dtype=np.int64),
            notes=tuple(meta["notes"]),
            pad_token_id=pad_token_id,
            **parts,
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f'the tokens in "{folder}" cannot be opened ({error}): start again from the data, which makes them anew'
        ) from error


def fetch_prepared(key: str, published: str, cache_dir: Path) -> PreparedData:
    """The rows of ``key`` from this machine's cache, copied there first where it lacks them.

    Args:
        published: folder or pyarrow URI of a copy that every node can read.

    Raises:
        DataError: neither can be opened.
    """
    folder = cache_dir / "tokens" / key
    with _cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                filesystem, path = open_location(published)
                partial = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                pafs.copy_files(path, str(partial), source_filesystem=filesystem)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    return open_prepared(folder)


def length_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches for evaluation: each row once, rows of like length together, so that little is padded.

    The longest come first: a batch that does not fit into memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def default_cache_dir() -> Path:
    """``$TAILSWEEP_CACHE``, else ``tailsweep`` below the user's cache folder."""
    given = os.environ.get("TAILSWEEP_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("tailsweep")


@contextmanager
def _cache_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f'cannot write the cache "{cache_dir}": {error.strerror or error}; set TAILSWEEP_CACHE to a folder that '
            "can be written"
        ) from error


def _load_tokenizer(path: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f'model.name: cannot load the tokenizer of "{path}": {cause[0]}') from error


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of the files the tokenizer would save: what it does, wherever it was loaded from."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _usable_length(max_length: int, tokenizer: Any) -> tuple[int, list[str]]:
    """``max_length``, or the model's own limit where that is lower; tokenizers without a limit say 10**30."""
    limit = int(tokenizer.model_max_length)
    if max_length <= limit:
        return max_length, []
    return limit, [f"data.max_length is {max_length}, but the model takes at most {limit} tokens: rows end there"]


def _rows_fingerprint(splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps(splits.label_names).encode())
    for name in SPLITS:
        part = getattr(splits, name)
        digest.update(f"\n{name} {len(part)}\n".encode())
        digest.update(np.array(part["label"], dtype="<i8").tobytes())
        for text in part["text"]:
            written = text.encode()
            digest.update(len(written).to_bytes(8, "little") + written)
    return digest.hexdigest()


def _make(
    folder: Path, splits: Splits, tokenizer: Any, max_length: int, meta: dict[str, Any], notes: list[str]
) -> None:
    """Write the entry beside its place and rename it there. The caller holds its lock."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    described = {}
    for name in SPLITS:
        part = getattr(splits, name)
        batch, truncated = _tokenise(part["text"], part["label"], tokenizer, max_length)
        path = partial / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(batch)
        described[name] = {
            "rows": batch.num_rows,
            "truncated": truncated,  # rows
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    cut = [f"{d['truncated']:,} of {d['rows']:,} {name} rows" for name, d in described.items() if d["truncated"]]
    if cut:
        notes = [*notes, f"longer than {max_length} tokens, and cut there: {', '.join(cut)}"]
    written = json.dumps({**meta, "splits": described, "notes": list(notes)}, indent=2, ensure_ascii=False)
    (partial / META_FILE).write_text(written + "\n", encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged entry; who has it mapped keeps it
    partial.rename(folder)


def _tokenise(texts: Any, labels: Any, tokenizer: Any, max_length: int) -> tuple[pa.RecordBatch, int]:
    """All rows of a split as one record batch, and how many were truncated."""
    pieces: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts), ROWS_AT_ONCE):
        rows = list(texts[start : start + ROWS_AT_ONCE])
        # One token more than may stay tells a row that is cut from one that just fits.
        encoded = _input_ids(tokenizer, rows, max_length + 1)
        long = [i for i, ids in enumerate(encoded) if len(ids) > max_length]
        if long:
            for i, ids in zip(long, _input_ids(tokenizer, [rows[i] for i in long], max_length), strict=True):
                encoded[i] = ids
        truncated += len(long)
        lengths.extend(map(len, encoded))
        pieces.append(np.array([token for ids in encoded for token in ids], dtype=np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = pa.LargeListArray.from_arrays(offsets, np.concatenate(pieces))
    return pa.record_batch([tokens, pa.array(np.array(labels, dtype=np.int64))], schema=SCHEMA), truncated


def _input_ids(tokenizer: Any, texts: list[str], max_length: int) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return list(encoded["input_ids"])


def _open_split(folder: Path, name: str, described: dict[str, Any], pad_token_id: int) -> TokenisedRows:
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
    return TokenisedRows(
        tokens=rows.values.to_numpy(zero_copy_only=True),
        offsets=rows.offsets.to_numpy(zero_copy_only=True),
        labels=batch.column("label").to_numpy(zero_copy_only=True),
        pad_token_id=pad_token_id,
    )


def _is_whole(folder: Path) -> bool:
    """Whether the entry is there and holds the very bytes that were written."""
    try:
        described = json.loads((folder / META_FILE).read_text(encoding="utf-8"))["splits"]
        if any(_sha256(folder / f"{name}.arrow") != described[name]["sha256"] for name in SPLITS):
            return False
        open_prepared(folder)
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """To the disk, so that a crash of the machine cannot leave a file of the right size without its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
