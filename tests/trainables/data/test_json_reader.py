"""Rows of JSON, of every shape that such files come in."""

import json
from typing import Any

import pytest
from tailsweep.trainables.data.json_reader import json_rows

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
