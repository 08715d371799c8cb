"""Faults of a stack in a two-phase sweep's first phase: what Tune's process does, without Tune."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.loaded_classifier import build_classifier
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataConfig, DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import PreparedData
from tailsweep.trainables.distributed import retry_policy, stack_actor
from tailsweep.trainables.distributed.report_queue import StackVerdicts
from tailsweep.trainables.distributed.settings import (
    FeatureSource,
    Placement,
    StackConfig,
    TrialSetup,
    TuneTrialConfig,
    WorkerConfig,
)
from tailsweep.trainables.distributed.stack_actor import run_stack
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.stacks.stack_checkpoint import load_stack
from tailsweep.trainables.stacks.stacked_heads import StackedHeads
from tailsweep.trainables.storage.cache import default_cache_dir
from tailsweep.trainables.training.checkpoint import PARAMETERS_FILE

NAMES = ("t000", "t001", "t002", "t003")
EPOCHS = 2


@pytest.fixture(scope="module")
def data(tiny_model: Callable[..., Path], rows_csv: Path) -> PreparedData:
    config = DataConfig(train=str(rows_csv), validation=0.2, test=0.2)
    return prepare(config, str(tiny_model("bert")), default_cache_dir())


class StackRun:
    """Runs a stack; keeps its reports to Tune, and ends the trials in ``over`` at their first report."""

    def __init__(self, model: Path, data: PreparedData, storage: Path) -> None:
        self.over: set[str] = set()
        self.reports: list[dict[str, Any]] = []
        self.storage = storage
        members = [self.member(number, name, model, data) for number, name in enumerate(NAMES)]
        self.config = StackConfig(name="s000", members=tuple(members), resume_from=None)

    def member(self, number: int, name: str, model: Path, data: PreparedData) -> TuneTrialConfig:
        stage = {"batch_size": 8, "learning_rate": 10.0 ** -(number + 1), "epochs": EPOCHS, "trainable": "head"}
        tree = {"data": {"train": "not read here"}, "model": {"name": str(model)}, "stage_one": stage}
        trial = TrialConfig.model_validate(tree | {"stage_two": {"batch_size": 8}})
        built = build_classifier(trial.model, data.label_names, 0)
        plan = plan_features(built, trial.stage_one, data, "fp32", torch.device("cpu"))
        assert isinstance(plan, FeaturePlan)
        worker = WorkerConfig(
            trial=trial,
            metric=report_keys.DEFAULT_METRIC,
            data=DataSource(key=data.key, published=str(data.folder), digest=data.digest),
            features=FeatureSource(plan=plan.dump(), published="/nowhere", num_parts=1, cache_dir=None),
            resume_from=(str(self.storage / name),),
        )
        return TuneTrialConfig(name=name, worker=worker, reported=())

    def run(self, retries: int = 2) -> None:
        placement = Placement(workers=1, min_workers=1, cpus_per_worker=1, gpus_per_worker=0)
        taking = SimpleNamespace(remote=lambda attempt, number: sorted(self.over))
        verdicts: Any = SimpleNamespace(take=taking)
        setup = TrialSetup(*[str(self.storage)] * 3, placement, report_queue=None, retries=retries, verdicts=verdicts)
        run_stack({"stack": self.config.dump()}, setup)

    def values(self, key: str) -> list[Any]:
        return [report[key] for report in self.reports if key in report]

    @property
    def scores(self) -> dict[tuple[str, float], float]:
        rows = [row for reported in self.values(report_keys.REPORTS) for row in reported]
        return {(row["trial"], row[report_keys.EPOCH]): row[report_keys.TRAIN_LOSS] for row in rows}

    @property
    def failures(self) -> dict[str, str]:
        return {trial: why for failed in self.values(report_keys.FAILURES) for trial, why in failed}


@pytest.fixture
def stack(
    tiny_model: Callable[..., Path], data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StackRun:
    """A stack whose retry delays are short."""
    stack = StackRun(tiny_model("bert", dropout=0.1), data, tmp_path)
    monkeypatch.setattr(stack_actor.tune, "report", stack.reports.append)
    monkeypatch.setattr(stack_actor.ray, "get", lambda given: given)
    monkeypatch.setattr(retry_policy, "FIRST_DELAY_S", 0.01)
    return stack


@pytest.fixture
def undisturbed(stack: StackRun) -> dict[tuple[str, float], float]:
    storage, stack.storage = stack.storage, stack.storage / "undisturbed"
    stack.run()
    stack.storage, scores = storage, stack.scores
    assert len(scores) == len(NAMES) * EPOCHS
    stack.reports.clear()
    return scores


def test_what_tune_has_of_a_stack_is_plain_and_short(stack: StackRun) -> None:
    dumped = stack.config.dump()
    read = StackConfig.model_validate_json(json.loads(json.dumps(dumped))["json"])
    assert read.model_dump_json() == stack.config.model_dump_json()
    assert dumped["trials"] == list(NAMES)


def test_a_stack_that_memory_does_not_suffice_for_is_halved(
    undisturbed: dict[tuple[str, float], float], stack: StackRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, steps = StackedHeads.update, []

    def out_of_memory(heads: StackedHeads, *arguments: Any) -> None:
        steps.append(len(heads))
        if len(heads) > 2 and len(steps) > 8:  # within the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        update(heads, *arguments)

    monkeypatch.setattr(StackedHeads, "update", out_of_memory)
    stack.run(retries=0)
    assert stack.scores == pytest.approx(undisturbed, abs=1e-6)
    assert stack.values(report_keys.NOTICE) == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB; continues as two halves"
    ]
    halves = [load_stack(max((stack.storage / name).iterdir())) for name in ("s000.0", "s000.1")]
    assert [set(half.ended) for half in halves] == [set(NAMES[:2]), set(NAMES[2:])]


def test_memory_too_short_for_a_single_head_fails_it(stack: StackRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(StackedHeads, "update", no_memory)
    stack.run()
    assert stack.failures == dict.fromkeys(NAMES, "MemoryError: no message")


def test_a_refused_file_is_retried_from_the_last_checkpoint(
    undisturbed: dict[tuple[str, float], float], stack: StackRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, steps = StackedHeads.update, []

    def refused_once(heads: StackedHeads, *arguments: Any) -> None:
        steps.append(len(heads))
        if len(steps) == 9:
            raise OSError(28, "No space left on device")
        update(heads, *arguments)

    monkeypatch.setattr(StackedHeads, "update", refused_once)
    stack.run()
    assert stack.scores == pytest.approx(undisturbed, abs=1e-6)
    assert "retry 1 of 2" in stack.values(report_keys.NOTICE)[0]


def test_a_damaged_checkpoint_is_passed_over(undisturbed: dict[tuple[str, float], float], stack: StackRun) -> None:
    stack.run()
    (checkpoint,) = (stack.storage / "s000").iterdir()
    (checkpoint / PARAMETERS_FILE).write_bytes(b"damaged")
    stack.reports.clear()
    stack.run()
    assert stack.scores == pytest.approx(undisturbed, abs=1e-6)
    assert "stage_one_epoch_002" in stack.values(report_keys.NOTICE)[0]


def test_those_that_the_sweep_ends_report_no_more(undisturbed: dict[tuple[str, float], float], stack: StackRun) -> None:
    stack.over = {"t001", "t003"}
    stack.run()
    expected = {place: value for place, value in undisturbed.items() if place[0] not in stack.over or place[1] == 1}
    assert stack.scores == pytest.approx(expected, abs=1e-6)


def test_an_error_of_all_fails_all(stack: StackRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(stack_actor, "train_stack", broken)
    stack.run()
    assert stack.failures == dict.fromkeys(NAMES, "ValueError: no such thing")


def test_a_verdict_is_waited_for_and_taken_once() -> None:
    async def exchange() -> tuple[list[str], list[str]]:
        verdicts = StackVerdicts()
        waiting = asyncio.create_task(verdicts.take("a", 2))
        await verdicts.give("a", 1, ["t000"])
        first = await verdicts.take("a", 1)
        assert not waiting.done()
        await verdicts.give("a", 2, [])
        return first, await waiting

    assert asyncio.run(exchange()) == (["t000"], [])
