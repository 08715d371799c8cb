"""Everything that a sweep may choose as its model, behind one interface: texts in, probabilities out.

A folder holds one of three kinds. A transformer is a standard folder of ``transformers``. A linear classifier is a
scikit-learn pipeline in skops' format, which holds no pickle. An ensemble averages the probabilities of members, each
a folder of one of the first two kinds with a tokenizer of its own. ``classifier.json`` describes the last two; it may
have a shift of the classes' log-probabilities, which a transformer has in the bias of its last layer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
import sklearn
import skops.io
import transformers
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy.special import softmax
from sklearn.pipeline import Pipeline
from tailsweep.trainables.baselines import Baseline, decision_logits, join_pair
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.errors import ModelError, describe_error
from tailsweep.trainables.inference import class_names, classify
from tailsweep.trainables.models.classifier import CLASSIFIER_FILE, load_classifier
from tailsweep.trainables.postprocess.calibration import MOST
from tailsweep.trainables.storage.json_text import parse_json
from torch import nn

PIPELINE_FILE = "pipeline.skops"
MEMBERS_FOLDER = "members"  # of an ensemble, with one folder each
COMPRESSED = 8  # zip


class TextClassifier(Protocol):
    """A classifier of texts."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of the probabilities."""

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return the class probabilities (n, C) of at least one text, or pair of texts."""


@dataclass(frozen=True, eq=False)
class TransformerClassifier:
    """A fine-tuned transformer with its tokenizer."""

    model: nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    class_names: Sequence[str]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder that ``save_pretrained`` or a sweep wrote."""
        model, tokenizer = load_classifier(folder)
        return cls(model, tokenizer, class_names(model, folder))

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return the class probabilities (n, C)."""
        return classify(self.model, self.tokenizer, list(texts), None if pairs is None else list(pairs))


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A linear classifier of scikit-learn on words, or pieces of words."""

    pipeline: Pipeline
    temperature: float
    class_names: Sequence[str]
    shift: Sequence[float] | None = None  # (C,), of log-probabilities; None: none

    @classmethod
    def open(cls, folder: Path, described: "_Linear") -> Self:
        """Open a folder that :func:`save_baseline` wrote.

        Raises:
            ModelError: The pipeline is not one of scikit-learn's own.
        """
        file = folder / PIPELINE_FILE
        try:
            types = skops.io.get_untrusted_types(file=file)
            pipeline = None if types else skops.io.load(file)
            is_linear = isinstance(pipeline, Pipeline) and sorted(pipeline.classes_) == sorted(described.classes)
            if is_linear:
                decision_logits(pipeline, ["a text"], described.classes)
        except Exception as error:  # what zipfile, zlib, skops and scikit-learn raise for a damaged file is without end
            raise ModelError(f'the model in "{folder}" cannot be opened: {describe_error(error)}') from error
        if types:
            raise ModelError(
                f'the model in "{folder}" cannot be opened: {PIPELINE_FILE} holds {", ".join(sorted(types)[:3])}, but '
                "must hold scikit-learn's own types only: nothing in a model folder is run"
            )
        if not is_linear:
            raise ModelError(f'the model in "{folder}" cannot be opened: {PIPELINE_FILE} has other classes than it')
        return cls(pipeline, described.temperature, described.classes, described.shift)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return the class probabilities (n, C)."""
        inputs = list(texts) if pairs is None else list(map(join_pair, texts, pairs))
        logits = decision_logits(self.pipeline, inputs, self.class_names) / self.temperature
        probabilities: NDArray[np.float64] = softmax(logits, axis=1)
        return shifted(probabilities, self.shift)


@dataclass(frozen=True, eq=False)
class EnsembleClassifier:
    """A weighted mean of the probabilities of several classifiers."""

    members: Sequence[TextClassifier]
    weights: Sequence[float]  # sum to 1
    class_names: Sequence[str]
    shift: Sequence[float] | None = None  # (C,), of the logarithm of that mean; None: none

    @classmethod
    def open(cls, folder: Path, described: "_Ensemble") -> Self:
        """Open a folder that :func:`write_ensemble` has completed.

        Raises:
            ModelError: A member has other classes.
        """
        members = [
            open_text_classifier(folder / MEMBERS_FOLDER / str(number))
            for number in range(1, 1 + len(described.weights))
        ]
        for number, member in enumerate(members, start=1):
            if isinstance(member, EnsembleClassifier):
                raise ModelError(f'the model in "{folder}" cannot be opened: its member {number} is an ensemble, too')
            if list(member.class_names) != described.classes:
                raise ModelError(f'the model in "{folder}" cannot be opened: its member {number} has other classes')
        return cls(members, described.weights, described.classes, described.shift)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return the class probabilities (n, C)."""
        mean = mean_probabilities([member.probabilities(texts, pairs) for member in self.members], self.weights)
        return shifted(mean, self.shift)


def mean_probabilities(probabilities: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the weighted mean of probabilities (n, C); the weights sum to 1."""
    mean: NDArray[np.float64] = np.tensordot(np.asarray(weights), np.stack(probabilities), axes=1)
    return mean


def shifted(probabilities: NDArray[np.float64], shift: Sequence[float] | None) -> NDArray[np.float64]:
    """Return probabilities (n, C) with a shift (C,) of their logarithms."""
    if shift is None:
        return probabilities
    with np.errstate(divide="ignore"):  # a probability of 0 stays one
        logits = np.log(probabilities) + shift
    changed: NDArray[np.float64] = softmax(logits, axis=1)
    return changed


def open_text_classifier(folder: str | Path) -> TextClassifier:
    """Open a model folder of any of the three kinds. Runs no code from it.

    Raises:
        ModelError: the folder is none of these, or is damaged.

    Example:
        ``open_text_classifier("runs/demo/best").probabilities(["two tablets daily"])``
    """
    folder = Path(folder)
    if not (folder / CLASSIFIER_FILE).is_file():
        return TransformerClassifier.open(folder)
    try:
        described = _read_description(folder)
        if isinstance(described, _Ensemble):
            return EnsembleClassifier.open(folder, described)
        return LinearClassifier.open(folder, described)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f'the model in "{folder}" cannot be opened: {describe_error(error)}') from error


def save_baseline(
    baseline: Baseline, folder: Path, label_names: Sequence[str], shift: NDArray[np.float64] | None = None
) -> None:
    """Write a baseline that reads texts to a folder."""
    assert baseline.pipeline is not None, f"{baseline.name} reads no texts"
    skops.io.dump(baseline.pipeline, folder / PIPELINE_FILE, compression=COMPRESSED)
    described = _Linear(
        classes=list(label_names),
        temperature=baseline.temperature,
        written_with=f"scikit-learn {sklearn.__version__}",
        shift=None if shift is None else shift.tolist(),
    )
    _describe(folder, described)


def write_ensemble(
    folder: Path, weights: Sequence[float], label_names: Sequence[str], shift: NDArray[np.float64] | None = None
) -> None:
    """Complete a folder whose members lie in ``members/1``, ``members/2`` and so on."""
    own_shift = None if shift is None else shift.tolist()
    _describe(folder, _Ensemble(classes=list(label_names), weights=list(weights), shift=own_shift))


# Of each class's log-probability, one after the other.
Shift = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]] | None, Field(exclude_if=lambda shift: not shift)]


class _Linear(Section):
    classes: list[str]
    temperature: float = Field(ge=1 / MOST, le=MOST)
    written_with: str
    shift: Shift = None


class _Ensemble(Section):
    classes: list[str]
    weights: list[float] = Field(min_length=2)  # of members/1, members/2, ...
    shift: Shift = None


def _describe(folder: Path, description: _Linear | _Ensemble) -> None:
    kind = "ensemble" if isinstance(description, _Ensemble) else "linear"
    text = json.dumps({"kind": kind, **description.model_dump()}, indent=1, ensure_ascii=False)
    (folder / CLASSIFIER_FILE).write_text(text + "\n", encoding="utf-8")


def _read_description(folder: Path) -> _Linear | _Ensemble:
    read = parse_json((folder / CLASSIFIER_FILE).read_text(encoding="utf-8"))
    kinds: dict[str, type[_Ensemble] | type[_Linear]] = {"ensemble": _Ensemble, "linear": _Linear}
    fields: dict[str, Any] = dict(read) if isinstance(read, Mapping) else {}
    kind = str(fields.pop("kind", None))
    if kind not in kinds:
        raise ModelError(f'{folder / CLASSIFIER_FILE}: kind is "{kind}", but must be one of {", ".join(kinds)}')
    try:
        described: _Linear | _Ensemble = kinds[kind].model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ModelError(f"{folder / CLASSIFIER_FILE}: {field}: {first['msg']}") from None
    weights = described.weights if isinstance(described, _Ensemble) else [1.0]
    if not np.isclose(sum(weights), 1) or min(weights) < 0:
        raise ModelError(f"{folder / CLASSIFIER_FILE}: the weights must be at least 0 and sum to 1")
    if described.shift is not None and len(described.shift) != len(described.classes):
        raise ModelError(f"{folder / CLASSIFIER_FILE}: shift must have a number for each of the classes")
    return described
