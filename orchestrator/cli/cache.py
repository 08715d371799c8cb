"""What this machine's cache holds, tokenised rows, features and translations, and its removal.

All sweeps of a user share it.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from tailsweep.orchestrator.runs.text import aligned
from tailsweep.trainables import report_keys
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.storage.cache import META_FILE, default_cache_dir

KINDS = ("tokens", "features", "translations")
SHOWN_OF_KEY = 12  # characters; as many as tell entries apart are enough to name one


@dataclass(frozen=True)
class CacheEntry:
    kind: str
    key: str
    folder: Path
    num_bytes: int
    made: datetime
    what: str


def list_cache(directory: str | None) -> str:
    """The entries as a table, largest first.

    Args:
        directory: the cache's folder; None: ``$TAILSWEEP_CACHE``, else below the user's cache folder.
    """
    cache = _cache(directory)
    found = sorted(_entries(cache), key=lambda entry: -entry.num_bytes)
    if not found:
        return f"the cache {cache} is empty"
    rows = [["kind", "key", "MB", "made (UTC)", "what"]]
    for entry in found:
        megabytes = f"{entry.num_bytes / 1e6:,.1f}"
        rows.append([entry.kind, entry.key[:SHOWN_OF_KEY], megabytes, f"{entry.made:%Y-%m-%d %H:%M}", entry.what])
    total = sum(entry.num_bytes for entry in found)
    return f"{aligned(rows)}\n\n{len(found)} entries, {total / 1e6:,.1f} MB in {cache}"


def remove_from_cache(keys: Sequence[str], everything: bool, directory: str | None) -> str:
    """Remove the entries that ``keys`` name by the first characters of theirs, or all; says what went.

    Who has an entry open keeps it until it closes it; a sweep that asks for it later makes it again.

    Raises:
        InputError: a key names no entry, or several, or an entry is being made; then nothing has been removed.
    """
    cache = _cache(directory)
    found = _entries(cache)
    chosen = found if everything else [_named(key, found, cache) for key in keys]
    locks = []
    try:
        for entry in chosen:
            lock = FileLock(f"{entry.folder}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(f"{entry.kind} {entry.key[:SHOWN_OF_KEY]} is in the making: try again later") from None
            locks.append(lock)
        for entry in chosen:
            shutil.rmtree(entry.folder)
    finally:
        for lock in locks:
            lock.release()
    return f"removed {len(chosen)} entries, {sum(entry.num_bytes for entry in chosen) / 1e6:,.1f} MB"


def _named(key: str, entries: Sequence[CacheEntry], cache: Path) -> CacheEntry:
    named = [entry for entry in entries if entry.key.startswith(key)]
    if len(named) == 1:
        return named[0]
    rule = "no entry begins with it" if not named else f"{len(named)} entries begin with it: give more characters"
    raise InputError(f'key "{key}": {rule}; `tailsweep cache list` shows what is in {cache}')


def _entries(cache: Path) -> list[CacheEntry]:
    return [
        _entry(kind, folder)
        for kind in KINDS
        for folder in sorted((cache / kind).glob("*"))
        if folder.is_dir() and not folder.name.startswith(".")
    ]


def _entry(kind: str, folder: Path) -> CacheEntry:
    stats = [path.stat() for path in folder.iterdir()]
    made = datetime.fromtimestamp(max((s.st_mtime for s in stats), default=folder.stat().st_mtime), UTC)
    return CacheEntry(kind, folder.name, folder, sum(s.st_size for s in stats), made, _what(kind, folder))


def _what(kind: str, folder: Path) -> str:
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if kind == "features":
            return f"{meta['cut']}, {meta['dtype']}"
        if kind == "translations":
            return f"by {meta['model']}, {meta['decoding']['kind'].replace('_', ' ')}"
        rows = {name: split["rows"] for name, split in meta["splits"].items()}
        made = rows.pop(report_keys.AUGMENTED, 0)
        told = f"{sum(rows.values()):,} rows" + (f" and {made - rows[report_keys.TRAIN]:,} augmented" if made else "")
        return f"{told}, {len(meta['label_names'])} classes"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged: made again when it is next needed"


def _cache(directory: str | None) -> Path:
    return default_cache_dir() if directory is None else Path(directory).expanduser()
