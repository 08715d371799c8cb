"""List and remove the entries of this machine's cache.

They are tokenized examples, features, translations, and files as ``datasets`` has converted them. Whatever else is
there is listed, too: what a killed process has left, say. All sweeps of a user share the cache.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from tailsweep.clusters.sizes import describe_bytes
from tailsweep.orchestrator.runs.text import aligned
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.storage.cache import META_FILE, cache_folder
from tailsweep.trainables.storage.json_text import parse_json

CONVERSIONS = "datasets"
SHOWN_OF_KEY = 12  # characters; a unique beginning is enough to name an entry


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache, as its folder describes it."""

    kind: str
    key: str
    folder: Path
    num_bytes: int
    created: datetime
    content: str


def list_cache(directory: str | None) -> str:
    """Return the entries as a table, largest first.

    Args:
        directory: The cache's folder; None: ``$TAILSWEEP_CACHE``, else below the user's cache folder.
    """
    cache = cache_folder(directory)
    entries = sorted(_entries(cache), key=lambda entry: -entry.num_bytes)
    if not entries:
        return f"the cache {cache} is empty"
    rows = [["kind", "key", "MB", "created (UTC)", "content"]]
    for entry in entries:
        megabytes = f"{entry.num_bytes / 1e6:,.1f}"
        rows.append([entry.kind, entry.key[:SHOWN_OF_KEY], megabytes, f"{entry.created:%Y-%m-%d %H:%M}", entry.content])
    total = sum(entry.num_bytes for entry in entries)
    return f"{aligned(rows)}\n\n{len(entries)} entries, {describe_bytes(total)} in {cache}"


def remove_from_cache(keys: Sequence[str], everything: bool, directory: str | None) -> str:
    """Remove the entries whose keys begin with one of ``keys``, or all of them, and return a summary.

    A process that has an entry open keeps it until it closes it. A sweep that needs it later creates it again.

    Args:
        keys: The first characters of each entry's key.
        everything: Remove all entries.
        directory: The cache's folder; None: ``$TAILSWEEP_CACHE``, else below the user's cache folder.

    Raises:
        InputError: A key names no entry or several, or an entry is being created. Nothing has been removed then.
    """
    cache = cache_folder(directory)
    entries = _entries(cache)
    chosen = entries if everything else [_named(key, entries, cache) for key in keys]
    locks = []
    try:
        for entry in chosen:
            finished = entry.folder.name.removeprefix(".").removesuffix(".partial")  # of which it is to be one
            lock = FileLock(entry.folder.with_name(f"{finished}.lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(f"{entry.kind} {entry.key[:SHOWN_OF_KEY]} is being created: try again later") from None
            locks.append(lock)
        for entry in chosen:
            shutil.rmtree(entry.folder)
    finally:
        for lock in locks:
            lock.release()
    return f"removed {len(chosen)} entries, {describe_bytes(sum(entry.num_bytes for entry in chosen))}"


def _named(key: str, entries: Sequence[CacheEntry], cache: Path) -> CacheEntry:
    named = [entry for entry in entries if entry.key.startswith(key)]
    if len(named) == 1:
        return named[0]
    rule = "no entry begins with it" if not named else f"{len(named)} entries begin with it: give more characters"
    raise InputError(f'key "{key}": {rule}; `tailsweep cache list` shows what is in {cache}')


def _entries(cache: Path) -> list[CacheEntry]:
    kinds = sorted(path for path in cache.glob("*") if path.is_dir() and not path.is_symlink())
    return [
        _entry(kind.name, folder)
        for kind in kinds
        for folder in sorted(kind.iterdir())
        if folder.is_dir() and not folder.is_symlink()
    ]


def _entry(kind: str, folder: Path) -> CacheEntry:
    stats = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    created = datetime.fromtimestamp(max((s.st_mtime for s in stats), default=folder.stat().st_mtime), UTC)
    return CacheEntry(kind, folder.name, folder, sum(s.st_size for s in stats), created, _content(kind, folder))


def _content(kind: str, folder: Path) -> str:
    if folder.name.startswith("."):
        return "unfinished: being created, or left by a process that was killed"
    if kind == CONVERSIONS:
        return "a CSV, TSV or Parquet file, converted to Arrow"
    try:
        meta = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
        if kind == "rehearsals":
            return f"{meta['model']} has been rehearsed"
        if kind == "features":
            return f"{meta['split_point']}, {meta['dtype']}"
        if kind == "translations":
            return f"by {meta['model']}, {meta['decoding']['kind'].replace('_', ' ')}"
        rows = {name: split["rows"] for name, split in meta["splits"].items()}
        rows.pop(report_keys.AUGMENTED, None)
        synthetic = f" and {meta['num_synthetic']:,} synthetic" if "num_synthetic" in meta else ""
        return f"{sum(rows.values()):,} examples{synthetic}, {len(meta['label_names'])} classes"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged: created again when it is next needed"
