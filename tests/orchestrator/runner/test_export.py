"""The model folder that a sweep leaves, made in this process: what was fitted after training is in the weights."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from tailsweep.orchestrator.config.schema import FeaturesConfig
from tailsweep.orchestrator.planning import preparation
from tailsweep.orchestrator.runner.export import ExportRequest, _times_scored, export_model
from tailsweep.orchestrator.runner.trained_models import ModelRequest, TrialModel
from tailsweep.orchestrator.runs.directory import METRICS_FILE, RunDirectory
from tailsweep.trainables import report_keys
from tailsweep.trainables.baselines import fit_baseline
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.postprocess import PostprocessConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.splits import load_splits
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.execution.backends import live_execution
from tailsweep.trainables.execution.last_layer import last_layer, split_inputs
from tailsweep.trainables.models.classifier import build_classifier, load_classifier
from tailsweep.trainables.postprocess.calibration import expected_calibration_error
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.text_classifiers import open_text_classifier, save_baseline
from tailsweep.trainables.training.checkpoint import Progress, save_checkpoint
from torch import nn

TinyModel = Callable[..., Path]
BEST = {"stage": "stage_two", "epoch": 1, "validation/macro_f1": 0.5, "seconds": 1.0}
LABELS = ("absorption", "excretion", "metabolism")
DECISION_AND_TEMPERATURE = {"decision": {"kind": "thresholds"}, "temperature": True}
MLP = {"pooling": "mean", "kind": "mlp", "hidden": 5}


def settings(tiny_model: TinyModel, rows_csv: Path, head: Any) -> TrialConfig:
    """Return the settings of the trial whose model is exported."""
    return TrialConfig.model_validate(
        {
            "data": {"train": str(rows_csv), "validation": 0.2, "test": 0.2, "max_length": 30},
            "model": {"name": str(tiny_model("bert")), "head": head},
            "stage_one": {"epochs": 0},
            "stage_two": {},
        }
    )


@pytest.fixture(scope="module")
def exported(
    tiny_model: TinyModel, rows_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, PreparedData, list[str]]]:
    """``exported(head, finish)``: the folder ``best/`` of a sweep of one trial."""

    def export(
        head: Any, postprocess: dict[str, Any], onnx: bool = False, tau: float = 0.0
    ) -> tuple[Path, PreparedData, list[str]]:
        trial_config = settings(tiny_model, rows_csv, head)
        data = prepare(trial_config.data, trial_config.model.name, default_cache_dir())
        run = tmp_path_factory.mktemp("run")
        checkpoint = run / "state/checkpoints/t000/stage_two_epoch_001"
        checkpoint.mkdir(parents=True)
        model = build_classifier(trial_config.model, data.label_names, seed=1)  # not the values that export starts from
        _teach(model, data)
        trained = {name for name, _ in model.named_parameters()}
        save_checkpoint(checkpoint, Progress(report_keys.STAGE_TWO, 1), model, trained, None)
        dump = PostprocessConfig.model_validate(postprocess).model_dump()
        config = trial_config.model_dump(mode="json")
        member = TrialModel(
            name="t000",
            trial="t000",
            config=config,
            report=BEST,
            checkpoint="stage_two_epoch_001",
            is_stage_one_end=False,
        )
        request = ModelRequest(
            location=str(run),
            data=DataSource(key=data.key, published=str(data.folder), digest=data.digest),
            metric="validation/macro_f1",
            postprocess=dump,
            members=[member],
            weights=[1.0],
            tau=tau,
        )
        said = export_model(export_request(request, "t000", member, onnx))
        return run / "best", data, said

    return export


def export_request(model: ModelRequest, name: str, best: TrialModel, onnx: bool = False) -> ExportRequest:
    return ExportRequest(run=model["location"], model=model, name=name, best=best, onnx=onnx, validation={}, record={})


def _teach(model: nn.Module, data: PreparedData) -> None:
    """Make its last layer a logistic regression on what it is given, too sure of itself and of the first class."""
    device = torch.device("cpu")
    _, layer = last_layer(model, data.train, device)
    inputs = split_inputs(layer, live_execution(model, data, device, "fp32"), report_keys.TRAIN, len(data.train))
    regression = LogisticRegression(max_iter=500).fit(inputs, data.train.labels)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(3 * regression.coef_))
        layer.bias.copy_(torch.from_numpy(3 * regression.intercept_ + [4.0, 0.0, 0.0]))


@pytest.fixture(scope="module")
def texts(rows_csv: Path) -> list[str]:
    with rows_csv.open(newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def test_a_plain_pipeline_says_what_was_decided(exported: Callable[..., Any], texts: list[str]) -> None:
    as_trained, _, nothing_said = exported("native", {})
    folder, _, said = exported("native", DECISION_AND_TEMPERATURE)
    assert nothing_said == []
    assert [line.split(":")[0] for line in said] == ["postprocess  thresholds", "postprocess  temperature"]
    decision, calibration = json.loads((folder / "finish.json").read_text())["steps"]
    thresholds = np.array([decision["fitted"]["thresholds"][label] for label in LABELS])
    temperature = calibration["fitted"]["temperature"]
    assert (thresholds != 1).any()
    assert temperature != 1

    model, tokenizer = load_classifier(as_trained)
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().numpy()
    decided = (softmax(logits, axis=1) / thresholds).argmax(axis=1)
    assert (decided != logits.argmax(axis=1)).mean() > 0.1
    classify = transformers.pipeline("text-classification", str(folder), device="cpu")
    predictions = classify(texts, truncation=True, top_k=None)
    assert [scores[0]["label"] for scores in predictions] == [LABELS[index] for index in decided]
    by_class = [[next(s["score"] for s in scores if s["label"] == label) for label in LABELS] for scores in predictions]
    expected = softmax((logits - np.log(thresholds)) / temperature, axis=1)
    np.testing.assert_allclose(by_class, expected, atol=1e-5)


@pytest.mark.thorough
def test_a_rule_is_chosen_on_rows_left_out_of_its_fit(exported: Callable[..., Any]) -> None:
    folder, _, (choice, *applied) = exported("native", {"decision": {"kind": "auto"}})
    assert choice.startswith("postprocess  decision ")
    (first, *_) = json.loads((folder / "metrics.json").read_text())["postprocess"]
    rule = first["kind"].removeprefix("decision ")
    assert list(first["fitted"]["out_of_fold"]) == ["none", "logit_adjustment", "thresholds"]
    assert [line.split(":")[0] for line in applied] == ([] if rule == "none" else [f"postprocess  {rule}"])


def test_the_test_scores_are_those_of_the_finished_model(exported: Callable[..., Any]) -> None:
    folder, data, _ = exported(MLP, {"classifier": {"kind": "lws"}, **DECISION_AND_TEMPERATURE})
    metrics = json.loads((folder / "metrics.json").read_text())
    model, _ = load_classifier(folder)
    input_ids, mask = (torch.from_numpy(array) for array in data.test.padded(np.arange(len(data.test))))
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits.double()
    labels = torch.from_numpy(data.test.labels.copy())
    assert metrics["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    error = expected_calibration_error(logits.numpy(), data.test.labels)
    assert metrics["test/ece"] == pytest.approx(error, abs=1e-4)
    assert metrics["postprocess"] == json.loads((folder / "finish.json").read_text())["steps"]
    assert [step["kind"] for step in metrics["postprocess"]] == ["lws", "thresholds", "temperature"]
    card = (folder / "README.md").read_text()
    assert "## After training" in card
    assert "| thresholds | validation/macro_f1 |" in card
    assert "`head.2`" in card


def test_by_default_nothing_is_done(exported: Callable[..., Any]) -> None:
    folder, data, _ = exported("native", {})
    assert not (folder / "finish.json").exists()
    assert "postprocess" not in json.loads((folder / "metrics.json").read_text())
    assert "After training" not in (folder / "README.md").read_text()
    weights = load_file(folder / "model.safetensors")
    (checkpoint,) = (folder.parent / "state/checkpoints/t000").iterdir()
    trained = load_file(checkpoint / "parameters.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in trained.items())
    assert cast(Any, data).label_names == LABELS


@pytest.mark.parametrize(
    ("postprocess", "model_options", "stages", "asked"),
    [
        ({}, {}, {}, []),
        ({"temperature": True}, {}, {}, ["postprocess"]),
        ({}, {"head_init": "class_means"}, {}, ["model.head_init"]),
        ({}, {}, {"stage_two": {"mixup": 0.3}}, ["stage_two.mixup"]),
        ({}, {}, {"stage_one": {"epochs": 1, "contrastive": {}}}, ["stage_one.contrastive"]),
        ({}, {}, {"stage_one": {"epochs": 0, "contrastive": {}}}, []),
    ],
)
def test_a_model_that_cannot_take_it_is_refused_before_the_sweep(
    postprocess: dict[str, Any],
    model_options: dict[str, Any],
    stages: dict[str, Any],
    asked: list[str],
    tiny_model: TinyModel,
    rows_csv: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(preparation, "last_layer", lambda *arguments: calls.append(arguments[-1]))
    data = {"train": str(rows_csv), "validation": 0.2, "test": 0.2, "max_length": 30}
    model = {"name": str(tiny_model("bert")), **model_options}
    trial_config = TrialConfig.model_validate(
        {"data": data, "model": model, "stage_one": {"epochs": 0}, "stage_two": {}} | stages
    )
    preparation.prepare_trials(
        [trial_config.model_dump(mode="json")],
        "validation/macro_f1",
        FeaturesConfig(),
        PostprocessConfig.model_validate(postprocess),
    )
    assert calls == asked


def test_the_models_are_counted_that_test_examples_were_scored_with(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    first = {"members": [{"name": "t001", "weight": 1.0}]}
    adjusted = first | {"decision": {"kind": "logit_adjustment", "tau": 1.0}}
    assert _times_scored(run, first) == 1
    whole = dict.fromkeys(("trial", "stage", "epoch", "labels", "train_rows", "test_rows"), 0)
    for times, expected in ((1, (1, 2)), (4, (4, 5)), (None, (1, 2)), ("four", (1, 2))):
        run.write_text(METRICS_FILE, json.dumps(whole | first | {"times_scored": times}))
        assert (_times_scored(run, first), _times_scored(run, adjusted)) == expected
    run.write_text(METRICS_FILE, "{")
    assert _times_scored(run, first) == 1


@pytest.mark.thorough
def test_an_onnx_file_has_the_finished_models_probabilities(exported: Callable[..., Any], texts: list[str]) -> None:
    best, _, said = exported("native", DECISION_AND_TEMPERATURE, onnx=True)
    assert said[-1].startswith("onnx  model.onnx has the model's probabilities on ")
    metrics = json.loads((best / "metrics.json").read_text())
    assert metrics["onnx"]["largest_difference"] < 1e-5
    model, tokenizer = load_classifier(best)
    batch = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(1).numpy()
    session = onnxruntime.InferenceSession(best / "model.onnx")
    (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-5)


def test_the_metrics_are_written_last(exported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store the other files appear one by one; `resume` exports again where there are no metrics."""
    uploading, there = RunDirectory.upload, []

    def upload(run: RunDirectory, folder: Path, relative: str) -> None:
        uploading(run, folder, relative)
        there.append(run.list(relative))

    monkeypatch.setattr(RunDirectory, "upload", upload)
    best, _, _ = exported("native", {})
    assert "model.safetensors" in there[0]
    assert {path.name for path in best.iterdir()} - set(there[0]) == {"metrics.json"}


@pytest.mark.parametrize("kind", ["transformer", "linear"])
def test_one_model_s_logits_are_adjusted_by_the_shares_of_the_classes(
    kind: str, exported: Callable[..., Any], texts: list[str], tiny_model: TinyModel, rows_csv: Path
) -> None:
    plain, data, _ = exported("native", {})
    if kind == "transformer":
        adjusted, _, (step,) = exported("native", {}, tau=0.75)
        assert "logit_adjustment" in step
    else:
        trial_config = settings(tiny_model, rows_csv, "native")
        linear = fit_baseline("tfidf", trial_config.data, trial_config.model, data, "validation/macro_f1")
        adjusted = plain
        (plain := plain.parent / "plain").mkdir()
        save_baseline(linear, plain, data.label_names)
        request = ModelRequest(
            location=str(adjusted.parent),
            data=DataSource(key=data.key, published=str(data.folder), digest=data.digest),
            metric="validation/macro_f1",
            postprocess=PostprocessConfig().model_dump(),
            members=[linear],
            weights=[1.0],
            tau=0.75,
        )
        export_model(export_request(request, "tfidf", trial_member(trial_config)))
    before, after = (open_text_classifier(folder).probabilities(texts) for folder in (plain, adjusted))
    expected = before / (data.class_counts / data.class_counts.sum()) ** 0.75
    np.testing.assert_allclose(after, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    metrics = json.loads((adjusted / "metrics.json").read_text())
    assert metrics["decision"] == {"kind": "logit_adjustment", "tau": 0.75}
    test = load_splits(settings(tiny_model, rows_csv, "native").data).test
    predicted = open_text_classifier(adjusted).probabilities(list(test["text"])).argmax(axis=1)
    assert metrics["test/accuracy"] == pytest.approx((predicted == np.array(test["label"])).mean())


def trial_member(trial_config: TrialConfig) -> TrialModel:
    config = trial_config.model_dump(mode="json")
    return TrialModel(name="t000", trial="t000", config=config, report=BEST, checkpoint="none", is_stage_one_end=False)


@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_an_ensemble_is_a_folder_of_folders_with_the_mean_of_their_probabilities(
    tau: float, exported: Callable[..., Any], texts: list[str], tiny_model: TinyModel, rows_csv: Path
) -> None:
    """Its members are the trained model, postprocessed on its own, and a linear classifier."""
    best, data, _ = exported("native", {"temperature": True})
    run = best.parent
    (checkpoint,) = (run / "state/checkpoints/t000").iterdir()
    trial_config = settings(tiny_model, rows_csv, "native")
    config = trial_config.model_dump(mode="json")
    member = TrialModel(
        name="t007", trial="t000", config=config, report=BEST, checkpoint=checkpoint.name, is_stage_one_end=False
    )
    linear = fit_baseline("svm_balanced", trial_config.data, trial_config.model, data, "validation/macro_f1")
    request = ModelRequest(
        location=str(run),
        data=DataSource(key=data.key, published=str(data.folder), digest=data.digest),
        metric="validation/macro_f1",
        postprocess=PostprocessConfig(temperature=True).model_dump(),
        members=[linear, member],
        weights=[0.25, 0.75],
        tau=tau,
    )
    said = export_model(export_request(request, "ensemble of 2", member))
    assert [line.split(":")[0] for line in said] == ["t007"]
    assert not (best / "model.safetensors").exists(), "nothing of an earlier model is left"
    whole = open_text_classifier(best).probabilities(texts)
    parts = [open_text_classifier(best / "members" / number).probabilities(texts) for number in ("1", "2")]
    adjusted = (0.25 * parts[0] + 0.75 * parts[1]) / (data.class_counts / data.class_counts.sum()) ** tau
    np.testing.assert_allclose(whole, adjusted / adjusted.sum(axis=1, keepdims=True), atol=1e-12)
    metrics = json.loads((best / "metrics.json").read_text())
    test = load_splits(trial_config.data).test
    predicted = open_text_classifier(best).probabilities(list(test["text"])).argmax(axis=1)
    assert metrics["test/accuracy"] == pytest.approx((predicted == np.array(test["label"])).mean())
    assert [(entry["kind"], entry["weight"]) for entry in metrics["members"]] == [("baseline", 0.25), ("trial", 0.75)]
    assert metrics.get("decision") == ({"kind": "logit_adjustment", "tau": tau} if tau else None)
    assert "| 2 | t007 | stage two | 0.750 |" in (best / "README.md").read_text()
