"""The rows of a JSON file, in whatever shape it holds them.

They are objects one after another, such as JSON Lines, or a list of objects. Other shapes are as common: lists of
values in place of objects, a list per column, and all of these below the name of a split or of nothing in particular.

By Python's own parser. That of Arrow (pyarrow 26.0), by which ``datasets`` reads such files, ends the whole process
where a block begins with null and where values are nested deeply, and makes times of strings that look like dates.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import datasets
from tailsweep.trainables.readers.columns import Wanted, is_header, names_by_content, numbered

SPACE = re.compile(r"[ \t\r\n]*")
INT64 = range(-(2**63), 2**63)
SPLIT_NAMES = {  # as `datasets` takes the names of files
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def json_rows(
    content: str, wanted: Wanted | None = None, split: str | None = None
) -> tuple[datasets.Dataset, str | None]:
    """Return a column per name, in order of appearance, and the shape that the rows were found in.

    A list of strings has one column, ``text``. Strings, numbers and booleans are columns of their type; what is nested
    or of several types is a column of ``datasets.Json`` values. A row that lacks a name, or is null, has None there.

    Args:
        wanted: The columns that are going to be read.
        split: Which rows to take of a file that has several splits; None: a file that has is refused.

    Returns:
        The rows; and the shape in words, None for objects.

    Raises:
        ValueError: it is not JSON, not of rows, or a name comes twice in an object; the message says where.
    """
    try:
        rows, shape = _rows(list(_values(content)), wanted or Wanted(), split)
    except RecursionError:
        raise ValueError("it has values that are nested too deeply") from None
    columns: dict[str, list[object]] = {}
    features = datasets.Features()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        features[name] = _feature(values)
        columns[name] = values
        if isinstance(features[name], datasets.Json):  # which takes a string for a value written as JSON
            columns[name] = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return datasets.Dataset.from_dict(columns, features), shape


Rows = tuple[list[dict[str, object]], str | None]


def _rows(values: list[object], wanted: Wanted, split: str | None) -> Rows:
    """Return the rows of a file's values, and their shape."""
    if len(values) == 1 and isinstance(values[0], dict):
        return _rows_of_object(values[0], wanted, split)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    elif isinstance(values[0] if values else None, list) and not all(isinstance(value, list) for value in values):
        raise ValueError("there is more behind the list that it begins with")
    lists = [value for value in values if isinstance(value, list)]
    if lists and len(lists) == len(values):
        if all(isinstance(row, dict) for page in lists for row in page):  # a list of objects after another
            return [_row(row, number) for number, row in enumerate(itertools.chain(*lists), 1)], None
        return _rows_of_lists(lists, wanted)
    return [_row(value, number) for number, value in enumerate(values, 1)], None


def _rows_of_lists(records: Sequence[Sequence[object]], wanted: Wanted) -> Rows:
    """Return rows of lists of values: a table, with a header or without one."""
    first = records[0]
    if bool(first) and all(isinstance(value, str) for value in first) and is_header(first, records[1:], wanted):
        names, named_by, rows = [str(value) for value in first], None, records[1:]
    else:
        width = Counter(map(len, records)).most_common(1)[0][0]
        names, named_by = names_by_content(numbered(width), records, wanted)
        rows = records
    if len(set(names)) < len(names):
        raise ValueError(f"the names of its columns come twice: {', '.join(names)}")
    for number, record in enumerate(rows, 1 + len(records) - len(rows)):
        if len(record) > len(names):
            raise ValueError(f"row {number} has {len(record)} values, but there are {len(names)} columns")
    shape = "lists of values" + (f", {named_by}" if named_by else "")
    return [dict(zip(names, record, strict=False)) for record in rows], shape


def _rows_of_object(value: dict[str, object], wanted: Wanted, split: str | None) -> Rows:
    """Return the rows of a file that is one object: one row, a list per column, or rows below some name."""
    lists = {name: part for name, part in value.items() if isinstance(part, list)}
    if set(wanted.names) & value.keys():
        return _columns(value, wanted)
    if isinstance(names := value.get("columns"), list) and isinstance(data := value.get("data"), list):
        if not all(isinstance(record, list) and len(record) == len(names) for record in data):
            raise ValueError('its "data" are not lists of as many values as there are "columns"')
        return [dict(zip(map(str, names), record, strict=True)) for record in data], 'of "columns" and "data"'
    tables = {name: part for name, part in lists.items() if part and all(isinstance(row, dict | list) for row in part)}
    by_split = {role: name for role, names in SPLIT_NAMES.items() for name in tables if name.strip().lower() in names}
    if by_split:
        if split not in by_split:
            raise ValueError(
                f"its splits are {', '.join(value)}" + (f", and none is called {split}" if split else ": take one out")
            )
        rows, shape = _rows([tables[by_split[split]]], wanted, None)
        return rows, f'split "{by_split[split]}"' + (f", {shape}" if shape else "")
    if len(tables) == 1:
        (name, table), *_ = tables.items()
        rows, shape = _rows([_unwrapped(table)], wanted, None)
        return rows, f'the rows of "{name}"' + (f", {shape}" if shape else "")
    inner = [part for part in value.values() if isinstance(part, dict)]
    if len(inner) == len(value) > 0 and any(set(wanted.names) & part.keys() for part in inner):
        return [_row(part, number) for number, part in enumerate(inner, 1)], "an object per row, by its key"
    return [_row(value, 1)], None


def _columns(value: Mapping[str, object], wanted: Wanted) -> Rows:
    """Return the rows of an object with the names of columns: a row by itself, or a list or an object per column."""
    wanted_parts = [value[name] for name in wanted.names if name in value]
    if all(isinstance(part, list) for part in wanted_parts):
        columns = {name: part for name, part in value.items() if isinstance(part, list)}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise ValueError(f"its columns have different numbers of values: {described}")
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows], "a list per column"
    if all(isinstance(part, dict) for part in wanted_parts):
        by_key = {name: part for name, part in value.items() if isinstance(part, dict)}
        keys = dict.fromkeys(key for part in by_key.values() for key in part)
        return [{name: part.get(key) for name, part in by_key.items()} for key in keys], "an object per column"
    return [_row(value, 1)], None


def _unwrapped(table: list[object]) -> list[object]:
    """Take the rows out of objects that number them, as the hub's viewer writes them."""
    if all(isinstance(row, dict) and isinstance(row.get("row"), dict) and "row_idx" in row for row in table):
        return [row["row"] for row in table if isinstance(row, dict)]
    return table


def _values(content: str) -> Iterator[object]:
    """Of a text of any number of JSON values."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    place = SPACE.match(content, 0).end()  # type: ignore[union-attr]
    while place < len(content):
        value, place = decoder.raw_decode(content, place)
        yield value
        place = SPACE.match(content, place).end()  # type: ignore[union-attr]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    pairs_by_name = dict(pairs)
    if len(pairs_by_name) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'an object has the name "{twice}" twice')
    return pairs_by_name


def _row(value: object, number: int) -> dict[str, object]:
    if isinstance(value, str):
        return {"text": value}
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"row {number} is {json.dumps(value):.40}, but must be an object of names and values")
    return value or {}


def _feature(values: list[object]) -> datasets.Value | datasets.Json:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return datasets.Value("null")
    if kinds == {str}:
        return datasets.Value("string")
    if kinds == {bool}:
        return datasets.Value("bool")
    if kinds == {int} and all(value is None or value in INT64 for value in values):
        return datasets.Value("int64")
    if float in kinds and kinds <= {int, float}:
        return datasets.Value("float64")
    return datasets.Json()
