"""Read one file of any type: its rows and columns, and in what form they were found.

The type follows from the first bytes where those are unmistakable, else from the name. The checks here are of the
file: that every record has a place, and that no field holds other records. What rows mean (text, label, splits) is the
business of ``splits``.
"""

import datetime
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import datasets
import pyarrow as pa
import pyarrow.parquet
from tailsweep.trainables.config.data import FileFormat
from tailsweep.trainables.errors import UnreadableError
from tailsweep.trainables.readers.columns import Wanted, unique_names
from tailsweep.trainables.readers.dialect import Dialect, Record, Table, as_table, read_table
from tailsweep.trainables.readers.encoding import Text, compression_of, decode, decompress, is_office
from tailsweep.trainables.readers.fasttext import fasttext_records, is_fasttext
from tailsweep.trainables.readers.json_rows import json_rows

SEPARATORS_BY_SUFFIX = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t", ".psv": "|"}
TYPES = {
    **dict.fromkeys(SEPARATORS_BY_SUFFIX, "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".parquet": "parquet",
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "excel"),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
OLD_EXCEL = b"\xd0\xcf\x11\xe0"  # of .xls


@dataclass(frozen=True)
class FileRows:
    """The rows of a file."""

    dataset: datasets.Dataset
    names: list[str]  # of the columns, as the file has them: they may come twice
    form: str | None = None  # in what form, if that is not what the file's name says
    too_long: tuple[int, ...] = ()  # lines of the records with more fields than there are columns, in no row


class FileError(ValueError):
    """A file has no rows to give; the message says what it is or has, after its name."""


def read_bytes(content: bytes, name: str, fmt: FileFormat, wanted: Wanted, role: str | None = None) -> FileRows:
    """Read the rows of a file.

    Args:
        content: The bytes of the file.
        name: Its name, for its type.
        fmt: What the user says about it.
        wanted: The columns that are going to be read.
        role: The split to take of a JSON file that has several.

    Raises:
        FileError: It is empty or ambiguous.
        UnreadableError: It is damaged, or not written as it is said to be.
        Exception: Whatever else a reader raises for a damaged file.
    """
    form: list[str] = []
    compression = fmt.compression or compression_of(content)
    if compression not in (None, "none"):
        assert compression is not None
        content, inner = decompress(content, compression)
        if not name.lower().endswith(COMPRESSED):
            form.append(f"compressed by {compression}")
        name = inner or (name.rpartition(".")[0] if name.lower().endswith(COMPRESSED) else name)
    if not content:
        raise FileError("is empty")
    kind = fmt.type or _type(content, name)
    if fields := fmt.without_effect(kind):
        form.append(f"of type {kind}, which data.format.{' and data.format.'.join(fields)} says nothing about")
    if kind in ("parquet", "excel"):
        rows = _parquet(content) if kind == "parquet" else _excel(content, fmt, wanted)
        return replace(rows, form=_joined([*form, *([] if rows.form is None else [rows.form])]))
    text = decode(content, fmt.encoding)
    if not text.content.strip():
        raise FileError("has no rows")
    if kind == "json":
        form += _describe_encoding(text)
        dataset, shape = json_rows(text.content, wanted, role)
        form += [] if shape is None else [shape]
        return FileRows(dataset, dataset.column_names, _joined(form))
    if fmt.separator is None and is_fasttext(text.content):
        return _fasttext(text, wanted)
    usual = SEPARATORS_BY_SUFFIX.get(_suffix(name), ",")
    table = read_table(text.content, fmt, usual, wanted)
    rows = _rows_of(table, wanted)
    if not _is_plain(table.dialect, usual, text.content):
        form.append(table.dialect.describe(text.content))
    form += _describe_encoding(text)
    if rows.form is not None:
        form.append(rows.form)
    return FileRows(rows.dataset, rows.names, _joined(form), rows.too_long)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _type(content: bytes, name: str) -> str:
    if content.startswith(b"PAR1"):
        return "parquet"
    if content.startswith(OLD_EXCEL) or (content.startswith(b"PK\x03\x04") and is_office(content)):
        return "excel"
    kind = TYPES.get(_suffix(name))
    if kind in (None, "csv") and _suffix(name) not in (".csv", ".tsv"):
        return "json" if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else "csv"
    assert kind is not None
    return kind


def _describe_encoding(text: Text) -> list[str]:
    if text.guessed_by is None:
        return [] if text.encoding == "utf-8" else [f"encoded as {text.encoding}"]
    return [f'encoded as {text.encoding} by its bytes ("{text.guessed_by:.60}")']


def _joined(form: Sequence[str]) -> str | None:
    return ", ".join(form) or None


def _is_plain(dialect: Dialect, usual: str, content: str) -> bool:
    """Return whether a dialect is what the file's name says: other ways to quote differ where something is quoted."""
    return (
        dialect.separator == usual
        and dialect.header
        and not dialect.blank_after
        and (dialect.quote == '"' or '"' not in content)
        and not dialect.backslash
    )


def _rows_of(table: Table, wanted: Wanted) -> FileRows:
    """Return the columns of a table, as strings; None where a record is too short."""
    if not table.records:
        too_long = ": each has more fields than there are columns in its first line" if table.too_long else ""
        raise FileError(f"has no rows{too_long}")
    _check_no_records_within(table, wanted)
    columns = list(itertools.zip_longest(*(record.fields for record in table.records)))
    columns += [(None,) * len(table.records)] * (len(table.names) - len(columns))
    schema = pa.schema([(name, pa.string()) for name in unique_names(table.names)])
    arrow = pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=schema)
    return FileRows(
        datasets.Dataset(arrow), table.names, table.named_by, tuple(record.line for record in table.too_long)
    )


def _check_no_records_within(table: Table, wanted: Wanted) -> None:
    """Check that no quoted field holds whole records: a quotation mark that does not quote would make one of them.

    Raises:
        UnreadableError: A line within a field has the label of another record in the label's place.
    """
    if table.dialect.quote is None or wanted.label is None or wanted.label not in table.names:
        return
    place, width = table.names.index(wanted.label), len(table.names)
    labels = {record.fields[place] for record in table.records if place < len(record.fields)}
    for record in table.records:
        for text in record.fields:
            if "\n" not in text:
                continue
            for line in text.split("\n"):
                fields = [part.strip().strip('"') for part in line.split(table.dialect.separator)]
                if len(fields) == width > 1 and fields[place] in labels:
                    raise UnreadableError(
                        f"the field that begins in line {record.line:,} holds a whole record within its quotation "
                        f'marks ("{line:.60}"): close them, or if they do not quote, set data.format.quote: "none"'
                    )


def _fasttext(text: Text, wanted: Wanted) -> FileRows:
    names = [wanted.label or "label", wanted.texts[0]]
    columns = zip(*(fields for _, fields in fasttext_records(text.content)), strict=True)
    arrow = pa.table(dict(zip(names, (pa.array(column, pa.string()) for column in columns), strict=True)))
    return FileRows(datasets.Dataset(arrow), names, _joined(["lines of fastText", *_describe_encoding(text)]))


def _parquet(content: bytes) -> FileRows:
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    if table.num_rows == 0:
        raise FileError("has no rows")
    names = table.column_names
    dataset = datasets.Dataset(table.rename_columns(unique_names(names)) if len(set(names)) < len(names) else table)
    return FileRows(dataset, names)


def _excel(content: bytes, fmt: FileFormat, wanted: Wanted) -> FileRows:
    try:
        from python_calamine import CalamineWorkbook
    except ImportError:
        raise FileError("is of Excel, which needs a package more: pip install 'tailsweep[excel]'") from None
    book = CalamineWorkbook.from_filelike(io.BytesIO(content))
    sheets = list(book.sheet_names)
    if fmt.sheet is not None and fmt.sheet not in sheets:
        raise FileError(f'has no sheet "{fmt.sheet}": its sheets are {", ".join(sheets)}')
    cells = {
        name: book.get_sheet_by_name(name).to_python(skip_empty_area=True)
        for name in ([fmt.sheet] if fmt.sheet is not None else sheets)
    }
    filled = [name for name, rows in cells.items() if rows]
    if not filled:
        raise FileError("has no rows")
    if len(filled) > 1:
        raise FileError(f"has several sheets ({', '.join(filled)}): name one in data.format.sheet")
    rows = [[_cell(value) for value in row] for row in cells[filled[0]]]
    records = [Record(row, number) for number, row in enumerate(rows, 1) if any(row)]
    table = as_table(records, Dialect(","), fmt, wanted)
    sheet_rows = _rows_of(table, wanted)
    form = [f'sheet "{filled[0]}"'] if len(sheets) > 1 else []
    if sheet_rows.form is not None:
        form.append(sheet_rows.form)
    return FileRows(sheet_rows.dataset, sheet_rows.names, _joined(form))


def _cell(value: object) -> str:
    """Return a cell as text: numbers without a point where they have none to show, dates in ISO 8601."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return str(value)
