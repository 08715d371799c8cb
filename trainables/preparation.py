"""Rows -> tokens, once per (rows, tokenizer, length), in Arrow files that every trial of the machine memory-maps.

A folder ``<cache>/tokens/<key>`` holds one Arrow file per split and ``meta.json``, and what was made of the training
rows, if asked for (see ``tokenised.py``). It appears whole or not at all, and is never changed. Nothing here knows of
models or batches' order in training.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock
from tailsweep.trainables import report_keys
from tailsweep.trainables.augmentation.rebalance import MadeRows, made_rows
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.splits import Splits, load_splits
from tailsweep.trainables.data.tokenization import _load_tokenizer, _tokenizer_fingerprint, _usable_length, tokenise
from tailsweep.trainables.data.tokenized import (
    FORMAT_VERSION,
    MADE_FILE,
    SCHEMA,
    SPLITS,
    PreparedData,
    is_whole,
    open_prepared,
)
from tailsweep.trainables.storage.cache import META_FILE, cache_errors, sync_to_disk
from tailsweep.trainables.storage.checksums import file_sha256


def prepare(
    config: DataConfig,
    tokenizer_path: str,
    cache_dir: Path,
    augmented: bool = False,
    say: Callable[[str], None] = lambda text: None,
    trust_remote_code: bool = False,
) -> PreparedData:
    """Load and check the rows, and tokenise them unless that was done before.

    Safe to call from several processes at once: one does the work. An entry that is damaged is made again.

    Args:
        tokenizer_path: folder or hub name for ``AutoTokenizer``.
        cache_dir: the project's cache, see :func:`default_cache_dir`.
        augmented: whether to make rows of the training rows, as ``config.augmentation`` says.
        say: told how that goes, where it takes long.
        trust_remote_code: whether the tokenizer may be one whose code comes with it.

    Raises:
        DataError: the rows cannot be used, the tokenizer cannot be loaded, or the cache cannot be written.
        InputError: rows cannot be made as asked.
    """
    with cache_errors(cache_dir):
        (cache_dir / "tokens").mkdir(parents=True, exist_ok=True)
    splits = load_splits(config, cache_dir)
    tokenizer = _load_tokenizer(tokenizer_path, trust_remote_code)
    tokenizer_fingerprint = _tokenizer_fingerprint(tokenizer)
    max_length, length_notes = _usable_length(config.max_length, tokenizer)
    notes = [*splits.notes, *length_notes]
    rows_fingerprint = _rows_fingerprint(splits)
    # The notes are kept in the entry, so they are part of what it is known by.
    identity = [FORMAT_VERSION, rows_fingerprint, tokenizer_fingerprint, max_length, notes]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    made, of_made = None, {}
    if augmented:
        made = made_rows(splits, config, cache_dir, say)
        of_made = {"key_without_made": key}
        notes += made.notes
        key = hashlib.sha256(json.dumps([key, _made_fingerprint(made), made.notes]).encode()).hexdigest()

    folder = cache_dir / "tokens" / key
    with cache_errors(cache_dir), FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            meta = {
                "format_version": FORMAT_VERSION,
                "key": key,
                "rows_fingerprint": rows_fingerprint,
                "tokenizer_fingerprint": tokenizer_fingerprint,
                "max_length": max_length,
                "pad_token_id": 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
                "label_names": splits.label_names,
                "class_counts": np.bincount(splits.train["label"], minlength=len(splits.label_names)).tolist(),
                **of_made,
            }
            _make(folder, splits, made, tokenizer, max_length, meta, notes)
    return open_prepared(folder)


def _rows_fingerprint(splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps(splits.label_names).encode())
    for name in SPLITS:
        part = getattr(splits, name)
        digest.update(f"\n{name} {len(part)}\n".encode())
        digest.update(np.array(part["label"], dtype="<i8").tobytes())
        _update(digest, part["text"])
    return digest.hexdigest()


def _made_fingerprint(made: MadeRows) -> str:
    digest = hashlib.sha256(f"{made.kind} {len(made.texts)}\n".encode())
    digest.update(made.labels.astype("<i8").tobytes() + made.sources.astype("<i8").tobytes())
    _update(digest, made.texts)
    return digest.hexdigest()


def _update(digest: Any, texts: Iterable[str]) -> None:
    for text in texts:
        written = text.encode()
        digest.update(len(written).to_bytes(8, "little") + written)


def _make(
    folder: Path,
    splits: Splits,
    made: MadeRows | None,
    tokenizer: Any,
    max_length: int,
    meta: dict[str, Any],
    notes: list[str],
) -> None:
    """Write the entry beside its place and rename it there. The caller holds its lock."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    parts = {}
    for name in SPLITS:
        part = getattr(splits, name)
        parts[name] = _as_batch(part["text"], part["label"], tokenizer, max_length)
    if made is not None:
        train, truncated_of_train = parts[report_keys.TRAIN]
        added, truncated_of_added = _as_batch(made.texts, made.labels, tokenizer, max_length)
        parts[report_keys.AUGMENTED] = pa.concat_batches([train, added]), truncated_of_train + truncated_of_added
        _write_made(partial / MADE_FILE, made, splits.label_names)
        meta = {**meta, "made_sha256": file_sha256(partial / MADE_FILE)}
    described = {}
    for name, (batch, truncated) in parts.items():
        path = partial / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(batch)
        described[name] = {
            "rows": batch.num_rows,
            "truncated": truncated,  # rows
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    cut = [f"{d['truncated']:,} of {d['rows']:,} {name} rows" for name, d in described.items() if d["truncated"]]
    if cut:
        notes = [*notes, f"longer than {max_length} tokens, and cut there: {', '.join(cut)}"]
    written = json.dumps({**meta, "splits": described, "notes": list(notes)}, indent=2, ensure_ascii=False)
    (partial / META_FILE).write_text(written + "\n", encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        sync_to_disk(path)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged entry; who has it mapped keeps it
    partial.rename(folder)


def _write_made(path: Path, made: MadeRows, label_names: Sequence[str]) -> None:
    columns = {
        "text": made.texts,
        "label": [label_names[label] for label in made.labels],
        "source": pa.array(made.sources, pa.int64(), mask=made.sources < 0),
        "kind": [made.kind] * len(made.texts),
    }
    pyarrow.parquet.write_table(pa.table(columns), path)


def _as_batch(texts: Sequence[str], labels: Any, tokenizer: Any, max_length: int) -> tuple[pa.RecordBatch, int]:
    """All rows of a split as one record batch, and how many were truncated."""
    token_ids, offsets, truncated = tokenise(texts, tokenizer, max_length)
    rows = pa.LargeListArray.from_arrays(offsets, token_ids)
    return pa.record_batch([rows, pa.array(np.array(labels, dtype=np.int64))], schema=SCHEMA), truncated
