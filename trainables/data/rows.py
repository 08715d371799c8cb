"""The rows of a source that can be used: those with a text and a label."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import datasets
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.audit import audit_dropped
from tailsweep.trainables.data.labels import label_names
from tailsweep.trainables.data.sources import Role, SourceRows
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.readers.columns import Wanted


@dataclass(frozen=True)
class Rows:
    """Texts and the names of their classes."""

    texts: list[str]
    labels: list[str]
    label_order: tuple[str, ...] | None = None  # of a ClassLabel: its names
    pairs: list[str] | None = None  # the second text of each row, if rows are pairs
    dropped: Counter[str] = field(default_factory=Counter)  # of each class, the rows that cannot be used

    def pick(self, rows: Iterable[int]) -> Self:
        """Return some of the rows, by their numbers."""
        rows = list(rows)
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
        )

    def rename(self, changed: Mapping[str, str | None]) -> Self:
        """Return the rows with other labels, without those whose new label is None."""
        new = [changed.get(name, name) for name in self.labels]
        kept = self.pick(row for row, name in enumerate(new) if name is not None)
        order = self.label_order
        if order is not None:
            order = tuple(dict.fromkeys(name for old in order if (name := changed.get(old, old)) is not None))
        dropped = Counter[str]()
        for name, count in self.dropped.items():
            dropped[changed.get(name, name) or name] += count
        return replace(kept, labels=[name for name in new if name is not None], label_order=order, dropped=dropped)


@dataclass(frozen=True)
class RowColumns:
    """The columns that hold texts and labels, and the fields of ``data`` that name them."""

    texts: tuple[str, ...]
    label: str
    text_setting: str = "text_column"
    label_setting: str = "label_column"


def row_columns(config: DataConfig) -> RowColumns:
    """Return the columns that ``data`` names."""
    return RowColumns(config.text_columns, config.label_column)


def wanted_columns(config: DataConfig, columns: RowColumns | None = None) -> Wanted:
    """Return what is known of a source's columns before it is read."""
    columns = columns or row_columns(config)
    defaults = DataConfig.model_fields
    usual = (columns.texts, columns.label) == (
        (defaults["text_column"].default,),
        defaults["label_column"].default,
    )
    return Wanted(columns.texts, columns.label, usual and (config.format is None or config.format.columns is None))


def usable_rows(
    source_rows: SourceRows, role: Role, source: str, columns: RowColumns, config: DataConfig, notes: list[str]
) -> tuple[Rows, list[int]]:
    """Return the rows of a source that have a text and a label, and their numbers in it.

    The texts of several columns are joined by line breaks, or are the tokenizer's pair.

    Args:
        source_rows: what was read.
        role: of the source, for messages.
        source: its name, for messages.
        columns: which columns hold what.
        config: how many rows may be unusable.
        notes: what the user should know is added here.

    Raises:
        DataError: a column is missing or of a type that cannot be used, or too many rows are unusable.
    """
    dataset, refused = source_rows.dataset, source_rows.refused
    notes += [f'data.{role}: "{source}" was read as: {form} (data.format sets it)' for form in source_rows.forms]
    parts = [column_of(dataset, name, columns.text_setting, role) for name in columns.texts]
    labels_given = column_of(dataset, columns.label, columns.label_setting, role)
    names, label_order = label_names(labels_given, dataset.features[columns.label], columns.label, f"data.{role}")

    num_rows = len(labels_given)
    are_strings = [all(part[row] is None or isinstance(part[row], str) for part in parts) for row in range(num_rows)]
    has_text = [
        are_strings[row] and any(part[row] is not None and part[row].strip() for part in parts)
        for row in range(num_rows)
    ]
    kept = [row for row, name in enumerate(names) if has_text[row] and name is not None]
    dropped = Counter(name for row, name in enumerate(names) if not has_text[row] and name is not None)
    total = num_rows + len(refused)
    if len(kept) < total:
        faults = {
            "an empty text": sum(good and not text for good, text in zip(are_strings, has_text, strict=True)),
            "a text that is not a string": are_strings.count(False),
            "no label": names.count(None),
            f"more fields than there are columns ({listed(refused, 3)})": len(refused),
        }
        reasons = ", ".join(f"{count:,} with {fault}" for fault, count in faults.items() if count)
        _check_share(total - len(kept), total, reasons, role, source, config)
        counts = Counter(name for row in kept if (name := names[row]) is not None)
        by_class = audit_dropped(counts, dropped, config.audit, f"data.{role}")
        notes.append(f"data.{role}: {total - len(kept):,} of {total:,} rows were dropped: {reasons}{by_class}")
    labels = [name for row in kept if (name := names[row]) is not None]
    texts, seconds = join_texts([[part[row] for row in kept] for part in parts], config.text_pair)
    return Rows(texts, labels, label_order, seconds if config.text_pair else None, dropped), kept


def _check_share(dropped: int, total: int, reasons: str, role: Role, source: str, config: DataConfig) -> None:
    """Raise :class:`DataError` if too many rows cannot be used."""
    if dropped == total:
        raise DataError(f'data.{role}: none of the {total:,} rows of "{source}" can be used: {reasons}')
    if dropped / total > config.max_dropped_fraction:
        raise DataError(
            f'data.{role}: {dropped:,} of {total:,} rows of "{source}" cannot be used ({reasons}), but at most '
            f"data.max_dropped_fraction = {config.max_dropped_fraction:g} of them may be dropped: fix the file or "
            "raise max_dropped_fraction"
        )


def join_texts(parts: Sequence[Sequence[str | None]], as_pair: bool) -> tuple[list[str], list[str]]:
    r"""Join the texts of several columns.

    Args:
        parts: the texts of each column; those of one column stay what they are.
        as_pair: keep the two columns apart, as the two texts of the tokenizer's pair.

    Returns:
        The text of each row, and the second one of its pair or "".

    Example:
        >>> join_texts([["title", None], ["body", "only"]], as_pair=False)
        (['title\nbody', 'only'], ['', ''])
    """
    if as_pair:
        first, second = ([text or "" for text in part] for part in parts)
        return first, second
    if len(parts) == 1:
        return [text or "" for text in parts[0]], [""] * len(parts[0])
    rows = zip(*parts, strict=True)
    return ["\n".join(text for text in row if text and text.strip()) for row in rows], [""] * len(parts[0])


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


def listed(names: Sequence[str], most: int = 10) -> str:
    """Join at most ``most`` names, and count the others: ``"a, b and 3 more"``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
