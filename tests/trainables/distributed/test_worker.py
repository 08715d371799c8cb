"""A slot's worker without Ray: how its trials end, and when it ends itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.distributed import worker
from tailsweep.trainables.distributed.log_forwarding import ForwardedMessages
from tailsweep.trainables.distributed.report_queue import End, Task
from tailsweep.trainables.distributed.settings import WorkerConfig
from tailsweep.trainables.distributed.worker import RayRuntime, SlotWorker, TrialStopped, train_trials
from tailsweep.trainables.execution import allocator


class Queue:
    """Records what a worker says; gives it one task after another."""

    def __init__(self, task: Task, continues: bool = True) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"next_task": task, "report": continues}

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append((method, *arguments))
            return self.answers.get(method)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    return WorkerConfig(
        trial=TrialConfig.model_validate({"data": {"train": "not read here"}, "stage_one": {}, "stage_two": {}}),
        metric=report_keys.DEFAULT_METRIC,
        data=DataSource(key="0" * 64, published="/nowhere", digest="0" * 64),
        features=None,
        resume_from=(str(tmp_path / "t000"),),
    )


@pytest.fixture
def task(config: WorkerConfig) -> Task:
    return Task("attempt", config.model_dump(mode="json"))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A single worker; Ray's references are the values themselves."""
    size = SimpleNamespace(workers=1)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: size.workers)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker.ray, "get", lambda reference: reference)
    return size


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError("the point"), End("own", "ValueError: the point")),
        (MemoryError("too much"), End("memory", "MemoryError: too much")),
        (TrialStopped(), End()),
        (None, End()),
    ],
)
def test_a_trials_own_error_ends_the_trial_alone(
    error: Exception | None, end: End, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "train_two_stages", train)
    assert SlotWorker(Queue(task)).run(task) == end  # type: ignore[arg-type]


def test_with_several_workers_it_ends_them_all_as_the_others_may_wait(
    task: Task, monkeypatch: pytest.MonkeyPatch, no_ray: SimpleNamespace
) -> None:
    def train(*_: Any) -> None:
        raise ValueError("the point")

    no_ray.workers = 2
    monkeypatch.setattr(worker, "train_two_stages", train)
    with pytest.raises(ValueError, match="the point"):
        SlotWorker(Queue(task)).run(task)  # type: ignore[arg-type]


@pytest.mark.parametrize("continues", [True, False])
def test_a_trial_ends_at_a_report_after_which_tune_stops_it(continues: bool, task: Task, config: WorkerConfig) -> None:
    queue: Any = Queue(task, continues)
    messages = ForwardedMessages()
    messages.messages = ["a word"]
    runtime = RayRuntime(SlotWorker(queue), task.attempt, config, messages)
    report = {report_keys.STAGE: "stage_one", report_keys.EPOCH: 1}
    if continues:
        runtime.report(report, None)
    else:
        with pytest.raises(TrialStopped):
            runtime.report(report, None)
    assert queue.calls == [("report", "attempt", {**report, report_keys.NOTICE: "a word"})]


@pytest.mark.parametrize(("grown_to", "trials"), [(3.9, 4), (4.2, 3)])
def test_a_process_whose_memory_has_grown_ends_after_its_trial(
    grown_to: float, trials: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds 2 GiB after its first trial, so that 4 GiB are too much."""
    gibibytes = iter([2.0, 2.5, grown_to, 4.2])

    def memory_info() -> SimpleNamespace:
        return SimpleNamespace(rss=int(next(gibibytes) * 2**30))

    monkeypatch.setattr(worker.psutil, "Process", lambda: SimpleNamespace(memory_info=memory_info))
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: None)  # this process is not the test's own
    monkeypatch.setattr(SlotWorker, "run", lambda self, task: End())
    queue = Queue(task)
    train_trials({"slot": "slot", "queue": queue})
    assert queue.calls.count(("end", "slot", "attempt", End())) == trials
