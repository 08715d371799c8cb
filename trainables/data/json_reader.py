"""The rows of a JSON file: a list of objects, or objects one after another, such as JSON Lines.

By Python's own parser. That of Arrow (pyarrow 26.0), by which ``datasets`` reads such files, ends the whole process
where a block begins with null and where values are nested deeply, and makes times of strings that look like dates.
"""

import json
import re
from collections.abc import Iterator

import datasets

SPACE = re.compile(r"[ \t\r\n]*")
INT64 = range(-(2**63), 2**63)


def json_rows(content: str) -> datasets.Dataset:
    """Return a column per name, in order of appearance; None where a row has no such name, or is null.

    A list of strings has one column, ``text``. Strings, numbers and booleans are columns of their type; what is nested
    or of several types is a column of ``datasets.Json`` values.

    Raises:
        ValueError: it is not JSON, not of rows, or a name comes twice in an object; the message says where.
    """
    rows = list(_rows(content))
    columns: dict[str, list[object]] = {}
    features = datasets.Features()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        features[name] = _feature(values)
        columns[name] = values
        if isinstance(features[name], datasets.Json):  # which takes a string for a value written as JSON
            columns[name] = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return datasets.Dataset.from_dict(columns, features)


def _rows(content: str) -> Iterator[dict[str, object]]:
    values = _values(content)
    try:
        for number, value in enumerate(values, 1):
            if number == 1 and isinstance(value, list):
                yield from (_row(element, place) for place, element in enumerate(value, 1))
                for _ in values:
                    raise ValueError("there is more behind the list that it begins with")
            else:
                yield _row(value, number)
    except RecursionError:
        raise ValueError("it has values that are nested too deeply") from None


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
