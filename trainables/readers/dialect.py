"""How the fields of a separated text file (CSV, TSV) are written, found from the whole file.

A quotation mark at the beginning of a field may quote it, or may be a character of the text. Read the wrong way, a
file loses records without an error: everything from one mark to the next becomes one field. So the whole file is read
each way, strictly, and a way is chosen that explains all of it.

The strict parser is Python's own ``csv``, but for files with backslashes before quotation marks.
"""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tailsweep.trainables.config.data import FileFormat
from tailsweep.trainables.errors import UnreadableError
from tailsweep.trainables.readers.columns import Wanted, is_header, names_by_content, numbered

SEPARATORS = (",", "\t", ";", "|")
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars", " ": "blanks"}
SAMPLE = 200_000  # characters that the separator is found from
CONSISTENT = 0.9  # share of the records with equally many fields, for a separator to be one

csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Dialect:
    """How a file is written."""

    separator: str
    quote: str | None = '"'  # None: no field is quoted, and each line is a record
    backslash: bool = False  # a quotation mark within quotation marks is written \" and not ""
    blank_after: bool = False  # a separator is followed by a blank that is not of the field
    header: bool = True

    def describe(self, content: str) -> str:
        """Describe how a file is written, in words."""
        parts = [f"separated by {NAMES.get(self.separator, repr(self.separator))}"]
        if self.blank_after:
            parts[0] += " and blanks"
        if '"' in content or self.quote not in (None, '"'):
            quoting = "with quotation marks as they are" if self.quote is None else f"quoted by {self.quote}"
            parts.append(quoting + (" with backslashes" if self.backslash else ""))
        if not self.header:
            parts.append("without a header")
        return ", ".join(parts)


@dataclass(frozen=True)
class Record:
    """The fields of a record, and the number of its first line, from 1."""

    fields: list[str]
    line: int


@dataclass(frozen=True)
class Table:
    """A file's records by its dialect."""

    dialect: Dialect
    names: list[str]  # of the columns, as the file has them; invented for a file without a header
    records: list[Record]  # each with as many fields as there are names, or fewer
    too_long: list[Record] = field(default_factory=list)  # with more fields than that: in no column
    named_by: str | None = None  # how the columns of a file without a header were distinguished


def read_table(content: str, fmt: FileFormat, usual: str, wanted: Wanted) -> Table:
    """Find the dialect of a file and read all of its records.

    Args:
        content: The characters of the file.
        fmt: What the user says about it.
        usual: The separator that files of its name have.
        wanted: The columns that are going to be read.

    Raises:
        UnreadableError: No dialect explains the file; the message names a line.
    """
    skipped = 0
    if content[:4].lower() == "sep=" and content[5:6] in ("\r", "\n"):  # Excel's way to say it
        fmt = fmt if fmt.separator else fmt.model_copy(update={"separator": content[4]})
        content, skipped = content[5:].removeprefix("\r").removeprefix("\n"), 1
    dialect = Dialect(fmt.separator or _separator(content, usual, wanted))
    dialect, records = _quoting(content, dialect, fmt, usual, wanted)
    if skipped:
        records = [Record(record.fields, record.line + skipped) for record in records]
    return as_table(records, dialect, fmt, wanted)


def as_table(records: Sequence[Record], dialect: Dialect, fmt: FileFormat, wanted: Wanted) -> Table:
    """Name the columns of a file's records, by its header or without one.

    Raises:
        UnreadableError: There are not as many columns as the user has named, or two of those to be read have one name.
    """
    if not records:
        return Table(dialect, [], [])
    fields = [record.fields for record in records]
    header = fmt.header
    if header is None:
        header = fields[0] == fmt.columns if fmt.columns else is_header(fields[0], fields[1:], wanted)
    names, named_by = fields[0], None
    width = len(names)
    if not header:
        width = Counter(map(len, fields)).most_common(1)[0][0]
        names, named_by = names_by_content(numbered(width), fields, wanted)
    if fmt.columns:
        if len(fmt.columns) != width:
            raise UnreadableError(f"data.format.columns names {len(fmt.columns)} columns, but the file has {width}")
        names, named_by = list(fmt.columns), None
    for name in wanted.names:
        if names.count(name) > 1:
            places = " and ".join(str(place) for place, other in enumerate(names, 1) if other == name)
            raise UnreadableError(
                f'its header has the name "{name}" twice, in columns {places}: rename one of them, or name the columns '
                "in data.format.columns with data.format.header: true"
            )
    rows = records[1:] if header else records
    return Table(
        replace(dialect, header=header),
        names,
        [record for record in rows if len(record.fields) <= width],
        [record for record in rows if len(record.fields) > width],
        named_by,
    )


def _separator(content: str, usual: str, wanted: Wanted) -> str:
    """Return the separator by which the first record has the wanted names, or else all records equally many fields."""
    sample = content[:SAMPLE]
    if len(content) > SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample
    separators = sorted(SEPARATORS, key=lambda separator: separator != usual)
    hits = {}
    for separator in separators:
        first = next(iter(_leniently(sample, separator)), [])
        hits[separator] = sum(name.strip() in wanted.names for name in first)
    if max(hits.values()) > 0:
        return max(separators, key=lambda separator: hits[separator])
    best = max(separators, key=lambda separator: _consistency(sample, separator))
    return best if _consistency(sample, best) >= CONSISTENT else usual


def _consistency(sample: str, separator: str) -> float:
    """Return the share of records with the usual number of fields, if that is at least two."""
    ways = (list(_leniently(sample, separator)), [fields for _, fields in _lines(sample, separator)])
    shares = [0.0]
    for records in ways:
        widths = Counter(len(fields) for fields in records)
        if widths:
            width, count = widths.most_common(1)[0]
            shares.append(count / len(records) if width > 1 else 0.0)
    return max(shares)


def _leniently(sample: str, separator: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True)
    return (fields for fields in reader if fields)


def _quoting(
    content: str, dialect: Dialect, fmt: FileFormat, usual: str, wanted: Wanted
) -> tuple[Dialect, list[Record]]:
    """Return the dialect with its quoting, and the records by it."""
    if fmt.quote == "none":
        dialect = replace(dialect, quote=None)
        return dialect, _records(content, dialect)
    quote = fmt.quote or '"'
    dialect = replace(dialect, quote=quote, blank_after=_has_blanks(content, dialect.separator))
    if quote not in content:  # the faster way to read it; a line break of any kind ends a record
        return dialect, _records(content, dialect)
    ways = [dialect]
    if fmt.escape == "backslash":
        ways = [replace(dialect, backslash=True)]
    elif fmt.escape is None and f"\\{quote}" in content:
        ways.append(replace(dialect, backslash=True))
    readings: list[tuple[Dialect, list[Record]]] = []
    problem: UnreadableError | None = None
    for way in ways:
        try:
            readings.append((way, _records(content, way)))
        except UnreadableError as error:
            problem = problem or error
    if fmt.quote is not None:  # as the user says
        if not readings:
            assert problem is not None
            raise problem
        return min(readings, key=_oddities)
    unquoted = replace(dialect, quote=None, blank_after=False)
    lines = (unquoted, _records(content, unquoted))
    if not readings:
        if _is_even(lines[1]):
            return lines
        assert problem is not None
        raise problem
    best = min(readings, key=_oddities)
    if fmt.escape is None and _is_even(lines[1]) and _are_literal(best, lines[1], usual, wanted):
        return lines
    return best


def _records(content: str, dialect: Dialect) -> list[Record]:
    """Read all records; empty lines are none, but in a file of one column.

    Raises:
        UnreadableError: A quoted field does not end as it must.
    """
    if dialect.quote is None:
        records = [Record(fields, line) for line, fields in _lines(content, dialect.separator, keep_empty=True)]
    else:
        records = list(_escaped(content, dialect) if dialect.backslash else _quoted(content, dialect))
    if records and max(len(record.fields) for record in records) > 1:
        return [record for record in records if record.fields not in ([], [""])]
    while records and records[-1].fields in ([], [""]):
        records.pop()
    return [Record(record.fields or [""], record.line) for record in records]


def _lines(content: str, separator: str, keep_empty: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line. Only what most lines end with ends a line."""
    lines = content.split("\n" if "\n" in content else "\r")
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if line or keep_empty:
            yield number, line.split(separator)


def _quoted(content: str, dialect: Dialect) -> Iterator[Record]:
    """Read records with fields in quotation marks, within which a mark is doubled."""
    assert dialect.quote is not None
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=dialect.separator,
        quotechar=dialect.quote,
        skipinitialspace=dialect.blank_after,
        strict=True,
    )
    line = 1
    try:
        for fields in reader:
            yield Record(fields, line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _misquoted(dialect.quote, line if "unexpected end" in str(error) else None, reader.line_num) from error


def _escaped(content: str, dialect: Dialect) -> Iterator[Record]:
    """Read records with fields in quotation marks, within which a backslash stands before a mark.

    Python's ``csv`` drops backslashes outside of quotation marks, too, and before any character.
    """
    assert dialect.quote is not None
    quote, separator = re.escape(dialect.quote), re.escape(dialect.separator)
    blank = " *" if dialect.blank_after else ""
    field_and_end = re.compile(
        rf"{blank}(?:{quote}((?:[^{quote}\\]|\\[\s\S])*+){quote}|([^{separator}\r\n]*+))({separator}|\r\n|\n|\r|\Z)"
    )
    escape = re.compile(rf"\\([{quote}\\])")
    place, line, first_line = 0, 1, 1
    fields: list[str] = []
    while place < len(content) or fields:
        match = field_and_end.match(content, place)
        if match is None or (match[2] is not None and match[2].startswith(dialect.quote)):
            raise _misquoted(dialect.quote, None, line)
        fields.append(escape.sub(r"\1", match[1]) if match[1] is not None else match[2])
        place = match.end()
        line += match[0].count("\n")
        if match[3] != dialect.separator:
            yield Record(fields if fields != [""] else [], first_line)
            fields, first_line = [], line
            if not match[3]:
                return


def _misquoted(quote: str, opened: int | None, line: int) -> UnreadableError:
    if opened is not None:
        problem = f"a {quote} opens a field in line {opened:,} and is never closed"
    else:
        problem = f"in line {line:,}, a {quote} that closes a field is not followed by a separator"
    return UnreadableError(
        f'{problem}: repair the line, or say how the file is written, such as data.format.quote: "none" where '
        "quotation marks are characters of the text"
    )


def _has_blanks(content: str, separator: str) -> bool:
    """Return whether every separator of the first line is followed by a blank."""
    first = content[:SAMPLE].split("\n", 1)[0]
    return separator != " " and first.count(separator) > 0 and first.count(separator) == first.count(f"{separator} ")


def _is_even(records: Sequence[Record]) -> bool:
    """Return whether all records have as many fields as the first, and more than one."""
    width = len(records[0].fields) if records else 0
    return width > 1 and all(len(record.fields) == width for record in records)


def _oddities(reading: tuple[Dialect, list[Record]]) -> tuple[int, int, int]:
    """Return how many records have an odd number of fields, marks with a backslash, and fields of several lines."""
    dialect, records = reading
    width = len(records[0].fields) if records else 0
    return (
        sum(len(record.fields) != width for record in records),
        sum(text.count(f"\\{dialect.quote}") for record in records for text in record.fields),
        sum(any("\n" in text for text in record.fields) for record in records),
    )


def _are_literal(reading: tuple[Dialect, list[Record]], lines: Sequence[Record], usual: str, wanted: Wanted) -> bool:
    """Return whether quotation marks are characters of the text, in a file that can be read both ways.

    Every line has equally many fields, so that no mark is needed around a separator or a line break. Marks that join
    lines do not quote if each of these lines is a record by itself, with a class that other records have. Otherwise
    marks quote if a writer had a reason: it doubles marks within a field, or quotes all fields of a column. Where
    neither is so, files with commas quote, and files with tabs do not.
    """
    dialect, records = reading
    quote = dialect.quote
    assert quote is not None
    if len(records) != len(lines):
        return _are_records(records, lines, quote, wanted)
    if dialect.backslash:
        return False
    columns = list(zip(*(record.fields for record in lines[1:]), strict=True))
    by_tabs = usual == "\t" or dialect.separator in "\t|"
    if by_tabs and any(quote in text and not text.startswith(quote) for column in columns for text in column):
        return True  # who quotes would have quoted these
    if any(all(text.startswith(quote) and text.endswith(quote) for text in column) for column in columns):
        return False
    quoted = [text for column in columns for text in column if text.startswith(quote)]
    if any(quote * 2 in text[1:-1] for text in quoted):
        return False
    return bool(quoted) and by_tabs


def _are_records(records: Sequence[Record], lines: Sequence[Record], quote: str, wanted: Wanted) -> bool:
    """Return whether each line that quotation marks join to others is a record, by the class that it has.

    It is not if all fields of all other lines are quoted: a writer who quotes everything has quoted these too.
    """
    whole = {record.line for record in records if not any("\n" in text for text in record.fields)}
    alone = [record for record in lines if record.line in whole]
    fields = [text for record in alone[1:] or alone for text in record.fields]
    if fields and all(len(text) > 1 and text.startswith(quote) and text.endswith(quote) for text in fields):
        return False
    place = None
    if wanted.label in lines[0].fields:
        place = lines[0].fields.index(wanted.label)
    else:  # the column with the fewest different values, if those come again
        different = [len(set(column)) for column in zip(*(record.fields for record in lines), strict=True)]
        if min(different) * 2 <= len(lines):
            place = different.index(min(different))
    if place is None:
        return True
    classes = {record.fields[place] for record in lines if record.line in whole}
    joined = [record for record in lines if record.line not in whole]
    known = [record for record in joined if record.fields[place] in classes]
    if known and len(known) < len(joined):
        raise UnreadableError(
            f"the quotation marks of line {joined[0].line:,} and the lines after it may quote a text of several lines, "
            'or be characters of texts: say which with data.format.quote: "none", or the character that quotes'
        )
    return bool(known)
