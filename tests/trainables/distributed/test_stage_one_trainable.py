"""A candidate of a tournament's first round on a bad day: what Tune's process does, without Tune around it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.distributed import retry_policy, tune_trainables
from tailsweep.trainables.distributed.train_run import TrialSetup
from tailsweep.trainables.distributed.tune_trainables import run_stage_one
from tailsweep.trainables.execution.backends import CachedTokensRoad
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


class Round:
    """Runs one candidate; keeps what Tune was told."""

    def __init__(self, model: Path, data: PreparedData, storage: Path) -> None:
        stage = {"batch_size": 16, "learning_rate": 1e-3, "epochs": EPOCHS, "trains": {"top_layers": 1}}
        tree = {"data": {"train": "not read here"}, "model": {"name": str(model)}, "stage_one": stage}
        tree["stage_two"] = {"batch_size": 32}
        self.trial = TrialConfig.model_validate(tree)
        built = build_classifier(self.trial.model, data.label_names, 0)
        plan = plan_features(built, self.trial.stage_one, data, "fp32", torch.device("cpu"))
        assert isinstance(plan, FeaturePlan)
        self.features = {"plan": plan.dump(), "published": "/nowhere", "num_parts": 1, "cache_dir": None}
        self.data, self.storage = data, storage
        self.told: list[dict[str, Any]] = []

    @property
    def checkpoints(self) -> Path:
        return self.storage / "c000"

    def run(self, retries: int = 2) -> None:
        worker = {
            "trial": self.trial.model_dump(mode="json"), "metric": report_keys.DEFAULT_METRIC,
            "data_key": self.data.key,
            "published_data": str(self.data.folder), "features": self.features, "checkpoints": [str(self.checkpoints)],
        }  # fmt: skip
        setup = TrialSetup(storage=str(self.storage), placement=None, mailbox=None, retries=retries)  # type: ignore[typeddict-item]
        self.told.clear()
        run_stage_one({"of": {"candidate": "c000", "worker": worker, "heard": []}}, setup)

    def of(self, key: str) -> list[Any]:
        return [told[key] for told in self.told if key in told]

    @property
    def scores(self) -> dict[float, float]:
        return {
            told[report_keys.EPOCH]: told[report_keys.TRAIN_LOSS] for told in self.told if report_keys.STAGE in told
        }


@pytest.fixture
def played(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Round:
    """A round whose pauses are short."""
    played = Round(tiny_model("bert", dropout=0.0), data, tmp_path)
    monkeypatch.setattr(tune_trainables.tune, "report", played.told.append)
    monkeypatch.setattr(retry, "DELAYS_S", (0.05, 0.05))
    monkeypatch.setattr(retry_policy, "FIRST_DELAY_S", 0.01)
    return played


@pytest.fixture
def undisturbed(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[float, float]:
    played = Round(tiny_model("bert", dropout=0.0), data, tmp_path / "undisturbed")
    monkeypatch.setattr(tune_trainables.tune, "report", played.told.append)
    played.run()
    assert list(played.scores) == [1, 2, 3]
    return played.scores


def test_out_of_memory_steps_are_made_of_smaller_micro_batches(
    undisturbed: dict[float, float], played: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = CachedTokensRoad.inputs

    def short_of_memory(road: CachedTokensRoad, split: str, rows: Any) -> Any:
        if torch.is_grad_enabled() and len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inputs(road, split, rows)

    monkeypatch.setattr(CachedTokensRoad, "inputs", short_of_memory)
    played.run(retries=0)
    assert played.scores == pytest.approx(undisturbed, abs=1e-6)  # the batches are what they were
    first, second = played.of(report_keys.NOTICE)
    assert "more micro-batches (2 in stage one" in first
    assert "more micro-batches (4 in stage one" in second
    assert played.of(report_keys.FAILURE) == []


def test_memory_too_short_for_a_single_row_fails_the_candidate(played: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("tailsweep.trainables.distributed.stage_one_actor.run_two_stages", no_memory)
    played.run()
    assert len(played.of(report_keys.NOTICE)) == 5  # batches of 32 in stage two: 2, 4, 8, 16, 32 micro-batches
    assert played.of(report_keys.FAILURE) == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"]


def test_of_its_own_errors_a_candidate_fails_at_once(played: Round) -> None:
    stage = played.trial.stage_one.model_copy(update={"learning_rate": 1e30})
    played.trial = played.trial.model_copy(update={"stage_one": stage})
    played.run()
    assert played.of(report_keys.NOTICE) == []
    (failure,) = played.of(report_keys.FAILURE)
    assert failure.startswith("TrainingDiverged: ")


def test_storage_that_takes_nothing_fails_the_candidate_after_its_retries(played: Round) -> None:
    played.checkpoints.mkdir()
    (played.checkpoints / ".stage_one_epoch_001.partial").write_text("")  # a file where a folder must be
    played.run(retries=2)
    assert [notice.rsplit("(", 1)[1] for notice in played.of(report_keys.NOTICE)] == ["retry 1 of 2)", "retry 2 of 2)"]
    (failure,) = played.of(report_keys.FAILURE)
    assert failure.startswith(f"StorageError: storage refused {played.checkpoints}/stage_one_epoch_001 3 times")


def test_a_refusal_that_passes_between_two_starts_is_got_over(
    undisturbed: dict[float, float], played: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.checkpoints.write_text("")
    monkeypatch.setattr(tune_trainables.time, "sleep", lambda seconds: played.checkpoints.unlink(missing_ok=True))
    monkeypatch.setattr(retry, "DELAYS_S", ())  # nothing is waited for within a start
    played.run()
    assert played.scores == pytest.approx(undisturbed, abs=1e-6)
    assert len(played.of(report_keys.NOTICE)) == 1
    assert [path.name for path in played.checkpoints.iterdir()] == [LAST]


@pytest.mark.parametrize("file", ["parameters.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    file: str, undisturbed: dict[float, float], played: Round, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"

    def keep_the_second(told: dict[str, Any]) -> None:
        if told.get(report_keys.EPOCH) == 2:
            shutil.copytree(played.checkpoints / SECOND, aside)

    monkeypatch.setattr(tune_trainables.tune, "report", keep_the_second)
    played.run()
    aside.rename(played.checkpoints / SECOND)
    (played.checkpoints / LAST / file).write_bytes(b"{}")
    monkeypatch.setattr(tune_trainables.tune, "report", played.told.append)
    played.run()
    assert played.of(report_keys.NOTICE) == [
        f"damaged, by their checksums, and passed over: {LAST}; goes on from {SECOND}"
    ]
    assert played.scores == pytest.approx(undisturbed, abs=1e-6)
    assert [path.name for path in played.checkpoints.iterdir()] == [LAST]
    assert is_whole(played.checkpoints / LAST)
