"""Model folders of every kind behind one interface: the probabilities of their makers, or an error that names them."""

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import skops.io
import transformers
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC
from tailsweep.trainables.baselines import Baseline, fit_baseline
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.data.splits import Splits, load_splits
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.models.classifier import CLASSIFIER_FILE, build_classifier, load_classifier, save_classifier
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.text_classifiers import (
    MEMBERS_FOLDER,
    PIPELINE_FILE,
    open_text_classifier,
    save_baseline,
    write_ensemble,
)

LABELS = ("absorption", "excretion", "metabolism")
CLASSES = {  # the names of these three in the files of the tests
    "three": LABELS,
    "two": ("absorption", "excretion", None),
    "numbers": ("2", "10", "7"),  # are classes in the order of their values, and in scikit-learn as strings
    "two numbers": ("10", "9", None),
}
TEXTS = ["oral tablet peak", "renal urine", "liver enzyme", "of a", "the dose of renal clearance in plasma " * 4]
PAIRS = ["gut food", "in", "hepatic hepatic", "bile half kidney", "oral oral fasted"]


class Fitted(NamedTuple):
    """A baseline with its examples."""

    baseline: Baseline
    splits: Splits

    @property
    def pairs(self) -> list[str] | None:
        """The second texts of the validation examples, if they have any."""
        return list(self.splits.validation["pair"]) if "pair" in self.splits.validation.column_names else None


Fit = Callable[..., Fitted]


@pytest.fixture(scope="module")
def fit(tiny_model: Callable[..., Path], rows_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Return a function that fits a baseline to examples, a sixth of which have a wrong label."""
    model = ModelConfig(name=str(tiny_model("bert")))

    @cache
    def fitted(name: str, classes: str = "three", is_pair: bool = False) -> Fitted:
        names = dict(zip(LABELS, CLASSES[classes], strict=True))
        with rows_csv.open() as file:
            rows = [(row["text"], names[row["label"]]) for row in csv.DictReader(file)]
        rows = [(text, label) for text, label in rows if label is not None]
        labels = [rows[number - 1 if number % 6 == 0 else number][1] for number in range(len(rows))]
        path = tmp_path_factory.mktemp("rows") / "rows.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "more", "label"))
            for number, ((text, _), label) in enumerate(zip(rows, labels, strict=True)):
                writer.writerow((text, rows[number - 7][0].split()[0], label))
        columns = {"text_column": ["text", "more"], "text_pair": True} if is_pair else {}
        config = DataConfig.model_validate({"train": str(path), "validation": 0.2, "max_length": 40} | columns)
        data = prepare(config, model.name, default_cache_dir())
        return Fitted(fit_baseline(name, config, model, data, "validation/macro_f1"), load_splits(config))

    return fitted


@pytest.fixture(scope="module")
def baseline_folder(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(fit("tfidf"), tmp_path_factory.mktemp("baseline") / "best")


@pytest.fixture
def linear(baseline_folder: Path, tmp_path: Path) -> Path:
    """Return the folder of a baseline, which a test may damage."""
    return shutil.copytree(baseline_folder, tmp_path / "linear")


@pytest.fixture(scope="module")
def transformer(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """Return a function that makes the folder of a transformer whose tokenizer keeps some tokens."""

    @cache
    def folder_of(architecture: str, max_length: int) -> Path:
        source = tiny_model(architecture)
        folder = tmp_path_factory.mktemp(architecture)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        tokenizer.model_max_length = max_length
        model = build_classifier(ModelConfig(name=str(source), head="native"), LABELS, seed=0)
        save_classifier(model, tokenizer, folder, "native", LABELS)
        return folder

    return folder_of


@pytest.fixture
def ensemble(transformer: Callable[[str, int], Path], linear: Path, tmp_path: Path) -> Path:
    """Return the folder of a transformer and a baseline."""
    return ensemble_of({transformer("bert", 24): 0.75, linear: 0.25}, tmp_path / "ensemble")


def saved(fitted: Fitted, folder: Path) -> Path:
    folder.mkdir()
    save_baseline(fitted.baseline, folder, fitted.splits.label_names)
    return folder


def ensemble_of(weights: dict[Path, float], folder: Path, label_names: Sequence[str] = LABELS) -> Path:
    for number, member in enumerate(weights, start=1):
        shutil.copytree(member, folder / MEMBERS_FOLDER / str(number))
    write_ensemble(folder, list(weights.values()), label_names)
    return folder


def by_scikit_learn(fitted: Fitted, texts: list[str]) -> NDArray[np.float64]:
    """Return the probabilities of a pipeline of the same settings, in the order of the splits' classes."""
    baseline, (train, names) = fitted.baseline, (fitted.splits.train, fitted.splits.label_names)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    weight = "balanced" if baseline.name.endswith("_balanced") else None
    settings = {"C": baseline.strength, "class_weight": weight, "max_iter": 1000, "random_state": 0}
    is_machine = baseline.name == "svm_balanced"
    steps = (
        (make_union(words, pieces), LinearSVC(**settings)) if is_machine else (words, LogisticRegression(**settings))
    )
    pipeline = make_pipeline(*steps).fit(train["text"], [names[label] for label in train["label"]])
    columns = [list(pipeline.classes_).index(name) for name in names]
    if not is_machine:
        return np.asarray(pipeline.predict_proba(texts))[:, columns]
    margins = pipeline.decision_function(texts) / baseline.temperature
    second_class = expit(margins) if margins.ndim == 1 else None
    by_class = softmax(margins, axis=1) if second_class is None else np.stack([1 - second_class, second_class], axis=1)
    return np.asarray(by_class)[:, columns]


def by_pipeline(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None) -> NDArray[np.float64]:
    """Return the probabilities that transformers gives."""
    classify = transformers.pipeline("text-classification", str(folder), device="cpu")
    given = [{"text": text} for text in texts]
    if pairs is not None:
        given = [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
    by_label = [
        {score["label"]: score["score"] for score in classify(row, truncation=True, top_k=None)} for row in given
    ]
    return np.array([[scores[label] for label in LABELS] for scores in by_label])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", ["tfidf", "svm_balanced"])
def test_a_saved_baseline_gives_its_probabilities_and_scikit_learn_s(
    name: str, classes: str, fit: Fit, tmp_path: Path
) -> None:
    fitted = fit(name, classes)
    opened = open_text_classifier(saved(fitted, tmp_path / "best"))
    texts = list(fitted.splits.validation["text"])
    probabilities = opened.probabilities(texts)
    assert list(opened.class_names) == list(fitted.splits.label_names)
    assert (sorted(opened.class_names) != list(opened.class_names)) == ("numbers" in classes)
    np.testing.assert_allclose(probabilities, softmax(fitted.baseline.validation_logits, axis=1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(probabilities, by_scikit_learn(fitted, texts), rtol=0, atol=1e-9)
    assert (fitted.baseline.temperature == 1) == (name != "svm_balanced")
    assert set(probabilities.argmax(axis=1)) >= {0, 1}


def test_a_saved_baseline_holds_no_pickle(linear: Path) -> None:
    assert {path.name for path in linear.iterdir()} == {CLASSIFIER_FILE, PIPELINE_FILE}
    with zipfile.ZipFile(linear / PIPELINE_FILE) as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {".json", ".npy", ".npz"}
        for name in archive.namelist():
            if name.endswith(".npy"):
                np.load(archive.open(name), allow_pickle=False)


@pytest.mark.parametrize("name", ["tfidf", "svm_balanced"])
def test_a_saved_baseline_reads_pairs(name: str, fit: Fit, tmp_path: Path) -> None:
    fitted = fit(name, is_pair=True)
    assert fitted.pairs is not None
    opened = open_text_classifier(saved(fitted, tmp_path / "best"))
    texts = tuple(fitted.splits.validation["text"])
    probabilities = opened.probabilities(texts, tuple(fitted.pairs))
    np.testing.assert_allclose(probabilities, softmax(fitted.baseline.validation_logits, axis=1), rtol=0, atol=1e-9)
    assert np.abs(probabilities - opened.probabilities(texts)).max() > 1e-3


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["texts", "pairs"])
def test_a_transformer_gives_the_probabilities_of_the_plain_pipeline(
    pairs: list[str] | None, transformer: Callable[[str, int], Path]
) -> None:
    folder = transformer("bert", 24)
    opened = open_text_classifier(str(folder))
    given = None if pairs is None else tuple(pairs)
    assert list(opened.class_names) == list(LABELS)
    np.testing.assert_allclose(
        opened.probabilities(tuple(TEXTS), given), by_pipeline(folder, TEXTS, pairs), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["texts", "pairs"])
def test_an_ensemble_gives_the_weighted_mean_with_a_tokenizer_for_each_member(
    pairs: list[str] | None, transformer: Callable[[str, int], Path], linear: Path, tmp_path: Path
) -> None:
    """The tokenizers keep 24 and 12 tokens of a text, and have other special tokens."""
    first, second = transformer("bert", 24), transformer("roberta", 12)
    folder = ensemble_of({first: 0.5, linear: 0.2, second: 0.3}, tmp_path / "best")
    opened = open_text_classifier(folder)
    inputs = TEXTS if pairs is None else [f"{text}\n{pair}" for text, pair in zip(TEXTS, pairs, strict=True)]
    members = [
        by_pipeline(first, TEXTS, pairs),
        skops.io.load(linear / PIPELINE_FILE).predict_proba(inputs),
        by_pipeline(second, TEXTS, pairs),
    ]
    expected = 0.5 * members[0] + 0.2 * members[1] + 0.3 * members[2]
    assert list(opened.class_names) == list(LABELS)
    np.testing.assert_allclose(opened.probabilities(TEXTS, pairs), expected, rtol=0, atol=1e-5)
    assert min(np.abs(members[i] - members[i - 1]).max() for i in range(3)) > 0.01


def test_a_member_with_a_weight_of_zero_has_no_part(linear: Path, fit: Fit, tmp_path: Path) -> None:
    other = saved(fit("svm_balanced"), tmp_path / "other")
    opened = open_text_classifier(ensemble_of({linear: 0, other: 1}, tmp_path / "best"))
    np.testing.assert_allclose(
        opened.probabilities(TEXTS), open_text_classifier(other).probabilities(TEXTS), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["linear", "ensemble"])
def test_a_shift_is_added_to_the_logarithms_of_the_probabilities(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    before = open_text_classifier(folder).probabilities(TEXTS)
    describe(folder, {"shift": [0.0, 1.0, -2.5]})
    after = open_text_classifier(folder).probabilities(TEXTS)
    expected = before * np.exp([0.0, 1.0, -2.5])
    np.testing.assert_allclose(after, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize(
    ("shift", "reason"),
    [
        ([1.0], "shift must have a number for each of the classes"),
        ([], "shift must have a number for each of the classes"),
        ([1.0, float("nan"), 0.0], "shift"),
        ([1.0, float("inf"), 0.0], "shift"),
        ("none", "shift"),
        ([None, 0, 0], "shift"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "ensemble"])
def test_a_shift_that_is_none_is_refused(kind: str, shift: object, reason: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    describe(folder, {"shift": shift})
    assert reason in refused(folder)


@pytest.mark.parametrize("kind", ["linear", "ensemble"])
def test_what_is_no_transformer_is_not_opened_as_one(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    with pytest.raises(ModelError, match="open_text_classifier") as raised:
        load_classifier(folder)
    assert str(folder) in str(raised.value)


def refused(folder: Path) -> str:
    """Return why a folder is not opened, by an error that names it."""
    with pytest.raises(ModelError) as raised:
        open_text_classifier(folder).probabilities(TEXTS)
    message = str(raised.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "is not a model folder" in refused(tmp_path / "best")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "linear"', "cannot be opened"),
        ("", "cannot be opened"),
        ("[]", "kind"),
        ("3", "kind"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"kind": ["linear"]}', "must be one of ensemble, linear"),
        ("{}", 'kind is "None", but must be one of ensemble, linear'),
        ('{"kind": "forest"}', 'kind is "forest", but must be one of ensemble, linear'),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(text: str, reason: str, linear: Path) -> None:
    (linear / CLASSIFIER_FILE).write_text(text)
    assert reason in refused(linear)


def test_a_description_that_is_not_utf_8_is_refused(linear: Path) -> None:
    (linear / CLASSIFIER_FILE).write_bytes(b"\xff\xfe{}")
    assert "cannot be opened" in refused(linear)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"classes": None}, "classes"),
        ({"classes": ["absorption", "excretion"]}, "other classes"),
        ({"classes": [*LABELS, "distribution"]}, "other classes"),
        ({"classes": [*LABELS, "metabolism"]}, "classes"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"weights": [1]}, "weights"),
    ],
)
def test_a_linear_classifier_with_a_wrong_description_is_refused(
    changed: dict[str, object], reason: str, linear: Path
) -> None:
    describe(linear, changed)
    assert reason in refused(linear)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"weights": [0.75, 0.24]}, "at least 0 and sum to 1"),
        ({"weights": [1.25, -0.25]}, "at least 0 and sum to 1"),
        ({"weights": [float("nan"), 1.0]}, "at least 0 and sum to 1"),
        ({"weights": [float("inf"), 0.0]}, "at least 0 and sum to 1"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": []}, "weights"),
        ({"weights": "0.5"}, "weights"),
        ({"weights": [0.5, 0.25, 0.25]}, f"{MEMBERS_FOLDER}/3"),
        ({"classes": ["absorption", "excretion", "other"]}, "its member 1 has other classes"),
        ({"classes": ["excretion", "absorption", "metabolism"]}, "its member 1 has other classes"),
        ({"temperature": 1.0}, "temperature"),
    ],
)
def test_an_ensemble_with_a_wrong_description_is_refused(
    changed: dict[str, object], reason: str, ensemble: Path
) -> None:
    describe(ensemble, changed)
    assert reason in refused(ensemble)


@pytest.mark.parametrize("number", ["1", "2"])
def test_an_ensemble_without_a_member_is_refused(number: str, ensemble: Path) -> None:
    shutil.rmtree(ensemble / MEMBERS_FOLDER / number)
    assert f"{MEMBERS_FOLDER}/{number}" in refused(ensemble)


def test_an_ensemble_with_a_member_of_other_classes_is_refused(
    transformer: Callable[[str, int], Path], fit: Fit, tmp_path: Path
) -> None:
    two = saved(fit("tfidf", "two"), tmp_path / "two")
    folder = ensemble_of({transformer("bert", 24): 0.5, two: 0.5}, tmp_path / "best")
    assert "its member 2 has other classes" in refused(folder)


def test_an_ensemble_with_a_damaged_member_is_refused(ensemble: Path) -> None:
    file = ensemble / MEMBERS_FOLDER / "2" / PIPELINE_FILE
    file.unlink()
    assert "cannot be opened" in refused(ensemble)


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.99], ids=["empty", "20 bytes", "half", "all but the end"])
def test_a_truncated_pipeline_is_refused(kept: float, linear: Path) -> None:
    content = (linear / PIPELINE_FILE).read_bytes()
    (linear / PIPELINE_FILE).write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    assert "cannot be opened" in refused(linear)


@pytest.mark.parametrize("entry_type", ["schema", "array"])
@pytest.mark.parametrize("place", [0, 0.5], ids=["first byte", "middle"])
def test_a_damaged_pipeline_is_refused(place: float, entry_type: str, linear: Path) -> None:
    """With another first byte it cannot be decompressed; with another in the middle, its checksum may be wrong only."""
    file = linear / PIPELINE_FILE
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: -entry.compress_size)
    entry = next(entry for entry in entries if (entry.filename == "schema.json") == (entry_type == "schema"))
    content = bytearray(file.read_bytes())
    content[entry.header_offset + 30 + len(entry.filename) + int(place * entry.compress_size)] ^= 0xFF
    file.write_bytes(content)
    assert "cannot be opened" in refused(linear)


@pytest.mark.parametrize(
    "schema",
    ["", "[]", "{}", "null", '{"__class__": "Pipeline"}', '{"a":' * 50_000 + "1" + "}" * 50_000],
    ids=["empty", "list", "object", "null", "a class alone", "nested too deeply"],
)
def test_a_pipeline_with_a_wrong_schema_is_refused(schema: str, linear: Path) -> None:
    with zipfile.ZipFile(linear / PIPELINE_FILE, "w") as archive:
        archive.writestr("schema.json", schema)
    assert "cannot be opened" in refused(linear)


@pytest.mark.parametrize(
    "model",
    [
        [1, 2, 3],
        LogisticRegression(),
        Pipeline([("words", TfidfVectorizer())]),
        make_pipeline(TfidfVectorizer(), LogisticRegression()),
        make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(TEXTS[:3], LABELS),
    ],
    ids=["a list", "no pipeline", "no classifier", "not fitted", "no decision function"],
)
def test_a_pipeline_that_is_no_linear_classifier_is_refused(model: object, linear: Path) -> None:
    skops.io.dump(model, linear / PIPELINE_FILE)
    assert "cannot be opened" in refused(linear)


RAN: list[str] = []


def read_and_run(texts: Sequence[str]) -> Sequence[str]:
    """Pass texts on, and run."""
    RAN.append("function")
    return texts


class RunsWhenOpened(BaseEstimator):
    """An estimator with code that opening it would run."""

    def __setstate__(self, state: dict[str, object]) -> None:
        RAN.append("class")
        super().__setstate__(state)

    def fit(self, texts: Sequence[str], labels: Sequence[str] | None = None) -> "RunsWhenOpened":
        return self

    def transform(self, texts: Sequence[str]) -> Sequence[str]:
        return texts


@pytest.mark.parametrize("step", [FunctionTransformer(read_and_run), RunsWhenOpened()], ids=["function", "class"])
@pytest.mark.parametrize("is_member", [False, True], ids=["alone", "in an ensemble"])
def test_code_of_a_folder_is_not_run(
    is_member: bool, step: BaseEstimator, linear: Path, ensemble: Path, request: pytest.FixtureRequest
) -> None:
    folder = ensemble if is_member else linear
    file = (folder / MEMBERS_FOLDER / "2" if is_member else folder) / PIPELINE_FILE
    skops.io.dump(make_pipeline(step, TfidfVectorizer(), LogisticRegression()).fit(TEXTS[:3], LABELS), file)
    RAN.clear()
    message = refused(folder)
    assert "scikit-learn's own types only" in message
    assert type(step).__name__ in message or read_and_run.__name__ in message
    assert RAN == []
    skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file)).predict(TEXTS)
    assert RAN, "this folder has code to run"


def test_a_description_is_plain_json(linear: Path, ensemble: Path) -> None:
    described = json.loads((linear / CLASSIFIER_FILE).read_text())
    assert described.pop("written_with").startswith("scikit-learn ")
    assert described == {"kind": "linear", "classes": list(LABELS), "temperature": 1.0}
    assert json.loads((ensemble / CLASSIFIER_FILE).read_text()) == {
        "kind": "ensemble", "classes": list(LABELS), "weights": [0.75, 0.25]
    }  # fmt: skip


def describe(folder: Path, changed: dict[str, object]) -> None:
    """Change the description of a folder."""
    described = json.loads((folder / CLASSIFIER_FILE).read_text())
    (folder / CLASSIFIER_FILE).write_text(json.dumps(described | changed))
