"""Baselines that train in seconds, which fine-tuning must beat: scikit-learn's linear classifiers on three inputs.

``tfidf`` is a logistic regression on words and pairs of words, ``embeddings`` one on the frozen encoder's mean-pooled
output. Each also exists with equal weight for every class (``..._balanced``). ``svm_balanced`` is a linear support
vector machine, so weighted, on words, pairs of words and pieces of words. The validation examples select the strength
of regularisation, and the temperature that makes probabilities of the machine's margins.

A baseline that reads texts may become the model of a sweep, alone or in an ensemble: see ``text_classifiers.py``.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.baselines import TextBaseline
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, TrialConfig
from tailsweep.trainables.data.splits import Splits, load_splits
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import DataError
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.postprocess.calibration import fitted_temperature
from tailsweep.trainables.training.metrics import Confusion
from tailsweep.trainables.training.runtime import SingleProcess
from threadpoolctl import threadpool_limits
from torch import nn

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of LogisticRegression: the inverse of the regularisation's strength
MAX_ITERATIONS = 1000
MOST_CHARACTERS = 20_000_000  # of training texts that a sweep fits baselines to: more take minutes
SPLITS = (report_keys.TRAIN, report_keys.VALIDATION, report_keys.TEST)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline with its validation score and what it says of validation and test examples."""

    name: str
    strength: float  # C
    validation: float  # the metric that selected the strength
    temperature: float  # its margins are divided by it
    validation_logits: NDArray[np.float64]  # (n, C)
    test_logits: NDArray[np.float64]  # (n, C)
    pipeline: Pipeline | None  # from texts to the names of classes; None where the encoder makes its inputs
    seconds: float

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of each test example, (n,)."""
        predicted: NDArray[np.int64] = self.test_logits.argmax(axis=1)
        return predicted


def fit_baselines(
    names: Sequence[TextBaseline], config: TrialConfig, data: PreparedData, metric: str
) -> list[Baseline]:
    """Fit the baselines of a sweep to its examples.

    Args:
        names: The baselines.
        config: A trial of the sweep.
        data: Its examples, tokenized.
        metric: A validation score, as a sweep names it.

    Raises:
        DataError: The texts cannot be read, are others than the examples, or are too many for seconds.
    """
    splits = load_splits(config.data)
    if not all(np.array_equal(getattr(splits, split)["label"], data.rows_of(split).labels) for split in SPLITS):
        raise DataError(f"{config.data.train} has other rows than the sweep began with")
    characters = sum(map(len, splits.train["text"]))
    if characters > MOST_CHARACTERS:
        raise DataError(f"the training texts have {characters:,} characters, above the {MOST_CHARACTERS:,} for seconds")
    return [fit_baseline(name, config.data, config.model, data, metric) for name in names]


def baseline_scores(
    baselines: Sequence[Baseline], data: PreparedData, metric: str
) -> dict[str, dict[str, float | None]]:
    """Return of each baseline the strength of its regularisation, its scores and the seconds it took.

    Args:
        baselines: As they were fitted.
        data: The examples, tokenized.
        metric: A validation score, as a sweep names it. The test score is the same of the other split.
    """
    test = report_keys.on_split(report_keys.TEST, metric.split("/", 1)[1])
    return {
        fitted.name: {
            "strength": fitted.strength,
            metric: fitted.validation,
            test: _scores(fitted.predicted, data, report_keys.TEST)[test],
            "seconds": fitted.seconds,
        }
        for fitted in baselines
    }


def fit_baseline(name: str, config: DataConfig, model: ModelConfig, data: PreparedData, metric: str) -> Baseline:
    """Fit a baseline to the training examples with every strength, and return the best on the validation examples.

    Args:
        name: One of ``BASELINES``.
        config: The examples, as text.
        model: The encoder of ``embeddings``.
        data: The same examples, tokenized.
        metric: A validation score, as a sweep names it.
    """
    began = time.monotonic()
    reads_texts = not name.startswith("embeddings")
    inputs = _texts(load_splits(config)) if reads_texts else _embeddings(model, data)
    preprocessor = _vectorizer(name.startswith("svm")) if reads_texts else StandardScaler()
    train = preprocessor.fit_transform(inputs(report_keys.TRAIN))
    validation = preprocessor.transform(inputs(report_keys.VALIDATION))
    names, labels = np.array(data.label_names), data.rows_of(report_keys.TRAIN).labels
    best: tuple[float, float, Any] | None = None  # score, strength, classifier
    for strength in STRENGTHS:
        classifier = _fit_classifier(name, strength, train, names[labels])
        score = _score(metric, decision_logits(classifier, validation, data.label_names).argmax(axis=1), data)
        if best is None or score > best[0]:
            best = score, strength, classifier
    assert best is not None
    score, strength, classifier = best
    validation_logits = decision_logits(classifier, validation, data.label_names)
    has_margins = isinstance(classifier, LinearSVC)
    temperature = fitted_temperature(validation_logits, data.validation.labels) if has_margins else 1.0
    test_logits = decision_logits(classifier, preprocessor.transform(inputs(report_keys.TEST)), data.label_names)
    return Baseline(
        name,
        strength,
        score,
        temperature,
        validation_logits / temperature,
        test_logits / temperature,
        make_pipeline(preprocessor, classifier) if reads_texts else None,
        round(time.monotonic() - began, 1),
    )


def refit_baseline(fitted: Baseline, config: DataConfig) -> Baseline:
    """Fit a baseline that reads texts to other examples, as strongly regularised and with its temperature.

    Args:
        fitted: The baseline; its validation score stays.
        config: The examples.
    """
    splits = load_splits(config)
    inputs = _texts(splits)
    preprocessor = _vectorizer(fitted.name.startswith("svm"))
    train = preprocessor.fit_transform(inputs(report_keys.TRAIN))
    names = np.array(splits.label_names)
    classifier = _fit_classifier(fitted.name, fitted.strength, train, names[np.array(splits.train["label"])])
    pipeline = make_pipeline(preprocessor, classifier)
    validation, test = (
        decision_logits(pipeline, inputs(split), splits.label_names) / fitted.temperature
        for split in (report_keys.VALIDATION, report_keys.TEST)
    )
    return replace(fitted, pipeline=pipeline, validation_logits=validation, test_logits=test)


def _fit_classifier(name: str, strength: float, inputs: Any, labels: NDArray[np.str_]) -> Any:
    """Fit the classifier of a baseline to inputs and the names of their classes, (n,)."""
    kind = LinearSVC if name.startswith("svm") else LogisticRegression
    weight = "balanced" if name.endswith("_balanced") else None
    classifier = kind(C=strength, class_weight=weight, max_iter=MAX_ITERATIONS, random_state=0)
    # One thread: the vectors are too short for more, which cost seven times the CPU time, and ten times the wall time
    # where the cores are busy.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation examples judge it all the same
        classifier.fit(inputs, labels)
    return classifier


def decision_logits(classifier: Any, inputs: Any, label_names: Sequence[str]) -> NDArray[np.float64]:
    """Return what a linear classifier of scikit-learn decides by, as logits (n, C) in the order of the names.

    Args:
        classifier: The classifier, or a pipeline that ends with it; its classes are the names.
        inputs: What it reads.
        label_names: C names.
    """
    margins = np.asarray(classifier.decision_function(inputs), np.float64)
    if margins.ndim == 1:  # of two classes the second one's: the log-odds of a logistic regression
        margins = np.stack([-margins / 2, margins / 2], axis=1)
    order = {name: column for column, name in enumerate(classifier.classes_)}
    logits: NDArray[np.float64] = log_softmax(margins[:, [order[name] for name in label_names]], axis=1)
    return logits


def join_pair(text: str, pair: str) -> str:
    """Return the text that a baseline reads in place of a pair."""
    return f"{text}\n{pair}"


def _vectorizer(with_pieces: bool) -> Any:
    """Return what is read of a text: its words and pairs of words, and pieces of 2 to 5 characters within words."""
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    return make_union(words, pieces) if with_pieces else words


def _texts(splits: Splits) -> Callable[[str], list[str]]:
    """Return the texts of each split."""

    def texts(split: str) -> list[str]:
        part = getattr(splits, split)
        pairs = part["pair"] if "pair" in part.column_names else None
        return list(part["text"]) if pairs is None else list(map(join_pair, part["text"], pairs))

    return texts


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
