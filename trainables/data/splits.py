"""Load the sources under ``data`` as three splits of checked rows.

The splits are drawn first; then imbalance is imposed on the training rows. Rows are never changed: each is kept, or
dropped and counted. Tokens and models have no part in this.
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from tailsweep.trainables.config.data import DataConfig, Fold, ImbalanceConfig
from tailsweep.trainables.data.imbalance import ImbalanceError, imbalance_rows
from tailsweep.trainables.data.labels import label_names
from tailsweep.trainables.data.sources import DEMO, DEMO_NOTE, Role, SourceRows, read_source
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.readers.columns import Wanted

__all__ = ["DataError", "Splits", "load_splits"]

INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Splits:
    """Three datasets with the columns ``text`` (string) and ``label`` (int64, an index into ``label_names``)."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    label_names: tuple[str, ...]
    notes: tuple[str, ...]  # what the user should be warned of


@dataclass(frozen=True)
class _Rows:
    texts: list[str]
    labels: list[str]  # names
    label_order: tuple[str, ...] | None = None  # of a ClassLabel: its names

    def pick(self, rows: Iterable[int]) -> "_Rows":
        rows = list(rows)
        return _Rows([self.texts[row] for row in rows], [self.labels[row] for row in rows], self.label_order)


def load_splits(config: DataConfig) -> Splits:
    """Read, check and split the rows of ``config``, and impose its imbalance.

    Raises:
        DataError: the data cannot be used; the message names the setting, the fault and a fix.
    """
    notes: list[str] = []
    rows: dict[Role, _Rows] = {"train": _read(config, "train", config.train, notes)}
    if len(set(rows["train"].labels)) == 1:
        raise DataError(
            f'data.train: every row has the label "{rows["train"].labels[0]}", but there must be at least 2 classes; '
            f'is "{config.label_column}" the right column?'
        )
    shares: dict[Role, float] = {}
    # test first: its rows stay the same when another validation share is tried
    if config.fold is not None:
        rows |= _fold(rows["train"], config.fold, config.split_seed, notes)
    held_out: tuple[tuple[Role, str | float], ...] = (("test", config.test), ("validation", config.validation))
    for role, given in held_out:
        if role in rows:
            continue
        if isinstance(given, str):
            rows[role] = _read(config, role, given, notes)
        else:
            shares[role] = given
    rows |= _split_off(rows["train"], shares, config.split_seed, notes)

    names = _label_order(rows["train"])
    for role in ("validation", "test"):
        check_labels_seen(rows[role], role, names)
    if config.imbalance is not None:
        rows["train"] = _imbalanced(rows["train"], config.imbalance)
    _note_duplicates(rows, notes)
    index = {name: i for i, name in enumerate(names)}
    splits = {role: _dataset(part, index) for role, part in rows.items()}
    return Splits(splits["train"], splits["validation"], splits["test"], names, tuple(notes))


def _read(config: DataConfig, role: Role, source: str, notes: list[str]) -> _Rows:
    """Read the rows of a source that have a text and a label."""
    rows = read_source(source, role, config.format, wanted_columns(config))
    if source == DEMO:
        notes.append(DEMO_NOTE)
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    return usable_rows(rows, role, source, columns, config.max_dropped_fraction, notes)[0]


def wanted_columns(config: DataConfig, text_column: str | None = None, label_column: str | None = None) -> Wanted:
    """Return the columns of a source that are going to be read; None: as ``data`` names them."""
    text, label = text_column or config.text_column, label_column or config.label_column
    defaults = DataConfig.model_fields
    usual = (text, label) == (defaults["text_column"].default, defaults["label_column"].default)
    return Wanted((text,), label, usual and (config.format is None or config.format.columns is None))


def usable_rows(
    source_rows: SourceRows,
    role: Role,
    source: str,
    columns: dict[str, str],
    max_dropped_fraction: float,
    notes: list[str],
) -> tuple[_Rows, list[int]]:
    """Return the rows of a source that have a text and a label, and their numbers in it.

    Args:
        columns: the fields of ``data`` that name the columns of texts and labels, in this order, each with its value.

    Raises:
        DataError: a column is missing or of a type that cannot be used, or too many rows are unusable.
    """
    (text_setting, text), (label_setting, label) = columns.items()
    dataset, refused = source_rows.dataset, source_rows.refused
    notes += [f'data.{role}: "{source}" was read as: {form} (data.format sets it)' for form in source_rows.forms]
    texts = column_of(dataset, text, text_setting, role)
    labels_given = column_of(dataset, label, label_setting, role)
    names, label_order = label_names(labels_given, dataset.features[label], label, f"data.{role}")

    has_text = [isinstance(text, str) and bool(text.strip()) for text in texts]
    kept = [row for row, (good, name) in enumerate(zip(has_text, names, strict=True)) if good and name is not None]
    total = len(texts) + len(refused)
    dropped = total - len(kept)
    if dropped:
        not_strings = sum(text is not None and not isinstance(text, str) for text in texts)
        faults = {
            "an empty text": has_text.count(False) - not_strings,
            "a text that is not a string": not_strings,
            "no label": names.count(None),
            f"more fields than there are columns ({listed(refused, 3)})": len(refused),
        }
        reasons = ", ".join(f"{count:,} with {fault}" for fault, count in faults.items() if count)
        if not kept:
            raise DataError(f'data.{role}: none of the {total:,} rows of "{source}" can be used: {reasons}')
        if dropped / total > max_dropped_fraction:
            raise DataError(
                f'data.{role}: {dropped:,} of {total:,} rows of "{source}" cannot be used ({reasons}), but at '
                f"most data.max_dropped_fraction = {max_dropped_fraction:g} of them may be dropped: fix the file or "
                "raise max_dropped_fraction"
            )
        notes.append(f"data.{role}: {dropped:,} of {total:,} rows were dropped: {reasons}")
    labels = [name for row in kept if (name := names[row]) is not None]
    return _Rows([texts[row] for row in kept], labels, label_order), kept


def column_of(dataset: datasets.Dataset, name: str, setting: str, role: Role) -> list[Any]:
    """Return a column as Python values; ``setting`` is the field of ``data`` that names it."""
    if name not in dataset.column_names:
        near = difflib.get_close_matches(name, dataset.column_names, n=1)
        raise DataError(
            f'data.{setting} is "{name}", but the columns of data.{role} are {", ".join(dataset.column_names)}'
            + (f': did you mean "{near[0]}"?' if near else "")
        )
    try:
        return list(dataset.select_columns([name]).with_format(None)[:][name])
    except UnicodeDecodeError as error:
        raise DataError(
            f'data.{role}: the column "{name}" holds bytes that are not UTF-8: write the file again from text decoded '
            "with its real encoding"
        ) from error


def _fold(train: _Rows, fold: Fold, seed: int, notes: list[str]) -> dict[Role, _Rows]:
    """Split off a fold as test, stratified by label.

    A class with at least one row per fold has each row in the test rows of exactly one fold. A smaller class stays in
    train as a whole and is named in ``notes``.
    """
    labels = np.array(train.labels, dtype=object)
    in_test = np.zeros(len(labels), dtype=bool)
    too_small = []
    dealt = 0
    for name in sorted(set(train.labels)):
        rows = np.flatnonzero(labels == name)
        if len(rows) < fold.of:
            too_small.append(f'"{name}" ({len(rows)})')
            continue
        rows = np.random.default_rng(_class_seed(seed, name)).permutation(rows)
        # Dealt out in turn, each class where the last one ended, so that the folds differ by one row at most.
        in_test[rows[np.arange(dealt, dealt + len(rows)) % fold.of == fold.index]] = True
        dealt += len(rows)
    if too_small:
        notes.append(
            f"fewer rows than the {fold.of} folds have these classes, which stay in train as a whole: "
            f"{', '.join(too_small)}"
        )
    return {"train": train.pick(np.flatnonzero(~in_test)), "test": train.pick(np.flatnonzero(in_test))}


def _class_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")


def _split_off(train: _Rows, shares: dict[Role, float], seed: int, notes: list[str]) -> dict[Role, _Rows]:
    """Split shares off train, stratified by label; a share is of all rows given.

    A class's rows are drawn by (seed, class) alone, so that they do not move when another class grows. Each class has
    at least one row in each split, or stays in train as a whole and is named in ``notes``.
    """
    if not shares:
        return {"train": train}
    if sum(shares.values()) >= 1:
        raise DataError(
            f"data.validation + data.test = {sum(shares.values()):g}, but must be less than 1 to leave rows in train"
        )
    labels = np.array(train.labels, dtype=object)
    parts: dict[Role, list[int]] = {"train": [], **{role: [] for role in shares}}
    too_small = []
    for name in sorted(set(train.labels)):
        rows = np.flatnonzero(labels == name)
        if len(rows) <= len(shares):
            too_small.append(f'"{name}" ({len(rows)})')
            parts["train"].extend(rows)
            continue
        rows = np.random.default_rng(_class_seed(seed, name)).permutation(rows)
        sizes = {role: max(1, round(share * len(rows))) for role, share in shares.items()}
        while sum(sizes.values()) >= len(rows):
            sizes[max(sizes, key=lambda role: sizes[role])] -= 1
        for role, size in sizes.items():
            parts[role].extend(rows[:size])
            rows = rows[size:]
        parts["train"].extend(rows)
    if too_small:
        notes.append(
            f"too few rows to split {' and '.join(shares)} off these classes, which stay in train as a whole: "
            f"{listed(too_small)}; no score on {' or '.join(shares)} covers them"
        )
    for role in shares:
        if not parts[role]:
            raise DataError(f"data.{role}: no class of data.train has rows enough to split some off")
    return {role: train.pick(sorted(rows)) for role, rows in parts.items()}


def _label_order(train: _Rows) -> tuple[str, ...]:
    """Return the classes that occur in train: a ClassLabel's in its order, integers by value, else as strings."""
    occurring = set(train.labels)
    if train.label_order is not None:
        return tuple(name for name in train.label_order if name in occurring)
    if all(map(INTEGER.fullmatch, occurring)):
        return tuple(sorted(occurring, key=lambda name: (int(name), name)))
    return tuple(sorted(occurring))


def check_labels_seen(rows: _Rows, role: Role, label_names: tuple[str, ...]) -> None:
    """Check that every label of ``rows`` is a class of train.

    Raises:
        DataError: Some labels are not.
    """
    unseen = {name: count for name, count in sorted(Counter(rows.labels).items()) if name not in label_names}
    if unseen:
        unseen_counts = listed([f'"{name}" ({count:,})' for name, count in unseen.items()])
        raise DataError(
            f"data.{role}: {sum(unseen.values()):,} rows have labels that no row of train has: {unseen_counts}; "
            f"the classes of train are {listed(label_names)}"
        )


def _imbalanced(train: _Rows, imbalance: ImbalanceConfig) -> _Rows:
    try:
        return train.pick(imbalance_rows(train.labels, imbalance))
    except ImbalanceError as error:
        raise DataError(f"data.imbalance: {error}") from error


def _note_duplicates(rows: dict[Role, _Rows], notes: list[str]) -> None:
    """Add a note for texts that are in two splits: scores on the later split are then too good."""
    pairs: tuple[tuple[Role, Role], ...] = (("validation", "train"), ("test", "train"), ("test", "validation"))
    for later, earlier in pairs:
        known = set(rows[earlier].texts)
        count = sum(text in known for text in rows[later].texts)
        if count:
            notes.append(
                f"{count:,} of {len(rows[later].texts):,} {later} rows have a text that is also in {earlier}: "
                f"scores on {later} are too good by as much"
            )


def _dataset(rows: _Rows, index: dict[str, int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    columns = {"text": rows.texts, "label": [index[name] for name in rows.labels]}
    return datasets.Dataset.from_dict(columns, features=features)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Join at most ``most`` names, and count the others: ``"a, b and 3 more"``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
