"""The dialect of a separated file, found or given; no record is lost without a word."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tailsweep.trainables.config.data import FileFormat
from tailsweep.trainables.errors import UnreadableError
from tailsweep.trainables.readers.columns import Wanted
from tailsweep.trainables.readers.files import FileError, FileRows, read_bytes

WANTED = Wanted(("text",), "label")


def read(content: str | bytes, name: str = "a.csv", wanted: Wanted = WANTED, **fmt: Any) -> FileRows:
    return read_bytes(content if isinstance(content, bytes) else content.encode(), name, FileFormat(**fmt), wanted)


def pairs(rows: FileRows) -> list[tuple[str, str]]:
    return list(zip(rows.dataset["text"], rows.dataset["label"], strict=True))


CHARACTERS = st.sampled_from([*"aab  ", '"', '""', ",", ";", "\t", "|", "\n", "'", "\\", '\\"', ". "])
TEXT = st.lists(CHARACTERS, min_size=1, max_size=12).map("".join).filter(str.strip)
ROWS = st.lists(st.tuples(TEXT, st.sampled_from(["x", "y", "z"])), min_size=6, max_size=30)
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "commas": ("a.csv", {}),
    "all quoted": ("a.csv", {"quoting": csv.QUOTE_ALL}),
    "semicolons": ("a.csv", {"delimiter": ";", "lineterminator": "\n"}),
    "tabs": ("a.tsv", {"delimiter": "\t"}),
}


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(sorted(WRITERS)), st.booleans())
def test_what_a_writer_quotes_is_read_cell_by_cell_or_refused(
    rows: list[tuple[str, str]], writer: str, label_first: bool
) -> None:
    name, options = WRITERS[writer]
    order = slice(None, None, -1) if label_first else slice(None)
    sink = io.StringIO(newline="")
    csv.writer(sink, **options).writerows([("text", "label")[order], *(row[order] for row in rows)])
    try:
        got = read(sink.getvalue(), name)
    except (UnreadableError, FileError):
        return
    assert len(got.dataset) + len(got.too_long) == len(rows)
    assert pairs(got) == rows


def test_a_line_break_after_a_separator_is_of_the_text_where_all_else_is_quoted() -> None:
    rows = [("a", "x"), ("a", "x"), ("a", "x"), ("a", "z"), ("aa", "y"), ("a,\n", "x")]
    content = "".join(f'"{text}","{label}"\n' for text, label in [("text", "label"), *rows])
    assert pairs(read(content)) == rows


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans())
def test_no_line_is_lost_where_nothing_is_quoted(rows: list[tuple[str, str]], label_first: bool) -> None:
    rows = [(text.replace("\n", "").replace("\t", "") or "a", label) for text, label in rows]
    order = slice(None, None, -1) if label_first else slice(None)
    lines = [("text", "label")[order], *(row[order] for row in rows)]
    try:
        got = read("".join("\t".join(line) + "\n" for line in lines), "a.tsv")
    except (UnreadableError, FileError):
        return
    assert len(got.dataset) == len(rows)
    assert got.dataset["label"][:] == [label for _, label in rows]


@pytest.mark.parametrize(
    ("content", "fmt", "expected"),
    [
        ("a~x\nb~y\n", {"separator": "~", "header": False, "columns": ["text", "label"]}, [("a", "x"), ("b", "y")]),
        ("text,label\n'a, b',x\n", {"quote": "'"}, [("a, b", "x")]),
        ('text,label\n"a",x\n', {"quote": "none"}, [('"a"', "x")]),
        ('text\tlabel\n"a\tx\nb"\ty\n', {"quote": "none"}, [('"a', "x"), ('b"', "y")]),
        ("text,label\nx,y\n", {"header": False, "columns": ["text", "label"]}, [("text", "label"), ("x", "y")]),
        ("t,l\nx,y\n", {"header": True, "columns": ["text", "label"]}, [("x", "y")]),
        ("text,label\ncaf\u00e9,x\n".encode("cp1250"), {"encoding": "windows-1250"}, [("caf\u00e9", "x")]),
        ("text,label\na,x\n".encode("utf-16-le"), {"encoding": "utf-16-le"}, [("a", "x")]),
        ('text,label\n"a ""b""",x\n', {"escape": "doubled"}, [('a "b"', "x")]),
    ],
)
def test_a_format_that_is_given_is_used(
    content: str | bytes, fmt: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert pairs(read(content, **fmt)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separator": ""}, "at least 1"),
        ({"separator": "::"}, "at most 1"),
        ({"encoding": "utf-99"}, "is not an encoding of text that Python knows, such as utf-8"),
        ({"encoding": "base64"}, "is not an encoding of text"),
        ({"columns": ["a", "a"]}, "has a name twice"),
        ({"separator": '"', "quote": '"'}, "are both"),
        ({"quote": "none", "escape": "backslash"}, "leave one of them out"),
        ({"type": "parquet", "separator": ";"}, "type is parquet, which has no separator: leave that out"),
        ({"type": "json", "quote": '"', "header": True}, "has no quote and no header"),
        ({"type": "csv", "sheet": "rows"}, "has no sheet"),
        ({"type": "excel", "encoding": "utf-8"}, "has no encoding"),
    ],
)
def test_a_format_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FileFormat(**fields)


def test_what_means_nothing_in_a_file_is_said() -> None:
    rows = read_bytes(b'[{"text": "a", "label": "x"}]', "rows.json", FileFormat(separator=";", header=True), Wanted())
    assert rows.form == "of type json, which data.format.separator and data.format.header says nothing about"


def test_a_name_that_comes_twice_is_no_matter_where_no_one_reads_it() -> None:
    rows = read("n,text,n,label,\n1,a,2,x,\n")
    assert rows.names == ["n", "text", "n", "label", ""]
    assert rows.dataset.column_names == ["n", "text", "n.3", "label", "column_5"]
    with pytest.raises(UnreadableError, match=r'the name "text" twice, in columns 1 and 2'):
        read("text,text,label\na,b,x\n")


def test_a_file_without_names_is_understood_where_that_is_beyond_doubt() -> None:
    lines = "".join(f"{'spam' if i % 3 else 'ham'}\tthe text of message {i}\n" for i in range(12))
    rows = read(lines, "a.tsv")
    assert rows.dataset["label"][:3] == ["ham", "spam", "spam"]
    assert rows.form == ("separated by tabs, without a header, column 1 taken for the label and column 2 for the text")
    assert read(lines, "a.tsv", Wanted(("body",), "kind", usual=False)).names == ["column_1", "column_2"]
    three = read(lines.replace("\t", "\tid\t"), "a.tsv")
    assert three.names == ["column_1", "column_2", "column_3"]


def test_records_that_are_too_long_are_counted_by_line_and_short_ones_have_gaps() -> None:
    rows = read('text,label\na,x\nb,y,z\n"c\nc",x\nd\ne,x,,\n')
    assert pairs(rows) == [("a", "x"), ("c\nc", "x"), ("d", None)]
    assert rows.too_long == (3, 7)


def test_empty_lines_are_records_of_a_file_of_one_column_only() -> None:
    assert read("text\na\n\nb\n\n", wanted=Wanted()).dataset["text"][:] == ["a", "", "b"]
    assert pairs(read("text,label\na,x\n\nb,y\n\n")) == [("a", "x"), ("b", "y")]
