"""A warm process: one trial's stage one after another, each as if it were alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig, DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.distributed.inputs import open_features
from tailsweep.trainables.distributed.settings import FeatureSource
from tailsweep.trainables.distributed.stage_one_actor import train_stage_one
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.runtime import Report, SingleProcess
from tailsweep.trainables.training.stages import TrialRun, run_two_stages, stage_one_is_left
from torch import Tensor

TinyModel = Callable[..., Path]
CPU = torch.device("cpu")
TOP_LAYER = {"top_layers": 1}


@pytest.fixture(scope="module")
def data(tiny_model: TinyModel, rows_csv: Path) -> PreparedData:
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    return prepare(config, str(tiny_model("bert")), default_cache_dir())


def trial(
    model: Path, learning_rate: float, trainable: Any = TOP_LAYER, evaluations: int = 1, patience: int | None = None
) -> TrialConfig:
    stage = {"batch_size": 16, "learning_rate": learning_rate}
    return TrialConfig.model_validate(
        {
            "data": {"train": "not read here"},
            "model": {"name": str(model)},
            "stage_one": {**stage, "trainable": trainable, "epochs": 2, "loss": {"name": "ldam"}}
            | {"evaluations_per_epoch": evaluations, "patience": patience},
            "stage_two": {**stage, "learning_rate": 1e-3, "epochs": 1},
        }
    )


def features_of(config: TrialConfig, data: PreparedData) -> FeatureSource:
    model = build_classifier(config.model, data.label_names, config.seed)
    plan = plan_features(model, config.stage_one, data, "fp32", CPU)
    assert isinstance(plan, FeaturePlan)
    return FeatureSource(plan=plan.dump(), published="/nowhere", num_parts=1, cache_dir=None)


def source_of(data: PreparedData) -> DataSource:
    return DataSource(key=data.key, published=str(data.folder), digest=data.digest)


def warm(
    config: TrialConfig, data: PreparedData, folder: Path | None = None, start: Path | None = None
) -> list[Report]:
    runtime = SingleProcess(CPU, folder)
    train_stage_one(config, source_of(data), features_of(config, data), runtime, start)
    return runtime.reports


def active(
    config: TrialConfig, data: PreparedData, start: Path | None = None
) -> tuple[list[Report], dict[str, Tensor]]:
    """Both stages in a process that has trained nothing else."""
    model = build_classifier(config.model, data.label_names, config.seed)
    features = open_features(model, data, features_of(config, data))
    runtime = SingleProcess(CPU)
    run_two_stages(TrialRun(config, data, runtime, features), model, start)
    return runtime.reports, model.state_dict()


def without_seconds(reports: Sequence[Report]) -> list[dict[str, Any]]:
    return [{key: value for key, value in report.items() if key != report_keys.SECONDS} for report in reports]


def test_what_trained_before_leaves_no_trace(tiny_model: TinyModel, data: PreparedData) -> None:
    """Dropout on. Between: a wild trial, one that trains fewer parameters, one whose loss is not a number."""
    model = tiny_model("bert", dropout=0.1)
    config = trial(model, 1e-3)
    expected = without_seconds(active(config, data)[0][:2])
    assert without_seconds(warm(config, data)) == expected
    warm(trial(model, 0.3), data)
    warm(trial(model, 1e-2, trainable="head"), data)
    with pytest.raises(ArithmeticError):
        warm(trial(model, 1e30), data)
    assert without_seconds(warm(config, data)) == expected


@pytest.mark.parametrize(
    ("learning_rate", "patience", "last"),
    [(1e-3, None, "002"), (1e-30, 1, "001")],  # where nothing moves, the second of four evaluations is no better
)
def test_stage_two_from_a_warm_stage_one_is_stage_two_of_the_whole_trial(
    learning_rate: float, patience: int | None, last: str, tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert", dropout=0.1), learning_rate, evaluations=2, patience=patience)
    expected_reports, expected = active(config, data)
    warm(config, data, tmp_path)
    assert max(path.name for path in tmp_path.iterdir()) == f"stage_one_epoch_{last}"
    assert not stage_one_is_left(config, tmp_path / f"stage_one_epoch_{last}")
    assert stage_one_is_left(config, tmp_path / "stage_one_epoch_000.500")
    reports, actual = active(config, data, start=tmp_path / f"stage_one_epoch_{last}")
    assert without_seconds(reports) == without_seconds(expected_reports)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_it_waits_for_the_sweeps_metric(
    tiny_model: TinyModel, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trial(tiny_model("bert", dropout=0.1), 1e-3, patience=1)
    given: list[Any] = []
    monkeypatch.setattr(
        "tailsweep.trainables.distributed.stage_one_actor.run_two_stages",
        lambda run, *arguments: given.append(run.metric),
    )
    train_stage_one(config, source_of(data), None, SingleProcess(CPU), None, "validation/mcc")
    assert given == ["validation/mcc"]


@pytest.mark.parametrize(("evaluations", "name"), [(1, "stage_one_epoch_001"), (2, "stage_one_epoch_001.500")])
def test_a_warm_stage_one_continues_from_its_checkpoint(
    evaluations: int, name: str, tiny_model: TinyModel, data: PreparedData, tmp_path: Path
) -> None:
    config = trial(tiny_model("bert", dropout=0.1), 1e-3, evaluations=evaluations)
    whole = warm(config, data, tmp_path)
    assert without_seconds(warm(config, data, start=tmp_path / name)) == without_seconds(whole)
