"""The last layer of every head, and what is fitted after training and written into it: against arithmetic."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.backends import live_execution, split_logits
from tailsweep.trainables.execution.last_layer import last_layer, split_inputs
from tailsweep.trainables.postprocess.pipeline import BEFORE_FILE, POSTPROCESS_FILE, postprocess_classifier
from tailsweep.trainables.postprocess.thresholds import counts_of
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.metrics import recall_by_class
from tailsweep.trainables.training.runtime import SingleProcess
from tailsweep.trainables.training.stages import evaluate
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
METRIC = "validation/macro_f1"
LINEAR = HeadConfig(pooling="mean")
NARROW_MLP = HeadConfig(pooling="mean", kind="mlp", hidden=3)  # its first layer is as wide as there are classes
CRT = {"kind": "crt"}
EVERYTHING = [
    {"classifier": CRT},
    {"classifier": {"kind": "tau_normalization"}},
    {"classifier": {"kind": "tau_normalization", "tau": 1.5}},
    {"classifier": {"kind": "lws"}},
    {"decision": {"kind": "thresholds"}},
    {"decision": {"kind": "logit_adjustment"}},
    {"decision": {"kind": "logit_adjustment", "tau": 1}},
    {"temperature": True},
    {"classifier": CRT, "decision": {"kind": "thresholds"}, "temperature": True},
]


@pytest.fixture(scope="module")
def data(tiny_model: TinyModel, rows_csv: Path) -> PreparedData:
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    return prepare(config, str(tiny_model("bert")), default_cache_dir())


def built(folder: Path, head: Any, data: PreparedData) -> nn.Module:
    return build_classifier(ModelConfig(name=str(folder), head=head), data.label_names, 0)


def knowing(folder: Path, head: Any, data: PreparedData) -> nn.Module:
    """A classifier whose last layer is a logistic regression on what it is given, three times too sure of itself."""
    model = built(folder, head, data)
    _, layer = last_layer(model, data.train, CPU)
    inputs = split_inputs(layer, live_execution(model, data, CPU, "fp32"), report_keys.TRAIN, len(data.train))
    regression = LogisticRegression(max_iter=500).fit(inputs, data.train.labels)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(3 * regression.coef_))
        layer.bias.copy_(torch.from_numpy(3 * regression.intercept_))
    return model


def logits_of(model: nn.Module, data: PreparedData, split: str = report_keys.VALIDATION) -> np.ndarray:
    return split_logits(live_execution(model, data, CPU, "fp32"), split).double().numpy()


@pytest.mark.parametrize(
    ("architecture", "head", "expected"),
    [
        ("bert", "native", "classifier"),
        ("roberta", "native", "classifier.out_proj"),
        ("distilbert", "native", "classifier"),
        ("modernbert", "native", "classifier"),
        ("deberta-v2", "native", "classifier"),
        ("electra", "native", "classifier.out_proj"),
        ("albert", "native", "classifier"),
        ("mpnet", "native", "classifier.out_proj"),
        ("bert", LINEAR, "head"),
        ("distilbert", NARROW_MLP, "head.2"),
    ],
)
def test_the_last_layer_of_every_head_is_found(
    architecture: str, head: Any, expected: str, tiny_model: TinyModel, data: PreparedData
) -> None:
    model = built(tiny_model(architecture), head, data).train()
    name, layer = last_layer(model, data.train, CPU)
    assert (name, layer) == (expected, model.get_submodule(expected))
    assert model.training
    before = logits_of(model, data)
    inputs = split_inputs(layer, live_execution(model, data, CPU, "fp32"), report_keys.VALIDATION, len(data.validation))
    given = F.linear(torch.from_numpy(inputs), layer.weight, layer.bias).detach().numpy()
    np.testing.assert_allclose(given, before, atol=1e-5)
    with torch.no_grad():
        layer.bias.add_(torch.tensor([1.0, -2.0, 0.0]))
    shifted = before + np.array([1.0, -2.0, 0.0])
    np.testing.assert_allclose(logits_of(model, data), shifted, atol=1e-5)


class _Bent(nn.Module):
    """A classifier whose logits are no linear layer's output as it is."""

    def __init__(self, model: nn.Module, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.bend = model, bend

    @property
    def base_model(self) -> nn.Module:
        return cast(nn.Module, self.model.base_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return SequenceClassifierOutput(logits=self.bend(output.logits))


def test_logits_that_no_layer_gives_are_refused(tiny_model: TinyModel, data: PreparedData) -> None:
    model = built(tiny_model("bert"), LINEAR, data)
    with pytest.raises(ModelError, match=r"logits of _Bent is not a linear layer.*leave postprocess out"):
        last_layer(_Bent(model, torch.tanh), data.train, CPU)
    assert last_layer(_Bent(model, nn.Identity()), data.train, CPU)[0] == "model.head"
    cast(Any, model).head.bias = None
    with pytest.raises(ModelError, match="has no bias"):
        last_layer(model, data.train, CPU)


@pytest.mark.parametrize("settings", EVERYTHING, ids=lambda s: "-".join(map(str, _flat(s))))
def test_what_was_fitted_is_what_the_model_gives(
    settings: dict[str, Any], tiny_model: TinyModel, data: PreparedData
) -> None:
    model = knowing(tiny_model("bert"), LINEAR, data)
    before = logits_of(model, data)
    weight, bias = (p.detach().double().numpy() for p in cast(Any, model).head.parameters())
    weight, bias = weight.copy(), bias.copy()
    # Nothing looks at test rows.
    blind = replace(data, test=cast(Any, None))
    finished = postprocess_classifier(model, blind, PostprocessConfig.model_validate(settings), METRIC, 0, CPU)
    after = logits_of(model, data)
    fitted = {step.kind: step.fitted for step in finished.steps}
    expected = before
    if "tau_normalization" in fitted:
        # logits without their bias, divided by the norms' power
        expected = (before - bias) / np.linalg.norm(weight, axis=1) ** fitted["tau_normalization"]["tau"]
    if "lws" in fitted:
        expected = before * list(fitted["lws"]["scales"].values())
    if "crt" in fitted:
        expected = None
    elif "thresholds" in fitted:
        expected = expected - np.log(list(fitted["thresholds"]["thresholds"].values()))
    elif "logit_adjustment" in fitted:
        prior = data.class_counts / data.class_counts.sum()
        expected = expected - fitted["logit_adjustment"]["tau"] * np.log(prior)
        np.testing.assert_allclose(
            list(fitted["logit_adjustment"]["shift"].values()), -fitted["logit_adjustment"]["tau"] * np.log(prior)
        )
    elif "temperature" in fitted:
        assert fitted["temperature"]["temperature"] != 1
        expected = expected / fitted["temperature"]["temperature"]
    if expected is not None:
        np.testing.assert_allclose(after, expected, atol=1e-5)
    # What a step began with the one before it left, the last one left what the model scores.
    for earlier, later in zip(finished.steps, finished.steps[1:], strict=False):
        assert earlier.after == later.before
    runtime = SingleProcess(CPU)
    scores = evaluate(live_execution(model, data, CPU, "fp32"), data, runtime, report_keys.VALIDATION)
    assert finished.steps[-1].after[METRIC] == pytest.approx(scores[METRIC], abs=1e-12)
    assert finished.steps[-1].after["validation/loss"] == pytest.approx(scores["validation/loss"], abs=1e-5)
    assert finished.steps[0].before[METRIC] == pytest.approx(
        f1_score(data.validation.labels, before.argmax(axis=1), average="macro")
    )
    for step in finished.steps:
        if step.kind == "logit_adjustment" and "tau" not in settings["decision"]:
            assert step.after[METRIC] >= step.before[METRIC]
        if step.kind == "temperature":
            assert step.after[METRIC] == step.before[METRIC]
            assert step.after["validation/loss"] < step.before["validation/loss"]


def _flat(settings: dict[str, Any]) -> list[Any]:
    return [leaf for value in settings.values() for leaf in (value.values() if isinstance(value, dict) else [value])]


def test_crt_changes_the_last_layer_and_nothing_else(tiny_model: TinyModel, data: PreparedData) -> None:
    model = built(tiny_model("distilbert"), NARROW_MLP, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = recall_by_class(counts_of(logits_of(model, data, report_keys.TRAIN), data.train.labels))
    postprocess = PostprocessConfig.model_validate({"classifier": CRT | {"learning_rate": 0.1}})
    postprocess_classifier(model, data, postprocess, METRIC, 0, CPU)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.2.weight", "head.2.bias"}
    new = recall_by_class(counts_of(logits_of(model, data, report_keys.TRAIN), data.train.labels))
    assert new.mean() > old.mean() + 0.05


def test_another_metric_is_what_thresholds_raise(tiny_model: TinyModel, data: PreparedData) -> None:
    """Of 33, 18 and 6 training rows two classes have few: their recall is highest where the first is never said."""
    postprocess = PostprocessConfig.model_validate({"decision": {"kind": "thresholds"}})
    first_said = {}
    for metric in ("validation/recall_few", "validation/accuracy"):
        model = knowing(tiny_model("bert"), LINEAR, data)
        before = logits_of(model, data).argmax(axis=1)
        (step,) = postprocess_classifier(model, data, postprocess, metric, 0, CPU).steps
        assert step.after[metric] >= step.before[metric]
        first_said[metric] = (logits_of(model, data).argmax(axis=1) == 0).sum()
    assert first_said["validation/recall_few"] < min((before == 0).sum(), first_said["validation/accuracy"])


def test_a_class_without_validation_rows_does_no_harm(tiny_model: TinyModel, data: PreparedData) -> None:
    model = built(tiny_model("bert"), LINEAR, data)
    without = data.validation.between(0, int(np.argmax(data.validation.labels == 2)))
    assert 2 not in without.labels
    assert len(without) > 2
    postprocess = PostprocessConfig.model_validate({"decision": {"kind": "thresholds"}, "temperature": True})
    finished = postprocess_classifier(model, replace(data, validation=without), postprocess, METRIC, 0, CPU)
    assert finished.steps[0].fitted["thresholds"]["metabolism"] == 1.0
    assert np.isfinite(logits_of(model, data)).all()


def test_the_record_has_what_it_takes_to_undo_it(tiny_model: TinyModel, data: PreparedData, tmp_path: Path) -> None:
    model = built(tiny_model("roberta"), "native", data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = {"classifier": {"kind": "tau_normalization", "tau": 2}, "temperature": True}
    finished = postprocess_classifier(model, data, PostprocessConfig.model_validate(config), METRIC, 0, CPU)
    finished.write(tmp_path)
    record = json.loads((tmp_path / POSTPROCESS_FILE).read_text())
    assert [step["kind"] for step in record["steps"]] == ["tau_normalization", "temperature"]
    assert record["steps"][0]["fitted"] == {"tau": 2}
    for step in record["steps"]:
        assert set(step["before"]) == set(step["after"]) == {METRIC, "validation/loss", "validation/ece"}
    model.get_submodule(record["layer"]).load_state_dict(load_file(tmp_path / record["as_trained"]))
    assert (tmp_path / BEFORE_FILE).exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_that_does_not_help_is_kept_and_said(tiny_model: TinyModel, data: PreparedData) -> None:
    model = built(tiny_model("bert"), LINEAR, data)
    before = logits_of(model, data)
    postprocess = PostprocessConfig.model_validate({"decision": {"kind": "logit_adjustment", "tau": 0}})
    (step,) = postprocess_classifier(model, data, postprocess, METRIC, 0, CPU).steps
    assert not step.helped
    assert str(step).endswith("no better on validation rows, kept as asked for")
    np.testing.assert_allclose(logits_of(model, data), before, atol=1e-6)
