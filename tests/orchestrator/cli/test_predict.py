"""``tailsweep predict`` against the plain pipeline of transformers, and with files that are not as hoped."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables import inference
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig
from tailsweep.trainables.execution.packed import PackedClassifier
from tailsweep.trainables.models.classifier import build_classifier, load_classifier, save_classifier
from torch import nn

TinyModel = Callable[..., Path]
LABELS = ("absorption", "excretion", "metabolism")
TEXTS = ["oral tablet peak", "renal urine", 'the "liver", enzyme', "NA", "a of in was " * 30]
MEAN = HeadConfig(pooling="mean")


@pytest.fixture(scope="module")
def model_folder(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folders: dict[tuple[str, str], Path] = {}

    def make(architecture: str = "bert", head: Any = "native") -> Path:
        if (architecture, str(head)) not in folders:
            source = tiny_model(architecture)
            model = build_classifier(ModelConfig(name=str(source), head=head), LABELS, seed=0)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            tokenizer.model_max_length = 24  # of the 40 positions
            folders[architecture, str(head)] = tmp_path_factory.mktemp("model")
            save_classifier(model, tokenizer, folders[architecture, str(head)], head, LABELS)
        return folders[architecture, str(head)]

    return make


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((f"{number:02d}", text) for number, text in enumerate(TEXTS))])
    return path


def by_pipeline(folder: Path, texts: list[str]) -> list[dict[str, float]]:
    classify = transformers.pipeline("text-classification", str(folder), device="cpu")
    return [{s["label"]: s["score"] for s in scores} for scores in classify(texts, truncation=True, top_k=None)]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
def test_predictions_are_those_of_the_plain_pipeline(
    architecture: str, model_folder: Callable[..., Path], rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BERT and RoBERTa run packed, DeBERTa-v2 padded; the last row is longer than the folder's own length."""
    folder = model_folder(architecture)
    assert main(["predict", str(folder), str(rows), "--probabilities"]) == 0
    predictions = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    columns = ["id", "text", "prediction", "confidence", *(f"probability/{label}" for label in LABELS)]
    assert list(predictions[0]) == columns
    assert [(row["id"], row["text"]) for row in predictions] == [(f"{i:02d}", text) for i, text in enumerate(TEXTS)]
    expected = by_pipeline(folder, TEXTS)
    for row, scores in zip(predictions, expected, strict=True):
        assert row["prediction"] == max(scores, key=lambda label: scores[label])
        assert float(row["confidence"]) == pytest.approx(max(scores.values()), abs=1e-5)
        assert {label: float(row[f"probability/{label}"]) for label in LABELS} == pytest.approx(scores, abs=1e-5)
    assert len({row["confidence"] for row in predictions}) == len(TEXTS)


def test_a_folder_with_a_head_of_ours_is_opened(
    model_folder: Callable[..., Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[type] = []
    forward = PackedClassifier.forward
    monkeypatch.setattr(
        PackedClassifier, "forward", lambda self, *given: ran.append(type(self)) or forward(self, *given)
    )
    output = tmp_path / "out.jsonl"
    folder = model_folder("bert", MEAN)
    assert main(["predict", str(folder), str(rows), "--output", str(output)]) == 0
    model, tokenizer = load_classifier(folder)
    with torch.no_grad():
        batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    predictions = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prediction"] for row in predictions] == [LABELS[index] for index in logits.argmax(1)]
    assert [row["confidence"] for row in predictions] == pytest.approx(
        logits.softmax(1).max(1).values.tolist(), abs=1e-5
    )
    assert ran  # packed, where the probe agrees


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_without_text_keep_their_place_and_their_columns(
    suffix: str, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = pd.DataFrame({"weight": [1.5, 2.0, 3.0, 0.25], "words": ["renal urine", None, "  ", "oral"]})
    file, output = tmp_path / "in.parquet", tmp_path / f"out{suffix}"
    given.to_parquet(file)
    output.write_text("what was there before")
    folder = model_folder()
    capsys.readouterr()  # saving a model shows a bar
    assert main(["predict", str(folder), str(file), "--text-column", "words", "--output", str(output)]) == 0
    assert capsys.readouterr().err == "2 of 4 rows have no text, and no prediction\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, output.name])
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }
    predictions = readers[suffix](output)
    assert list(predictions.columns) == ["weight", "words", "prediction", "confidence"]
    assert predictions["weight"].tolist() == [1.5, 2.0, 3.0, 0.25]
    assert predictions["prediction"].isna().tolist() == [False, True, True, False]
    assert predictions["confidence"].isna().tolist() == [False, True, True, False]
    scores = by_pipeline(model_folder(), ["renal urine", "oral"])
    assert predictions["confidence"].dropna().tolist() == pytest.approx([max(s.values()) for s in scores], abs=1e-5)


def test_a_file_of_no_texts_at_all_is_answered(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    file, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    file.write_text('text,id\n"",1\n" ",2\n')
    assert main(["predict", str(model_folder()), str(file), "--output", str(output), "--probabilities"]) == 0
    predictions = pd.read_parquet(output)
    assert predictions["id"].tolist() == ["1", "2"]
    assert predictions["prediction"].isna().all()
    assert predictions["probability/excretion"].isna().all()


@pytest.mark.parametrize(
    ("name", "content", "arguments", "header", "first"),
    [
        ("in.tsv", 'id\ttext\n1\t"so good\n2\tfine\n3\tand" bad\n', [], ["id", "text"], ["1", '"so good']),
        ("in.csv", "n,text,n\n1,a b,2\n3,c d,4\n5,e,6\n", [], ["n", "text", "n"], ["1", "a b", "2"]),
        ("in.csv", "n;text\n1;a, b\n3;c d\n5;e\n", [], ["n", "text"], ["1", "a, b"]),
        ("in.txt", "a b\n\nc d\n", ["--format", "header=false"], ["text"], ["a b"]),
        ("in.csv", "1~a\n2~b\n3~c\n", ["--format=separator=~", "--format=columns=[id, text]"],
         ["id", "text"], ["1", "a"]),
    ],
)  # fmt: skip
def test_there_is_a_record_for_each_record_with_its_own_columns(
    name: str, content: str, arguments: list[str], header: list[str], first: list[str],
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / name).write_text(content)
    folder = model_folder()
    capsys.readouterr()
    assert main(["predict", str(folder), str(tmp_path / name), *arguments]) == 0
    written, *records = csv.reader(io.StringIO(capsys.readouterr().out))
    assert written == [*header, "prediction", "confidence"]
    assert len(records) == 3
    assert records[0][: len(header)] == first


def test_a_name_that_comes_twice_has_no_place_in_json(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("n,text,n\n1,a,2\n")
    output = tmp_path / "out.jsonl"
    assert main(["predict", str(model_folder()), str(tmp_path / "in.csv"), "--output", str(output)]) == 2
    assert 'several columns "n", which a .jsonl file cannot have: write CSV' in capsys.readouterr().err
    assert not output.exists()


def test_bytes_are_written_in_base_64_where_there_are_none(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    given = pd.DataFrame({"raw": [b"\xff\x00", None], "text": ["renal urine", "oral"]})
    given.to_parquet(tmp_path / "in.parquet")
    for suffix in (".jsonl", ".csv", ".parquet"):
        output = tmp_path / f"out{suffix}"
        assert main(["predict", str(model_folder()), str(tmp_path / "in.parquet"), "--output", str(output)]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["raw"] == "/wA="
    assert pd.read_csv(tmp_path / "out.csv")["raw"][0] == "/wA="
    assert pd.read_parquet(tmp_path / "out.parquet")["raw"].tolist() == [b"\xff\x00", None]


def test_weights_that_are_not_numbers_are_said(
    model_folder: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_classifier(model_folder())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    save_classifier(model, tokenizer, tmp_path / "model", "native", LABELS)
    output = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path / "model"), str(rows), "--output", str(output)]) == 2
    assert "gives no probabilities for 5 of 5 texts: its weights hold values that are not numbers" in (
        capsys.readouterr().err
    )
    assert not output.exists()


Arguments = Callable[[Path, Path, Path], list[str]]  # model folder, rows.csv, an empty folder -> the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(lambda m, r, d: [str(d / "none"), str(r)], "not a model folder", id="no folder"),
        pytest.param(lambda m, r, d: [str(r), str(r)], "not a model folder", id="a file"),
        pytest.param(lambda m, r, d: [str(d), str(r)], "it has no config.json; give", id="an empty folder"),
        pytest.param(lambda m, r, d: [str(m), str(d / "no.csv")], 'there is no file "', id="no file"),
        pytest.param(
            lambda m, r, d: [str(m), str(_file(d, "x.csv", "id,text\n1,a,b\n2,c\n"))], "in lines 2", id="too long"
        ),
        pytest.param(lambda m, r, d: [str(m), str(r), "--format", "sep"], "must be FIELD=VALUE", id="format"),
        pytest.param(lambda m, r, d: [str(m), str(r), "--format", "header=1x"], "--format header", id="header"),
        pytest.param(lambda m, r, d: [str(m), str(_file(d, "x.csv", ""))], "is empty", id="empty file"),
        pytest.param(lambda m, r, d: [str(m), str(_file(d, "x.csv", "text\n"))], "no rows", id="no rows"),
        pytest.param(lambda m, r, d: [str(m), str(r), "--text-column", "txt"], 'did you mean "text"', id="no column"),
        pytest.param(lambda m, r, d: [str(m), str(_file(d, "x.jsonl", '{"text": 3}\n'))], "holds int64", id="numbers"),
        pytest.param(
            lambda m, r, d: [str(m), str(_file(d, "x.csv", "text,confidence\na,1\n"))],
            "has a column confidence already",
            id="name clash",
        ),
        pytest.param(
            lambda m, r, d: [str(m), str(_file(d, "x.csv", "text\ncaf\xe9\n", "latin-1")), "--format=encoding=utf-8"],
            "FILE: ",
            id="not UTF-8",
        ),
        pytest.param(lambda m, r, d: [str(m), str(r), "--output", str(r)], "which is FILE", id="over FILE"),
        pytest.param(lambda m, r, d: [str(m), str(r), "--output", str(d / "x.xlsx")], "the type of", id="output type"),
        pytest.param(
            lambda m, r, d: [str(m), str(r), "--output", str(d / "a/b.csv")],
            "lies in a folder that does not exist",
            id="where",
        ),
        pytest.param(lambda m, r, d: [str(m), str(r), "--output", str(_dir(d, "o.csv"))], "is a folder", id="folder"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_2(
    arguments: Arguments,
    said: str,
    model_folder: Callable[..., Path],
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "d"
    empty.mkdir()
    before = rows.read_bytes()
    given = arguments(model_folder(), rows, empty)
    there = sorted(tmp_path.rglob("*"))
    assert main(["predict", *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tailsweep: ")
    assert said in captured.err
    assert rows.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == there


def _file(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def _dir(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_an_output_that_fails_half_way_leaves_nothing(
    model_folder: Callable[..., Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: object, file: Any, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_csv", full)
    output = tmp_path / "out.csv"
    output.write_text("before")
    assert main(["predict", str(model_folder()), str(rows), "--output", str(output)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type is multi_label_classification"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "two classes of one name"),
        ({"model_type": "no_such"}, "cannot be opened"),
    ],
)
def test_a_model_that_does_not_choose_one_class_is_refused(
    changed: dict[str, Any],
    said: str,
    model_folder: Callable[..., Path],
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    assert main(["predict", str(folder), str(rows)]) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_without_a_head_is_no_classifier(
    tiny_model: TinyModel, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would draw a head at random and classify with it."""
    assert main(["predict", str(tiny_model("bert")), str(rows)]) == 2
    assert "is not a classifier: it has no weights for classifier" in capsys.readouterr().err


def test_damaged_weights_are_said(
    model_folder: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    assert main(["predict", str(folder), str(rows)]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_class_names_follow_the_logits(model_folder: Callable[..., Path]) -> None:
    model, _ = load_classifier(model_folder())
    config = cast(Any, model.base_model).config
    config.id2label = dict(sorted(config.id2label.items(), reverse=True))
    assert inference.class_names(cast(nn.Module, model), Path("x")) == list(LABELS)
    assert np.all([name in LABELS for name in config.id2label.values()])
