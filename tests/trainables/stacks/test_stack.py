"""Stage one of many trials at once: each is what it is alone, whoever is in the stack and whenever it is resumed."""

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.errors import ModelError
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import make_features
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.stacks.stack import StackInputs, stack_key, train_stack
from tailsweep.trainables.stacks.stack_checkpoint import StackState, load_stack, save_trial
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.checkpoint import PARAMETERS_FILE, is_whole, load_progress
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages

CPU = torch.device("cpu")
NOT_COMPARED = {report_keys.SECONDS, report_keys.EXECUTION}
STAGE = {"trainable": "head", "batch_size": 8, "epochs": 3}
MEMBERS: dict[str, dict[str, Any]] = {
    "t000": {"learning_rate": 1e-2},
    "t001": {"learning_rate": 3e-2, "loss": {"name": "ldam", "reweight_after": 0.5}, "epochs": 2},
    "t002": {"learning_rate": 1e-3, "loss": {"name": "focal", "gamma": 1.5}, "weight_decay": 0.1},
    "t003": {"learning_rate": 1e-30, "patience": 1},  # where nothing moves, the second evaluation is no better
    "t004": {"learning_rate": 5e-2, "loss": {"name": "balanced_softmax"}, "warmup_fraction": 0.3},
}


@pytest.fixture(scope="module")
def model_folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("bert", dropout=0.1)


@pytest.fixture(scope="module")
def data(model_folder: Path, rows_csv: Path) -> PreparedData:
    return prepare(DataConfig(train=str(rows_csv), validation=0.2, test=0.2), str(model_folder), default_cache_dir())


def trial(folder: Path, *, model: Mapping[str, Any] | None = None, **stage_one: Any) -> TrialConfig:
    tree = {"data": {"train": "not read here"}, "model": {"name": str(folder), **(model or {})}}
    return TrialConfig.model_validate(tree | {"stage_one": STAGE | stage_one, "stage_two": {"batch_size": 8}})


class Receiver:
    """Keeps reports and the checkpoints below a folder; ``over`` says by epoch which trials the sweep ends."""

    device = CPU

    def __init__(self, folder: Path, over: Mapping[float, Collection[str]] | None = None) -> None:
        self.folder, self.over = folder, over or {}
        self.reports: dict[str, list[Report]] = {}
        self.failures: dict[str, Exception] = {}

    def report(
        self, reports: Mapping[str, Report], failures: Mapping[str, Exception], checkpoint: Path | None
    ) -> Collection[str]:
        for name, report in reports.items():
            self.reports.setdefault(name, []).append(report)
        self.failures |= failures
        if checkpoint is not None:
            assert is_whole(checkpoint)
            shutil.copytree(checkpoint, self.folder / checkpoint.name)
        return [name for epoch, names in self.over.items() for name in names if self._has(name, epoch)]

    def _has(self, name: str, epoch: float) -> bool:
        return any(report[report_keys.EPOCH] == epoch for report in self.reports.get(name, []))


def stacked(
    trials: Mapping[str, TrialConfig],
    data: PreparedData,
    folder: Path,
    over: Mapping[float, Collection[str]] | None = None,
    start: StackState | None = None,
) -> Receiver:
    receiver = Receiver(folder, over)
    config = next(iter(trials.values()))
    model = build_classifier(config.model, data.label_names, config.seed)
    plan = plan_features(model, config.stage_one, data, "fp32", CPU)
    assert isinstance(plan, FeaturePlan)
    features = make_features(plan, model, data, default_cache_dir(), CPU)
    train_stack(trials, StackInputs(data, features), model, receiver, start)
    return receiver


def alone(config: TrialConfig, data: PreparedData, folder: Path) -> list[Report]:
    stage_two = config.stage_two.model_copy(update={"epochs": 0})
    config = config.model_copy(update={"stage_two": stage_two})
    model = build_classifier(config.model, data.label_names, config.seed)
    plan = plan_features(model, config.stage_one, data, "fp32", CPU)
    assert isinstance(plan, FeaturePlan)
    runtime = SingleProcess(CPU, folder)
    features = make_features(plan, model, data, default_cache_dir(), CPU)
    run_two_stages(TrialRun(config, data, runtime, features), model)
    return runtime.reports


def assert_same(actual: Sequence[Report], expected: Sequence[Report]) -> None:
    assert [report[report_keys.EPOCH] for report in actual] == [report[report_keys.EPOCH] for report in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - NOT_COMPARED:
            assert ours[key] == (
                pytest.approx(theirs[key], abs=2e-6) if isinstance(theirs[key], float) else theirs[key]
            )


@pytest.mark.parametrize(
    ("shared", "model"),
    [
        ({}, {}),
        ({"sampling": "class_balanced", "evaluations_per_epoch": 2}, {"head": {"pooling": "mean"}}),
        ({}, {"head": {"pooling": "cls"}, "head_init": "class_means"}),
        ({"precision": "bf16"}, {"head": {"pooling": "mean"}}),
    ],
)
def test_each_trial_is_what_it_is_alone(
    shared: dict[str, Any], model: dict[str, Any], model_folder: Path, data: PreparedData, tmp_path: Path
) -> None:
    trials = {name: trial(model_folder, model=model, **shared, **own) for name, own in MEMBERS.items()}
    assert len({stack_key(config) for config in trials.values()}) == 1
    receiver = stacked(trials, data, tmp_path / "stack")
    last = load_stack(max((tmp_path / "stack").iterdir()))
    assert set(last.ended) == set(trials)
    for name, config in trials.items():
        expected = alone(config, data, tmp_path / name)
        if "precision" in shared:  # products are rounded to 8 bits, and so are the differences
            assert len(receiver.reports[name]) == len(expected)
            continue
        assert_same(receiver.reports[name], expected)
        theirs = max((tmp_path / name).iterdir())
        ours = tmp_path / "extracted" / name / theirs.name
        ours.mkdir(parents=True)
        save_trial(ours, last, name)
        assert is_whole(ours)
        assert load_progress(ours).name == theirs.name
        assert_same(load_progress(ours).reports, expected)
        parameters, expected_parameters = load_file(ours / PARAMETERS_FILE), load_file(theirs / PARAMETERS_FILE)
        assert parameters.keys() == expected_parameters.keys()
        for key, value in parameters.items():
            torch.testing.assert_close(value, expected_parameters[key], atol=3e-6, rtol=1e-5)


def test_a_trial_that_diverges_fails_and_the_others_continue(
    model_folder: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailsweep.trainables.stacks.stack.STEPS_BETWEEN_LOSS_CHECKS", 2)
    own = {"t000": {"learning_rate": 1e-2}, "t001": {"learning_rate": 1e38}, "t002": {"learning_rate": 1e-3}}
    trials = {name: trial(model_folder, **values) for name, values in own.items()}
    receiver = stacked(trials, data, tmp_path / "stack")
    assert set(receiver.failures) == {"t001"}
    assert "learning_rate 1e+38 is likely too high" in str(receiver.failures["t001"])
    assert "t001" not in receiver.reports
    for name in ("t000", "t002"):
        assert_same(receiver.reports[name], alone(trials[name], data, tmp_path / name))


def test_all_may_diverge(model_folder: Path, data: PreparedData, tmp_path: Path) -> None:
    trials = {name: trial(model_folder, learning_rate=1e38, loss={"name": "ldam"}) for name in ("t000", "t001")}
    receiver = stacked(trials, data, tmp_path / "stack")
    assert set(receiver.failures) == set(trials)
    assert receiver.reports == {}


def test_one_that_the_sweep_ends_trains_no_further(model_folder: Path, data: PreparedData, tmp_path: Path) -> None:
    trials = {name: trial(model_folder, **own) for name, own in MEMBERS.items()}
    receiver = stacked(trials, data, tmp_path / "stack", over={1: ["t000"], 2: ["t002"]})
    assert len(receiver.reports["t000"]) == 1
    assert len(receiver.reports["t002"]) == 2
    assert_same(receiver.reports["t004"], alone(trials["t004"], data, tmp_path / "t004"))
    last = load_stack(max((tmp_path / "stack").iterdir()))
    assert set(last.ended) == {"t001", "t003", "t004"}


@pytest.mark.parametrize("resumed", [tuple(MEMBERS), ("t004", "t000"), ("t001",)])
def test_a_resumed_stack_of_other_composition_continues_where_it_was(
    resumed: tuple[str, ...], model_folder: Path, data: PreparedData, tmp_path: Path
) -> None:
    trials = {name: trial(model_folder, **own) for name, own in MEMBERS.items()}
    whole = stacked(trials, data, tmp_path / "whole")
    start = load_stack(tmp_path / "whole" / "stage_one_epoch_001")
    again = stacked({name: trials[name] for name in resumed}, data, tmp_path / "again", start=start)
    for name in resumed:
        assert_same(again.reports[name], whole.reports[name])  # what is done is published again
    assert set(load_stack(max((tmp_path / "again").iterdir())).ended) == set(resumed)


def test_what_a_step_does_beyond_the_loss_trains_alone(model_folder: Path) -> None:
    shared = stack_key(trial(model_folder, learning_rate=1e-2))
    assert shared == stack_key(trial(model_folder, learning_rate=1e-3, loss={"name": "ldam"}, epochs=5, patience=2))
    for own in (
        {"trainable": "pooler"},
        {"mixup": 0.5},
        {"contrastive": {"weight": 0.5}},
        {"r_drop": 1.0},
        {"ema_decay": 0.9},
        {"gradient_accumulation": 2},
        {"epochs": 0},
    ):
        assert stack_key(trial(model_folder, **own)) is None
    for own in ({"batch_size": 4}, {"sampling": "sqrt"}, {"steps": 7}, {"precision": "bf16"}):
        assert stack_key(trial(model_folder, **own)) not in (None, shared)
    progressive = [trial(model_folder, sampling="progressive", epochs=epochs) for epochs in (2, 3)]
    assert stack_key(progressive[0]) != stack_key(progressive[1])  # its rows depend on the number of epochs


def test_a_head_of_two_layers_is_refused(model_folder: Path, data: PreparedData, tmp_path: Path) -> None:
    """A stack would train its last layer alone. Its features are those of a linear head."""
    mlp = trial(model_folder, model={"head": {"pooling": "mean", "kind": "mlp"}}, learning_rate=1e-2)
    with pytest.raises(ModelError, match="is more"):
        stacked({"t000": mlp}, data, tmp_path)


def test_time_is_shared(model_folder: Path, data: PreparedData, tmp_path: Path) -> None:
    trials = {name: trial(model_folder, learning_rate=1e-2) for name in ("t000", "t001")}
    reports = stacked(trials, data, tmp_path).reports
    for ours, theirs in zip(reports["t000"], reports["t001"], strict=True):
        assert math.isclose(float(ours[report_keys.SECONDS] or 0), float(theirs[report_keys.SECONDS] or 0), rel_tol=0.5)
