"""Load the sources under ``data`` as three splits of checked rows.

The splits are drawn first; then imbalance is imposed on the training rows. Rows are never changed: each is kept, or
dropped and counted. Tokens and models have no part in this.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tailsweep.trainables.config.data import DataConfig, Fold, ImbalanceConfig
from tailsweep.trainables.data.audit import audit_labels
from tailsweep.trainables.data.imbalance import ImbalanceError, imbalance_rows
from tailsweep.trainables.data.rows import Rows, listed, row_columns, usable_rows, wanted_columns
from tailsweep.trainables.data.sources import DEMO, DEMO_NOTE, Role, read_source
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.resampling import stratified_folds

__all__ = ["DataError", "Splits", "load_splits"]

INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Splits:
    """Three datasets with the columns ``text`` (string) and ``label`` (int64, an index into ``label_names``).

    With ``data.text_pair``, a column ``pair`` holds the second text of each row.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    label_names: tuple[str, ...]
    notes: tuple[str, ...]  # what the user should be warned of
    dropped: tuple[int, ...] = ()  # of each class, the rows that cannot be used


def load_splits(config: DataConfig) -> Splits:
    """Read, check and split the rows of ``config``, and impose its imbalance.

    Raises:
        DataError: the data cannot be used; the message names the setting, the fault and a fix.
    """
    notes: list[str] = []
    rows: dict[Role, Rows] = {"train": _read(config, "train", config.train, notes)}
    shares: dict[Role, float] = {}
    # test first: its rows stay the same when another validation share is tried
    held_out: tuple[tuple[Role, str | float], ...] = (("test", config.test), ("validation", config.validation))
    for role, given in held_out:
        if isinstance(given, str):
            rows[role] = _read(config, role, given, notes)
        elif role == "validation" or config.fold is None:
            shares[role] = given
    changed, done = audit_labels([part.labels for part in rows.values()], config.audit, config.label_column)
    notes += done
    rows = {role: part.rename(changed) for role, part in rows.items()}
    dropped = sum((part.dropped for part in rows.values()), Counter[str]())
    if len(classes := set(rows["train"].labels)) < 2:
        raise DataError(
            f'data.train: every row has the label "{"".join(classes)}", but there must be at least 2 classes; '
            f'is "{config.label_column}" the right column?'
        )
    if config.fold is not None:
        rows |= _fold(rows["train"], config.fold, config.split_seed, notes)
    rows |= _split_off(rows["train"], shares, config.split_seed, notes)

    names = _label_order(rows["train"])
    for role in ("validation", "test"):
        check_labels_seen(rows[role], role, names)
    if config.imbalance is not None:
        rows["train"] = _imbalanced(rows["train"], config.imbalance)
    index = {name: i for i, name in enumerate(names)}
    splits = {role: _dataset(part, index) for role, part in rows.items()}
    if config.resplit is not None:
        both = datasets.concatenate_datasets([splits["train"], splits["validation"]])
        train, validation = resplit_rows(np.array(both["label"]), len(splits["train"]), config)
        splits |= {"train": both.select(train), "validation": both.select(validation)}
    return Splits(
        splits["train"],
        splits["validation"],
        splits["test"],
        names,
        tuple(notes),
        tuple(dropped[name] for name in names),
    )


def _read(config: DataConfig, role: Role, source: str, notes: list[str]) -> Rows:
    """Read the rows of a source that have a text and a label."""
    rows = read_source(source, role, config.format, wanted_columns(config))
    if source == DEMO:
        notes.append(DEMO_NOTE)
    return usable_rows(rows, role, source, row_columns(config), config, notes)[0]


def resplit_rows(
    labels: NDArray[np.int64], num_train: int, config: DataConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the rows that ``config.resplit`` gives train, and of those that it gives validation.

    Args:
        labels: Of the rows of train and then those of validation.
        num_train: How many of these are train's.
        config: Its ``resplit`` is not None. A class with fewer rows than folds stays in train as a whole.
    """
    assert config.resplit is not None
    everything = np.arange(len(labels))
    if config.resplit.of is None:
        return everything, everything[num_train:]
    folds = stratified_folds(labels, config.resplit.of, np.random.default_rng(config.split_seed))
    rare = np.bincount(labels)[labels] < config.resplit.of
    is_validation = (folds == config.resplit.index) & ~rare
    return everything[~is_validation], everything[is_validation]


def _fold(train: Rows, fold: Fold, seed: int, notes: list[str]) -> dict[Role, Rows]:
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


def _split_off(train: Rows, shares: dict[Role, float], seed: int, notes: list[str]) -> dict[Role, Rows]:
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


def _label_order(train: Rows) -> tuple[str, ...]:
    """Return the classes that occur in train: a ClassLabel's in its order, integers by value, else as strings."""
    occurring = set(train.labels)
    if train.label_order is not None:
        return tuple(name for name in train.label_order if name in occurring)
    if all(map(INTEGER.fullmatch, occurring)):
        return tuple(sorted(occurring, key=lambda name: (int(name), name)))
    return tuple(sorted(occurring))


def check_labels_seen(rows: Rows, role: Role, label_names: tuple[str, ...]) -> None:
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


def _imbalanced(train: Rows, imbalance: ImbalanceConfig) -> Rows:
    try:
        return train.pick(imbalance_rows(train.labels, imbalance))
    except ImbalanceError as error:
        raise DataError(f"data.imbalance: {error}") from error


def _dataset(rows: Rows, index: dict[str, int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    columns: dict[str, list[Any]] = {"text": rows.texts, "label": [index[name] for name in rows.labels]}
    if rows.pairs is not None:
        features["pair"] = datasets.Value("string")
        columns["pair"] = rows.pairs
    return datasets.Dataset.from_dict(columns, features=features)
