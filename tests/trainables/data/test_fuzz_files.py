"""Data files of any content: rows, or one message, never a traceback."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from support.fuzzing import examples, fuzz, mangled
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.errors import InputError

TABLE = {
    "text": [f"the {word} of row {i}, as it is" for i, word in enumerate(("peak", "bile", "dose") * 6)],
    "label": ["absorption", "excretion", "metabolism"] * 6,
}


def _parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(TABLE | {"n": list(range(18))}), sink, **options)
    return sink.getvalue()


def _separated(by: str) -> bytes:
    rows = zip(TABLE["text"], TABLE["label"], strict=True)
    return "\n".join([by.join(("text", "label")), *(by.join((f'"{text}"', label)) for text, label in rows)]).encode()


ROWS = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
VALID = {
    ".csv": [_separated(",")],
    ".tsv": [_separated("\t")],
    ".jsonl": ["\n".join(map(json.dumps, ROWS)).encode()],
    ".json": [json.dumps(ROWS).encode(), json.dumps({"data": ROWS}).encode(), json.dumps(TABLE).encode()],
    ".parquet": [_parquet(), _parquet(compression="none", use_dictionary=False), _parquet(row_group_size=5)],
}
PIECES = [
    b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"text",
    b"label",
    b"{", b"}", b"[", b"]", b"null", b"1.5", b"-1", b"1e999", b"NaN", b"true", b"[1, 2]", b'{"a": 1}', b'"\\ud800"',
    b"PAR1", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"9" * 400, b"[" * 90,
    b"[" * 20_000,
]  # fmt: skip


COLUMN_NAMES = st.sampled_from(["text", "label", "n", "", "tex\tt"]) | st.text(max_size=3)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a", "b", "the peak of it", "", "  ", "1", "-1.5", "\x00", "NaN"])
)
JSON_VALUES = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
HUGGING_FACE = [  # what `datasets` reads of a Parquet file's metadata
    {"label": {"_type": "ClassLabel", "names": ["a", "b"]}, "text": {"dtype": "string", "_type": "Value"}},
    {"text": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}},
    {"text": {"_type": "nothing"}},
    {"text": {"_type": "Value", "dtype": "object"}},
    [],
]


@st.composite
def odd_json_lines(draw: st.DrawFn) -> bytes:
    names = [*draw(st.lists(COLUMN_NAMES, max_size=3)), "text", "label"]
    row = st.dictionaries(st.sampled_from(names), VALUES | JSON_VALUES, max_size=4)
    return b"\n".join(json.dumps(value).encode() for value in draw(st.lists(row, max_size=12)))


@st.composite
def odd_parquet(draw: st.DrawFn) -> bytes:
    """Whole files of columns that may be of any type, with names that may come twice, and with odd metadata."""
    count = draw(st.integers(0, 12))
    columns = {
        "strings": st.text(max_size=5),
        "labels": st.sampled_from(["a", "b"]),
        "codes": st.integers(-2, 2),
        "floats": st.floats(width=32),
        "lists": st.lists(st.text(max_size=2), max_size=2),
        "structs": st.fixed_dictionaries({"a": st.integers(0, 3)}),
        "bytes": st.binary(max_size=4),
        "dates": st.dates(),
        "booleans": st.booleans(),
        "nothing": st.none(),
    }
    arrays, names = [], []
    for name in draw(st.lists(COLUMN_NAMES, max_size=4)) + draw(st.sampled_from([[], ["text", "label"]])):
        kind = draw(st.sampled_from(sorted(columns)))
        array = pa.array(draw(st.lists(columns[kind] | st.none(), min_size=count, max_size=count)))
        if kind == "bytes" and draw(st.booleans()):  # said to be UTF-8, which is not checked
            array = pa.Array.from_buffers(pa.string(), count, array.cast(pa.binary()).buffers())
        elif kind == "labels" and array.null_count == 0 and draw(st.booleans()):
            array = array.dictionary_encode()
        arrays.append(array)
        names.append(name)
    table = pa.Table.from_arrays(arrays, names=names)
    if draw(st.booleans()):
        features = {"info": {"features": draw(st.sampled_from(HUGGING_FACE))}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


ANY = st.binary(max_size=300)
STRATEGIES: dict[str, st.SearchStrategy[bytes]] = {
    ".csv": ANY | mangled(VALID[".csv"], PIECES),
    ".tsv": ANY | mangled(VALID[".tsv"], PIECES),
    ".jsonl": ANY | mangled(VALID[".jsonl"], PIECES) | odd_json_lines(),
    ".json": ANY | mangled(VALID[".json"], PIECES),
    ".parquet": ANY | mangled(VALID[".parquet"], PIECES, st.binary(max_size=6)) | odd_parquet(),
}


@examples
@pytest.mark.parametrize("suffix", STRATEGIES)
def test_any_file_is_rows_or_one_message(suffix: str, examples: int, tmp_path: Path) -> None:
    def check(content: bytes) -> None:
        folder = tmp_path / f"{random.random()}"  # a conversion is kept by the file's path
        folder.mkdir()
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        try:
            splits = load_splits(DataConfig(train=str(path), validation=0.2, test=0.2, max_dropped_fraction=0.9))
        except InputError:
            pass
        else:
            assert len(splits.label_names) >= 2
            assert all(isinstance(text, str) and text.strip() for text in splits.train["text"])
        finally:
            shutil.rmtree(folder)

    fuzz(examples, STRATEGIES[suffix], check)
