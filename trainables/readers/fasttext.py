"""The lines of a fastText file: ``__label__CLASS text``."""

import re
from collections.abc import Iterator

PREFIX = "__label__"
LINE = re.compile(rf"((?:{PREFIX}\S+[ \t]+)*{PREFIX}\S+)(?:[ \t]+(.*))?")


def is_fasttext(content: str) -> bool:
    """Return whether the first line with anything in it begins with a label of fastText."""
    return content.lstrip().startswith(PREFIX)


def fasttext_records(content: str) -> Iterator[tuple[int, list[str | None]]]:
    """Yield the number of each line, from 1, and its label and text; several labels are joined by commas.

    Example:
        >>> list(fasttext_records("__label__pos so good"))
        [(1, ['pos', 'so good'])]
    """
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        labels = match[1].split() if match else []
        text = line.strip() if match is None else match[2] or ""
        yield number, [",".join(label.removeprefix(PREFIX) for label in labels) or None, text]
