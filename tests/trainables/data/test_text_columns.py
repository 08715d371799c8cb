"""Texts of several columns, joined or as the tokenizer's pair; and texts much longer than a model reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.data.tokenization import beginning, tokenize
from tailsweep.trainables.models.classifier import build_classifier, save_classifier
from tailsweep.trainables.preparation import prepare

TITLES = [f"{word} {i}" for i, word in enumerate(["oral", "renal", "liver"] * 8)]
BODIES = [f"the {word} of the dose {i}" for i, word in enumerate(["peak", "urine", "enzyme", "gut"] * 6)]


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    frame = pd.DataFrame({"title": TITLES, "body": BODIES, "label": ["a", "b"] * 12})
    frame.loc[0, "title"] = ""
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return {"train": str(tmp_path / "rows.csv"), "test": str(tmp_path / "rows.csv"), "validation": 0.2,
            "text_column": ["title", "body"], "audit": {"max_leaked_fraction": 1.0}, "max_length": 16}  # fmt: skip


def test_several_columns_are_joined_by_line_breaks(fields: dict[str, Any]) -> None:
    test = load_splits(DataConfig.model_validate(fields)).test
    assert test["text"][:2] == [BODIES[0], f"{TITLES[1]}\n{BODIES[1]}"]
    assert "pair" not in test.column_names


def test_a_pair_has_the_tokens_that_the_tokenizer_gives_it(
    fields: dict[str, Any], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    for architecture in ("bert", "roberta"):
        folder = tiny_model(architecture)
        data = prepare(DataConfig.model_validate(fields | {"text_pair": True}), str(folder), tmp_path / "cache")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        expected = tokenizer(["", *TITLES[1:]], BODIES, truncation=True, max_length=16)["input_ids"]
        rows = np.split(data.test.tokens, data.test.offsets[1:-1])
        assert [row.tolist() for row in rows] == expected
    joined = prepare(DataConfig.model_validate(fields), str(folder), tmp_path / "cache")
    assert joined.key != data.key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_column": ["a", "a"]}, "text_column has a column twice"),
        ({"text_column": "label"}, 'text_column and label_column are both "label"'),
        ({"text_column": ["a"], "text_pair": True}, "text_pair is true, but text_column names a: name two columns"),
        ({"text_column": ["a", "b"], "text_pair": True, "augmentation": {"kind": "eda"}}, "augmentation makes single"),
    ],
)
def test_columns_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"train": "a.csv"} | given)


def test_predict_reads_several_columns_and_pairs(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_model("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = build_classifier(ModelConfig(name=str(source), head="native"), ("a", "b"), seed=0).eval()
    save_classifier(model, tokenizer, tmp_path / "model", "native", ("a", "b"))
    pd.DataFrame({"title": ["oral", ""], "body": ["the peak", ""]}).to_csv(tmp_path / "in.csv", index=False)
    given = [str(tmp_path / "model"), str(tmp_path / "in.csv"), "--text-column", "title", "--text-column", "body"]
    assert main(["predict", *given, "--pair", "--output", str(tmp_path / "pair.csv")]) == 0
    assert main(["predict", *given, "--output", str(tmp_path / "joined.csv")]) == 0
    pair, joined = (pd.read_csv(tmp_path / name)["confidence"] for name in ("pair.csv", "joined.csv"))
    batch = tokenizer("oral", "the peak", return_tensors="pt", return_token_type_ids=False)
    assert pair[0] == pytest.approx(float(model(**batch).logits.detach().softmax(1).max()), abs=1e-5)
    batch = tokenizer("oral\nthe peak", return_tensors="pt")
    assert joined[0] == pytest.approx(float(model(**batch).logits.detach().softmax(1).max()), abs=1e-5)
    assert pair.isna().tolist() == joined.isna().tolist() == [False, True]
    assert main(["predict", *given[:-2], "--pair"]) == 2
    assert "--pair needs --text-column twice" in capsys.readouterr().err


@settings(max_examples=15, deadline=None)
@given(st.text(st.sampled_from("abc dose.\n#\u00e9\u6f22"), max_size=40), st.integers(1, 400), st.integers(3, 12))
def test_the_beginning_of_a_text_has_its_first_tokens(
    tiny_tokenizers: list[transformers.PreTrainedTokenizerBase], piece: str, times: int, max_length: int
) -> None:
    text = piece * times
    for tokenizer in tiny_tokenizers:
        part = beginning(text, tokenizer, max_length)
        expected = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        assert tokenizer(part, truncation=True, max_length=max_length)["input_ids"] == expected


@pytest.fixture(scope="module")
def tiny_tokenizers(tiny_model: Callable[..., Path]) -> list[transformers.PreTrainedTokenizerBase]:
    return [transformers.AutoTokenizer.from_pretrained(tiny_model(name)) for name in ("bert", "roberta")]


def test_a_text_of_a_megabyte_is_not_read_to_its_end(
    tiny_tokenizers: list[transformers.PreTrainedTokenizerBase],
) -> None:
    tokenizer = tiny_tokenizers[0]
    text = "the peak of the dose " * 50_000
    assert len(beginning(text, tokenizer, 24)) <= 24 * 32
    _, offsets, truncated = tokenize([text, "dose"], tokenizer, 24)
    assert np.diff(offsets).tolist() == [24, 3]
    assert truncated == 1
    word = "a" * 1_000_000
    assert beginning(word, tokenizer, 24) == word  # nothing of it can be left out
