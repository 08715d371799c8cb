"""Sources as users write them, into splits; and one clear message for everything that can be wrong with them."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailsweep.trainables.config.data import DataConfig, Step
from tailsweep.trainables.data.labels import label_names
from tailsweep.trainables.data.rows import Rows
from tailsweep.trainables.data.splits import DataError, Splits, _split_off, load_splits

TEXTS = [f"text number {i}" for i in range(60)]
LABELS = ["ant", "bee", "cat"] * 20


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Splits]:
    """``load_splits`` of a ``DataConfig`` with the given fields, relative paths being below ``tmp_path``."""

    def _load(**fields: Any) -> Splits:
        for role in ("train", "validation", "test"):
            if isinstance(fields.get(role), Path):
                fields[role] = str(fields[role])
        return load_splits(DataConfig(**fields))

    return _load


def write(path: Path, texts: list[Any] = TEXTS, labels: list[Any] = LABELS) -> Path:
    """A file of the type its name says, written by pandas or json: not by what reads it."""
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "label": pd.Series(labels, dtype=object)})
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".jsonl":
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(frame.to_dict("records")), encoding="utf-8")
    else:
        frame.to_parquet(path, index=False)
    return path


def test_validation_joins_training_examples_and_stays_what_it_is(load: Callable[..., Splits], tmp_path: Path) -> None:
    fields = {"train": write(tmp_path / "rows.csv"), "validation": 0.2, "test": 0.2}
    before, after = load(**fields), load(**fields, resplit={})
    assert list(after.train["text"]) == [*before.train["text"], *before.validation["text"]]
    assert list(after.train["label"]) == [*before.train["label"], *before.validation["label"]]
    assert list(after.validation["text"]) == list(before.validation["text"])
    assert list(after.test["text"]) == list(before.test["text"])


def test_each_example_but_those_of_tiny_classes_is_validation_in_one_fold(
    load: Callable[..., Splits], tmp_path: Path
) -> None:
    labels = [*LABELS[:-4], "rare", "rare", "single", "single"]  # of which two and one are to train with
    fields = {"train": write(tmp_path / "rows.csv", labels=labels), "validation": 0.2, "test": 0.2}
    before = load(**fields)
    folds = [load(**fields, resplit={"index": index, "of": 4}) for index in range(4)]
    everything = sorted([*before.train["text"], *before.validation["text"]])
    dealt = Counter(text for fold in folds for text in fold.validation["text"])
    assert set(dealt.values()) == {1}
    rest = {TEXTS[number] for number in range(56, 60)} & set(everything)
    assert sorted(dealt) == sorted(set(everything) - rest)
    for fold in folds:
        assert sorted([*fold.train["text"], *fold.validation["text"]]) == everything
        assert list(fold.test["text"]) == list(before.test["text"])
        counts = Counter(fold.validation["label"])
        assert max(counts.values()) - min(counts.values()) <= 1, "stratified"


@pytest.mark.parametrize("resplit", [{"index": 0}, {"of": 3}, {"index": 3, "of": 3}, {"index": 0, "of": 1}])
def test_a_fold_that_is_none_is_refused(load: Callable[..., Splits], tmp_path: Path, resplit: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="resplit"):
        load(train=write(tmp_path / "rows.csv"), resplit=resplit)


def pairs(splits: Splits) -> list[tuple[str, str]]:
    """(text, name of the class) of all rows, in no order."""
    parts = (splits.train, splits.validation, splits.test)
    return sorted((row["text"], splits.label_names[row["label"]]) for part in parts for row in part)


# --- what can be read ---


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "A.CSV", "odd [1]*.csv"])
def test_every_file_type_gives_its_rows(load: Callable[..., Splits], tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    write(tmp_path / f"written{source.suffix.lower()}").rename(source)
    splits = load(train=source)
    assert pairs(splits) == sorted(zip(TEXTS, LABELS, strict=True))
    assert splits.label_names == ("ant", "bee", "cat")
    assert splits.notes == ()
    assert splits.train.features == {"text": datasets.Value("string"), "label": datasets.Value("int64")}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_classes_called_na_and_none_are_classes(load: Callable[..., Splits], tmp_path: Path, name: str) -> None:
    splits = load(train=write(tmp_path / name, labels=["NA", "None", "null"] * 20))
    assert splits.label_names == ("NA", "None", "null")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_integer_labels_are_ordered_as_numbers(load: Callable[..., Splits], tmp_path: Path, name: str) -> None:
    splits = load(train=write(tmp_path / name, labels=[10, 9, -1] * 20))
    assert splits.label_names == ("-1", "9", "10")


def test_quotes_separators_and_line_breaks_in_csv_stay_in_the_text(load: Callable[..., Splits], tmp_path: Path) -> None:
    odd = ['say "hi", twice', "two\nlines", "tab\there", "ünïcode 漢字", "01", "NA", " spaces "]
    splits = load(train=write(tmp_path / "a.csv", odd + TEXTS[:53]))
    assert set(odd) <= {text for text, _ in pairs(splits)}


def test_a_class_label_keeps_its_own_order_without_the_names_that_do_not_occur(
    load: Callable[..., Splits], tmp_path: Path
) -> None:
    names = ["zebra", "never", "ant"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 2] * 30}, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    splits = load(train=tmp_path / "saved")
    assert splits.label_names == ("zebra", "ant")
    assert pairs(splits) == sorted(zip(TEXTS, ["zebra", "ant"] * 30, strict=True))


def test_a_saved_dict_gives_each_role_its_split(load: Callable[..., Splits], tmp_path: Path) -> None:
    def part(word: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": [f"{word} {i}" for i in range(4)], "label": ["a", "b"] * 2})

    datasets.DatasetDict(train=part("train"), validation=part("validation")).save_to_disk(tmp_path / "saved")
    splits = load(train=tmp_path / "saved", validation=tmp_path / "saved", test=0.5)
    assert splits.validation["text"][0] == "validation 0"
    assert sorted([*splits.train["text"], *splits.test["text"]]) == [f"train {i}" for i in range(4)]
    with pytest.raises(
        DataError, match=r"data.test: .* has the splits train, validation, but none called test: give a s"
    ):
        load(train=tmp_path / "saved", test=tmp_path / "saved")


def test_other_column_names_are_read(load: Callable[..., Splits], tmp_path: Path) -> None:
    pd.DataFrame({"sentence": TEXTS, "kind": LABELS, "more": 1.5}).to_csv(tmp_path / "a.csv", index=False)
    assert len(pairs(load(train=tmp_path / "a.csv", text_column="sentence", label_column="kind"))) == 60


def test_the_demo_rows_are_called_synthetic(load: Callable[..., Splits]) -> None:
    splits = load(train="demo://drug-labels")
    assert splits.label_names == ("absorption", "distribution", "excretion", "metabolism", "other")
    assert "synthetic" in splits.notes[0]


def test_a_hub_name_is_loaded_by_name_config_and_role(
    load: Callable[..., Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": [f"{split} a", f"{split} b"], "label": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load(train="nyu-mll/glue:sst2", validation="rotten_tomatoes", test="nyu-mll/glue:sst2")
    assert sorted(asked) == [
        ("nyu-mll/glue", "sst2", "test"),
        ("nyu-mll/glue", "sst2", "train"),
        ("rotten_tomatoes", None, "validation"),
    ]
    assert splits.test["text"][:] == ["test a", "test b"]


def test_a_file_changed_within_the_same_clock_tick_is_read_again(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    load(train=path)
    before = path.stat()
    write(path, [text.upper() for text in TEXTS])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {text for text, _ in pairs(load(train=path))} == {text.upper() for text in TEXTS}


def test_nothing_is_printed_or_logged(
    load: Callable[..., Splits], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    verbosity = datasets.logging.get_verbosity()
    with caplog.at_level(logging.DEBUG):
        load(train=write(tmp_path / "a.csv"))
        with pytest.raises(DataError):
            load(train=write(tmp_path / "b.csv", ["a"], ["x"]))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("datasets")]
    assert datasets.logging.get_verbosity() == verbosity


# --- splits ---


def test_shares_are_of_all_rows_and_of_each_class(load: Callable[..., Splits], tmp_path: Path) -> None:
    labels = ["a"] * 40 + ["b"] * 20
    splits = load(train=write(tmp_path / "a.csv", labels=labels), validation=0.1, test=0.25)
    # a: 4 and 10 of 40; b: 2 and 5 of 20
    assert Counter(splits.validation["label"]) == {0: 4, 1: 2}
    assert Counter(splits.test["label"]) == {0: 10, 1: 5}
    assert Counter(splits.train["label"]) == {0: 26, 1: 13}
    assert pairs(splits) == sorted(zip(TEXTS, labels, strict=True))


def test_the_split_follows_from_its_seed_and_test_rows_do_not_move_with_the_validation_share(
    load: Callable[..., Splits], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv")
    tests = [
        load(train=path, test=0.2, **fields).test["text"][:]
        for fields in ({}, {"split_seed": 42}, {"validation": 0.4}, {"validation": str(path)}, {"split_seed": -1})
    ]
    assert tests[0] == tests[1] == tests[2] == tests[3] != tests[4]


def test_a_class_too_small_to_split_stays_in_train_and_is_named(load: Callable[..., Splits], tmp_path: Path) -> None:
    labels = ["big"] * 54 + ["one"] + ["two"] * 2 + ["three"] * 3
    splits = load(train=write(tmp_path / "a.csv", labels=labels))
    assert splits.label_names == ("big", "one", "three", "two")
    assert [Counter(splits.train["label"])[i] for i in (1, 2, 3)] == [1, 1, 2]
    assert Counter(splits.validation["label"])[2] == Counter(splits.test["label"])[2] == 1
    assert len(splits.notes) == 1
    assert '"one" (1), "two" (2)' in splits.notes[0]
    assert "three" not in splits.notes[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.sampled_from([{"test": 0.2}, {"test": 0.2, "validation": 0.15}, {"test": 0.5, "validation": 0.49}]),
    st.integers(),
)
def test_every_class_large_enough_has_a_row_in_every_part(sizes: list[int], shares: Any, seed: int) -> None:
    labels = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    if max(sizes) <= len(shares):
        return
    rows = Rows([str(i) for i in range(len(labels))], labels)
    parts = _split_off(rows, shares, seed, [])
    assert sorted(text for part in parts.values() for text in part.texts) == sorted(rows.texts)
    for i, size in enumerate(sizes):
        there = {role for role, part in parts.items() if f"c{i}" in part.labels}
        assert there == ({"train", *shares} if size > len(shares) else {"train"})


def test_imbalance_is_imposed_on_train_rows_after_the_split(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", labels=["a", "b"] * 30)
    whole = load(train=path)
    reduced = load(train=path, imbalance=Step(kind="step", ratio=0.2, order=["b", "a"]))
    assert reduced.validation["text"][:] == whole.validation["text"][:]
    assert reduced.test["text"][:] == whole.test["text"][:]
    # 30 - round(4.5) - 6 = 20 of each class, and 0.2 * 20 of the second one
    assert Counter(whole.train["label"]) == {0: 20, 1: 20}
    assert Counter(reduced.train["label"]) == {0: 4, 1: 20}
    assert set(reduced.train["text"]) < set(whole.train["text"])
    with pytest.raises(DataError, match=r"data.imbalance: order names the class \"c\""):
        load(train=path, imbalance=Step(kind="step", ratio=0.2, order=["a", "b", "c"]))


# --- what is dropped or warned of ---


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_empty_texts_and_missing_labels_are_dropped_and_counted(
    load: Callable[..., Splits], tmp_path: Path, name: str
) -> None:
    texts = [*TEXTS[:57], "  \n", "", None]
    labels = [None, *LABELS[1:]]
    splits = load(train=write(tmp_path / name, texts, labels), max_dropped_fraction=0.1)
    assert len(pairs(splits)) == 56
    assert splits.notes == (
        "data.train: 4 of 60 rows were dropped: 3 with an empty text, 1 with no label; "
        'by class 1 of 19 of "ant", 1 of 20 of "bee", 1 of 20 of "cat"',
    )


def test_texts_that_are_not_strings_are_counted_apart(load: Callable[..., Splits], tmp_path: Path) -> None:
    splits = load(train=write(tmp_path / "a.jsonl", [*TEXTS[:58], 5, ["x"]]))
    assert splits.notes == (
        "data.train: 2 of 60 rows were dropped: 2 with a text that is not a string; "
        'by class 1 of 20 of "bee", 1 of 20 of "cat"',
    )


def test_more_dropped_rows_than_allowed_are_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*TEXTS[:56], "", "", "", ""])
    with pytest.raises(
        DataError, match=r"4 of 60 rows .* cannot be used \(4 with an empty text\).*max_dropped_fraction = 0.05"
    ):
        load(train=path)
    load(train=path, max_dropped_fraction=0.07)


def test_a_column_of_numbers_is_no_text(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", list(range(60)))
    with pytest.raises(DataError, match=r"none of the 60 rows .* 60 with a text that is not a string"):
        load(train=path)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.csv", b"text,label\n ,x\n,y\n", "none of the 2 rows .* can be used: 2 with an empty text"),
        ("a.csv", b"text,label\na,x\nb,x\n", 'every row has the label "x", but there must be at least 2 classes'),
        (
            "a.csv",
            b"text,labels\na,x\n",
            'data.label_column is "label", but the columns .* text, labels: did you mean "labels"',
        ),
        (
            "a.csv",
            b"sentence,label\na,x\n",
            'data.text_column is "text", but the columns of data.train are sentence, label$',
        ),
        (
            "a.csv",
            b"text,label\na,x\nb,x,y\n",
            r"1 of 2 rows .* cannot be used \(1 with more fields than there are columns \(line 3\)\)",
        ),
        ("a.csv", b"text,label\na,b,x\nc,d,y\n", "has no rows: each has more fields than there are columns"),
        ("a.csv", b'text,label\n"a,b,c\nc,d\n', 'cannot read .*: a " opens a field in line 2 and is never closed'),
        ("a.csv", b'text,label\n"a"b,"c, d"\n', 'cannot read .*: in line 2, a " that closes a field is not followed'),
        ("a.csv", b'text,label\na,x\n"so good,x\nb,y\n,",y\n', 'the field .* in line 3 .* whole record .*"so good,x"'),
        ("a.csv", b"text,text,label\na,b,x\n", 'its header has the name "text" twice, in columns 1 and 2'),
        ("a.jsonl", b'{"text":"a","label":["x","y"]}\n', "holds the list .* keep one label"),
        ("a.jsonl", b'{"text":"a","label":"x"}\n{"text":', "cannot read .*: Expecting value"),
        ("a.json", b'{"text": "a", ', "cannot read .*: "),
        ("a.jsonl", b'{"text":' + b"[" * 20_000, "cannot read .*: it has values that are nested too deeply"),
        ("a.json", b"null", "has no rows"),
        ("a.parquet", b"PAR1 this is not one", "cannot read .*: Parquet"),
        (
            "a.csv",
            "text,label\nna\u00efve,x\nM\u00fcnchen,y\n".encode() + b"caf\xe9,y\n",
            "cannot read .*: byte 0xe9 in line 4 is not UTF-8: repair the line, or name the encoding in data.format",
        ),
        ("a.csv.gz", b"\x1f\x8b\x08\x00 not really", "cannot read .*: it is damaged, or not compressed by gzip"),
        ("a.zip", b"PK\x03\x04 not really", "cannot read .*: it is damaged, or cannot be unpacked"),
        ("a.xlsx", b"PK", "cannot read .*"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    load: Callable[..., Splits], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(train=tmp_path / name)


def test_an_empty_parquet_file_is_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no rows"):
        load(train=write(tmp_path / "a.parquet", [], []))


def test_a_damaged_parquet_page_is_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [text * 50 for text in TEXTS])
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'cannot read ".*a.parquet": '):
        load(train=path)


def test_parquet_strings_that_are_not_utf8_are_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9", b"tea"] * 30, pa.binary())
    text = pa.Array.from_buffers(pa.string(), 60, raw.buffers())
    pq.write_table(pa.table({"text": text, "label": LABELS}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'data.train: the column "text" holds bytes that are not UTF-8'):
        load(train=tmp_path / "a.parquet")


def test_a_missing_file_names_its_nearest_neighbour(load: Callable[..., Splits], tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r'data.train: there is no file ".*trian.csv": did you mean ".*/train.csv"\?'):
        load(train=tmp_path / "trian.csv")
    with pytest.raises(DataError, match=r'there is no folder ".*nowhere" either'):
        load(train=tmp_path / "nowhere" / "train.csv")


def test_a_folder_that_is_no_saved_dataset_is_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"the folder .* has no data: no file of it is one of .csv"):
        load(train=folder)
    write(folder / "dev.csv")
    with pytest.raises(DataError, match=r"has files of validation, but none of train: name a file"):
        load(train=folder)
    write(folder / "train.csv")
    write(folder / "train.jsonl")
    with pytest.raises(DataError, match=r"has files of several types \(train.csv, train.jsonl\)"):
        load(train=folder)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"save_to_disk wrote, but it is damaged"):
        load(train=folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "nothing://bucket/train"}, 'data.train: "nothing://bucket/train" cannot be opened: '),
        ({"train": "a/b:c d"}, 'data.train is "a/b:c d", but must be a file'),
        ({"train": "no/such-*.csv"}, 'no file matches "no/such'),
        ({"train": "demo://other"}, "the only rows made here are demo://drug-labels"),
        (
            {"train": "demo://drug-labels", "test": "demo://drug-labels"},
            "data.test is demo://drug-labels, but .* share",
        ),
        (
            {"train": "demo://drug-labels", "text_column": "txt"},
            'data.text_column is "txt", but .* did you mean "text"',
        ),
        ({"train": "demo://drug-labels", "test": 0.6, "validation": 0.5}, r"= 1.1, but must be less than 1"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(
    load: Callable[..., Splits], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(**fields)


def test_a_hub_name_that_cannot_be_reached_is_refused(
    load: Callable[..., Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r'no file or folder "someone/nothing".* cannot be loaded: .*[Oo]ffline'):
        load(train="someone/nothing")


def test_labels_never_seen_in_train_are_named(load: Callable[..., Splits], tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv")
    test = write(tmp_path / "test.csv", TEXTS[:4], ["ant", "wasp", "wasp", "bug"])
    with pytest.raises(DataError, match=r'data.test: 3 rows .* train has: "bug" \(1\), "wasp" \(2\); .* ant, bee, cat'):
        load(train=train, test=test)


# --- cross-validation


def test_every_row_is_in_the_test_rows_of_one_fold(load: Callable[..., Splits], rows_csv: Path) -> None:
    folds = [load(train=rows_csv, validation=0.2, fold={"index": index, "of": 4}) for index in range(4)]
    texts = Counter(text for fold in folds for text in fold.test["text"])
    whole = Counter(text for part in (folds[0].train, folds[0].validation, folds[0].test) for text in part["text"])
    assert texts == whole
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1  # 95 rows: what 55, 30 and 10 leave over goes to different folds
    for fold in folds:
        by_class = Counter(fold.test["label"])
        assert all(abs(by_class[label] - rows / 4) < 1 for label, rows in enumerate((55, 30, 10)))


def test_folds_follow_from_the_seed_of_the_split(load: Callable[..., Splits], rows_csv: Path) -> None:
    fold = {"index": 1, "of": 4}
    first, again = (load(train=rows_csv, validation=0.2, fold=fold) for _ in range(2))
    other = load(train=rows_csv, validation=0.2, fold=fold, split_seed=7)
    assert first.test["text"] == again.test["text"] != other.test["text"]


def test_a_class_smaller_than_the_folds_stays_in_train(load: Callable[..., Splits], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [(f"text {number}", "many") for number in range(20)] + [("a few", "few"), ("some few", "few")]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    splits = load(train=path, validation=0.2, fold={"index": 0, "of": 5})
    assert "few" not in {splits.label_names[label] for label in splits.test["label"]}
    assert any('fewer rows than the 5 folds have these classes, which stay in train as a whole: "few" (2)' in note
               for note in splits.notes)  # fmt: skip


def test_a_label_beyond_the_names_of_its_class_label_is_named() -> None:
    """As in a Parquet file whose metadata are damaged, or were written for other rows."""
    feature = datasets.ClassLabel(names=["many", "rare"])
    assert label_names([0, 1, -1, None], feature, "label", "data.train")[0] == ["many", "rare", None, None]
    with pytest.raises(DataError, match="has the label 2, but its ClassLabel names only the labels 0 to 1"):
        label_names([0, 2, 1], feature, "label", "data.train")
