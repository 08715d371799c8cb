"""Data files as public datasets and common programs write them, made here from the description of each.

Every file holds the same examples as far as its kind of file can, so that what is read can be compared with what was
written. None is written by what reads it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.rows import row_columns, usable_rows, wanted_columns
from tailsweep.trainables.data.sources import read_source

Row = tuple[str, str]  # text, label

PLAIN: list[Row] = [(f"the {word} of row {i} was fine", label) for i, (word, label) in enumerate(
    zip(("peak", "bile", "dose", "gut") * 5, ("pos", "neg", "pos", "pos", "neg") * 4, strict=True))]  # fmt: skip
QUOTES: list[Row] = [
    ('"so good', "pos"), ("it's 5\" wide", "neg"), ('"quoted" at first', "pos"), ('he said "no', "neg"),
    ('and "yes" too', "pos"), ('ends in "', "neg"), *PLAIN,
]  # fmt: skip
COMMAS: list[Row] = [("well, it is; or not", "pos"), ("a | b, c", "neg"), *PLAIN]
LINES: list[Row] = [('two\nlines, and "marks"', "neg"), ("one\n\nthree", "pos"), *QUOTES, *COMMAS]
GERMAN: list[Row] = [
    ("Die Größe der Dosis überschreitet das übliche Maß", "gut"), ("Schöne Grüße aus München", "schlecht"),
    ("Kaffee für 20 € – „naïv“", "gut"), ("Ärzte prüfen die Blutwerte täglich", "schlecht"),
]  # fmt: skip
RUSSIAN: list[Row] = [
    ("Съешь же ещё этих мягких французских булок", "да"), ("Очень плохое качество, не советую никому", "нет"),
    ("Быстрая доставка и хорошая упаковка", "да"), ("Деньги на ветер, больше не закажу", "нет"),
]  # fmt: skip
JAPANESE: list[Row] = [
    ("とても良い商品でした。また買いたいと思います。", "良い"), ("品質が悪くて、すぐに壊れました。", "悪い"),
    ("配送が早くて助かりました。", "良い"), ("説明と違う物が届きました。", "悪い"),
]  # fmt: skip
CHINESE: list[Row] = [
    ("这个产品很好，我非常喜欢它", "好"), ("质量太差了，完全不值这个价钱", "差"),
    ("快递很快，包装也很好", "好"), ("客服态度不好，不会再来了", "差"),
]  # fmt: skip


@dataclass(frozen=True)
class PublicFile:
    """A file, or a folder of files, and what its owner means by it."""

    kind: str
    name: str  # of the file or folder
    write: Callable[[Path], None]
    rows: Sequence[Row]
    config: dict[str, Any] = field(default_factory=dict)  # of ``data``


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_: object) -> None:
    """Take the place of a value that no one needs."""


def _text(content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return _bytes(content.encode(encoding))


def _joined(rows: Sequence[Sequence[str]], by: str, end: str = "\n") -> str:
    return "".join(by.join(row) + end for row in rows)


def _csv(rows: Sequence[Sequence[object]], **options: Any) -> str:
    sink = io.StringIO(newline="")
    csv.writer(sink, **options).writerows(rows)
    return sink.getvalue()


HEADER = [("text", "label")]


def _objects(rows: Sequence[Row], text: str = "text", label: str = "label") -> list[dict[str, str]]:
    return [{text: row[0], label: row[1]} for row in rows]


def _folder(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)

    return write


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(sink, index=False)
    return sink.getvalue()


def _zip(members: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def _excel(rows: Sequence[Sequence[object]]) -> bytes:
    sink = io.BytesIO()
    pd.DataFrame(rows).to_excel(sink, index=False, header=False)
    return sink.getvalue()


def _numbered(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    return [(str(number), *row) for number, row in enumerate(rows)]


def _as_numbers(rows: Sequence[Row]) -> list[Row]:
    return [(text, "1" if label == "pos" else "0") for text, label in rows]


def _yelp(rows: Sequence[Row]) -> str:
    """Every field quoted, marks as \\"" and line breaks as two characters."""
    return "".join('"{}","{}"\n'.format(label, text.replace('"', '\\""').replace("\n", "\\n")) for text, label in rows)


def _spark(rows: Sequence[Row]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '\\"') + '"' if '"' in text or "," in text else text

    return "text,label\n" + "".join(f"{quoted(text)},{label}\n" for text, label in rows)


NO_LINES = [row for row in LINES if "\n" not in row[0]]
TWO_COLUMNS = {"text_column": "text", "label_column": "label"}


PUBLIC_FILES = [
    PublicFile("GLUE SST-2: tabs, marks quote nothing", "train.tsv",
               _text(_joined([("sentence", "label"), *_as_numbers(QUOTES)], "\t")), _as_numbers(QUOTES),
               {"text_column": "sentence"}),
    PublicFile("GLUE CoLA: tabs, no header, four columns", "in_domain_train.tsv",
               _text(_joined([("gj04", label, "" if label == "1" else "*", text)
                              for text, label in _as_numbers(QUOTES)], "\t")),
               _as_numbers(QUOTES), {"format": {"columns": ["source", "label", "mark", "text"]}}),
    PublicFile("GLUE MRPC: a byte order mark, many columns", "msr_paraphrase_train.txt",
               _text("\ufeff" + _joined([("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                                         *((label, "70", "71", text, '"the other')
                                           for text, label in _as_numbers(QUOTES))], "\t", "\r\n")),
               _as_numbers(QUOTES), {"text_column": "#1 String", "label_column": "Quality"}),
    PublicFile("UCI SMS Spam: tabs, the label first, no header, no suffix", "SMSSpamCollection",
               _text(_joined([(label, text) for text, label in QUOTES], "\t")), QUOTES),
    PublicFile("AG News: commas, all quoted, no header, three columns", "train.csv",
               _text(_csv([(label, "a title", text) for text, label in _as_numbers(LINES)], quoting=csv.QUOTE_ALL)),
               _as_numbers(LINES), {"format": {"columns": ["label", "title", "text"]}}),
    PublicFile("DBpedia: commas, texts quoted, no header", "train.csv",
               _text("".join('{},"{}"\n'.format(label, text.replace('"', '""')) for text, label in _as_numbers(LINES))),
               _as_numbers(LINES)),
    PublicFile("Yelp polarity: marks as \\\"\", line breaks as \\n", "train.csv", _text(_yelp(QUOTES)),
               [(text.replace('"', '\\"'), label) for text, label in QUOTES]),
    PublicFile("Sentiment140: all quoted, no header, Windows-1252", "training.csv",
               _text(_csv([(label, "1467810369", "Mon Apr 06", "NO_QUERY", "user", text) for text, label in GERMAN * 6],
                          quoting=csv.QUOTE_ALL), "cp1252"), GERMAN * 6,
               {"format": {"columns": ["label", "id", "date", "query", "user", "text"]}}),
    PublicFile("Amazon reviews: JSON lines, gzip, ratings as floats", "reviews_5.json.gz",
               _bytes(gzip.compress("".join(json.dumps({"overall": 5.0 if label == "pos" else 1.0, "reviewText": text})
                                            + "\n" for text, label in LINES).encode())),
               [(text, "5" if label == "pos" else "1") for text, label in LINES],
               {"text_column": "reviewText", "label_column": "overall"}),
    PublicFile("CLINC150: an object of splits of lists", "data_full.json",
               _text(json.dumps({"oos_train": [["x", "oos"]], "val": [], "train": [list(row) for row in LINES]})),
               LINES),
    PublicFile("BANKING77: commas, line breaks in quotes", "train.csv",
               _text(_csv([("text", "category"), *LINES])), LINES, {"label_column": "category"}),
    PublicFile("MASSIVE: JSON lines, many columns", "en-US.jsonl",
               _text("".join(json.dumps({"id": str(i), "utt": text, "intent": label, "annot": ["x"]}) + "\n"
                             for i, (text, label) in enumerate(LINES))), LINES,
               {"text_column": "utt", "label_column": "intent"}),
    PublicFile("pandas to_csv with its index", "frame.csv",
               _text(_csv([("", "text", "label"), *_numbered(LINES)], lineterminator="\n")), LINES),
    PublicFile("pandas to_json by columns", "frame.json",
               _text(json.dumps({"text": {str(i): row[0] for i, row in enumerate(LINES)},
                                 "label": {str(i): row[1] for i, row in enumerate(LINES)}})), LINES),
    PublicFile("pandas to_json(orient='split')", "split.json",
               _text(json.dumps({"columns": ["text", "label"], "index": list(range(len(LINES))),
                                 "data": [list(row) for row in LINES]})), LINES),
    PublicFile("JSON by columns", "columns.json",
               _text(json.dumps({"text": [row[0] for row in LINES], "label": [row[1] for row in LINES]})), LINES),
    PublicFile("the hub's rows API", "rows.json",
               _text(json.dumps({"features": [], "rows": [{"row_idx": i, "row": row, "truncated_cells": []}
                                                          for i, row in enumerate(_objects(LINES))]})), LINES),
    PublicFile("R write.csv: row names, all quoted", "r.csv",
               _text(_csv([("", "text", "label"), *_numbered(LINES)], quoting=csv.QUOTE_ALL)), LINES),
    PublicFile("Excel in Germany: semicolons, Windows-1252", "export.csv",
               _text(_csv([*HEADER, *GERMAN, *COMMAS], delimiter=";"), "cp1252"), [*GERMAN, *COMMAS]),
    PublicFile("Excel's sep= line", "sep.csv", _text("sep=;\r\n" + _csv([*HEADER, *LINES], delimiter=";")), LINES),
    PublicFile("Excel's Unicode text: UTF-16, tabs", "unicode.txt",
               _text("\ufeff" + _csv([*HEADER, *LINES, *RUSSIAN], delimiter="\t"), "utf-16-le"), [*LINES, *RUSSIAN]),
    PublicFile("UTF-16 without a mark", "wide.csv", _text(_csv([*HEADER, *LINES]), "utf-16-be"), LINES),
    PublicFile("Excel workbook", "book.xlsx", _bytes(_excel([*HEADER, *QUOTES, *GERMAN])), [*QUOTES, *GERMAN]),
    PublicFile("Spark: backslashes before marks only", "part-0.csv", _text(_spark(NO_LINES)), NO_LINES),
    PublicFile("Python csv with an escape character", "escaped.csv",
               _text(_csv([*HEADER, *LINES], doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL)), LINES),
    PublicFile("vertical bars in .txt", "rows.txt", _text(_joined([*HEADER, *QUOTES], "|")), QUOTES),
    PublicFile("blanks after commas", "by_hand.csv",
               _text("text, label\n" + "".join('"{}", {}\n'.format(text.replace('"', '""'), label)
                                                for text, label in LINES)), LINES),
    PublicFile("tabs, quoted by pandas where needed", "frame.tsv", _text(_csv([*HEADER, *LINES], delimiter="\t")),
               LINES),
    PublicFile("old Mac line ends", "mac.csv", _text(_csv([*HEADER, *COMMAS], lineterminator="\r")), COMMAS),
    PublicFile("Shift-JIS", "livedoor.csv", _text(_csv([*HEADER, *JAPANESE * 4]), "cp932"), JAPANESE * 4),
    PublicFile("GB 18030", "ChnSentiCorp.tsv", _text(_joined([*HEADER, *CHINESE * 4], "\t"), "gb18030"), CHINESE * 4),
    PublicFile("Windows-1251", "rusentiment.csv", _text(_csv([*HEADER, *RUSSIAN * 4]), "cp1251"), RUSSIAN * 4),
    PublicFile("fastText", "train.ft.txt", _text("".join(f"__label__{label} {text}\n" for text, label in NO_LINES)),
               [(text.strip(), label) for text, label in NO_LINES]),
    PublicFile("a zip of one CSV, from macOS", "archive.zip",
               _bytes(_zip({"rows.csv": _csv([*HEADER, *LINES]), "__MACOSX/._rows.csv": "x"})), LINES),
    PublicFile("bzip2", "rows.tsv.bz2", _bytes(bz2.compress(_joined([*HEADER, *QUOTES], "\t").encode())), QUOTES),
    PublicFile("xz, of JSON lines", "rows.jsonl.xz",
               _bytes(lzma.compress("\n".join(map(json.dumps, _objects(LINES))).encode())), LINES),
    PublicFile("gzip under the name of a CSV", "rows.csv",
               _bytes(gzip.compress(_csv([*HEADER, *LINES]).encode())), LINES),
    PublicFile("a folder as the hub lays it out", "dataset",
               _folder({"README.md": b"---\n", "data/train-00000-of-00002.parquet": _parquet(LINES[:5]),
                        "data/train-00001-of-00002.parquet": _parquet(LINES[5:]),
                        "data/test-00000-of-00001.parquet": _parquet(LINES[:2])}), LINES),
    PublicFile("a folder of parts of Spark", "output",
               _folder({"_SUCCESS": b"", "part-9.jsonl": "\n".join(map(json.dumps, _objects(LINES[:7]))).encode(),
                        "part-10.jsonl": "\n".join(map(json.dumps, _objects(LINES[7:]))).encode()}), LINES),
    PublicFile("IMDB: a folder of texts per class", "aclImdb",
               _folder({f"{label}/{i}_7.txt": text.encode() for i, (text, label) in enumerate(LINES)}),
               sorted(LINES, key=lambda row: row[1])),
]  # fmt: skip


def rows_read(file: PublicFile, folder: Path) -> tuple[list[Row], list[str]]:
    """Write a file and return what the product reads of it, and says about it."""
    path = folder / file.name
    file.write(path)
    config = DataConfig(train=str(path), **file.config)
    notes: list[str] = []
    rows, _ = usable_rows(
        read_source(config.train, "train", config.format, wanted_columns(config)),
        "train",
        config.train,
        row_columns(config),
        config,
        notes,
    )
    return list(zip(rows.texts, rows.labels, strict=True)), notes
