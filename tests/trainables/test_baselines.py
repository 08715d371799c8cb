"""The classifiers of seconds: what they read, and how their one setting is chosen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC
from tailsweep.trainables import baselines
from tailsweep.trainables.baselines import STRENGTHS, _embeddings, baseline_scores, fit_baseline, fit_baselines
from tailsweep.trainables.config.baselines import BASELINES
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import ModelConfig, TrialConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir

METRIC = "validation/macro_f1"


@pytest.fixture(scope="module")
def config(rows_csv: Path) -> DataConfig:
    return DataConfig(train=str(rows_csv), validation=0.2, test=0.2, max_length=40)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(name=str(tiny_model("bert")))


@pytest.fixture(scope="module")
def data(config: DataConfig, model: ModelConfig) -> PreparedData:
    return prepare(config, model.name, default_cache_dir())


@pytest.mark.parametrize("name", BASELINES)
def test_each_learns_from_train_is_chosen_by_validation_and_predicts_test(
    name: str, config: DataConfig, model: ModelConfig, data: PreparedData
) -> None:
    fitted = fit_baseline(name, config, model, data, METRIC)
    assert fitted.strength in STRENGTHS
    assert fitted.predicted.shape == data.test.labels.shape
    most = np.full_like(data.validation.labels, np.bincount(data.train.labels).argmax())
    assert fitted.validation > f1_score(data.validation.labels, most, average="macro")


@pytest.mark.parametrize("weight", [None, "balanced"])
def test_tfidf_is_the_best_of_scikit_learn_s_logistic_regressions(
    weight: str | None, config: DataConfig, model: ModelConfig, data: PreparedData
) -> None:
    splits = load_splits(config)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit(splits.train["text"])
    train, validation, test = (words.transform(part["text"]) for part in (splits.train, splits.validation, splits.test))
    scored = []
    for strength in STRENGTHS:
        plain = LogisticRegression(C=strength, class_weight=weight, max_iter=1000, random_state=0)
        plain.fit(train, splits.train["label"])
        score = f1_score(splits.validation["label"], plain.predict(validation), average="macro")
        scored.append((score, -strength, plain.predict(test)))
    best, strength, predicted = max(scored, key=lambda entry: entry[:2])  # of equals the stronger regularisation
    fitted = fit_baseline("tfidf" if weight is None else "tfidf_balanced", config, model, data, METRIC)
    assert (fitted.validation, fitted.strength) == (pytest.approx(best), -strength)
    assert np.array_equal(fitted.predicted, predicted)


def test_the_support_vector_machine_reads_pieces_of_words(
    config: DataConfig, model: ModelConfig, data: PreparedData
) -> None:
    splits = load_splits(config)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit(splits.train["text"])
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    pieces.fit(splits.train["text"])
    train, test = (
        scipy.sparse.hstack([words.transform(part["text"]), pieces.transform(part["text"])]).tocsr()
        for part in (splits.train, splits.test)
    )
    fitted = fit_baseline("svm_balanced", config, model, data, METRIC)
    machine = LinearSVC(C=fitted.strength, class_weight="balanced", max_iter=1000, random_state=0)
    machine.fit(train, splits.train["label"])
    assert np.array_equal(fitted.predicted, machine.predict(test))


def test_scores_are_those_of_the_predictions(config: DataConfig, model: ModelConfig, data: PreparedData) -> None:
    trial = TrialConfig.model_validate({"data": config, "model": model, "stage_one": {"epochs": 0}, "stage_two": {}})
    scored = baseline_scores(fit_baselines(("tfidf", "svm_balanced"), trial, data, METRIC), data, METRIC)
    assert list(scored) == ["tfidf", "svm_balanced"]
    for name, row in scored.items():
        fitted = fit_baseline(name, config, model, data, METRIC)
        assert (row["strength"], row[METRIC]) == (fitted.strength, fitted.validation)
        assert row["test/macro_f1"] == pytest.approx(f1_score(data.test.labels, fitted.predicted, average="macro"))
        assert row["seconds"] is not None


def test_texts_that_changed_and_texts_for_minutes_are_refused(
    config: DataConfig, model: ModelConfig, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Path(config.train).read_text().splitlines()
    changed = tmp_path / "rows.csv"
    changed.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    trial = {"model": model, "stage_one": {"epochs": 0}, "stage_two": {}}
    other = TrialConfig.model_validate(trial | {"data": config.model_copy(update={"train": str(changed)})})
    with pytest.raises(DataError, match="other rows than the sweep began with"):
        fit_baselines(("tfidf",), other, data, METRIC)
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", 100)
    with pytest.raises(DataError, match="above the 100 for seconds"):
        fit_baselines(("tfidf",), TrialConfig.model_validate(trial | {"data": config}), data, METRIC)


def test_embeddings_are_the_mean_of_the_frozen_encoder_s_last_states(model: ModelConfig, data: PreparedData) -> None:
    pooled = _embeddings(model, data)("test")
    encoder = transformers.AutoModel.from_pretrained(model.name).eval()
    with torch.no_grad():
        for row in range(len(data.test)):
            tokens = torch.from_numpy(data.test.tokens[slice(*data.test.offsets[row : row + 2])].astype(np.int64))
            expected = encoder(input_ids=tokens[None]).last_hidden_state[0].mean(dim=0)
            np.testing.assert_allclose(pooled[row], expected.numpy(), atol=1e-5)
