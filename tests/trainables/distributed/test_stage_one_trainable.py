"""Faults of a trial in a two-phase sweep's first phase: what Tune's process does, without Tune."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig, DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.distributed import retry_policy, tune_trainables
from tailsweep.trainables.distributed.settings import (
    FeatureSource,
    Placement,
    TrialSetup,
    TuneTrialConfig,
    WorkerConfig,
)
from tailsweep.trainables.distributed.tune_trainables import run_stage_one
from tailsweep.trainables.execution.backends import CachedTokensExecution
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage import retry
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.checkpoint import is_whole

EPOCHS = 3
SECOND, LAST = "stage_one_epoch_002", "stage_one_epoch_003"


@pytest.fixture(scope="module")
def data(tiny_model: Callable[..., Path], rows_csv: Path) -> PreparedData:
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    return prepare(config, str(tiny_model("bert")), default_cache_dir())


class Phase:
    """Runs one trial; keeps its reports to Tune."""

    def __init__(self, model: Path, data: PreparedData, storage: Path) -> None:
        stage = {"batch_size": 16, "learning_rate": 1e-3, "epochs": EPOCHS, "trainable": {"top_layers": 1}}
        tree = {"data": {"train": "not read here"}, "model": {"name": str(model)}, "stage_one": stage}
        tree["stage_two"] = {"batch_size": 32}
        self.trial = TrialConfig.model_validate(tree)
        built = build_classifier(self.trial.model, data.label_names, 0)
        plan = plan_features(built, self.trial.stage_one, data, "fp32", torch.device("cpu"))
        assert isinstance(plan, FeaturePlan)
        self.features = FeatureSource(plan=plan.dump(), published="/nowhere", num_parts=1, cache_dir=None)
        self.data, self.storage = data, storage
        self.reports: list[dict[str, Any]] = []

    @property
    def checkpoints(self) -> Path:
        return self.storage / "t000"

    def run(self, retries: int = 2) -> None:
        worker = WorkerConfig(
            trial=self.trial,
            metric=report_keys.DEFAULT_METRIC,
            data=DataSource(key=self.data.key, published=str(self.data.folder), digest=self.data.digest),
            features=self.features,
            resume_from=(str(self.checkpoints),),
        )
        placement = Placement(workers=1, min_workers=1, cpus_per_worker=1, gpus_per_worker=0)
        setup = TrialSetup(*[str(self.storage)] * 3, placement, report_queue=None, retries=retries)
        self.reports.clear()
        run_stage_one({"trial": TuneTrialConfig(name="t000", worker=worker, reported=()).dump()}, setup)

    def values(self, key: str) -> list[Any]:
        return [report[key] for report in self.reports if key in report]

    @property
    def scores(self) -> dict[float, float]:
        return {
            report[report_keys.EPOCH]: report[report_keys.TRAIN_LOSS]
            for report in self.reports
            if report_keys.STAGE in report
        }


@pytest.fixture
def phase(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Phase:
    """A trial whose retry delays are short."""
    phase = Phase(tiny_model("bert", dropout=0.0), data, tmp_path)
    monkeypatch.setattr(tune_trainables.tune, "report", phase.reports.append)
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.05, 0.05))
    monkeypatch.setattr(retry_policy, "FIRST_DELAY_S", 0.01)
    return phase


@pytest.fixture
def undisturbed(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[float, float]:
    phase = Phase(tiny_model("bert", dropout=0.0), data, tmp_path / "undisturbed")
    monkeypatch.setattr(tune_trainables.tune, "report", phase.reports.append)
    phase.run()
    assert list(phase.scores) == [1, 2, 3]
    return phase.scores


def test_out_of_memory_steps_use_smaller_micro_batches(
    undisturbed: dict[float, float], phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = CachedTokensExecution.inputs

    def out_of_memory(execution: CachedTokensExecution, split: str, rows: Any) -> Any:
        if torch.is_grad_enabled() and len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inputs(execution, split, rows)

    monkeypatch.setattr(CachedTokensExecution, "inputs", out_of_memory)
    phase.run(retries=0)
    assert phase.scores == pytest.approx(undisturbed, abs=1e-6)  # the batches are what they were
    first, second = phase.values(report_keys.NOTICE)
    assert "more micro-batches (2 in stage one" in first
    assert "more micro-batches (4 in stage one" in second
    assert phase.values(report_keys.FAILURE) == []


def test_memory_too_short_for_a_single_row_fails_the_trial(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("tailsweep.trainables.distributed.stage_one_actor.run_two_stages", no_memory)
    phase.run()
    assert len(phase.values(report_keys.NOTICE)) == 5  # batches of 32 in stage two: 2, 4, 8, 16, 32 micro-batches
    assert phase.values(report_keys.FAILURE) == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"]


def test_of_its_own_errors_a_trial_fails_at_once(phase: Phase) -> None:
    stage = phase.trial.stage_one.model_copy(update={"learning_rate": 1e30})
    phase.trial = phase.trial.model_copy(update={"stage_one": stage})
    phase.run()
    assert phase.values(report_keys.NOTICE) == []
    (failure,) = phase.values(report_keys.FAILURE)
    assert failure.startswith("TrainingDiverged: ")


def test_storage_that_takes_nothing_fails_the_trial_after_its_retries(phase: Phase) -> None:
    phase.checkpoints.mkdir()
    (phase.checkpoints / ".stage_one_epoch_001.partial").write_text("")  # a file where a folder must be
    phase.run(retries=2)
    assert [notice.rsplit("(", 1)[1] for notice in phase.values(report_keys.NOTICE)] == [
        "retry 1 of 2)",
        "retry 2 of 2)",
    ]
    (failure,) = phase.values(report_keys.FAILURE)
    assert failure.startswith(f"StorageError: storage refused {phase.checkpoints}/stage_one_epoch_001 3 times")


def test_a_refusal_that_passes_between_two_starts_is_got_over(
    undisturbed: dict[float, float], phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase.checkpoints.write_text("")
    monkeypatch.setattr(tune_trainables.time, "sleep", lambda seconds: phase.checkpoints.unlink(missing_ok=True))
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", ())  # nothing is waited for within a start
    phase.run()
    assert phase.scores == pytest.approx(undisturbed, abs=1e-6)
    assert len(phase.values(report_keys.NOTICE)) == 1
    assert [path.name for path in phase.checkpoints.iterdir()] == [LAST]


@pytest.mark.parametrize("file", ["parameters.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    file: str, undisturbed: dict[float, float], phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"

    def keep_the_second(report: dict[str, Any]) -> None:
        if report.get(report_keys.EPOCH) == 2:
            shutil.copytree(phase.checkpoints / SECOND, aside)

    monkeypatch.setattr(tune_trainables.tune, "report", keep_the_second)
    phase.run()
    aside.rename(phase.checkpoints / SECOND)
    (phase.checkpoints / LAST / file).write_bytes(b"{}")
    monkeypatch.setattr(tune_trainables.tune, "report", phase.reports.append)
    phase.run()
    assert phase.values(report_keys.NOTICE) == [
        f"damaged, by their checksums, and passed over: {LAST}; continues from {SECOND}"
    ]
    assert phase.scores == pytest.approx(undisturbed, abs=1e-6)
    assert [path.name for path in phase.checkpoints.iterdir()] == [LAST]
    assert is_whole(phase.checkpoints / LAST)
