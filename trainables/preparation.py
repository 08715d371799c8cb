"""Tokenize the rows once per (rows, tokenizer, length), into Arrow files that every trial of the machine memory-maps.

A folder ``<cache>/tokens/<key>`` holds one Arrow file per split, ``meta.json`` and, with augmentation, the synthetic
examples (see ``tokenized.py``). It appears whole or not at all, and is never changed. Models and the order of training
batches have no part in this.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import transformers
from filelock import FileLock
from numpy.typing import ArrayLike
from tailsweep.trainables import report_keys
from tailsweep.trainables.augmentation.rebalance import SyntheticExamples, synthesize_examples
from tailsweep.trainables.config.data import AuditConfig, DataConfig
from tailsweep.trainables.data.class_table import audit_examples
from tailsweep.trainables.data.splits import Splits, load_splits
from tailsweep.trainables.data.tokenization import _load_tokenizer, _tokenizer_fingerprint, _usable_length, tokenize
from tailsweep.trainables.data.tokenized import (
    FORMAT_VERSION,
    SCHEMA,
    SPLITS,
    SYNTHETIC_FILE,
    SYNTHETIC_FORMAT_VERSION,
    PreparedData,
    is_whole,
    open_prepared,
)
from tailsweep.trainables.models.hub import NO_LIMIT, max_positions, pad_token_id
from tailsweep.trainables.storage.atomic import replace_folder, sync_to_disk
from tailsweep.trainables.storage.cache import META_FILE, cache_errors
from tailsweep.trainables.storage.checksums import file_sha256
from transformers import PreTrainedTokenizerBase

TokenizedSplit = tuple[pa.RecordBatch, int]  # the rows, and how many of them were truncated


def prepare(
    config: DataConfig,
    tokenizer_path: str,
    cache_dir: Path,
    augmented: bool = False,
    trust_remote_code: bool = False,
) -> PreparedData:
    """Load and check the rows, and tokenize them unless that was done before.

    Safe to call from several processes at once: one does the work. An entry that is damaged is made again.

    Args:
        tokenizer_path: folder or hub name for ``AutoTokenizer``.
        cache_dir: the project's cache, see :func:`default_cache_dir`.
        augmented: whether to make rows of the training rows, as ``config.augmentation`` says.
        trust_remote_code: whether the tokenizer may be one whose code comes with it.

    Raises:
        DataError: the rows cannot be used, the tokenizer cannot be loaded, or the cache cannot be written.
        InputError: rows cannot be made as asked.
    """
    with cache_errors(cache_dir):
        (cache_dir / "tokens").mkdir(parents=True, exist_ok=True)
    splits = load_splits(config)
    tokenizer = _load_tokenizer(tokenizer_path, trust_remote_code)
    tokenizer_fingerprint = _tokenizer_fingerprint(tokenizer)
    max_length, length_notes = _usable_length(
        config.max_length, tokenizer, _positions(tokenizer_path, trust_remote_code)
    )
    notes = [*splits.notes, *length_notes]
    rows_fingerprint = _rows_fingerprint(splits)
    # The notes are kept in the entry, so they are part of what it is known by.
    identity = [FORMAT_VERSION, rows_fingerprint, tokenizer_fingerprint, max_length, notes]
    if config.resplit is not None:
        identity.append(config.resplit.model_dump())
    if config.audit != AuditConfig():  # an entry has passed the audit that it was made under
        identity.append(config.audit.model_dump())
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    synthetic, synthetic_meta = None, dict[str, str | int]()
    originals = config.augmentation is None or config.augmentation.originals
    if augmented:
        synthetic = synthesize_examples(splits, config, cache_dir)
        synthetic_meta = {"key_without_synthetic": key}
        notes += synthetic.notes
        synthetic_meta["num_synthetic"] = len(synthetic.texts)
        identity = [SYNTHETIC_FORMAT_VERSION, key, _synthetic_fingerprint(synthetic), synthetic.notes]
        if not originals:
            identity.append("without originals")
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    folder = cache_dir / "tokens" / key
    with cache_errors(cache_dir), FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            meta: dict[str, object] = {
                "format_version": FORMAT_VERSION,
                "key": key,
                "rows_fingerprint": rows_fingerprint,
                "tokenizer_fingerprint": tokenizer_fingerprint,
                "max_length": max_length,
                "pad_token_id": pad_token_id(tokenizer),
                "label_names": splits.label_names,
                "class_counts": np.bincount(splits.train["label"], minlength=len(splits.label_names)).tolist(),
                **synthetic_meta,
            }
            parts = _tokenized_splits(splits, synthetic, originals, tokenizer, max_length)
            audit_notes = _audit(splits, parts, max_length, config, meta)
            with replace_folder(folder) as partial:
                if synthetic is not None:
                    _write_synthetic(partial / SYNTHETIC_FILE, synthetic, splits.label_names)
                    meta["synthetic_sha256"] = file_sha256(partial / SYNTHETIC_FILE)
                _write_entry(partial, parts, meta, [*notes, *audit_notes])
    return open_prepared(folder)


def _audit(
    splits: Splits, parts: Mapping[str, TokenizedSplit], max_length: int, config: DataConfig, meta: dict[str, object]
) -> list[str]:
    """Add the table of the classes to ``meta``; return notes on what is wrong with the examples."""
    if config.resplit is not None:  # as they were split, they have passed; and validation is in train on purpose
        return []
    meta["audit"], notes = audit_examples(splits, {name: parts[name][0] for name in SPLITS}, max_length, config.audit)
    return notes


def _positions(path: str, trust_remote_code: bool) -> int:
    """Return how many tokens the model of a tokenizer takes; ``NO_LIMIT`` for a tokenizer without a model."""
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return NO_LIMIT
    return max_positions(config)


def _rows_fingerprint(splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps(splits.label_names).encode())
    for name in SPLITS:
        part = getattr(splits, name)
        digest.update(f"\n{name} {len(part)}\n".encode())
        digest.update(np.array(part["label"], dtype="<i8").tobytes())
        _update(digest, part["text"])
        if "pair" in part.column_names:
            digest.update(b"\npairs\n")
            _update(digest, part["pair"])
    return digest.hexdigest()


def _synthetic_fingerprint(synthetic: SyntheticExamples) -> str:
    digest = hashlib.sha256(f"{synthetic.kind} {len(synthetic.texts)}\n".encode())
    digest.update(synthetic.labels.astype("<i8").tobytes() + synthetic.sources.astype("<i8").tobytes())
    _update(digest, synthetic.texts)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", texts: Iterable[str]) -> None:
    for text in texts:
        written = text.encode()
        digest.update(len(written).to_bytes(8, "little") + written)


def _tokenized_splits(
    splits: Splits,
    synthetic: SyntheticExamples | None,
    originals: bool,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, TokenizedSplit]:
    """Tokenize the splits, and the training rows, if asked for, followed by the synthetic examples."""
    parts = {}
    for name in SPLITS:
        part = getattr(splits, name)
        pairs = part["pair"] if "pair" in part.column_names else None
        parts[name] = _tokenized(part["text"], part["label"], tokenizer, max_length, pairs)
    if synthetic is not None:
        train, num_truncated = parts[report_keys.TRAIN]
        added, num_added_truncated = _tokenized(synthetic.texts, synthetic.labels, tokenizer, max_length)
        if originals:
            added, num_added_truncated = pa.concat_batches([train, added]), num_truncated + num_added_truncated
        parts[report_keys.AUGMENTED] = added, num_added_truncated
    return parts


def _write_entry(
    folder: Path, parts: Mapping[str, TokenizedSplit], meta: Mapping[str, object], notes: Sequence[str]
) -> None:
    """Write the splits and ``meta.json`` into ``folder``, and flush everything in it to disk."""
    described = {}
    for name, (batch, num_truncated) in parts.items():
        path = folder / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(batch)
        described[name] = {
            "rows": batch.num_rows,
            "truncated": num_truncated,  # rows
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    truncated = [f"{d['truncated']:,} of {d['rows']:,} {name} rows" for name, d in described.items() if d["truncated"]]
    if truncated:
        notes = [*notes, f"truncated to {meta['max_length']} tokens: {', '.join(truncated)}"]
    written = json.dumps({**meta, "splits": described, "notes": list(notes)}, indent=2, ensure_ascii=False)
    (folder / META_FILE).write_text(written + "\n", encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        sync_to_disk(path)


def _write_synthetic(path: Path, synthetic: SyntheticExamples, label_names: Sequence[str]) -> None:
    columns = {
        "text": synthetic.texts,
        "label": [label_names[label] for label in synthetic.labels],
        "source": pa.array(synthetic.sources, pa.int64(), mask=synthetic.sources < 0),
        "kind": [synthetic.kind] * len(synthetic.texts),
    }
    pyarrow.parquet.write_table(pa.table(columns), path)


def _tokenized(
    texts: Sequence[str],
    labels: ArrayLike,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pairs: Sequence[str] | None = None,
) -> TokenizedSplit:
    """Tokenize the rows of a split."""
    token_ids, offsets, truncated = tokenize(texts, tokenizer, max_length, pairs)
    rows = pa.LargeListArray.from_arrays(offsets, token_ids)
    return pa.record_batch([rows, pa.array(np.array(labels, dtype=np.int64))], schema=SCHEMA), truncated
