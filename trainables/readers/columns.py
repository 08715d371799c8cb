"""Which columns a file has, and which of them hold texts and labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MANY = 20  # classes, and more if there are examples enough


@dataclass(frozen=True)
class Wanted:
    """The columns that are going to be read, by which a header is recognized."""

    texts: tuple[str, ...] = ("text",)
    label: str | None = None
    usual: bool = True  # no one has named them: in a file without names, what they hold may show which they are

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.texts, *(() if self.label is None else (self.label,)))


def numbered(width: int) -> list[str]:
    """Return the names of the columns of a file that does not name them.

    Example:
        >>> numbered(2)
        ['column_1', 'column_2']
    """
    return [f"column_{number}" for number in range(1, width + 1)]


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names for a dataset, where each comes once and none is empty.

    Example:
        >>> unique_names([" text", "", "n", "n"])
        ['text', 'column_2', 'n', 'n.4']
    """
    unique: list[str] = []
    for number, name in enumerate(names, 1):
        name = name.strip() or f"column_{number}"
        while name in unique:
            name += f".{number}"
        unique.append(name)
    return unique


def is_header(first: Sequence[object], rest: Sequence[Sequence[object]], wanted: Wanted) -> bool:
    """Return whether the first record names the columns: it has a wanted name, or no class of the others in its place.

    A column of classes has few different values, so that the first record of a file without a header has one that
    comes again.
    """
    names = {name.strip().casefold() for name in wanted.names}
    if not rest or any(isinstance(value, str) and value.strip().casefold() in names for value in first):
        return True
    for place, value in enumerate(first):
        column = Counter(str(record[place]) for record in rest if place < len(record))
        if column[str(value)] and len(column) <= max(MANY, len(rest) // 10) and len(column) < len(rest):
            return False
    return True


def names_by_content(
    names: Sequence[str], records: Sequence[Sequence[object]], wanted: Wanted
) -> tuple[list[str], str | None]:
    """Name the columns of a file that does not, where that is beyond doubt, and say so.

    Of two columns, the label is the one with few and short values, which come again and again. A file of one column
    has only texts.
    """
    named = list(names)
    if not wanted.usual or len(wanted.texts) != 1 or set(wanted.names) & set(names):
        return named, None
    if len(names) == 1 and wanted.label is None:
        return [wanted.texts[0]], None
    if len(names) != 2 or wanted.label is None:
        return named, None
    columns = [[str(record[place]) for record in records if place < len(record)] for place in (0, 1)]
    different = [len(set(column)) for column in columns]
    length = [sum(map(len, column)) / max(1, len(column)) for column in columns]
    label = different.index(min(different))
    if different[label] * 2 > len(records) or different[label] == different[1 - label]:
        return named, None
    if length[label] > length[1 - label]:
        return named, None
    named[label], named[1 - label] = wanted.label, wanted.texts[0]
    return named, f"column {label + 1} taken for the label and column {2 - label} for the text"
