"""A table of the classes before anything is trained: how many examples each has, and what is wrong with them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import AuditConfig
from tailsweep.trainables.data.splits import Splits
from tailsweep.trainables.data.twins import TwinCounts, count_twins, find_twins, joined_rows
from tailsweep.trainables.errors import DataError

# Columns after the class; those of twins are left out where there are none.
COUNTS = (report_keys.TRAIN, report_keys.VALIDATION, report_keys.TEST)
DROPPED, REPEATED, LEAKED, CONFLICTING = "dropped", "repeated in train", "also in an earlier split", "with two labels"


def audit_examples(
    splits: Splits, tokenized: Mapping[str, pa.RecordBatch], max_length: int, audit: AuditConfig
) -> tuple[list[list[str | int]], list[str]]:
    """Count the examples of each class, and those that falsify its scores.

    Examples are compared by their texts and their tokens: equal, or nearly so (see ``twins``).

    Args:
        splits: the examples.
        tokenized: their tokens and labels, by split, train first.
        max_length: tokens that they were truncated to.
        audit: how many may be in two splits, or have two labels.

    Returns:
        The table, its header first; and notes on what is wrong.

    Raises:
        DataError: More examples than may are in two splits, or have two labels.
    """
    num_classes = len(splits.label_names)
    rows = []
    for batch in tokenized.values():
        lists = batch.column(0)
        rows.append((lists.values.to_numpy().astype(np.int32), lists.offsets.to_numpy().astype(np.int64)))
    labels = np.concatenate([batch.column(1).to_numpy() for batch in tokenized.values()])
    sizes = {name: batch.num_rows for name, batch in tokenized.items()}
    texts = [text for name in tokenized for text in _texts(splits, name)]
    twins = count_twins(find_twins(texts, *joined_rows(rows), max_length), labels, sizes, num_classes)
    notes = _notes(splits, twins, sizes, audit)
    ends = np.cumsum(list(sizes.values()))
    columns: dict[str, NDArray[np.int64]] = {
        name: np.bincount(labels[end - sizes[name] : end], minlength=num_classes)
        for name, end in zip(sizes, ends, strict=True)
    }
    wrong = {
        DROPPED: np.array(splits.dropped or [0] * num_classes),
        REPEATED: twins.repeated,
        LEAKED: np.sum(list(twins.leaked.values()), axis=0),
        CONFLICTING: twins.conflicting,
    }
    columns |= {name: counts for name, counts in wrong.items() if counts.any()}
    header: list[str | int] = ["class", *columns]
    table: list[list[str | int]] = [
        [name, *(int(counts[i]) for counts in columns.values())] for i, name in enumerate(splits.label_names)
    ]
    return [header, *table], notes


def _texts(splits: Splits, name: str) -> list[str]:
    part = getattr(splits, name)
    if "pair" not in part.column_names:
        return list(part["text"])
    return [f"{first}\0{second}" for first, second in zip(part["text"], part["pair"], strict=True)]


def _notes(splits: Splits, twins: TwinCounts, sizes: Mapping[str, int], audit: AuditConfig) -> list[str]:
    notes = []
    conflicting, total = int(twins.conflicting.sum()), sum(sizes.values())
    if conflicting:
        described = f"{conflicting:,} of {total:,} examples have the text of one with another label"
        if conflicting / total > audit.max_conflicting_fraction:
            raise DataError(
                f"data: {described}, but at most data.audit.max_conflicting_fraction = "
                f"{audit.max_conflicting_fraction:g} of them may: no model can be right about them; repair the labels, "
                "or raise it"
            )
        notes.append(f"{described}: no model can be right about all of them")
    for name, counts in twins.leaked.items():
        leaked, size, equal = int(counts.sum()), sizes[name], twins.repeated_in_earlier[name]
        if not leaked:
            continue
        if equal / size > audit.max_leaked_fraction:
            raise DataError(
                f"data.{name}: {equal:,} of {size:,} {name} examples are also in an earlier split, but at most "
                f"data.audit.max_leaked_fraction = {audit.max_leaked_fraction:g} of them may be: scores on them do "
                "not say how a model does on new texts; remove the repeated texts from the file, or raise it"
            )
        notes.append(
            f"{leaked:,} of {size:,} {name} examples are also in an earlier split, {equal:,} word for word and "
            f"{leaked - equal:,} nearly so: scores on {name} are too good by as much"
        )
    return notes
