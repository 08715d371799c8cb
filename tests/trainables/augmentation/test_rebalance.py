"""Which examples are synthesized, from which rows, and which are rejected; and the files of paraphrases."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tailsweep.trainables.augmentation import rebalance
from tailsweep.trainables.augmentation.rebalance import SyntheticExamples, synthesize_examples
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.data.splits import DataError, Splits, load_splits

WORDS = ["plasma", "renal", "big", "error", "quickly", "begins", "doctor", "kidney", "dose", "liver", "oral", "rare"]


def texts_of(label: str, count: int, words: int = 8) -> list[str]:
    """Different texts, with what EDA finds synonyms of."""
    rng = np.random.default_rng(len(label))
    return [f"{label}{i} " + " ".join(rng.choice(WORDS, size=words)) for i in range(count)]


def write(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("text", "label")) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    """12 of many, 5 of some, 2 of few."""
    return [
        (text, label) for label, count in (("many", 12), ("some", 5), ("few", 2)) for text in texts_of(label, count)
    ]


@pytest.fixture
def synthesized(tmp_path: Path, rows: list[tuple[str, str]]) -> Callable[..., tuple[Splits, SyntheticExamples]]:
    """Synthesize examples from training rows, by default those above; validation and test have 2 rows each."""

    def make(augmentation: dict[str, Any], train: Sequence[tuple[str, str]] = rows) -> tuple[Splits, SyntheticExamples]:
        names = sorted({label for _, label in train})
        parts = [
            datasets.Dataset.from_dict(
                {"text": [text for text, _ in part], "label": [names.index(label) for _, label in part]}
            )
            for part in (train, HELD_OUT["validation"], HELD_OUT["test"])
        ]
        splits = Splits(*parts, tuple(names), ())
        config = DataConfig.model_validate({"train": "not read here", "augmentation": augmentation})
        return splits, synthesize_examples(splits, config, tmp_path / "cache")

    return make


HELD_OUT = {
    "validation": [("seen in validation", "many"), ("another there", "few")],
    "test": [("seen in test", "some"), ("yet another", "few")],
}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], str]], list[tuple[str, int]]]:
    """Copies as the test says, in place of EDA's; returns what was asked for."""

    def script(copy: Callable[[str, int], str]) -> list[tuple[str, int]]:
        reported: list[tuple[str, int]] = []

        def copies(requests: Sequence[tuple[str, int]]) -> list[str]:
            reported.extend(requests)
            return [copy(*request) for request in requests]

        monkeypatch.setattr(rebalance, "_eda", lambda config: nullcontext(copies))
        return reported

    return script


def counts(splits: Splits, synthetic: SyntheticExamples) -> dict[str, int]:
    """Rows of each class, training and synthetic together."""
    labels = [*splits.train["label"], *synthetic.labels.tolist()]
    return {splits.label_names[label]: count for label, count in sorted(Counter(labels).items())}


# --- balance


def test_each_class_becomes_as_large_as_the_largest(synthesized: Any) -> None:
    splits, rows = synthesized({"kind": "eda"})
    assert counts(splits, rows) == {"few": 12, "many": 12, "some": 12}
    assert rows.notes == [
        "augmentation (eda): 17 synthetic examples; training + synthetic of each class: few 2 + 10, many 12 + 0, "
        "some 5 + 7"
    ]


@pytest.mark.parametrize(("target_ratio", "expected"), [(0.5, 6), (0.3, 4), (0.42, 6)])  # of 12: 6, 3.6 and 5.04
def test_a_share_of_the_largest_is_rounded_up_and_larger_classes_get_none(
    target_ratio: float, expected: int, synthesized: Any
) -> None:
    splits, rows = synthesized({"kind": "eda", "target_ratio": target_ratio})
    assert counts(splits, rows) == {"few": expected, "many": 12, "some": max(5, expected)}


def test_large_enough_classes_get_no_synthetic_examples(synthesized: Any) -> None:
    _, rows = synthesized({"kind": "eda", "target_ratio": 0.1})
    assert rows.texts == []
    assert rows.labels.dtype == rows.sources.dtype == np.int64
    assert rows.notes == ["augmentation (eda): no synthetic examples: every class has 2 rows or more"]


def test_rows_of_a_class_take_turns_and_copies_have_the_label_of_their_source(synthesized: Any) -> None:
    splits, rows = synthesized({"kind": "eda"})
    labels = np.array(splits.train["label"])
    assert labels[rows.sources].tolist() == rows.labels.tolist()
    copies = Counter(rows.sources.tolist())
    for label, each in (("some", {1, 2}), ("few", {5})):  # 7 copies of 5 rows, 10 of 2
        assert {copies[row] for row in np.flatnonzero(labels == splits.label_names.index(label))} == each
    for text, source in zip(rows.texts, rows.sources, strict=True):
        assert text.split()[0][:3] in {"few", "som"} or set(text.split()) & set(splits.train["text"][source].split())


def test_only_training_rows_that_the_imbalance_leaves_are_copied(tmp_path: Path) -> None:
    """Every row has a word that no other has, so that a copy tells whose it is, unless it was the word that went."""
    train = write(tmp_path / "a.csv", [(text, label) for label in ("one", "two") for text in texts_of(label, 20)])
    config = DataConfig.model_validate(
        {"train": train, "imbalance": {"kind": "step", "ratio": 0.25}, "augmentation": {"kind": "eda"}}
    )
    splits = load_splits(config)
    rows = synthesize_examples(splits, config, tmp_path / "cache")
    assert counts(splits, rows) == {"one": 13, "two": 13}  # of 20 rows 4 are for test and 3 for validation
    kept = {text.split()[0] for text in splits.train["text"]}
    named = {word for text in rows.texts for word in text.split() if word[:3] in ("one", "two") and word[3:].isdigit()}
    assert len(kept) == 13 + 3
    assert named
    assert named <= kept


# --- what decides them


def test_the_same_seed_makes_the_same_rows(synthesized: Any) -> None:
    first, again, other = (synthesized({"kind": "eda", "seed": seed})[1] for seed in (1, 1, 2))
    assert (first.texts, first.sources.tolist()) == (again.texts, again.sources.tolist())
    assert first.texts != other.texts


def test_copies_of_a_row_do_not_depend_on_other_rows(synthesized: Any, rows: list[tuple[str, str]]) -> None:
    def by_source(train: list[tuple[str, str]]) -> dict[str, list[str]]:
        splits, result = synthesized({"kind": "eda"}, train)
        texts = splits.train["text"]
        copies: dict[str, list[str]] = {}
        for text, source in zip(result.texts, result.sources, strict=True):
            copies.setdefault(texts[source], []).append(text)
        return copies

    before = by_source(rows)
    after = by_source([("a new row at the top", "many"), *rows, ("a large animal runs quickly home", "some")])
    compared = 0
    for source, copies in before.items():
        shared = min(len(copies), len(after[source]))
        assert copies[:shared] == after[source][:shared]
        compared += shared
    assert compared > 10
    # Six of ten rows are copied, and one more with a larger largest class.
    rows = [
        (text, label) for label, count in (("many", 16), ("some", 10), ("few", 16)) for text in texts_of(label, count)
    ]
    before, larger = by_source(rows), by_source([("a new row at the top", "many"), *rows])
    assert [len([text for text in texts if text.startswith("some")]) for texts in (before, larger)] == [6, 7]
    assert all(larger[source] == copies for source, copies in before.items())


def test_other_rows_leave_rows_in_the_order_in_which_they_get_copies() -> None:
    def order_of(texts: list[str], seed: int) -> list[int]:
        return rebalance._Pool(texts, [0] * len(texts), np.zeros(1, dtype=np.int64), seed).order()

    texts = texts_of("a", 20)
    order = [texts[row] for row in order_of(texts, 3)]
    mixed = ["first", *texts[10:], "middle", *texts[:10]]
    assert [mixed[row] for row in order_of(mixed, 3) if mixed[row] in texts] == order != texts
    assert order != [texts[row] for row in order_of(texts, 4)]


def test_rows_with_one_text_have_different_copies(synthesized: Any, scripted: Any) -> None:
    asked = scripted(lambda text, number: f"{text} {number}")
    twins = [("the same", "few"), ("the same", "few")]
    _, rows = synthesized({"kind": "eda"}, [(f"text {i}", "many") for i in range(6)] + [("x", "some")] * 6 + twins)
    assert sorted(rows.texts) == ["the same 0", "the same 1", "the same 2", "the same 3"]
    assert Counter(rows.sources.tolist()) == {12: 2, 13: 2}
    assert len(asked) == 4


# --- what is kept out


def test_a_synthetic_example_is_in_no_split_and_not_twice(synthesized: Any, scripted: Any) -> None:
    outcomes = ["Seen in  VALIDATION", "seen in test", "some1", "new", "NEW ", "", "another"]
    scripted(lambda text, number: outcomes[number] if number < len(outcomes) else f"{text} {number}")
    train = [(f"many{i}", "many") for i in range(3)] + [(f"some{i}", "some") for i in range(3)] + [("few0", "few")]
    splits, rows = synthesized({"kind": "eda"}, train)
    assert rows.texts == ["new", "another"]
    assert rows.notes[1] == ("augmentation (eda): left out: 2 whose text is in validation or test")
    assert counts(splits, rows) == {"few": 3, "many": 3, "some": 3}


def test_a_row_that_gives_nothing_new_is_left_alone_after_a_few_tries(synthesized: Any, scripted: Any) -> None:
    asked = scripted(lambda text, number: text if text == "stuck" else f"{text} {number}")
    train = [(f"text {i}", "many") for i in range(30)] + [("stuck", "few"), ("free", "few"), ("stuck too", "some")]
    splits, rows = synthesized({"kind": "eda"}, train + [("x", "some")] * 29)
    assert counts(splits, rows) == {"few": 30, "many": 30, "some": 30}
    tries = Counter(text for text, _ in asked)
    assert rebalance.MOST_FAILURES <= tries["stuck"] <= 2 * rebalance.MOST_FAILURES
    assert tries["free"] == 28


def test_texts_too_short_to_change_are_counted(synthesized: Any) -> None:
    _, rows = synthesized(
        {"kind": "eda"}, [(text, "many") for text in texts_of("many", 4)] + [("no", "few"), ("yes", "some")]
    )
    assert rows.texts == []
    assert rows.notes[-1] == (
        "augmentation (eda): these classes stay below 4 rows: few 1, some 1; their texts are too short, or have too "
        "few words that the lexicon knows, for more different copies"
    )


# --- paraphrases


@pytest.fixture
def paraphrases(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def write_them(rows: Sequence[Sequence[Any]], *header: str, **fields: Any) -> dict[str, Any]:
        file = write(tmp_path / "aug.csv", rows, header or ("text", "label"))
        return {"kind": "paraphrases", "file": file, **fields}

    return write_them


def test_paraphrases_fill_the_classes_by_a_seeded_sample(synthesized: Any, paraphrases: Any) -> None:
    file = [
        (f"written {label} {i}", label)
        for label, count in (("many", 3), ("some", 20), ("few", 4))
        for i in range(count)
    ]
    splits, rows = synthesized(paraphrases(file, seed=1))
    assert counts(splits, rows) == {"few": 6, "many": 12, "some": 12}
    assert set(zip(rows.texts, (splits.label_names[label] for label in rows.labels), strict=True)) < set(file)
    assert rows.sources.tolist() == [-1] * 11
    assert 'has no column "source", so that no one can tell whether a row of it paraphrases' in rows.notes[0]
    assert rows.notes[-1] == (
        "augmentation (paraphrases): these classes stay below 12 rows: few 6; the file has no more for them"
    )
    assert synthesized(paraphrases(file, seed=1))[1].texts == rows.texts
    assert synthesized(paraphrases(file, seed=2))[1].texts != rows.texts


def test_only_paraphrases_of_training_rows_of_their_class_are_taken(
    synthesized: Any, paraphrases: Any, rows: list[tuple[str, str]]
) -> None:
    (some_text, _), (few_text, _) = rows[12], rows[18]
    file = [
        ("said otherwise", "some", some_text),
        ("said of few", "few", few_text),
        ("a test row said otherwise", "some", "seen in test"),
        ("of another class", "few", some_text),
        ("SEEN IN TEST", "few", few_text),
        (some_text, "some", some_text),
    ]
    splits, result = synthesized(paraphrases(file, "text", "label", "source"))
    assert [
        (text, splits.train["text"][source]) for text, source in zip(result.texts, result.sources, strict=True)
    ] == [
        ("said otherwise", some_text),
        ("said of few", few_text),
    ]
    assert result.notes[1] == (
        "augmentation (paraphrases): left out: 1 whose text is in validation or test, 1 whose text is in train or the "
        "file before, 2 whose source is no training row of their class"
    )


def test_the_columns_of_a_file_of_paraphrases_have_names_of_their_own(
    synthesized: Any, paraphrases: Any, rows: list[tuple[str, str]]
) -> None:
    file = [("in other words", "some", rows[12][0])]
    names = {"text_column": "paraphrase", "label_column": "class", "source": "original"}
    _, result = synthesized(paraphrases(file, "paraphrase", "class", "original", **names))
    assert (result.texts, result.sources.tolist()) == (["in other words"], [12])
    with pytest.raises(
        DataError, match=r'data.augmentation.text_column is "phrase", but .* did you mean "paraphrase"\?'
    ):
        synthesized(paraphrases(file, "paraphrase", "class", "original", **names | {"text_column": "phrase"}))
    with pytest.raises(DataError, match=r'data.augmentation.source is "origin", but the columns of data.augmentation'):
        synthesized(paraphrases(file, "paraphrase", "class", "original", **names | {"source": "origin"}))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ([("x", "fewer", "y")], r'augmentation.file: 1 rows have labels that no row of train has: "fewer" \(1\)'),
        ([("x", "few", "a row of nowhere")], 'augmentation.source is "source", but no row of .* has the text of a'),
        ([("", "few", "y")], "augmentation.file: none of the 1 rows of .* can be used: 1 with an empty text"),
        ([], "augmentation.file: .* has no rows"),
    ],
)
def test_a_file_of_paraphrases_that_cannot_be_used_is_refused(
    file: list[Any], message: str, synthesized: Any, paraphrases: Any
) -> None:
    with pytest.raises(DataError, match=f"data.{message}"):
        synthesized(paraphrases(file, "text", "label", "source"))


def test_a_missing_file_of_paraphrases_is_named(synthesized: Any) -> None:
    with pytest.raises(DataError, match=r'data.augmentation.file: there is no file ".*"'):
        synthesized({"kind": "paraphrases", "file": "nowhere/aug.csv"})
    with pytest.raises(DataError, match=r"data.augmentation.file is demo://drug-labels, but .*: name a file"):
        synthesized({"kind": "paraphrases", "file": "demo://drug-labels"})
