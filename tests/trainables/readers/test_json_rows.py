"""Rows of JSON, of every shape that such files come in."""

import json
from typing import Any

import datasets
import pytest
from tailsweep.trainables.readers import json_rows as json_reader
from tailsweep.trainables.readers.columns import Wanted


def json_rows(content: str) -> datasets.Dataset:
    return json_reader.json_rows(content)[0]


ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
LINES = '{"text": "a"}\n{"text": "b"}'


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, ROWS)),
        "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
        "".join(map(json.dumps, ROWS)),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps(ROWS),
        "  " + json.dumps(ROWS, indent=1) + "\n",
    ],
)
def test_a_list_of_objects_and_objects_one_after_another_are_rows(content: str) -> None:
    assert json_rows(content).to_list() == ROWS


def test_a_list_of_strings_is_of_texts() -> None:
    assert json_rows('["a", "b"]').to_list() == [{"text": "a"}, {"text": "b"}]


def test_what_a_row_does_not_have_is_none() -> None:
    rows = json_rows('null\n{"text": "a"}\n{"label": "x"}\nnull')
    assert rows["text"][:] == [None, "a", None, None]
    assert rows["label"][:] == [None, None, "x", None]
    assert json_rows('[null, {"text": "a"}]')["text"][:] == [None, "a"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ("a b", "string"),
        (["2026-01-31", "2026-02-01"], "string"),
        ([1, None, -(2**63)], "int64"),
        ([1, 2.5], "float64"),
        ([True, None], "bool"),
        ([None, None], "null"),
        ([1, "1", True, None, "{}"], "json"),
        ([2**63, 1], "json"),
        ([{"a": 1}, {"b": ["x", None]}, []], "json"),
    ],
)
def test_a_column_keeps_its_values_and_their_types(values: list[Any], kind: str) -> None:
    rows = json_rows("\n".join(json.dumps({"x": value}) for value in values))
    assert str(rows.features["x"]).lower().startswith(kind) or rows.features["x"].dtype == kind
    assert list(map(repr, rows["x"][:])) == [repr(float(v) if kind == "float64" else v) for v in values]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1", "row 1 is 1, but must be an object of names and values"),
        ('{"a": 1}\n[{"a": 1}]', r'row 2 is \[\{"a": 1\}\], but must be an object'),
        ('[{"a": 1}, [2]]', r"row 2 is \[2\], but must be an object"),
        ('[{"a": 1}]\n{"a": 2}', "there is more behind the list that it begins with"),
        ('{"a": 1, "a": 2}', 'an object has the name "a" twice'),
        (LINES + "\n{", "line 3 column 2"),
        (LINES + ",", "line 2 column 14"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": ["\\ud800"]}', "surrogates not allowed"),
        ("[" * 20_000, "nested too deeply"),
        ('{"a":' * 20_000, "nested too deeply"),
        ("9" * 5000, "limit"),
    ],
)
def test_content_that_is_not_rows_is_an_error(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_rows(content)


WANTED = Wanted(("text",), "label")
TABLE = [["so good", "pos"], ["so bad", "neg"], ["good", "pos"], ["bad", "neg"]]
OBJECTS = [{"text": text, "label": label} for text, label in TABLE]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (OBJECTS, None),
        (TABLE, "lists of values, column 2 taken for the label and column 1 for the text"),
        ([["text", "label"], *TABLE], "lists of values"),
        ({name: [row[name] for row in OBJECTS] for name in ("text", "label")}, "a list per column"),
        ({name: {str(i): row[name] for i, row in enumerate(OBJECTS)} for name in ("text", "label")},
         "an object per column"),
        ({"columns": ["text", "label"], "index": [0, 1, 2, 3], "data": TABLE}, 'of "columns" and "data"'),
        ({"schema": {"fields": []}, "data": OBJECTS}, 'the rows of "data"'),
        ({"features": [], "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(OBJECTS)]},
         'the rows of "rows"'),
        ({"id-7": OBJECTS[0], "id-3": OBJECTS[1], "id-5": OBJECTS[2], "id-9": OBJECTS[3]},
         "an object per row, by its key"),
        ({"train": [], "val": OBJECTS, "test": TABLE[:1]}, 'split "val"'),
        ({"oos_val": [["x", "oos"]], "val": TABLE, "train": TABLE[:1]},
         'split "val", lists of values, column 2 taken for the label and column 1 for the text'),
    ],
)  # fmt: skip
def test_every_shape_gives_its_rows(value: Any, shape: str | None) -> None:
    rows, seen = json_reader.json_rows(json.dumps(value), WANTED, "validation")
    assert rows.select_columns(["text", "label"]).to_list() == OBJECTS
    assert seen == shape


def test_lists_one_after_another_are_rows_or_lists_of_rows() -> None:
    lines = "\n".join(map(json.dumps, TABLE))
    assert json_reader.json_rows(lines, WANTED)[0].to_list() == OBJECTS
    pages = json.dumps(OBJECTS[:2]) + "\n" + json.dumps(OBJECTS[2:])
    assert json_reader.json_rows(pages, WANTED)[0].to_list() == OBJECTS


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": ["a", "b"], "label": ["x"]}, "its columns have different numbers of values: text 2, label 1"),
        ({"train": OBJECTS, "test": OBJECTS}, "its splits are train, test, and none is called validation"),
        ([["a", "x"], ["b", "y", "z"], ["c", "x"]], "row 2 has 3 values, but there are 2 columns"),
        ({"columns": ["text"], "data": TABLE}, "are not lists of as many values"),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_reader.json_rows(json.dumps(value), WANTED, "validation")
