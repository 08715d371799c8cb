"""Labels and texts that falsify the scores of classes are refused, and one setting says otherwise."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailsweep.orchestrator.planning.plan import format_class_table
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.audit import are_identifiers, label_variants, multi_labels, plain_label
from tailsweep.trainables.data.splits import Splits, load_splits
from tailsweep.trainables.data.twins import find_twins, joined_rows
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.preparation import prepare

Load = Callable[..., Splits]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def _load(rows: list[tuple[str, str]], **fields: Any) -> Splits:
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
        return load_splits(DataConfig.model_validate({"train": str(tmp_path / "rows.csv"), **fields}))

    return _load


def rows(**counts: int) -> list[tuple[str, str]]:
    return [(f"{label} text {i}", label) for label, count in counts.items() for i in range(count)]


def whole(splits: Splits) -> Counter[str]:
    parts = (splits.train, splits.validation, splits.test)
    return Counter(splits.label_names[label] for part in parts for label in part["label"])


VARIANTS = [
    "neg", "neg ", " neg", "Neg", "NEG", "neg\u00a0", "neg\u200b", "\ufeffneg", "n\u00adeg", "ne\u2060g", "neg\t",
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_two_spellings_of_a_class_are_refused_or_merged(variant: str, load: Load) -> None:
    given = [*rows(neg=10, pos=12), *((f"other {i}", variant) for i in range(4))]
    with pytest.raises(
        DataError, match=r"(?s)2 labels .* are one class written in several ways: .*set data.audit.label"
    ):
        load(given)
    assert len(load(given, audit={"label_variants": "keep"}).label_names) == 3
    merged = load(given, audit={"label_variants": "merge"})
    assert whole(merged) == {"neg": 14, "pos": 12}
    assert any("were merged" in note for note in merged.notes)


def test_composed_and_decomposed_characters_are_one_class(load: Load) -> None:
    assert plain_label("caf\u00e9") == plain_label("cafe\u0301")
    given = rows(pos=10) + [("a b", "caf\u00e9"), ("c d", "cafe\u0301")] * 5
    assert whole(load(given, audit={"label_variants": "merge"})) == {"pos": 10, "caf\u00e9": 10}


def test_spellings_differ_between_files_too(tmp_path: Path) -> None:
    pd.DataFrame(rows(neg=5, pos=5), columns=["text", "label"]).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame(rows(Neg=3, pos=3), columns=["text", "label"]).to_csv(tmp_path / "test.csv", index=False)
    fields = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    with pytest.raises(DataError, match="written in several ways"):
        load_splits(DataConfig.model_validate(fields))
    merged = load_splits(DataConfig.model_validate(fields | {"audit": {"label_variants": "merge"}}))
    assert merged.label_names == ("neg", "pos")
    assert Counter(merged.test["label"]) == {0: 3, 1: 3}


def test_labels_of_several_classes_are_refused_or_dropped(load: Load) -> None:
    given = [*rows(a=9, b=9), ("both 1", "a, b"), ("both 2", "b,a")]
    with pytest.raises(DataError, match=r'2 examples have several classes in "label", such as "a, b" \(a and b\)'):
        load(given)
    assert whole(load(given, audit={"multi_label": "drop"})) == {"a": 9, "b": 9}
    assert len(load(given, audit={"multi_label": "keep"}).label_names) == 4


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1,2", "2,3", "1,3", "1", "2", "3"], {"1,2", "2,3", "1,3"}),
        (["2,27", "27,5", "5,2"], {"2,27", "27,5", "5,2"}),  # as GoEmotions, all of several
        (["a/b", "a", "b"], {"a/b"}),
        (["sports/football", "sports/tennis", "news/local"], set()),  # a hierarchy
        (["Sports, outdoors", "Toys, games", "Books"], set()),
        (["Q&A", "R&D", "HR"], set()),
        (["4.1", "4.10", "5"], set()),
    ],
)
def test_which_labels_are_several(labels: list[str], expected: set[str]) -> None:
    assert multi_labels(dict.fromkeys(labels, 2)).keys() == expected


def test_identifiers_are_no_classes(load: Load) -> None:
    assert are_identifiers({f"id{i}": 1 for i in range(30)})
    assert not are_identifiers({f"id{i}": 2 for i in range(30)})
    given = [(f"text {i}", f"id{i}") for i in range(30)]
    with pytest.raises(DataError, match=r"30 of its 30 labels have one example \(\"id0\", \"id1\", \"id2\"\)"):
        load(given)
    assert label_variants({"a": 1, "b": 2}) == []


def test_a_class_that_loses_most_of_its_examples_is_refused(load: Load) -> None:
    given = [("", "rare")] * 4 + [("r", "rare")] + rows(common=90)
    with pytest.raises(DataError, match=r'most of a class: 4 of 5 of "rare"'):
        load(given)
    kept = load(given, audit={"max_class_dropped_fraction": 0.8})
    assert kept.notes[0].endswith('4 with an empty text; by class 4 of 5 of "rare"')
    assert kept.dropped == (0, 4)


# --- texts


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=12))
def test_twins_are_the_earliest_equal_and_similar_rows(lists: list[list[int]]) -> None:
    tokens = np.array([token for row in lists for token in row], np.int32)
    tokens, offsets = joined_rows([(tokens, np.cumsum([0, *map(len, lists)]).astype(np.int64))])
    twins = find_twins([" ".join(map(str, row)) for row in lists], tokens, offsets, 99)
    assert twins.equal.tolist() == [lists.index(row) for row in lists]
    for row, other in enumerate(twins.similar.tolist()):
        assert other <= twins.equal[row]


def test_one_changed_word_makes_a_near_duplicate_and_another_text_does_not() -> None:
    numbers = np.random.default_rng(0).integers(5, 30_000, (40, 40)).astype(np.int32)
    numbers[1], numbers[1][20] = numbers[0], 7
    numbers[2][:20] = numbers[3][:20]  # half of another
    texts = [f"text {number}" for number in range(40)]
    twins = find_twins(texts, numbers.ravel(), np.arange(0, 1601, 40), 99)
    assert twins.similar.tolist() == [0, 0, *range(2, 40)]
    assert twins.equal.tolist() == list(range(40))
    # Truncated to as little, they may differ in all the rest.
    assert find_twins(texts, numbers.ravel(), np.arange(0, 1601, 40), 40).similar.tolist() == list(range(40))


@pytest.fixture
def prepared_rows(tmp_path: Path, tokenizer_folder: str) -> Callable[..., Any]:
    def _prepare(train: list[tuple[str, str]], test: list[tuple[str, str]], **audit: float) -> Any:
        for name, part in (("train", train), ("test", test)):
            pd.DataFrame(part, columns=["text", "label"]).to_csv(tmp_path / f"{name}.csv", index=False)
        config = DataConfig.model_validate(
            {"train": str(tmp_path / "train.csv"), "validation": 0.2, "test": str(tmp_path / "test.csv"),
             "max_length": 24, "audit": audit}
        )  # fmt: skip
        return prepare(config, tokenizer_folder, tmp_path / "cache")

    return _prepare


@pytest.fixture(scope="session")
def tokenizer_folder(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("bert"))


VOCABULARY = "oral absorbed peak gut renal urine feces bile half hepatic enzyme liver dose drug plasma mean"
WORDS = VOCABULARY.split()


def sentences(count: int, seed: int, label: str) -> list[tuple[str, str]]:
    luck = np.random.default_rng(seed)
    return [(" ".join(luck.choice(WORDS, 12)), label) for _ in range(count)]


def test_the_table_counts_what_is_wrong_with_each_class(
    prepared_rows: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    train = sentences(40, 0, "a") + sentences(20, 1, "b")
    test = [*sentences(9, 2, "a"), *sentences(9, 3, "b"), ("", "b"), train[0], (train[1][0], "b")]
    with caplog.at_level(logging.INFO):
        data = prepared_rows(train, test)
    header, first, second = data.class_table
    assert header == ("class", "train", "validation", "test", "dropped", "also in an earlier split", "with two labels")
    assert first == ("a", "32", "8", "10", "0", "1", "1")
    assert second == ("b", "16", "4", "10", "1", "1", "1")
    assert any(note.startswith("2 of 20 test examples are also in an earlier split") for note in data.notes)
    assert format_class_table(data.class_table).splitlines()[2].split()[:2] == ["a", "32"]


def test_too_many_repeated_or_contradicted_texts_are_refused(prepared_rows: Callable[..., Any]) -> None:
    train = sentences(40, 0, "a") + sentences(20, 1, "b")
    with pytest.raises(DataError, match=r"data.test: 10 of 15 test examples are also in an earlier split"):
        prepared_rows(train, train[:10] + sentences(5, 2, "b"))
    contradicted = [(text, "b") for text, _ in train[:10]]
    with pytest.raises(DataError, match=r"20 of 75 examples have the text of one with another label"):
        prepared_rows(train + contradicted, sentences(5, 2, "b"), max_leaked_fraction=1)
    data = prepared_rows(
        train + contradicted, sentences(5, 2, "b"), max_leaked_fraction=1, max_conflicting_fraction=1
    )  # fmt: skip
    assert any("no model can be right about all of them" in note for note in data.notes)
