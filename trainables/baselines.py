"""Baselines that train in seconds, which fine-tuning must beat: scikit-learn's linear classifiers on three inputs.

``tfidf`` is a logistic regression on words and pairs of words, ``embeddings`` one on the frozen encoder's mean-pooled
output. Each also exists with equal weight for every class (``..._balanced``). ``svm_balanced`` is a linear support
vector machine, so weighted, on words, pairs of words and pieces of words. The validation examples select the strength
of regularisation.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.baselines import TextBaseline
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TrialConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.training.metrics import Confusion
from tailsweep.trainables.training.runtime import SingleProcess
from torch import nn

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of LogisticRegression: the inverse of the regularisation's strength
MAX_ITERATIONS = 1000
MOST_CHARACTERS = 20_000_000  # of training texts that a sweep fits baselines to: more take minutes
SPLITS = (report_keys.TRAIN, report_keys.VALIDATION, report_keys.TEST)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline with its validation score and test predictions."""

    strength: float  # C
    validation: float  # the metric that selected the strength
    predicted: np.ndarray  # (n,) class of each test example


def score_baselines(
    names: Sequence[TextBaseline], config: TrialConfig, data: PreparedData, metric: str
) -> dict[str, dict[str, float | None]]:
    """Fit baselines, and return of each the strength of its regularisation, its scores and the seconds it took.

    Args:
        names: The baselines.
        config: A trial of the sweep.
        data: Its examples, tokenized.
        metric: A validation score, as a sweep names it. The test score is the same of the other split.

    Raises:
        DataError: The texts cannot be read, are others than the examples, or are too many for seconds.
    """
    splits = load_splits(config.data)
    if not all(np.array_equal(getattr(splits, split)["label"], data.rows_of(split).labels) for split in SPLITS):
        raise DataError(f"{config.data.train} has other rows than the sweep began with")
    characters = sum(map(len, splits.train["text"]))
    if characters > MOST_CHARACTERS:
        raise DataError(f"the training texts have {characters:,} characters, above the {MOST_CHARACTERS:,} for seconds")
    scored: dict[str, dict[str, float | None]] = {}
    for name in names:
        began = time.monotonic()
        fitted = fit_baseline(name, config.data, config.model, data, metric)
        test = report_keys.on_split(report_keys.TEST, metric.split("/", 1)[1])
        scored[name] = {
            "strength": fitted.strength,
            metric: fitted.validation,
            test: _scores(fitted.predicted, data, report_keys.TEST)[test],
            "seconds": round(time.monotonic() - began, 1),
        }
    return scored


def fit_baseline(name: str, config: DataConfig, model: ModelConfig, data: PreparedData, metric: str) -> Baseline:
    """Fit a baseline to the training examples with every strength, and return the best on the validation examples.

    Args:
        name: One of ``BASELINES``.
        config: The examples, as text.
        model: The encoder of ``embeddings``.
        data: The same examples, tokenized.
        metric: A validation score, as a sweep names it.
    """
    features = _embeddings(model, data) if name.startswith("embeddings") else _texts(config, name.startswith("svm"))
    train, validation, test = (
        features(split) for split in (report_keys.TRAIN, report_keys.VALIDATION, report_keys.TEST)
    )
    weight = "balanced" if name.endswith("_balanced") else None
    best: Baseline | None = None
    for strength in STRENGTHS:
        scale = [StandardScaler()] if name.startswith("embeddings") else []
        kind = LinearSVC if name.startswith("svm") else LogisticRegression
        classifier = make_pipeline(
            *scale, kind(C=strength, class_weight=weight, max_iter=MAX_ITERATIONS, random_state=0)
        )
        with warnings.catch_warnings():  # what has not converged is judged by the validation examples all the same
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train, data.train.labels)
        score = _score(metric, classifier.predict(validation), data)
        if best is None or score > best.validation:
            best = Baseline(strength, score, classifier.predict(test))
    assert best is not None
    return best


def _texts(config: DataConfig, with_pieces: bool) -> Callable[[str], Any]:
    """Return what is read of a split: its words and pairs of words, and pieces of 2 to 5 characters within words."""
    splits = load_splits(config)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    vectorizer = make_union(words, pieces) if with_pieces else words

    def texts(split: str) -> list[str]:
        part = getattr(splits, split)
        pairs = part["pair"] if "pair" in part.column_names else None
        return list(part["text"]) if pairs is None else [f"{a}\n{b}" for a, b in zip(part["text"], pairs, strict=True)]

    vectorizer.fit(texts("train"))
    return lambda split: vectorizer.transform(texts(split))


def _embeddings(model: ModelConfig, data: PreparedData) -> Callable[[str], Any]:
    pooled: Any = build_classifier(
        ModelConfig(name=model.name, head=HeadConfig(pooling="mean")), data.label_names, seed=0
    )
    pooled.head = nn.Identity()  # the input of the head is the embedding
    runtime = SingleProcess()
    execution = live_execution(runtime.place(pooled), data, runtime.device, "fp32")
    return lambda split: split_logits(execution, split).numpy()


def _score(metric: str, predicted: np.ndarray, data: PreparedData) -> float:
    score = _scores(predicted, data, report_keys.VALIDATION)[metric]
    assert score is not None, f"{metric} was checked to be defined for these examples"
    return score


def _scores(predicted: np.ndarray, data: PreparedData, split: str) -> dict[str, float | None]:
    labels = torch.from_numpy(np.array(data.rows_of(split).labels))
    confusion = Confusion(len(data.label_names))
    confusion.update(nn.functional.one_hot(torch.from_numpy(predicted), len(data.label_names)).float(), labels)
    return confusion.scores(data.class_counts, data.label_names, split)
